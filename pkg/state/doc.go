// Package state is the daemon's durable memory: what is in S3 (the index),
// what happened and is not yet published (the records), which writes are under
// way (the intents and multipart uploads), and the head of each audit chain.
//
// It is one bbolt file in the state directory. An outcome is finished when one
// transaction has stored both its index entry and its audit record; waiting
// callers share one transaction and one fsync (group commit). The index may be
// lost at any time, because the metadata of the objects rebuilds it;
// unpublished records are the only thing that cannot be rebuilt.
//
//	DB      the open file: Open examines, replaces or compacts it; one goroutine writes
//	Source  one source in it: the index, the intents, and where its directory is
//	Ledger  the records of a source, its chain and its outbox
package state
