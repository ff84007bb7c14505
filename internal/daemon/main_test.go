package daemon

import (
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/s3syncd/s3syncd/internal/s3test"
)

func TestMain(m *testing.M) {
	os.Exit(s3test.Main(m, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop")))
}
