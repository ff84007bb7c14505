package admin

import (
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Where the address really leads decides whether the page is shown, whatever the
// configuration took it for.
func TestThePageIsNotServedToOtherMachinesWithoutAuthentication(t *testing.T) {
	o := Options{Listen: "0.0.0.0:0", Gatherer: prometheus.NewRegistry(), Page: http.NotFoundHandler(), Log: zap.NewNop()}
	if _, err := Listen(t.Context(), o); err == nil || !strings.Contains(err.Error(), "admin.page") {
		t.Errorf("Listen on every address with the page = %v, want a refusal", err)
	}
	for _, change := range []func(){func() { o.Listen = "127.0.0.1:0" }, func() { o.Listen, o.Page = "0.0.0.0:0", nil }} {
		change()
		s, err := Listen(t.Context(), o)
		if err != nil {
			t.Fatalf("Listen on %s = %v", o.Listen, err)
		}
		if err := s.bound.Close(); err != nil {
			t.Error(err)
		}
	}
}
