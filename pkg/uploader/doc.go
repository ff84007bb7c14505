// Package uploader turns paths into outcomes: it decides for each file whether
// S3 holds its content already, sends what it does not hold, and makes every
// outcome durable in the state.
//
// A Queue holds the paths, fairly over the sources and one look a path at a
// time. A Pool of workers takes them and follows one protocol for each file:
// open and fence, compare with the index, hash, decide, announce (the intent is
// durable before the request), send conditionally, fence again, commit.
//
// What is recorded as uploaded was acknowledged by the server under the
// configured key and was one consistent reading of the file. A write whose
// answer was lost is recognized later by its attempt number in the object's
// metadata. A destination that does not work holds its own files back, is
// probed, and lets them go when it works again; nothing is dropped meanwhile.
package uploader
