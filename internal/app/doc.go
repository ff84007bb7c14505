// Package app is the commands that read a trail or examine a destination: history,
// verify, restore, preflight.
package app
