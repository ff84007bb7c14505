// Package app is the commands that read a trail, examine a destination or write a
// policy: history, verify, restore, preflight, and the policies of IAM.
package app
