package state

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/s3syncd/s3syncd/internal/boltfile"
	"github.com/s3syncd/s3syncd/internal/codec"
)

// finding is what examine learned of a sound file.
type finding struct {
	size     int64
	pageSize int64
	free     int64 // pages
}

// examine reads the file without changing it: that its pages are whole, that
// this release knows its format, that no value has changed, and that what a start
// needs is there. An error that wraps ErrDamaged says that the content is at
// fault.
func examine(path string) (finding, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return finding{}, err
	}
	found, err := examinePages(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return finding{}, err
	}
	_, err = os.Lstat(path + suffixCheck)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return finding{}, err
	}
	return found, examineContent(path, err == nil)
}

func examinePages(f *os.File) (finding, error) {
	info, err := f.Stat()
	if err != nil {
		return finding{}, err
	}
	if !info.Mode().IsRegular() {
		return finding{}, codec.Damaged("%s is not a regular file", f.Name())
	}
	if err := sequential(f, info.Size()); err != nil {
		return finding{}, err
	}
	m, free, err := boltfile.Check(f, info.Size())
	if err != nil {
		return finding{}, err
	}
	return finding{size: info.Size(), pageSize: int64(m.PageSize), free: int64(free)}, nil
}

// examineContent checks the seals of all values, because one under a changed key
// would just not be found, and decodes what a start needs, or all.
func examineContent(path string, all bool) (err error) {
	b, err := boltOpen(path, &bolt.Options{ReadOnly: true, Timeout: lockWait})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return guard(func() error {
		return b.View(func(tx *bolt.Tx) error {
			if err := checkFormat(tx); err != nil {
				return err
			}
			if err := checkFacts(tx); err != nil {
				return err
			}
			sources := tx.Bucket([]byte(bucketSources))
			if sources == nil {
				return codec.Damaged("bucket %s is missing", bucketSources)
			}
			return sources.ForEach(func(id, value []byte) error {
				if value != nil {
					return codec.Damaged("source %x is not a bucket", id)
				}
				return checkSource(tx, id, all)
			})
		})
	})
}

// checkFormat comes first: nothing else of a newer format may be judged.
func checkFormat(tx *bolt.Tx) error {
	meta := tx.Bucket([]byte(bucketMeta))
	if meta == nil {
		return codec.Damaged("bucket %s is missing", bucketMeta)
	}
	if sum := meta.Get([]byte(keySum)); sum != nil && !bytes.Equal(sum, metaSum(meta)) {
		return codec.Damaged("the checksum of bucket %s does not match", bucketMeta)
	}
	text := meta.Get([]byte(keyFormat))
	format, err := strconv.Atoi(string(text))
	switch {
	case err != nil || format < 1:
		return codec.Damaged("the format %q is not a number", text)
	case format > formatVersion:
		return fmt.Errorf("%w: it has the format %d, this one knows %d; install that release again or use another state_dir",
			ErrNewerFormat, format, formatVersion)
	}
	return nil
}

// metaSum returns the checksum of the bucket meta, whose values have no seals
// of their own: a format that reads as a newer one must not be believed.
func metaSum(meta *bolt.Bucket) []byte {
	var all []byte
	for key, value := range entries(meta.Cursor()) {
		if string(key) != keySum {
			all = codec.AppendString(codec.AppendString(all, string(key)), string(value))
		}
	}
	return codec.Seal([]byte(keySum), all)[len(all):]
}

// sealMeta is the last change to the bucket meta in a transaction.
func sealMeta(meta *bolt.Bucket) error { return put(meta, []byte(keySum), metaSum(meta)) }

func checkFacts(tx *bolt.Tx) error {
	facts := tx.Bucket([]byte(bucketFacts))
	if facts == nil {
		return codec.Damaged("bucket %s is missing", bucketFacts)
	}
	return facts.ForEach(checkSeal)
}

func checkSeal(key, sealed []byte) error {
	_, err := codec.Unseal(key, sealed)
	return err
}

// checkSource decodes a source's head and the beginnings of its buckets, or
// all of them, and checks the seals of the rest.
func checkSource(tx *bolt.Tx, id []byte, all bool) error {
	st, err := openSource(tx, id)
	if err != nil {
		return err
	}
	key, _, err := loadKey(st.root)
	if err != nil {
		return err
	}
	if !bytes.Equal(key.id(), id) {
		return codec.Damaged("source %x is under the name of another", id)
	}
	if _, err := loadHead(st.root); err != nil {
		return err
	}
	checks := []struct {
		bucket *bolt.Bucket
		limit  int
		decode func(key, value []byte) error
	}{
		{st.intents, maxExamined, func(key, value []byte) error { return codec.DecodeJSON(key, value, new(intentWire)) }},
		{st.outbox, maxExamined, func(key, value []byte) error { return codec.DecodeJSON(key, value, new(docWire)) }},
		{st.records, 1, func(key, value []byte) error {
			_, _, err := codec.DecodeRecord(key, value)
			return err
		}},
		{st.files, 1, func(key, value []byte) error {
			_, err := openEntry(key, value)
			return err
		}},
	}
	for _, c := range checks {
		n := 0
		for key, value := range entries(c.bucket.Cursor()) {
			decode := c.decode
			if n++; n > c.limit && !all {
				decode = checkSeal
			}
			if err := decode(key, value); err != nil {
				return err
			}
		}
	}
	return nil
}

// entries iterates over a bucket in order.
func entries(c *bolt.Cursor) func(yield func(key, value []byte) bool) {
	return func(yield func(key, value []byte) bool) {
		for key, value := c.First(); key != nil; key, value = c.Next() {
			if !yield(key, value) {
				return
			}
		}
	}
}

// compact rewrites a file of more than above bytes that is mostly free pages.
// A crash leaves the old file or the new one. If the new one cannot be written
// (no space), the old one stays in use.
func compact(path string, found finding, above int64, log *zap.Logger) error {
	if found.size <= above || 2*found.free*found.pageSize <= found.size {
		return nil
	}
	start := time.Now()
	temp := path + suffixCompact
	err := compactInto(temp, path, found)
	if err == nil {
		err = replace(temp, path)
	}
	if err != nil {
		log.Warn("state could not be compacted; it is used as it is and the next start tries again",
			zap.String("path", path), zap.Error(err))
		return removeIfThere(temp)
	}
	log.Info("state compacted", zap.String("path", path), zap.Int64("was_bytes", found.size),
		zap.Int64("free_bytes", found.free*found.pageSize), zap.Duration("took", time.Since(start)))
	return nil
}

func compactInto(temp, path string, found finding) (err error) {
	space, err := freeBytes(filepath.Dir(path))
	if err != nil {
		return err
	}
	if need := found.size - found.free*found.pageSize + compactAbove; space < need {
		return fmt.Errorf("%d bytes are free, %d are needed", space, need)
	}
	src, err := boltOpen(path, &bolt.Options{ReadOnly: true, Timeout: lockWait})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	dst, err := boltOpen(temp, &bolt.Options{Timeout: lockWait, FreelistType: bolt.FreelistMapType, NoSync: true})
	if err != nil {
		return err
	}
	err = guard(func() error { return bolt.Compact(dst, src, compactTxSize) })
	if err == nil {
		err = dst.Sync()
	}
	if err := errors.Join(err, dst.Close()); err != nil {
		return err
	}
	_, err = examine(temp)
	return err
}
