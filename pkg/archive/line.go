package archive

import (
	"bytes"
	"encoding/json"
	"strconv"
)

// LineGuess is a size that most lines stay below.
const LineGuess = 1 << 10

// AppendLine appends r as a line of a manifest, JSON without a newline: what
// encoding/json makes of it without escaping HTML, several times faster. A run
// that skips a million files writes a million of them.
func (r *Record) AppendLine(b []byte) []byte {
	b = appendField(b, '{', "local_path", r.LocalPath)
	b = appendField(b, ',', "s3_key", r.S3Key)
	b = appendField(b, ',', "s3_uri", r.S3URI)
	if r.SizeBytes != nil && *r.SizeBytes <= MaxNumber {
		b = strconv.AppendInt(append(b, `,"size_bytes":`...), *r.SizeBytes, 10)
	}
	b = appendField(b, ',', "status", string(r.Status))
	b = appendField(b, ',', "timestamp", r.Timestamp)
	b = appendOptional(b, "error", r.Error)
	b = appendOptional(b, "error_class", string(r.ErrorClass))
	b = appendOptional(b, "md5", r.MD5)
	b = appendOptional(b, "sha256", r.SHA256)
	b = appendOptional(b, "etag", r.ETag)
	b = appendOptional(b, "version_id", r.VersionID)
	b = appendOptional(b, "kms_key_id", r.KMSKeyID)
	b = appendOptional(b, "sse", r.SSE)
	b = appendOptional(b, "basis", string(r.Basis))
	b = appendField(b, ',', "trigger", string(r.Trigger))
	b = appendField(b, ',', "source", r.Source)
	b = appendField(b, ',', "instance", r.Instance)
	b = appendOptional(b, "mtime", r.MTime)
	b = appendOptional(b, "mode", r.Mode)
	if r.UID != nil {
		b = strconv.AppendUint(append(b, `,"uid":`...), uint64(*r.UID), 10)
	}
	if r.GID != nil {
		b = strconv.AppendUint(append(b, `,"gid":`...), uint64(*r.GID), 10)
	}
	b = appendField(b, ',', "chain", r.Chain)
	if r.Attempt != 0 {
		b = strconv.AppendUint(append(b, `,"attempt":`...), r.Attempt, 10)
	}
	if r.Recovered {
		b = append(b, `,"recovered":true`...)
	}
	b = appendOptional(b, "replaced_version_id", r.ReplacedVID)
	b = appendOptional(b, "replaced_etag", r.ReplacedETag)
	b = appendOptional(b, "s3_time", r.S3Time)
	b = appendOptional(b, "request_id", r.RequestID)
	b = appendOptional(b, "detected_at", r.DetectedAt)
	b = appendOptional(b, "local_path_b64", r.LocalPathB64)
	b = appendField(b, ',', "id", r.ID)
	return append(b, '}')
}

func appendOptional(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return appendField(b, ',', name, value)
}

func appendField(b []byte, before byte, name, value string) []byte {
	b = append(b, before, '"')
	b = append(b, name...)
	b = append(b, '"', ':')
	return appendQuoted(b, value)
}

// appendQuoted appends s as a JSON string. What is not plain ASCII is left to
// encoding/json.
func appendQuoted(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return appendEscaped(b, s)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

func appendEscaped(b []byte, s string) []byte {
	w := bytes.NewBuffer(b)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s) // A string in memory always can be.
	return bytes.TrimSuffix(w.Bytes(), []byte("\n"))
}
