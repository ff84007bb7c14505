// Package copies keeps the documents of a source's trail in a local directory.
//
// Each document is sealed there before it is sent, and stays after it was
// published as a copy: signatures are made over copies, a chain that is left
// takes its records from them, and a lost one is made again from the records or
// fetched from the bucket.
package copies
