// Package codec is the form of the values in the state: sealed with a checksum, and
// in as few bytes as entries of an index of millions can have.
package codec

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"

	"github.com/s3syncd/s3syncd/internal/boltfile"
	"github.com/s3syncd/s3syncd/pkg/archive"
)

// Every stored value ends in a CRC-32C over its key and its bytes, because
// bbolt has no checksums of its own below its meta pages. A value that does not
// match is damage, never an answer.
const checksumBytes = 4

// Version bytes of the encodings of format 1.
const (
	jsonVersion  = 1
	EntryVersion = 1
	// An entry with the seconds of a modification time that its nanoseconds cannot
	// hold, at the end.
	FarEntryVersion = 2
)

var errShort = errors.New("value is cut short")

// Seal appends the checksum of key and value to value.
func Seal(key, value []byte) []byte {
	return binary.BigEndian.AppendUint32(value, checksum(key, value))
}

// Unseal checks what seal appended and returns the value without it.
func Unseal(key, sealed []byte) ([]byte, error) {
	n := len(sealed) - checksumBytes
	if n < 0 {
		return nil, Damaged("key %x: %w", key, errShort)
	}
	value := sealed[:n:n]
	if binary.BigEndian.Uint32(sealed[n:]) != checksum(key, value) {
		return nil, Damaged("key %x: the checksum does not match", key)
	}
	return value, nil
}

func checksum(key, value []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Update(0, table, key), table, value)
}

// Damaged returns an error that wraps ErrDamaged.
func Damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %w", boltfile.ErrDamaged, fmt.Errorf(format, args...))
}

// EncodeJSON returns v as a sealed value under key.
func EncodeJSON(key []byte, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return Seal(key, append([]byte{jsonVersion}, b...)), nil
}

// DecodeJSON reads what encodeJSON wrote.
func DecodeJSON(key, sealed []byte, v any) error {
	b, err := Unseal(key, sealed)
	if err != nil {
		return err
	}
	if len(b) == 0 || b[0] != jsonVersion {
		return Damaged("key %x: unknown encoding", key)
	}
	if err := json.Unmarshal(b[1:], v); err != nil {
		return Damaged("key %x: %w", key, err)
	}
	return nil
}

// The bits of an entry's second byte. Unknown bits are refused.
const (
	flagRacy = 1 << iota
	flagStored
	flagMD5
	flagSHA256
	flagHexETag // the ETag is 32 lower-case hex digits, stored as 16 bytes
	flagFailed
	flagDoubted
	flagsKnown = 1<<iota - 1
)

// EncodeEntry returns the encoding of e: version, flags, then the fields in
// their order, integers as varints.
func EncodeEntry(e *archive.Entry) []byte {
	etag, packed := packETag(e.ETag)
	b := make([]byte, 0, 256)
	version := byte(EntryVersion)
	if e.Fence.MtimeSec != 0 {
		version = FarEntryVersion
	}
	b = append(b, version, entryFlags(e, packed))
	b = appendFence(b, e.Fence)
	b = binary.AppendUvarint(b, uint64(e.Attributes.Mode))
	b = binary.AppendUvarint(b, uint64(e.Attributes.UID))
	b = binary.AppendUvarint(b, uint64(e.Attributes.GID))
	if e.MD5 != [16]byte{} {
		b = append(b, e.MD5[:]...)
	}
	if e.SHA256 != [32]byte{} {
		b = append(b, e.SHA256[:]...)
	}
	if packed {
		b = append(b, etag[:]...)
	} else {
		b = AppendString(b, e.ETag)
	}
	b = AppendString(b, e.VersionID)
	b = AppendString(b, e.SSE)
	b = AppendString(b, e.KMSKeyID)
	b = binary.AppendUvarint(b, e.Attempt)
	if failed(e) {
		b = AppendString(b, string(e.FailClass))
		b = appendFence(b, e.FailFence)
	}
	if version == FarEntryVersion {
		b = binary.AppendVarint(b, e.Fence.MtimeSec)
	}
	return b
}

func entryFlags(e *archive.Entry, packed bool) byte {
	return bit(flagRacy, e.Racy) | bit(flagStored, e.Stored) |
		bit(flagMD5, e.MD5 != [16]byte{}) | bit(flagSHA256, e.SHA256 != [32]byte{}) |
		bit(flagHexETag, packed) | bit(flagFailed, failed(e)) | bit(flagDoubted, e.Suspect)
}

func bit(flag byte, set bool) byte {
	if set {
		return flag
	}
	return 0
}

func failed(e *archive.Entry) bool { return e.FailClass != "" || e.FailFence != archive.Fence{} }

// packETag returns etag in half its size if it is an MD5 in hex.
func packETag(etag string) (packed [16]byte, ok bool) {
	if len(etag) != 2*len(packed) {
		return packed, false
	}
	for i := range len(etag) {
		if c := etag[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return packed, false
		}
	}
	_, err := hex.Decode(packed[:], []byte(etag))
	return packed, err == nil
}

func appendFence(b []byte, f archive.Fence) []byte {
	b = binary.AppendUvarint(b, f.Dev)
	b = binary.AppendUvarint(b, f.Ino)
	b = binary.AppendVarint(b, f.Size)
	b = binary.BigEndian.AppendUint64(b, uint64(f.MtimeNs))
	return binary.AppendVarint(b, f.CtimeNs-f.MtimeNs)
}

// AppendString appends s with its length.
func AppendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// DecodeEntry reads what encodeEntry wrote. It accepts nothing else, and it
// keeps no reference to b.
func DecodeEntry(b []byte) (archive.Entry, error) {
	r := reader{rest: b, text: string(b)}
	version := r.byte()
	if version != EntryVersion && version != FarEntryVersion {
		return archive.Entry{}, Damaged("entry: unknown encoding %d", version)
	}
	flags := r.byte()
	if flags&^flagsKnown != 0 {
		return archive.Entry{}, Damaged("entry: unknown flags %#x", flags)
	}
	e := archive.Entry{Racy: flags&flagRacy != 0, Stored: flags&flagStored != 0, Suspect: flags&flagDoubted != 0}
	e.Fence = r.fence()
	e.Attributes = archive.Attributes{Mode: r.uint32(), UID: r.uint32(), GID: r.uint32()}
	if flags&flagMD5 != 0 {
		copy(e.MD5[:], r.take(uint64(len(e.MD5))))
	}
	if flags&flagSHA256 != 0 {
		copy(e.SHA256[:], r.take(uint64(len(e.SHA256))))
	}
	if flags&flagHexETag != 0 {
		e.ETag = hex.EncodeToString(r.take(uint64(len(e.MD5))))
	} else {
		e.ETag = r.string()
	}
	e.VersionID, e.SSE, e.KMSKeyID = r.string(), r.string(), r.string()
	e.Attempt = r.uvarint()
	if flags&flagFailed != 0 {
		e.FailClass = archive.Class(r.string())
		e.FailFence = r.fence()
	}
	e.Fence.MtimeSec = r.far(version)
	if r.err == nil && len(r.rest) > 0 {
		r.err = errors.New("bytes are left over")
	}
	if r.err != nil {
		return archive.Entry{}, Damaged("entry: %w", r.err)
	}
	return e, nil
}

// reader takes fields from the front of rest. After its first error every
// further field is zero. Strings are cut from text, one copy of the input.
type reader struct {
	rest []byte
	text string
	err  error
}

func (r *reader) take(n uint64) []byte {
	if r.err == nil && n > uint64(len(r.rest)) {
		r.err = errShort
	}
	if r.err != nil {
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.take(uint64(n))
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.rest)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.take(uint64(n))
	return v
}

func (r *reader) fail() {
	if r.err == nil {
		r.err = errShort
	}
}

func (r *reader) uint32() uint32 {
	v := r.uvarint()
	if v > math.MaxUint32 {
		r.fail()
	}
	return uint32(v)
}

func (r *reader) string() string {
	n := r.uvarint()
	from := len(r.text) - len(r.rest)
	if r.take(n) == nil {
		return ""
	}
	return r.text[from : from+int(n)]
}

// far returns the seconds at the end of an entry of that version.
func (r *reader) far(version byte) int64 {
	if version != FarEntryVersion {
		return 0
	}
	sec := r.varint()
	if sec == 0 {
		r.fail() // There is one encoding of an entry.
	}
	return sec
}

func (r *reader) fence() archive.Fence {
	f := archive.Fence{Dev: r.uvarint(), Ino: r.uvarint(), Size: r.varint()}
	if b := r.take(8); b != nil {
		f.MtimeNs = int64(binary.BigEndian.Uint64(b))
	}
	f.CtimeNs = f.MtimeNs + r.varint()
	return f
}

// EncodeRecord returns a record as a sealed value: its status as one byte,
// then the line.
func EncodeRecord(key []byte, status archive.Status, line []byte) ([]byte, error) {
	code := slices.Index(archive.Statuses(), status)
	if code < 0 {
		return nil, fmt.Errorf("record has the unknown status %q", status)
	}
	value := make([]byte, 0, 1+len(line)+checksumBytes)
	return Seal(key, append(append(value, byte(code+1)), line...)), nil
}

// DecodeRecord reads what encodeRecord wrote. The line is part of sealed.
func DecodeRecord(key, sealed []byte) (status archive.Status, line []byte, err error) {
	b, err := Unseal(key, sealed)
	if err != nil {
		return "", nil, err
	}
	if status, err = StatusOf(b); err != nil {
		return "", nil, err
	}
	return status, b[1:], nil
}

// StatusOf reads the first byte of a record's value.
func StatusOf(value []byte) (archive.Status, error) {
	all := archive.Statuses()
	if len(value) == 0 || value[0] == 0 || int(value[0]) > len(all) {
		return "", Damaged("record of an unknown status")
	}
	return all[value[0]-1], nil
}
