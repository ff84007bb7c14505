// Package verify checks an audit trail and what it claims.
//
// Run checks the trail by itself and against what something outside it knows:
// anchors, which are digests that were seen before, and public keys. CheckObjects
// compares the trail with the objects in S3, CheckSource with the files of a
// source. What does not hold is a Finding, what an auditor should know a note;
// docs/FORMAT.md has the table of both.
package verify
