package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	singles   = 100 // files that g writes one after another
	perSecond = 500 // files a second that g writes then
	burst     = 20  // seconds
	afterward = time.Minute
)

// watching is a program that watches a tree.
type watching struct {
	c      *contestant
	p      *child
	s      *nullServer
	t      *tree
	prefix string
}

// watched calls fn with each program that watches, once it does.
func (b *bench) watched(ctx context.Context, w work, fn func(context.Context, watching) error) error {
	for range b.o.rounds {
		for _, c := range b.programs {
			if c.watch == nil {
				continue
			}
			err := b.onNull(w, func(s *nullServer, t *tree) error { return b.watchedBy(ctx, s, t, c, fn) })
			if err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				b.say("%s: %v", c.name, err)
				if err := b.save(record{Work: w.letter, Server: "null", Program: c.name, Version: c.version, Failed: firstLine(err.Error())}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// watchedBy starts c over the tree and calls fn once it watches.
func (b *bench) watchedBy(ctx context.Context, s *nullServer, t *tree, c *contestant, fn func(context.Context, watching) error) error {
	s.watch()
	if _, err := b.fresh("scratch-" + c.name); err != nil {
		return err
	}
	j := b.jobOf(c, s, t)
	cmd, err := c.watch(c, j, b.o.settle)
	if err != nil {
		return err
	}
	p, err := startChild(ctx, cmd)
	if err != nil {
		return err
	}
	defer p.stop()
	_, err = b.awaitWatching(ctx, s, p, t, j.prefix)
	if err == nil {
		err = fn(ctx, watching{c: c, p: p, s: s, t: t, prefix: j.prefix})
	}
	if err != nil {
		p.stop()
		return fmt.Errorf("%w\n%s", err, p.output)
	}
	return nil
}

// events is g: the time from a file's end to its object, for files one at a
// time and for many a second.
func (b *bench) events(ctx context.Context, w work) error {
	return b.watched(ctx, w, func(ctx context.Context, v watching) error {
		if v.c.name == ours { // Its first scan is behind it once the tree has arrived.
			if err := v.arrivedAll(ctx, v.t.files); err != nil {
				return err
			}
		}
		for _, rate := range []int{1, perSecond} {
			if rate > 1 && v.c.name == "lsyncd" {
				continue // A process for each file: it would measure how many the machine can start.
			}
			if err := b.eventsAt(ctx, v, rate); err != nil {
				return err
			}
		}
		return nil
	})
}

func (v watching) arrivedAll(ctx context.Context, files []string) error {
	i := 0
	return until(ctx, afterward, "the tree to arrive", func() (bool, error) {
		for ; i < len(files); i++ {
			if _, ok := v.s.arrival(v.prefix + "/" + files[i]); !ok {
				return false, nil
			}
		}
		return true, nil
	})
}

// eventsAt writes files and waits for their objects; at a rate of 1 each
// before the next is written.
func (b *bench) eventsAt(ctx context.Context, v watching, rate int) error {
	n := int(b.scaled(perSecond * burst))
	if rate == 1 {
		n = int(b.scaled(singles))
	}
	v.s.count()
	before, err := v.p.cpu()
	if err != nil {
		return err
	}
	names, written := make([]string, n), make([]time.Time, n)
	begin := time.Now()
	for i := range n {
		names[i] = fmt.Sprintf("event-%d-%06d", rate, i)
		if rate > 1 {
			if err := pause(ctx, time.Until(begin.Add(time.Duration(i)*time.Second/time.Duration(rate)))); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(v.t.dir, names[i]), make([]byte, kib), 0o600); err != nil {
			return fmt.Errorf("event: %w", err)
		}
		written[i] = time.Now()
		if rate == 1 {
			_ = v.arrivedAll(ctx, names[i:i+1]) // One that never arrives is counted below.
		}
	}
	_ = v.arrivedAll(ctx, names) // Likewise.
	after, err := v.p.cpu()
	if err != nil {
		return err
	}
	late := v.delays(names, written)
	r := record{
		Work: fmt.Sprintf("g-%d", rate), Server: "null", Program: v.c.name, Version: v.c.version, Files: n, Bytes: int64(n) * kib, Requests: v.s.count(),
		usage:  usage{Wall: time.Since(begin).Seconds(), CPU: (after - before).Seconds()},
		Values: map[string]float64{"missing": float64(n - len(late)), "settle_ms": ms(b.settleOf(v.c))},
	}
	if len(late) > 0 {
		r.Values["median_ms"], r.Values["p99_ms"], r.Values["max_ms"] = ms(late[len(late)/2]), ms(late[len(late)*99/100]), ms(late[len(late)-1])
	}
	return b.save(r)
}

// settleOf is the quiet time that a program was told to wait for.
func (b *bench) settleOf(c *contestant) time.Duration {
	switch c.name {
	case "s3syncd":
		return b.o.settle
	case "lsyncd":
		return time.Second
	default:
		return 0
	}
}

// delays are the times from written to arrived, in order, of those that did.
func (v watching) delays(names []string, written []time.Time) []time.Duration {
	var late []time.Duration
	for i, n := range names {
		if at, ok := v.s.arrival(v.prefix + "/" + n); ok {
			late = append(late, at.Sub(written[i]))
		}
	}
	slices.Sort(late)
	return late
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// idle is h: what a program uses while nothing changes.
func (b *bench) idle(ctx context.Context, w work) error {
	return b.watched(ctx, w, func(ctx context.Context, v watching) error {
		if err := v.arrivedAll(ctx, v.t.files); err != nil {
			return err
		}
		if err := pause(ctx, 10*time.Second); err != nil { // What follows the first scan.
			return err
		}
		v.s.count()
		before, err := v.p.cpu()
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := pause(ctx, b.o.idle); err != nil {
			return err
		}
		after, err := v.p.cpu()
		if err != nil {
			return err
		}
		took := time.Since(begin)
		_, anon := memoryOf(v.p.cmd.Process.Pid)
		return b.save(record{
			Work: w.letter, Server: "null", Program: v.c.name, Version: v.c.version, Files: len(v.t.files), Bytes: v.t.bytes, Requests: v.s.count(),
			usage:  usage{Wall: took.Seconds(), CPU: (after - before).Seconds(), Anon: anon},
			Values: map[string]float64{"cpu_percent": 100 * (after - before).Seconds() / took.Seconds()},
		})
	})
}
