package manifest

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/s3syncd/s3syncd/pkg/trail"
)

// runStart is where a chain stood when the process opened it.
type runStart struct {
	chain     string
	sequence  uint64
	manifests int
}

// CopyRun writes every record of the manifests that the flushers have sealed
// since New as one JSON array, from the local copies and without holding them
// in memory.
func CopyRun(w io.Writer, flushers ...*Flusher) error {
	enc := trail.NewEncoder(w, trail.LayoutFlat)
	for _, f := range flushers {
		if err := f.copyRun(enc); err != nil {
			return fmt.Errorf("copy records of %s: %w", f.o.Source, err)
		}
	}
	return enc.Close()
}

func (f *Flusher) copyRun(enc *trail.Encoder) error {
	ch, err := f.st.Chain()
	if err != nil {
		return fmt.Errorf("read chain: %w", err)
	}
	files, err := f.local.Manifests(func(n trail.Name) bool { return n.Chain == ch.ID && f.run.precedes(n) })
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := copyLines(enc, file); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}

// precedes reports whether n was sealed after r.
func (r runStart) precedes(n trail.Name) bool {
	if n.Chain != r.chain || n.Sequence > r.sequence {
		return true // The chain began in this run, or the digest did.
	}
	return n.Sequence == r.sequence && n.N > r.manifests
}

func copyLines(enc *trail.Encoder, file string) error {
	r, err := os.Open(file)
	if err != nil {
		return err
	}
	n, _ := trail.ParseName(file)
	return errors.Join(trail.EachLine(r, n.Hive, enc.Write), r.Close())
}
