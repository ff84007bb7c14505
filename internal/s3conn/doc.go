// Package s3conn is the connection to one bucket: the SDK's client with the
// options that the environment must not decide, and what all requests have in
// common. That is credentials that are read again, the correction of this host's
// clock, the end of requests that stall, the class of every error, and metrics.
// PutObject passes the SDK's operation stack by (Wire), because it is most of the
// work of an archive.
package s3conn
