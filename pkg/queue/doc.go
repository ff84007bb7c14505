// Package queue is the workqueue between the watcher and the workers.
//
// The design is that of client-go's workqueue: a path is queued at most once
// however often it is offered (dirty), one worker at a time has it (processing),
// an offer of a path that a worker has is remembered and queued when the worker
// is done, Task.Delay is AddAfter, and Task.Done forgets the failures.
//
// Four things differ. An offer carries a Job, and the offers of one path are
// merged into one. Sources take turns, each with a bound of its own, so that none
// waits for another's backlog; Shares and lanes keep a slow destination or large
// files from occupying every worker. A task can be held: delayed until an
// operator has repaired something, and not counted by the bound. And
// Source.Barrier waits for what is queued now while new paths keep coming.
package queue
