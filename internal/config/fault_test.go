package config

import (
	"errors"
	"strings"
	"testing"
)

func TestFaultsNamePlaceKeyAndForm(t *testing.T) {
	source := func(more string) string { return minimal + "    " + more + "\n" }
	for _, tt := range []struct{ name, data, want string }{
		{"unknown key", minimal + "workers: 3", "c.yaml:6:1: workers: is not known; did you mean upload.workers?"},
		{"unknown key of a source", source("kms_key: x"), "c.yaml:6:5: sources[0].kms_key: is not known; did you mean kms_key_id?"},
		{"swapped letters", minimal + "upload: {wokrers: 3}", "c.yaml:6:10: upload.wokrers: is not known; did you mean workers?"},
		{"hyphens", minimal + "state-dir: /x", "c.yaml:6:1: state-dir: is not known; did you mean state_dir?"},
		{"profile for all", minimal + "s3: {profile: x}", "c.yaml:6:6: s3.profile: is not known; a source may have a profile"},
		{"repeated key", source("bucket: other"), "c.yaml:6:5: sources[0].bucket: is repeated; it stands in line 4 already"},
		{"repeated block", minimal + "log: {}\nlog: {}", "c.yaml:7:1: log: is repeated; it stands in line 6 already"},
		{"repeated context key", source("encryption_context: {a: b, a: c}"), "c.yaml:6:32: sources[0].encryption_context.a: is repeated"},
		{"number for a string", minimal + "state_dir: 7", "c.yaml:6:12: state_dir: 7 is a number; accepted: an absolute path"},
		{"string for a number", minimal + "upload: {workers: '16'}", `c.yaml:6:19: upload.workers: "16" is a string; accepted: a whole number from 1 to 256`},
		{"list for a scalar", minimal + "log: {level: [info]}", "c.yaml:6:14: log.level: is a list; accepted: debug | info | warn | error"},
		{"scalar for a block", minimal + "log: info", "c.yaml:6:6: log: is a string; accepted: a mapping of level, format"},
		{"scalar for a list", source("exclude: a"), `c.yaml:6:14: sources[0].exclude: "a" is a string; accepted: a list`},
		{"no value", minimal + "log:\n  level:\n", "c.yaml:7:3: log.level: has no value"},
		{"yes for true", source("bucket_key: yes"), `c.yaml:6:17: sources[0].bucket_key: "yes" is a string; accepted: true or false`},
		{"fraction", minimal + "upload: {workers: 1.5}", "c.yaml:6:19: upload.workers: 1.5 is a fraction"},
		{"hexadecimal", minimal + "upload: {workers: 0x10}", "c.yaml:6:19: upload.workers: 0x10 is not a whole number in decimal digits"},
		{"too many workers", minimal + "upload: {workers: 257}", "c.yaml:6:19: upload.workers: 257 is out of range"},
		{"no workers", minimal + "upload: {workers: 0}", "c.yaml:6:19: upload.workers: 0 is out of range"},
		{"small part", minimal + "upload: {part_size: 5242879}", "c.yaml:6:21: upload.part_size: 5242879 is out of range; accepted: a size such as 500KiB, 16MiB, 1GiB or plain bytes, from 5MiB to 5GiB"},
		{"no put", minimal + "upload: {single_put_max: 0}", `c.yaml:6:26: upload.single_put_max: 0 is out of range`},
		{"large put", minimal + "upload: {single_put_max: 6GiB}", `c.yaml:6:26: upload.single_put_max: "6GiB" is out of range`},
		{"no room for a part", minimal + "upload: {part_size: 64MiB, memory_limit: 70MiB}", "c.yaml:6:42: upload.memory_limit: leaves no room: memory_limit is 70MiB, and one part of 64MiB"},
		{"a part above the default memory", minimal + "upload: {part_size: 121MiB}", "c.yaml:6:21: upload.part_size: leaves no room"},
		{"short settle", minimal + "watch: {settle: 9ms}", `c.yaml:6:17: watch.settle: "9ms" is too short; accepted: a duration such as 500ms, 2s, 5m, 1h or 30d, from 10ms`},
		{"settle 0", source("settle: 0"), "c.yaml:6:13: sources[0].settle: 0 is too short"},
		{"short max_delay", source("max_delay: 99ms"), `c.yaml:6:16: sources[0].max_delay: "99ms" is too short`},
		{"short interval", minimal + "watch: {poll_interval: 999ms}", `c.yaml:6:24: watch.poll_interval: "999ms" is too short`},
		{"long digest_interval", minimal + "manifest: {digest_interval: 32d}", `c.yaml:6:29: manifest.digest_interval: "32d" is too long; accepted: a duration such as 500ms, 2s, 5m, 1h or 30d, from 1s to 31d, or 0`},
		{"flush_interval 0", minimal + "manifest: {flush_interval: 0}", "c.yaml:6:28: manifest.flush_interval: 0 is too short"},
		{"number as duration", minimal + "watch: {settle: 5}", "c.yaml:6:17: watch.settle: 5 has no unit"},
		{"negative duration", minimal + "watch: {settle: -5s}", `c.yaml:6:17: watch.settle: "-5s" is not a duration`},
		{"relative path", strings.Replace(minimal, "/no/such", "no/such", 1), `c.yaml:3:11: sources[0].path: "no/such/app" is not an absolute path`},
		{"host with a space", strings.Replace(minimal, "app-01", "app 01", 1), `c.yaml:1:11: instance: "app 01" is not an instance name`},
		{"instance of dots", strings.Replace(minimal, "app-01", "..", 1), `c.yaml:1:11: instance: ".." is not an instance name`},
		{"source name with a slash", source("name: a/b"), `c.yaml:6:11: sources[0].name: "a/b" is not a source name`},
		{"upper-case bucket", strings.Replace(minimal, "my-bucket", "My-bucket", 1), `c.yaml:4:13: sources[0].bucket: "My-bucket" is not a bucket name`},
		{"bucket like an address", strings.Replace(minimal, "my-bucket", "192.168.5.4", 1), `c.yaml:4:13: sources[0].bucket: "192.168.5.4" looks like an IP address`},
		{"directory bucket", strings.Replace(minimal, "my-bucket", "a--usw2-az1--x-s3", 1), `c.yaml:4:13: sources[0].bucket: "a--usw2-az1--x-s3" ends in --x-s3`},
		{"bucket ARN", strings.Replace(minimal, "my-bucket", "arn:aws:s3:::b", 1), "c.yaml:4:13: sources[0].bucket:"},
		{"no bucket", strings.Replace(minimal, "bucket: my-bucket", "prefix: x", 1), "c.yaml:3:5: sources[0].bucket: is required; accepted: a bucket name"},
		{"no key", strings.Replace(minimal, "kms_key_id: alias/archive", "prefix: x", 1), "c.yaml:3:5: sources[0].kms_key_id: is required; accepted: a customer-managed KMS key"},
		{"empty key", strings.Replace(minimal, "alias/archive", `""`, 1), `c.yaml:5:17: sources[0].kms_key_id: "" is empty`},
		{"AWS-managed alias", strings.Replace(minimal, "alias/archive", "alias/aws/s3", 1), `c.yaml:5:17: sources[0].kms_key_id: "alias/aws/s3" is a key that AWS manages`},
		{"AWS-managed short", strings.Replace(minimal, "alias/archive", "aws/s3", 1), `c.yaml:5:17: sources[0].kms_key_id: "aws/s3" is a key that AWS manages`},
		{"AWS-managed ARN", source("accept_kms_keys: ['arn:aws:kms:us-east-1:123456789012:alias/aws/s3']"), `c.yaml:6:23: sources[0].accept_kms_keys[0]: "arn:aws:kms:us-east-1:123456789012:alias/aws/s3" is a key that AWS manages`},
		{"chain in capitals", source("takes_over: [0A1B2C3D]"), `c.yaml:6:18: sources[0].takes_over[0]: "0A1B2C3D" is not a chain`},
		{"a number as a chain", source("takes_over: [12]"), "c.yaml:6:18: sources[0].takes_over[0]:"},
		{"ARN of another service", strings.Replace(minimal, "alias/archive", "arn:aws:iam::123456789012:role/x", 1), "c.yaml:5:17: sources[0].kms_key_id:"},
		{"prefix with a leading slash", source("prefix: /a"), `c.yaml:6:13: sources[0].prefix: "/a" begins with a slash`},
		{"prefix with two slashes", source("prefix: a//b"), `c.yaml:6:13: sources[0].prefix: "a//b" has an empty component`},
		{"prefix upwards", source("prefix: a/../b"), `c.yaml:6:13: sources[0].prefix: "a/../b" has the component ".."`},
		{"reserved prefix", source("prefix: a/_manifests/b"), `c.yaml:6:13: sources[0].prefix: "a/_manifests/b" has the component "_manifests"`},
		{"unknown placeholder", source("prefix: a/{host}"), `c.yaml:6:13: sources[0].prefix: "a/{host}" has a placeholder`},
		{"long prefix", source("prefix: " + strings.Repeat("é", 257)), "c.yaml:6:13: sources[0].prefix:"},
		{"encryption off", source("sse: none"), `c.yaml:6:10: sources[0].sse: "none" is not known; accepted: aws:kms | aws:kms:dsse`},
		{"number in the context", source("encryption_context: {a: 1}"), "c.yaml:6:29: sources[0].encryption_context.a: 1 is a number"},
		{"reserved context key", source("encryption_context: {'aws:s3:arn': x}"), `c.yaml:6:26: sources[0].encryption_context: "aws:s3:arn" is a key that AWS reserves`},
		{"large context", source("encryption_context: {a: " + strings.Repeat("x", 4100) + "}"), "c.yaml:6:25: sources[0].encryption_context: is larger than 4096 bytes"},
		{"unknown class", source("storage_class: STANDARD_AI"), `c.yaml:6:20: sources[0].storage_class: "STANDARD_AI" is not a storage class of AWS; did you mean STANDARD_IA?`},
		{"empty pattern", source(`include: [a, ""]`), `c.yaml:6:18: sources[0].include[1]: "" is empty`},
		{"control character", source(`exclude: ["a\tb"]`), `c.yaml:6:15: sources[0].exclude[0]: "a\tb" contains a control character`},
		{"remote http", minimal + "s3: {endpoint_url: 'http://minio.example.com'}", `c.yaml:6:20: s3.endpoint_url: "http://minio.example.com" would send data and signatures in clear text`},
		{"no scheme", minimal + "s3: {endpoint_url: 'minio:9000'}", `c.yaml:6:20: s3.endpoint_url: "minio:9000" is not an http or https URL`},
		{"endpoint with a query", minimal + "s3: {endpoint_url: 'https://x/?a=b'}", `c.yaml:6:20: s3.endpoint_url: "https://x/?a=b" has a query`},
		{"owner", minimal + "s3: {expected_bucket_owner: 123}", "c.yaml:6:29: s3.expected_bucket_owner: 123 is not an account number"},
		{"lock without days", minimal + "manifest: {object_lock: {mode: GOVERNANCE}}", `c.yaml:6:32: manifest.object_lock.mode: "GOVERNANCE" needs days`},
		{"lock without mode", minimal + "manifest: {object_lock: {days: 3}}", "c.yaml:6:32: manifest.object_lock.days: 3 needs a mode"},
		{"long lock", minimal + "manifest: {object_lock: {mode: GOVERNANCE, days: 3651}}", "c.yaml:6:50: manifest.object_lock.days: 3651 is out of range"},
		{"sign with a relative file", minimal + "manifest: {sign: 'ed25519:key'}", `c.yaml:6:18: manifest.sign: "ed25519:key" does not name its key file by an absolute path`},
		{"sign with nothing", minimal + "manifest: {sign: 'kms:'}", `c.yaml:6:18: manifest.sign: "kms:" is not a KMS key`},
		{"listen without a port", minimal + "admin: {listen: localhost}", `c.yaml:6:17: admin.listen: "localhost" is not an address`},
		{"public page", minimal + "admin: {listen: ':9810', page: true}", "c.yaml:6:32: admin.page: shows file names to whoever reaches :9810"},
		{"long socket", minimal + "admin: {socket: /" + strings.Repeat("x", 107) + "}", "c.yaml:6:17: admin.socket:"},
		{"alias of nothing", source("exclude: *none"), "c.yaml:6:14: sources[0].exclude: is an alias of nothing above"},
		{"merge key", source("<<: {bucket: x}"), "c.yaml:6:5: sources[0]: has a merge key (<<)"},
		{"tag", minimal + "upload: {workers: !!int '3'}", "c.yaml:6:19: upload.workers: has a tag"},
		{"two documents", minimal + "---\nlog: {}\n", "c.yaml:7:4: is a second document"},
		{"bad YAML", minimal + "log: [", "c.yaml:6:6: is not YAML: "},
		{"a list at the top", "- a", "c.yaml:1:1: is a list; accepted: a mapping of instance, state_dir"},
		{"not UTF-8", minimal + "# \xff", "c.yaml:6:1: is not UTF-8"},
		{"empty", "instance: a", "c.yaml:1:1: sources: is required"},
		{"no source", "instance: a\nsources: []", "c.yaml:2:10: sources: is required; accepted: a list of at least one source"},
		{"deep flow", minimal + "log: " + strings.Repeat("[", 501), "c.yaml:6:1: is nested too deeply"},
		{"deep lists", minimal + strings.Repeat("- ", 501), "c.yaml:6:1: is nested too deeply"},
		{"large", minimal + strings.Repeat("#\n", MaxFileSize/2), "c.yaml:1:1: is larger than 256KiB"},
	} {
		t.Run(tt.name, func(t *testing.T) { only(t, parseFaults(t, tt.data), tt.want) })
	}
}

func TestAllFaultsAreReportedInOrder(t *testing.T) {
	faults := parseFaults(t, `
log: {level: loud}
watch: {settle: 1ms}
sources:
  - path: relative
    bucket: X
state_dir: also/relative
`, "S3SYNCD_UPLOAD_WORKERS=many", "S3SYNCD_ADMIN_PAGE=perhaps", "PATH=/bin")
	var got []string
	for line := range strings.SplitSeq(faults.Error(), "\n") {
		place, _, _ := strings.Cut(line, ": ")
		got = append(got, place)
	}
	want := "c.yaml:2:14 c.yaml:3:17 c.yaml:5:5 c.yaml:5:11 c.yaml:6:13 c.yaml:7:12 S3SYNCD_ADMIN_PAGE S3SYNCD_UPLOAD_WORKERS"
	if strings.Join(got, " ") != want {
		t.Errorf("places = %v, want %s in\n%v", got, want, faults)
	}
}

func TestTheRootNeedsAName(t *testing.T) {
	root := strings.Replace(minimal, "/no/such/app", "/", 1)
	faults := parseFaults(t, root)
	if len(faults) != 2 || faults[0].Path != "state_dir" || faults[1].Path != "sources[0].name" {
		t.Errorf("faults of a source at the root:\n%v\nwant state_dir and sources[0].name", faults)
	}
	only(t, parseFaults(t, root+"    name: root"), "c.yaml:1:1: state_dir: \"/var/lib/s3syncd\" lies inside sources[0], /")
}

func TestAcceptedKMSKeys(t *testing.T) {
	for _, key := range []string{
		"1234abcd-12ab-34cd-56ef-1234567890ab", "mrk-1234abcd12ab34cd56ef1234567890ab", "alias/a", "alias/team/archive_2", "my-minio.key",
		"arn:aws:kms:us-east-1:123456789012:key/abc-123", "arn:aws-cn:kms:cn-north-1:123456789012:alias/x", "arn:aws:kms:my-minio-key",
	} {
		if p := checkKMSKey(key); p != "" {
			t.Errorf("checkKMSKey(%q) = %q, want it accepted", key, p)
		}
	}
	for _, key := range []string{"alias/", "a b", "key/abc", "arn:aws:kms:", "arn:aws:kms:us-east-1:123456789012:key/", "arn:aws:kms:us-east-1:123:key/abc", "arn:aws:s3:us-east-1:123456789012:key/abc", "alias/a:b"} {
		if checkKMSKey(key) == "" {
			t.Errorf("checkKMSKey(%q) accepts it", key)
		}
	}
}

func TestPathsThatOverlap(t *testing.T) {
	dir := t.TempDir()
	two := func(a, b, more string) string {
		return "instance: x\nsources:\n- {name: one, path: " + a + ", bucket: bucket-1, kms_key_id: k}\n- {name: two, path: " + b + ", bucket: bucket-2, kms_key_id: k}\n" + more
	}
	one := func(path, more string) string { return two(path, "DIR/other", more) }
	look := func(path string) Look {
		return Look{Real: strings.Replace(path, dir+"/link", dir+"/a", 1), File: path == dir+"/file"}
	}
	for _, tt := range []struct{ name, data, want string }{
		{"neighbors", two("DIR/a", "DIR/ab", ""), ""},
		{"not there yet", two("DIR/later/x", "DIR/later/y", ""), ""},
		{"below", two("DIR/a", "DIR/a/b", ""), "c.yaml:4:21: sources[1].path: \"DIR/a/b\" lies inside sources[0], DIR/a"},
		{"above", two("DIR/a/b", "DIR/a", ""), "c.yaml:4:21: sources[1].path: \"DIR/a\" contains sources[0]"},
		{"equal after cleaning", two("DIR/a", "DIR/other/../a/", ""), "c.yaml:4:21: sources[1].path: \"DIR/a\" is the directory of sources[0]"},
		{"below, neither is there", two("DIR/no", "DIR/no/x", ""), "c.yaml:4:21: sources[1].path:"},
		{"through a link", two("DIR/a", "DIR/link/b", ""), "c.yaml:4:21: sources[1].path: \"DIR/link/b\" (that is DIR/a/b) lies inside"},
		{"through a link to what is not there", two("DIR/a", "DIR/link/no", ""), "c.yaml:4:21: sources[1].path: \"DIR/link/no\" (that is DIR/a/no) lies inside"},
		{"a file", one("DIR/file", ""), "c.yaml:3:21: sources[0].path: \"DIR/file\" is not a directory"},
		{"state inside", one("DIR/a", "state_dir: DIR/a/state"), "c.yaml:5:12: state_dir: \"DIR/a/state\" lies inside sources[0]"},
		{"state inside through a link", one("DIR/a", "state_dir: DIR/link/s"), "c.yaml:5:12: state_dir:"},
		{"state is the source", one("DIR/a", "state_dir: DIR/a"), "c.yaml:5:12: state_dir:"},
		{"default state inside", two("/var/lib", "DIR/a", ""), "c.yaml:1:1: state_dir: \"/var/lib/s3syncd\" lies inside sources[0]"},
		{"state above", one("DIR/a", "state_dir: DIR"), ""},
		{"copies inside", one("DIR/a", "manifest: {local_dir: DIR/a/m}"), "c.yaml:5:23: manifest.local_dir: \"DIR/a/m\" lies inside sources[0]"},
		{"socket inside", one("DIR/a", "admin: {socket: DIR/a/s}"), "c.yaml:5:17: admin.socket: \"DIR/a/s\" lies inside sources[0]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse("c.yaml", []byte(strings.ReplaceAll(tt.data, "DIR", dir)), nil)
			if err == nil {
				err = c.CheckPlaces(look)
			}
			if tt.want == "" {
				if err != nil {
					t.Errorf("Parse: %v", err)
				}
				return
			}
			faults, _ := errors.AsType[Errors](err)
			only(t, faults, strings.ReplaceAll(tt.want, "DIR", dir))
		})
	}
}

func TestSourcesThatCollide(t *testing.T) {
	two := func(a, b string) string {
		return "instance: x\nsources:\n- {path: /no/a, bucket: bucket-1, kms_key_id: k, " + a + "}\n- {path: /no/b, kms_key_id: k, " + b + "}\n"
	}
	for _, tt := range []struct{ name, data, want string }{
		{"other bucket", two("prefix: a", "bucket: bucket-2, prefix: a"), ""},
		{"other prefix", two("prefix: a", "bucket: bucket-1, prefix: ab"), ""},
		{"same", two("prefix: a", "bucket: bucket-1, prefix: a/"), `c.yaml:4:58: sources[1].prefix: "a" would mix its objects with those of sources[0]`},
		{"same after the instance", two("prefix: a/x", "bucket: bucket-1, prefix: 'a/{instance}'"), `c.yaml:4:58: sources[1].prefix: "a/x"`},
		{"inside", two("prefix: a", "bucket: bucket-1, prefix: a/b"), `c.yaml:4:58: sources[1].prefix: "a/b"`},
		{"around", two("prefix: a/b", "bucket: bucket-1, prefix: a"), `c.yaml:4:58: sources[1].prefix: "a"`},
		{"none", two("prefix: a/b", "bucket: bucket-1"), `c.yaml:4:3: sources[1].prefix: ""`},
		{"one name", two("prefix: a, name: n", "bucket: bucket-1, prefix: b, name: n"), `c.yaml:4:67: sources[1].name: "n" is the name of sources[0] already`},
		{"one base name", strings.Replace(two("prefix: a", "bucket: bucket-1, prefix: b"), "/no/b", "/no/x/a", 1), `c.yaml:4:3: sources[1].name: "a" is the name of sources[0] already`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.want == "" {
				mustParse(t, tt.data)
				return
			}
			only(t, parseFaults(t, tt.data), tt.want)
		})
	}
}
