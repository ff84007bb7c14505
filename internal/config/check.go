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

// checker judges the settings of a Config that was filled.
type checker struct {
	*report

	cfg *Config
}

// check judges settings against each other. What was refused on its own is left
// out, so that one mistake is one fault.
func (c *checker) check() {
	c.checkServer()
	c.checkDelays("watch.max_delay", c.cfg.Watch.Settle, c.cfg.Watch.MaxDelay)
	c.checkUpload()
	c.checkManifest()
	c.checkAdmin()
	if len(c.cfg.Sources) == 0 && c.usable("sources") {
		c.fault("sources", "", "is required", "a list of at least one source")
	}
	names := map[string]int{}
	for i := range c.cfg.Sources {
		c.checkSource(sourceKey(i), &c.cfg.Sources[i])
		c.checkSourceName(i, names)
	}
	c.checkPaths(asWritten)
	c.checkPrefixes()
}

func (c *checker) checkDelays(key string, settle, maxDelay time.Duration) {
	if settle > maxDelay {
		c.warn(key, formatDuration(maxDelay)+" is shorter than settle ("+formatDuration(settle)+"): no path waits longer than max_delay")
	}
}

func (c *checker) checkServer() {
	const key = "s3.endpoint_url"
	if c.cfg.S3.EndpointURL == "" || !c.usable(key) {
		return
	}
	u, err := url.Parse(c.cfg.S3.EndpointURL)
	if err == nil && u.Scheme == "http" && !loopback.Host(u.Hostname()) && !c.cfg.S3.AllowInsecureEndpoint {
		c.fault(key, quote(c.cfg.S3.EndpointURL), "would send data and signatures in clear text to another host",
			endpointForm+", or s3.allow_insecure_endpoint: true")
	}
}

func (c *checker) checkUpload() {
	u := &c.cfg.Upload
	if need := u.PartSize + BufferSize; u.MemoryLimit < need && c.usable("upload.part_size", "upload.memory_limit") {
		key := "upload.memory_limit"
		if !c.written(key) {
			key = "upload.part_size"
		}
		c.fault(key, "", "leaves no room: memory_limit is "+formatSize(u.MemoryLimit)+", and one part of "+formatSize(u.PartSize)+
			" and one buffer of "+formatSize(BufferSize)+" need "+formatSize(need), "")
	}
}

func (c *checker) checkManifest() {
	m := &c.cfg.Manifest
	const mode, days = "manifest.object_lock.mode", "manifest.object_lock.days"
	if c.usable(mode, days) {
		switch {
		case m.ObjectLock.Mode != "" && m.ObjectLock.Days == 0:
			c.fault(mode, quote(m.ObjectLock.Mode), "needs days", "manifest.object_lock.days from 1 to 3650")
		case m.ObjectLock.Mode == "" && m.ObjectLock.Days != 0:
			c.fault(days, strconv.Itoa(m.ObjectLock.Days), "needs a mode", "manifest.object_lock.mode GOVERNANCE or COMPLIANCE")
		}
	}
	if m.MaxUnpublished < int64(m.MaxRecords) {
		c.warn("manifest.max_unpublished", "is below manifest.max_records: uploads pause before a manifest is full")
	}
}

func (c *checker) checkAdmin() {
	a := &c.cfg.Admin
	if a.Page && a.Listen == "" && c.usable("admin.listen") {
		c.warn("admin.page", "admin.listen is off, so there is no page")
	}
	if a.Page && a.Listen != "" && a.WebConfig == "" && c.usable("admin.listen", "admin.page", "admin.web_config") {
		if !a.Loopback() {
			c.fault("admin.page", "", "shows file names to whoever reaches "+a.Listen,
				"true where admin.listen is a loopback address or admin.web_config is set")
		}
	}
	if a.SocketTooLong() {
		c.warn("admin.socket", quote(a.Socket)+" is too long for a socket; set a path of up to "+strconv.Itoa(maxSocketBytes)+" bytes")
	}
}

func (c *checker) checkSource(key string, s *Source) {
	for _, required := range []struct{ name, value, form string }{
		{"path", s.Path, "an absolute path"},
		{"bucket", s.Bucket, bucketForm},
		{"kms_key_id", s.KMSKeyID, kmsForm},
	} {
		k := join(key, required.name)
		if required.value == "" && !c.written(k) && c.usable(key) {
			c.fault(k, "", "is required", required.form)
		}
	}
	if data, err := json.Marshal(s.EncryptionContext); err != nil || len(data) > maxContextBytes {
		c.fault(join(key, "encryption_context"), "", "is larger than "+strconv.Itoa(maxContextBytes)+" bytes as JSON", "")
	}
	c.checkTags(join(key, "tags"), s.Tags)
	if own := join(key, "max_delay"); c.written(own) || c.written(join(key, "settle")) {
		c.checkDelays(own, s.Settle, s.MaxDelay)
	}
	if c.cfg.S3.EndpointURL == "" {
		c.checkOnAWS(key, s)
	}
	c.checkPatterns(join(key, "include"), s.Include, s.Path)
	c.checkPatterns(join(key, "exclude"), s.Exclude, s.Path)
}

func (c *checker) checkPatterns(key string, lines []string, root string) {
	for _, w := range ignore.Warnings(lastKey(key), lines, root) {
		c.warn(key, w)
	}
}

// checkTags checks what S3 lets a tag be.
func (c *checker) checkTags(key string, tags map[string]string) {
	const form = "at most 10 tags of letters, digits, spaces and _.:/=+-@; a key has up to 128 characters, a value 256"
	fine := func(s string, most int) bool {
		return utf8.RuneCountInString(s) <= most && !strings.ContainsFunc(s, func(r rune) bool {
			return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune(" _.:/=+-@", r)
		})
	}
	if len(tags) > 10 {
		c.fault(key, "", "has "+strconv.Itoa(len(tags))+" tags", form)
	}
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		switch {
		case k == "" || strings.HasPrefix(strings.ToLower(k), "aws:") || !fine(k, 128):
			c.fault(key, quote(k), "is no key of a tag", form)
		case !fine(tags[k], 256):
			c.fault(key, quote(tags[k]), "is no value of a tag", form)
		}
	}
}

// checkOnAWS checks what a compatible server may see otherwise.
func (c *checker) checkOnAWS(key string, s *Source) {
	class := join(key, "storage_class")
	if s.StorageClass != "" && !slices.Contains(knownStorageClasses(), s.StorageClass) && c.usable(class) {
		c.fault(class, quote(s.StorageClass), "is not a storage class of AWS"+didYouMean(s.StorageClass, knownStorageClasses()), storageClassForm)
	}
	if r := kmsRegion(s.KMSKeyID); r != "" && s.Region != "" && r != s.Region {
		c.warn(join(key, "kms_key_id"), "the key is in "+r+" and the source in "+s.Region+": S3 takes a key of the bucket's own region only")
	}
}

func (c *checker) checkSourceName(i int, names map[string]int) {
	key, name := sourceKey(i)+".name", c.cfg.Sources[i].Name
	if name == "" || !c.usable(key) {
		return
	}
	if first, taken := names[name]; taken {
		c.fault(key, quote(name), "is the name of "+sourceKey(first)+" already", "a name of its own")
		return
	}
	names[name] = i
}
