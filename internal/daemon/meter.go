package daemon

import (
	"github.com/s3syncd/s3syncd/internal/admin/page"
)

// Meters implements page.Daemon.
func (d *daemon) Meters() []page.Meter {
	l := d.current.Load()
	if l == nil {
		return nil
	}
	underWay := map[string]int64{}
	for _, f := range l.Pool.InFlight() {
		underWay[f.Source] += f.Sent
	}
	list := make([]page.Meter, len(l.sources))
	for i, s := range l.sources {
		m := s.ledger.takeMeter()
		list[i] = page.Meter{
			Source: s.Config.Name, Acknowledged: m.bytes, UnderWay: underWay[s.Config.Name], Uploads: m.uploads, Slowest: m.slowest,
		}
	}
	return list
}
