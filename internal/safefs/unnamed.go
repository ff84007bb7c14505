package safefs

import (
	"errors"
	"os"
)

// Unnamed creates a temporary file in dir, "" being the directory for temporary
// files, and removes its name at once: neither a crash nor a kill leaves it
// behind.
func Unnamed(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "s3syncd-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
