package verify

import (
	"errors"
	"strings"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// readings counts what a verification could read of a trail.
type readings struct {
	done   int64
	failed error // the first
}

// read notes a document that could be read.
func (r *readings) read() { r.done++ }

// nothing returns an error where documents are there and none could be read.
func (r *readings) nothing() error {
	if r.done == 0 {
		return r.failed
	}
	return nil
}

// unread adds a document that could not be read.
func (v *verifier) unread(f Finding, err error) {
	if v.reading.failed == nil {
		v.reading.failed = err
	}
	f.Kind, f.Detail = FindingUnchecked, notRead(f.Key, err)
	v.found.Add(f)
}

// notRead says why the document under key was not read.
func notRead(key string, err error) string {
	text := strings.TrimPrefix(err.Error(), "get "+key+": ")
	return "it could not be read: " + strings.TrimPrefix(text, key+": ")
}

// errUnread is the fault of a digest that could not be read.
var errUnread = errors.New("it could not be read")

// unreadable passes a digest that could not be read: it is there, and what it
// names and what names it is not known.
func (c *chainCheck) unreadable(d *digestCheck) {
	seq := d.at.Name.Sequence
	c.unchecked(seq, d.at.Key, d.unread)
	c.unread[seq] = true
	d.fault = errUnread
	c.sum.LastSequence, c.sum.HeadKey, c.sum.HeadSHA256, c.sum.HeadTime, c.sum.HeadReason = seq, d.at.Key, "", "", ""
	c.prev = d
}

// Unreadable is the result for a trail of which nothing could be read.
func Unreadable(o Options, prefix string, err error) *Result {
	v := &Result{Bucket: o.Bucket, Prefix: prefix, CheckedAt: archive.FormatTime(o.Now), Chains: []ChainSummary{}}
	v.NotRead("", "the trail could not be checked", err)
	return v
}

// NotRead adds something that could not be read to a result.
func (v *Result) NotRead(key, what string, err error) {
	var found, noted Findings
	found.Add(Finding{Kind: FindingUnchecked, Key: key, Detail: what + ": " + err.Error()})
	v.conclude(&found, &noted)
}
