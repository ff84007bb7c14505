package config

import (
	"encoding/json"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/s3syncd/s3syncd/internal/ignore"
	"github.com/s3syncd/s3syncd/internal/loopback"
)

// check judges settings against each other. What was refused on its own is left
// out, so that one mistake is one fault.
func (l *loader) check() {
	l.checkServer()
	l.checkDelays("watch.max_delay", l.cfg.Watch.Settle, l.cfg.Watch.MaxDelay)
	l.checkUpload()
	l.checkManifest()
	l.checkAdmin()
	if len(l.cfg.Sources) == 0 && l.usable("sources") {
		l.fault("sources", "", "is required", "a list of at least one source")
	}
	names := map[string]int{}
	for i := range l.cfg.Sources {
		l.checkSource(sourceKey(i), &l.cfg.Sources[i])
		l.checkSourceName(i, names)
	}
	l.checkPaths(asWritten)
	l.checkPrefixes()
}

func (l *loader) checkDelays(key string, settle, maxDelay time.Duration) {
	if settle > maxDelay {
		l.warn(key, formatDuration(maxDelay)+" is shorter than settle ("+formatDuration(settle)+"): no path waits longer than max_delay")
	}
}

func (l *loader) checkServer() {
	const key = "s3.endpoint_url"
	if l.cfg.S3.EndpointURL == "" || !l.usable(key) {
		return
	}
	u, err := url.Parse(l.cfg.S3.EndpointURL)
	if err == nil && u.Scheme == "http" && !loopback.Host(u.Hostname()) && !l.cfg.S3.AllowInsecureEndpoint {
		l.fault(key, quote(l.cfg.S3.EndpointURL), "would send data and signatures in clear text to another host",
			endpointForm+", or s3.allow_insecure_endpoint: true")
	}
}

func (l *loader) checkUpload() {
	u := &l.cfg.Upload
	if need := u.PartSize + BufferSize; u.MemoryLimit < need && l.usable("upload.part_size", "upload.memory_limit") {
		key := "upload.memory_limit"
		if !l.written(key) {
			key = "upload.part_size"
		}
		l.fault(key, "", "leaves no room: memory_limit is "+formatSize(u.MemoryLimit)+", and one part of "+formatSize(u.PartSize)+
			" and one buffer of "+formatSize(BufferSize)+" need "+formatSize(need), "")
	}
}

func (l *loader) checkManifest() {
	m := &l.cfg.Manifest
	const mode, days = "manifest.object_lock.mode", "manifest.object_lock.days"
	if l.usable(mode, days) {
		switch {
		case m.ObjectLock.Mode != "" && m.ObjectLock.Days == 0:
			l.fault(mode, quote(m.ObjectLock.Mode), "needs days", "manifest.object_lock.days from 1 to 3650")
		case m.ObjectLock.Mode == "" && m.ObjectLock.Days != 0:
			l.fault(days, strconv.Itoa(m.ObjectLock.Days), "needs a mode", "manifest.object_lock.mode GOVERNANCE or COMPLIANCE")
		}
	}
	if m.MaxUnpublished < int64(m.MaxRecords) {
		l.warn("manifest.max_unpublished", "is below manifest.max_records: uploads pause before a manifest is full")
	}
}

func (l *loader) checkAdmin() {
	a := &l.cfg.Admin
	if a.Page && a.Listen == "" && l.usable("admin.listen") {
		l.warn("admin.page", "admin.listen is off, so there is no page")
	}
	if a.Page && a.Listen != "" && a.WebConfig == "" && l.usable("admin.listen", "admin.page", "admin.web_config") {
		if !a.Loopback() {
			l.fault("admin.page", "", "shows file names to whoever reaches "+a.Listen,
				"true where admin.listen is a loopback address or admin.web_config is set")
		}
	}
	if a.SocketTooLong() {
		l.warn("admin.socket", quote(a.Socket)+" is too long for a socket; set a path of up to "+strconv.Itoa(maxSocketBytes)+" bytes")
	}
}

func (l *loader) checkSource(key string, s *Source) {
	for _, required := range []struct{ name, value, form string }{
		{"path", s.Path, "an absolute path"},
		{"bucket", s.Bucket, bucketForm},
		{"kms_key_id", s.KMSKeyID, kmsForm},
	} {
		k := join(key, required.name)
		if required.value == "" && !l.written(k) && l.usable(key) {
			l.fault(k, "", "is required", required.form)
		}
	}
	if data, err := json.Marshal(s.EncryptionContext); err != nil || len(data) > maxContextBytes {
		l.fault(join(key, "encryption_context"), "", "is larger than "+strconv.Itoa(maxContextBytes)+" bytes as JSON", "")
	}
	l.checkTags(join(key, "tags"), s.Tags)
	if own := join(key, "max_delay"); l.written(own) || l.written(join(key, "settle")) {
		l.checkDelays(own, s.Settle, s.MaxDelay)
	}
	if l.cfg.S3.EndpointURL == "" {
		l.checkOnAWS(key, s)
	}
	l.checkPatterns(join(key, "include"), s.Include, s.Path)
	l.checkPatterns(join(key, "exclude"), s.Exclude, s.Path)
}

func (l *loader) checkPatterns(key string, lines []string, root string) {
	for _, w := range ignore.Warnings(lastKey(key), lines, root) {
		l.warn(key, w)
	}
}

// checkTags checks what S3 lets a tag be.
func (l *loader) checkTags(key string, tags map[string]string) {
	const form = "at most 10 tags of letters, digits, spaces and _.:/=+-@; a key has up to 128 characters, a value 256"
	fine := func(s string, most int) bool {
		return utf8.RuneCountInString(s) <= most && !strings.ContainsFunc(s, func(r rune) bool {
			return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune(" _.:/=+-@", r)
		})
	}
	if len(tags) > 10 {
		l.fault(key, "", "has "+strconv.Itoa(len(tags))+" tags", form)
	}
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		switch {
		case k == "" || strings.HasPrefix(strings.ToLower(k), "aws:") || !fine(k, 128):
			l.fault(key, quote(k), "is no key of a tag", form)
		case !fine(tags[k], 256):
			l.fault(key, quote(tags[k]), "is no value of a tag", form)
		}
	}
}

// checkOnAWS checks what a compatible server may see otherwise.
func (l *loader) checkOnAWS(key string, s *Source) {
	class := join(key, "storage_class")
	if s.StorageClass != "" && !slices.Contains(knownStorageClasses(), s.StorageClass) && l.usable(class) {
		l.fault(class, quote(s.StorageClass), "is not a storage class of AWS"+didYouMean(s.StorageClass, knownStorageClasses()), storageClassForm)
	}
	if r := kmsRegion(s.KMSKeyID); r != "" && s.Region != "" && r != s.Region {
		l.warn(join(key, "kms_key_id"), "the key is in "+r+" and the source in "+s.Region+": S3 takes a key of the bucket's own region only")
	}
}

func (l *loader) checkSourceName(i int, names map[string]int) {
	key, name := sourceKey(i)+".name", l.cfg.Sources[i].Name
	if name == "" || !l.usable(key) {
		return
	}
	if first, taken := names[name]; taken {
		l.fault(key, quote(name), "is the name of "+sourceKey(first)+" already", "a name of its own")
		return
	}
	names[name] = i
}
