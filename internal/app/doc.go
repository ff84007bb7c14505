// Package app is the program behind the commands: it builds the pipeline of
// each source from its end to its beginning, runs its stages, stops them in the
// direction of the data, reloads, and tells systemd. It is the only package
// that knows all the others.
package app
