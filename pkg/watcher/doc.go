// Package watcher finds out which files of a source have to be looked at.
//
// Events of the kernel are hints: they say which path to look at soon, never
// what happened to it. The scan, a merge of the tree with the index in path
// order, is the truth: it runs at start, on request, from time to time, and
// whenever events were lost. What either finds goes to a Sink, which decides by
// opening the file.
//
// A Watcher runs these goroutines for as long as its source is there: one
// drains the watcher's errors and never calls it, one drains its events without
// a system call, one (the tree) adds and removes watches and is the only one to
// do so, one settles what changed, one scans and polls what cannot be watched,
// one finds the other names of a file that has several, and one guards the
// source's identity. When that is lost they all end, the source pauses, and
// they begin again, with a scan, once it is back.
package watcher
