package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/codec"
	"github.com/s3syncd/s3syncd/internal/safefs"
)

const (
	fileName      = "state.db"
	suffixNew     = ".new"     // a file that is being made
	suffixCompact = ".compact" // a file that is being compacted into
	suffixCheck   = ".check"   // exists: the next Open reads every value
	suffixDamaged = ".damaged-"

	// The format that this release writes. It reads that and its predecessor's,
	// and leaves the file readable to the predecessor.
	formatVersion = 1

	lockWait      = time.Second // for a tool that reads the file just now
	minMapped     = 256 << 20   // address space: a map that need not grow never holds up readers
	allocBytes    = 4 << 20     // the file grows in steps of this
	compactAbove  = 64 << 20    // smaller files are never compacted
	compactTxSize = 4 << 20
	maxExamined   = 1000 // intents and documents of a source that Open decodes
)

// Open opens the state in dir and makes it if it is not there. It takes the
// directory's lock: if another process has it, the error is a *LockedError. A
// file of a newer release is left alone (ErrNewerFormat). A damaged file is
// renamed and kept, and a new state begins: see Report. It reads the whole file
// and checks every value in it, so its time grows with the file.
func Open(dir string, o Options) (*DB, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	db := &DB{
		dir: dir, path: filepath.Join(dir, fileName), log: o.Log, now: o.Now, lock: lock,
		requests: make(chan *request), closing: make(chan struct{}), ended: make(chan struct{}),
	}
	if err := (&opening{db: db, o: o}).open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open state %s: %w", db.path, err), db.release(), unlock(lock))
	}
	go db.loop()
	return db, nil
}

// makeDir makes dir, durably, for this user alone.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	return safefs.MkdirAll(dir, 0o700) // Each new level of it is synced.
}

// opening makes a file usable: it examines, replaces and compacts it before db
// uses it.
type opening struct {
	db *DB
	o  Options
}

// open brings the file into a state in which it can be used, and uses it.
func (op *opening) open() error {
	for _, suffix := range []string{suffixNew, suffixCompact} {
		if err := removeIfThere(op.db.path + suffix); err != nil {
			return err
		}
	}
	if err := op.prepare(); err != nil {
		return err
	}
	err := op.use()
	if !errors.Is(err, ErrDamaged) {
		return err
	}
	// Damage that the examination does not see.
	if closeErr := op.db.release(); closeErr != nil {
		return errors.Join(err, closeErr)
	}
	if err := op.replaceDamaged(err); err != nil {
		return err
	}
	return op.use()
}

// use opens the file for writing.
func (op *opening) use() (err error) {
	if op.db.file, err = os.OpenFile(op.db.path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	if op.db.bolt, err = openBolt(op.db.path); err != nil {
		return err
	}
	return op.begin()
}

// prepare examines the file, sets a damaged one aside, compacts one that is
// mostly free pages and makes one that is not there.
func (op *opening) prepare() error {
	_, err := os.Lstat(op.db.path)
	if errors.Is(err, fs.ErrNotExist) {
		op.db.report.New = true
		op.db.report.SetAside, err = newestDamaged(op.db.path) // Renamed by a start that got no further.
		if err != nil {
			return err
		}
		return createFile(op.db.path, op.o, op.db.report.SetAside)
	}
	if err != nil {
		return err
	}
	found, err := examine(op.db.path)
	if errors.Is(err, ErrDamaged) {
		return op.replaceDamaged(err)
	}
	if err != nil {
		return err
	}
	if err := compact(op.db.path, found, compactAbove, op.db.log); err != nil {
		return err
	}
	return removeIfThere(op.db.path + suffixCheck)
}

// replaceDamaged keeps the damaged file under another name and makes a new one.
func (op *opening) replaceDamaged(cause error) (err error) {
	if op.db.report.SetAside, err = setAside(op.db.path, op.o.Now(), cause, op.db.log); err != nil {
		return err
	}
	op.db.report = Report{New: true, SetAside: op.db.report.SetAside}
	return createFile(op.db.path, op.o, op.db.report.SetAside)
}

// release closes what use has opened.
func (db *DB) release() error {
	var errs []error
	if db.bolt != nil {
		errs = append(errs, db.bolt.Close())
	}
	if db.file != nil {
		errs = append(errs, db.file.Close())
	}
	db.bolt, db.file = nil, nil
	return errors.Join(errs...)
}

// begin notes in the file that it is in use, and fills in the report.
func (op *opening) begin() error {
	err := guard(func() error {
		return op.db.bolt.Update(func(tx *bolt.Tx) error {
			meta := tx.Bucket([]byte(bucketMeta))
			if err := migrate(meta); err != nil {
				return err
			}
			op.db.report.Unclean = !op.db.report.New && meta.Get([]byte(keyClean)) == nil
			if op.db.report.SetAside == "" {
				op.db.report.SetAside = string(meta.Get([]byte(keySetAside)))
			}
			op.db.report.HostChanged = hostChanged(meta, op.o)
			if err := remove(meta, []byte(keyClean)); err != nil {
				return err
			}
			if err := errors.Join(putHost(meta, op.o), sealMeta(meta)); err != nil {
				return err
			}
			return op.db.loadSources(tx, op.db.report.HostChanged)
		})
	})
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	return nil
}

// migrate brings the file to formatVersion. Format 1 is the first.
func migrate(meta *bolt.Bucket) error {
	return put(meta, []byte(keyFormat), []byte(strconv.Itoa(formatVersion)))
}

func hostChanged(meta *bolt.Bucket, o Options) bool {
	differs := func(key, now string) bool {
		was := string(meta.Get([]byte(key)))
		return was != "" && now != "" && was != now
	}
	return differs(keyInstance, o.Instance) || differs(keyMachine, o.MachineID)
}

// putHost binds the file to this host.
func putHost(meta *bolt.Bucket, o Options) error {
	for key, value := range map[string]string{keyInstance: o.Instance, keyMachine: o.MachineID} {
		if value == "" {
			continue
		}
		if err := put(meta, []byte(key), []byte(value)); err != nil {
			return err
		}
	}
	return nil
}

// markClean is the last change before Close.
func markClean(t *txn) error {
	meta := t.bolt.Bucket([]byte(bucketMeta))
	if err := remove(meta, []byte(keySetAside)); err != nil {
		return err
	}
	return errors.Join(put(meta, []byte(keyClean), []byte("1")), sealMeta(meta))
}

// openBolt opens the file for writing.
func openBolt(path string) (*bolt.DB, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	b, err := boltOpen(path, &bolt.Options{
		Timeout: lockWait, FreelistType: bolt.FreelistMapType,
		InitialMmapSize: max(minMapped, 2*int(info.Size())),
	})
	if err != nil {
		return nil, err
	}
	b.AllocSize = allocBytes
	return b, nil
}

// boltOpen is bolt.Open with its panics returned as damage, and without leaving
// the file locked after one.
func boltOpen(path string, o *bolt.Options) (b *bolt.DB, err error) {
	var file *os.File
	o.OpenFile = func(name string, flag int, perm os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(name, flag|unix.O_NOFOLLOW|unix.O_CLOEXEC, perm)
		file = f
		return f, err
	}
	panicked := true
	err = guard(func() (err error) {
		b, err = bolt.Open(path, 0o600, o)
		panicked = false
		return err
	})
	switch {
	case panicked && file != nil:
		return nil, errors.Join(err, file.Close())
	case errors.Is(err, berrors.ErrTimeout):
		return nil, &LockedError{Dir: filepath.Dir(path)}
	case err != nil && !environmental(err) && !errors.Is(err, ErrDamaged):
		return nil, codec.Damaged("%w", err)
	}
	return b, err
}

// environmental reports whether err came from the kernel and says nothing of
// the file's content.
func environmental(err error) bool {
	_, isErrno := errors.AsType[unix.Errno](err)
	return isErrno
}

// createFile makes a new state. It is under its name only once it is whole.
func createFile(path string, o Options, setAside string) error {
	b, err := boltOpen(path+suffixNew, &bolt.Options{Timeout: lockWait, FreelistType: bolt.FreelistMapType})
	if err != nil {
		return err
	}
	err = b.Update(func(tx *bolt.Tx) error {
		for _, name := range []string{bucketMeta, bucketFacts, bucketSources} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return fmt.Errorf("create bucket %s: %w", name, err)
			}
		}
		meta := tx.Bucket([]byte(bucketMeta))
		if err := put(meta, []byte(keyFormat), []byte(strconv.Itoa(formatVersion))); err != nil {
			return err
		}
		if setAside != "" {
			if err := put(meta, []byte(keySetAside), []byte(setAside)); err != nil {
				return err
			}
		}
		return errors.Join(putHost(meta, o), sealMeta(meta))
	})
	if err := errors.Join(err, b.Close()); err != nil {
		return err
	}
	return replace(path+suffixNew, path)
}

// replace renames a synced file over another, durably.
func replace(from, to string) error {
	if err := unix.Rename(from, to); err != nil {
		return fmt.Errorf("rename %s: %w", from, err)
	}
	return syncDir(filepath.Dir(to))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// setAside renames a damaged file to a name of its own and returns that.
func setAside(path string, now time.Time, cause error, log *zap.Logger) (string, error) {
	base := path + suffixDamaged + now.UTC().Format("20060102T150405Z")
	for n := 1; ; n++ {
		name := base
		if n > 1 {
			name += "-" + strconv.Itoa(n)
		}
		if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			if err != nil {
				return "", err
			}
			continue
		}
		if err := replace(path, name); err != nil {
			return "", err
		}
		log.Error("state is damaged and was set aside; a new one begins and the index is rebuilt from the bucket",
			zap.String("path", path), zap.String("kept", name), zap.Error(cause))
		return name, removeIfThere(path + suffixCheck)
	}
}

// newestDamaged returns the newest file that was set aside, "" for none.
func newestDamaged(path string) (string, error) {
	names, err := filepath.Glob(path + suffixDamaged + "*")
	if err != nil || len(names) == 0 {
		return "", err
	}
	return slices.Max(names), nil
}

// sequential reads the whole of f once, so that the pages that are needed next
// are in memory: page by page, a cold file of 200 MB takes seconds.
func sequential(f io.ReaderAt, size int64) error {
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(buf)) {
		if _, err := f.ReadAt(buf, off); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read: %w", err)
		}
	}
	return nil
}
