package queue

import (
	"strings"
	"time"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Job asks for one path to be handled. It is a hint: the worker reads the file
// and the index itself.
type Job struct {
	Source   string
	Path     string // Raw bytes below the source, slash-separated.
	Kind     archive.Kind
	Err      error // Refused only.
	Trigger  archive.Trigger
	Detected time.Time // When the change was first seen.
	// Confirmed allows a Gone job to delete the object of a source whose policy
	// is mirror. A later offer that has seen the file withdraws it.
	Confirmed bool
}

// merge adds a later offer of the same path to j.
func (j *Job) merge(later Job) {
	j.Confirmed = later.Kind == archive.Gone && (later.Confirmed || j.Kind == archive.Gone && j.Confirmed)
	j.Kind, j.Err = later.Kind, later.Err
	if j.Detected.IsZero() || !later.Detected.IsZero() && later.Detected.Before(j.Detected) {
		j.Detected = later.Detected
	}
	if later.Trigger == archive.TriggerEvent || j.Trigger == "" {
		j.Trigger = later.Trigger
	}
}

// OffPath reports whether the job's path only names an object key: no path of the
// source maps to it. See KeyPath.
func (j *Job) OffPath() bool { return strings.HasPrefix(j.Path, "/") }

// KeyPath returns the path of a job for an object to which no path of the source
// maps.
func KeyPath(key string) string { return "/" + key }
