package trail

import (
	"bytes"
	"encoding/json"
	"errors"

	"github.com/s3syncd/s3syncd/internal/strictjson"
	"github.com/s3syncd/s3syncd/pkg/state"
)

// documents is the format of the documents of a trail.
var documents = strictjson.Of(state.MaxNumber, state.Record{}, Digest{}, Signature{}) //nolint:gochecknoglobals // It is computed once.

// Unambiguous returns an error for a document that other programs may read as
// something else than this one does.
func Unambiguous(data []byte) error { return documents.Check(data) }

// UnambiguousConfig is unambiguous for a configuration object. The hash in its
// name is all that one in another form than JSON claims.
func UnambiguousConfig(data []byte) error {
	switch {
	case !bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n\ufeff"), []byte{'{'}):
		return nil
	case !json.Valid(data):
		return errors.New("it is not one JSON object")
	}
	return Unambiguous(data)
}
