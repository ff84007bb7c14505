// Package manifest turns recorded outcomes into the audit trail and reads it
// back.
//
// A Flusher seals the records of one source: it streams them into a manifest
// file on disk, makes the file durable, and stores its key, hash and range in
// one transaction of the state. Only then is anything sent. Digests name the
// manifests since the last digest and their own predecessor by SHA-256, and are
// sealed in the same way. Sealed documents wait in the state's outbox and are
// published in order with If-None-Match: *, the same bytes to the same key
// after any number of crashes and retries, so nothing in the trail is ever
// overwritten. Neither an outage nor a slow server holds up sealing.
//
// The bytes of every document are defined in docs/FORMAT.md.
package manifest
