// Package audit is what reads a trail for an operator or an auditor: verify,
// history and restore, with what the host knows of its own trail.
package audit
