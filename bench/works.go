package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// work is one kind of work that all programs do.
type work struct {
	letter, title string
	run           func(ctx context.Context, w work) error
	tree          func(dir string) (*tree, error)
	latency       time.Duration
	servers       []string
}

const (
	kib = 1 << 10
	gib = 1 << 30
)

// works lists all, in the order in which they are done.
func (b *bench) works() []work {
	small := func(n, size int64) func(string) (*tree, error) {
		return func(dir string) (*tree, error) { return smallTree(dir, int(b.scaled(n)), size) }
	}
	return []work{
		{letter: "a", title: "first upload of 20,000 files of 4 KiB", run: b.first, tree: small(20_000, 4*kib), servers: b.o.servers},
		{letter: "b", title: "the same, each request takes longer", run: b.first, tree: small(20_000, 4*kib), latency: b.o.latency, servers: []string{"null"}},
		{letter: "c", title: "first upload of 4 files of 2 GiB", run: b.first, servers: b.o.servers, tree: func(dir string) (*tree, error) {
			return smallTree(dir, 4, b.scaled(2*gib))
		}},
		{letter: "d", title: "first upload of mixed data, 10 GiB", run: b.first, servers: b.o.servers, tree: func(dir string) (*tree, error) {
			return mixedTree(dir, b.scaled(10*gib))
		}},
		{letter: "e", title: "200,000 files unchanged, second run", run: b.again, tree: small(200_000, kib)},
		{letter: "f", title: "1% of 200,000 files changed", run: b.again, tree: small(200_000, kib)},
		{letter: "g", title: "event to object", run: b.events, tree: small(1000, kib)},
		{letter: "h", title: "idle", run: b.idle, tree: small(1000, kib)},
		{letter: "i", title: "1,000,000 files: a second run and the daemon", run: b.million, tree: small(1_000_000, 1)},
	}
}

// plant makes the tree of w.
func (b *bench) plant(w work) (*tree, error) {
	dir, err := b.fresh("data")
	if err != nil {
		return nil, err
	}
	t, err := w.tree(dir)
	if err == nil {
		b.say("  %d files, %d bytes", len(t.files), t.bytes)
	}
	return t, err
}

// open starts a server.
func (b *bench) open(ctx context.Context, name string, latency time.Duration) (server, error) {
	if name == "minio" {
		return newMinIO(ctx, nonEmpty(b.o.paths["minio"], "minio"), b.dir)
	}
	return newNullServer(latency)
}

// first has each program bring the tree to a server that has nothing.
func (b *bench) first(ctx context.Context, w work) error {
	t, err := b.plant(w)
	if err != nil {
		return err
	}
	for range b.o.rounds {
		for _, name := range w.servers {
			for _, c := range b.programs {
				if c.once == nil || c.again {
					continue
				}
				if err := b.firstOf(ctx, w, t, name, c); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (b *bench) firstOf(ctx context.Context, w work, t *tree, serverName string, c *contestant) (err error) {
	s, err := b.open(ctx, serverName, w.latency)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	scratch, err := b.fresh("scratch-" + c.name)
	if err != nil {
		return err
	}
	r, err := b.once(ctx, c, s, job{dir: t.dir, endpoint: s.endpoint(), prefix: "first/data", scratch: scratch})
	if err != nil {
		return err
	}
	r.Work, r.Server, r.Files, r.Bytes = w.letter, serverName, len(t.files), t.bytes
	if w.latency > 0 {
		r.Values = map[string]float64{"latency_ms": float64(w.latency.Microseconds()) / 1e3}
	}
	return b.save(r)
}

// once runs one program once. A program that fails is a result; an error is
// ours.
func (b *bench) once(ctx context.Context, c *contestant, s server, j job) (record, error) {
	cmd, err := c.once(c, j)
	if err != nil {
		return record{}, err
	}
	s.count()
	limited, cancel := context.WithTimeout(ctx, b.o.limit)
	defer cancel()
	p, err := startChild(limited, cmd)
	if err != nil {
		return record{}, err
	}
	u, err := p.wait()
	r := record{Program: c.name, Version: c.version, usage: u, Requests: s.count()}
	switch {
	case ctx.Err() != nil:
		return r, ctx.Err()
	case limited.Err() != nil:
		r.Failed = fmt.Sprintf("not done after %v", b.o.limit)
	case err != nil:
		r.Failed = firstLine(err.Error())
		b.say("%v", err)
	}
	return r, nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

// again is e and f: every program has brought the tree to the server before.
// When both are asked for, they are done on one tree.
func (b *bench) again(ctx context.Context, w work) error {
	both := slices.Contains(b.o.works, "e") && slices.Contains(b.o.works, "f")
	if both && w.letter == "f" {
		return nil // Done with e.
	}
	return b.onNull(w, func(s *nullServer, t *tree) error {
		ready, err := b.fill(ctx, s, t, b.programs)
		if err != nil {
			return err
		}
		if w.letter == "e" {
			if err := b.unchanged(ctx, s, t, ready); err != nil {
				return err
			}
		}
		if both || w.letter == "f" {
			return b.changed(ctx, s, t, ready)
		}
		return nil
	})
}

// onNull calls fn with the tree of w and a null server that has nothing yet.
func (b *bench) onNull(w work, fn func(s *nullServer, t *tree) error) (err error) {
	t, err := b.plant(w)
	if err != nil {
		return err
	}
	s, err := newNullServer(0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	return fn(s, t)
}

// unchanged is e.
func (b *bench) unchanged(ctx context.Context, s *nullServer, t *tree, ready []*contestant) error {
	for range b.o.rounds {
		if err := errors.Join(b.find(ctx, "e", t), b.all(ctx, "e", s, t, ready)); err != nil {
			return err
		}
	}
	return nil
}

// changed is f.
func (b *bench) changed(ctx context.Context, s *nullServer, t *tree, ready []*contestant) error {
	for round := range b.o.rounds {
		n, err := t.change(round)
		if err != nil {
			return err
		}
		b.say("  %d files changed", n)
		if err := b.all(ctx, "f", s, t, ready); err != nil {
			return err
		}
	}
	return nil
}

// fill has each of the programs do its first run, which is saved as work "0", and
// returns those that could.
func (b *bench) fill(ctx context.Context, s *nullServer, t *tree, programs []*contestant) ([]*contestant, error) {
	var ready []*contestant
	for _, c := range programs {
		if c.once == nil {
			continue
		}
		if _, err := b.fresh("scratch-" + c.name); err != nil {
			return nil, err
		}
		r, err := b.once(ctx, c, s, b.jobOf(c, s, t))
		if err != nil {
			return nil, err
		}
		if r.Failed == "" {
			ready = append(ready, c)
		}
		r.Work, r.Server, r.Files, r.Bytes = "0", "null", len(t.files), t.bytes
		if err := b.save(r); err != nil {
			return nil, err
		}
	}
	return ready, nil
}

// jobOf is the job of a program whose scratch directory and prefix stay.
func (b *bench) jobOf(c *contestant, s server, t *tree) job {
	return job{dir: t.dir, endpoint: s.endpoint(), prefix: c.name + "/data", scratch: filepath.Join(b.dir, "scratch-"+c.name)}
}

// all runs each program once.
func (b *bench) all(ctx context.Context, letter string, s *nullServer, t *tree, programs []*contestant) error {
	for _, c := range programs {
		r, err := b.once(ctx, c, s, b.jobOf(c, s, t))
		if err != nil {
			return err
		}
		r.Work, r.Server, r.Files, r.Bytes = letter, "null", len(t.files), t.bytes
		if err := b.save(r); err != nil {
			return err
		}
	}
	return nil
}

// find times find(1), which prints of each file what a scan compares.
func (b *bench) find(ctx context.Context, letter string, t *tree) error {
	cmd := exec.CommandContext(ctx, "find", t.dir, "-printf", `%s %T@ %C@ %i %p\n`)
	cmd.Stdout = io.Discard
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		b.say("find is left out: %v", err)
		return nil
	}
	u := usage{Wall: time.Since(begin).Seconds(), CPU: (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()}
	return b.save(record{Work: letter, Server: "none", Program: "find", usage: u, Files: len(t.files), Bytes: t.bytes})
}

// million is i: s3syncd alone, in both ways. A first run, second runs beside find, and the
// daemon's memory from its start to the end of its first scans.
func (b *bench) million(ctx context.Context, w work) error {
	mine := slices.DeleteFunc(slices.Clone(b.programs), func(c *contestant) bool { return c.name != ours && c.name != oursCounting })
	if len(mine) == 0 {
		return nil
	}
	return b.onNull(w, func(s *nullServer, t *tree) error {
		ready, err := b.fill(ctx, s, t, mine)
		if err != nil || len(ready) == 0 {
			return err
		}
		for range b.o.rounds {
			if err := errors.Join(b.find(ctx, w.letter, t), b.all(ctx, w.letter, s, t, ready)); err != nil {
				return err
			}
		}
		if ready[0].watch == nil {
			return nil
		}
		return b.resident(ctx, ready[0], s, t)
	})
}

// resident starts the daemon over the archived tree and looks at its memory.
func (b *bench) resident(ctx context.Context, c *contestant, s *nullServer, t *tree) error {
	j := b.jobOf(c, s, t)
	cmd, err := c.watch(c, j, b.o.settle)
	if err != nil {
		return err
	}
	s.count()
	p, err := startChild(ctx, cmd)
	if err != nil {
		return err
	}
	begin := time.Now()
	s.watch()
	ready, err := b.awaitWatching(ctx, s, p, t, j.prefix)
	took := time.Since(begin)
	u := p.stop()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, p.output)
	}
	return b.save(record{
		Work: daemonWork, Server: "null", Program: c.name, Version: c.version, usage: u, Files: len(t.files), Bytes: t.bytes, Requests: s.count(),
		Values: map[string]float64{"until_watching_s": took.Seconds(), "probes": float64(ready)},
	})
}

// daemonWork names the results of the daemon over a million files.
const daemonWork = "i-daemon"

// probeEvery is how often awaitWatching writes another file: seldom enough for a
// program that starts a process for each.
const probeEvery = 10 * time.Second

// awaitWatching writes probe files until one of them has become an object. It
// returns how many it took.
func (b *bench) awaitWatching(ctx context.Context, s *nullServer, p *child, t *tree, prefix string) (int, error) {
	var probes []string
	next := time.Now()
	err := until(ctx, b.o.limit, "the program to watch", func() (bool, error) {
		select {
		case <-p.done:
			return false, errors.New("the program ended")
		default:
		}
		for _, q := range probes {
			if _, ok := s.arrival(prefix + "/" + q); ok {
				return true, nil
			}
		}
		if now := time.Now(); now.After(next) {
			next = now.Add(probeEvery)
			q := "probe-" + token()
			probes = append(probes, q)
			return false, os.WriteFile(filepath.Join(t.dir, q), []byte(q), 0o600)
		}
		return false, nil
	})
	return len(probes), err
}
