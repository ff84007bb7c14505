package watcher

import "errors"

// SetHung says why the file system of the source does not answer, "" that it
// does again. Nobody in here can tell: whoever looks waits. While it hangs the
// source does not count as available, and no flush waits for it.
func (w *Watcher) SetHung(reason string) {
	w.hung.Store(reason != "")
	w.met.available.Set(0)
	if reason != "" {
		w.flushes.fail(errors.New(reason))
		return
	}
	if w.available.Load() {
		w.met.available.Set(1)
	}
}
