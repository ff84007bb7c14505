package admin

import (
	"regexp"
	"strings"

	"github.com/s3syncd/s3syncd/pkg/archive"
)

// deniedAction is how AWS names the action that a policy does not grant, and on
// what.
var deniedAction = regexp.MustCompile(`not authorized to perform: ([a-z0-9-]+:[A-Za-z0-9*]+)(?: on resource: "?([^\s"]+))?`)

// DeniedAction returns the action that the text of an AWS error says is not
// granted, and the resource where it names one; ok is false for other errors.
func DeniedAction(text string) (action, resource string, ok bool) {
	m := deniedAction.FindStringSubmatch(text)
	if m == nil {
		return "", "", false
	}
	return m[1], m[2], true
}

// hint is what to do about errors in whose text a code stands.
type hint struct{ code, advice string }

// hints are looked through in order. They say the same as the table of codes in
// docs/OPERATIONS.md.
func hints() []hint {
	return []hint{
		{"NoSuchBucket", "Compare the bucket's name with the configuration; the bucket must exist."},
		{"PermanentRedirect", "Set s3.region to the bucket's own region."},
		{"AuthorizationHeaderMalformed", "Set s3.region to the bucket's own region."},
		{"KMS.NotFoundException", "Compare kms_key_id: a wrong region or account, or an alias that is gone."},
		{"kms:KeyNotFound", "Compare kms_key_id: a wrong region or account, or an alias that is gone."},
		{"KMS.DisabledException", "Enable the KMS key again, or cancel its deletion."},
		{"KMS.KMSInvalidStateException", "Enable the KMS key again, or cancel its deletion."},
		{"ExpiredToken", "Renew the credentials: a role renews by itself, a static key needs a restart."},
		{"InvalidAccessKeyId", "Check the access key: a new static key needs a restart."},
		{"SignatureDoesNotMatch", "Check the secret key, and whether a proxy rewrites requests."},
		{"RequestTimeTooSkewed", "Set the host's clock: is time synchronization running?"},
		{"inode or ctime changed", "If it says so each time, the file system shows another inode or ctime at each look (some FUSE do): set the source's identity: size-mtime."},
		{"permission denied", "Let the daemon's user read it (CAP_DAC_READ_SEARCH, a group or an ACL), or exclude it; a rescan looks again."},
	}
}

// Advice says in a sentence or two what an operator does about an error of an
// error class. It is never empty.
func Advice(class, text string) string {
	if action, _, ok := DeniedAction(text); ok {
		return "Grant " + action + " to the daemon's role; where it is a kms: action, in the key's policy as well."
	}
	for _, h := range hints() {
		if strings.Contains(text, h.code) {
			return h.advice
		}
	}
	if strings.Contains(text, "AccessDenied") {
		return "Compare the role's policy, the bucket's and the key's: s3:PutObject and kms:GenerateDataKey are needed, kms:Decrypt for large files."
	}
	if a := archive.Class(class).Meaning().Advice; a != "" {
		return a
	}
	return "See the daemon's log for this path."
}

// Todo says what an operator does about the state of a source, "" for nothing.
func (s *SourceStatus) Todo() string {
	switch s.State {
	case StateUnavailable:
		return "Mount or restore the directory: the source then goes on by itself. Nothing counts as deleted meanwhile."
	case StateStopped:
		return Advice(string(archive.ClassEncryption), "")
	case StateCurrent, StateWorking, StateStarting:
		return ""
	}
	switch {
	case s.Destination.Error != "":
		return Advice(s.Destination.Class, s.Destination.Error)
	case s.Trail.Error != "":
		return "Uploads go on, their records wait. The trail needs the same rights as the data, and s3:GetObject and kms:Decrypt: see the error below."
	case s.Trail.LeftBy != "":
		return "Another host, or another state_dir, writes as this instance: give each an instance of its own. If the other one is gone for good, restart."
	case s.Trail.SigningError != "":
		return "Uploads and the trail go on, its digests are not signed: see the error below (kms:Sign, the key's policy, the way to KMS). They are signed when the signer answers."
	case len(s.Parked) > 0:
		return "Mend what the failures name, then run: s3syncd rescan " + shellWord(s.Name)
	case s.State == StateParked:
		return "If the removal is meant, run: s3syncd rescan " + shellWord(s.Name) + " --confirm-deletes. If not, put the files back."
	}
	return "Nothing fails: more changes than the network, upload.workers or upload.bandwidth_limit let through."
}

// shellWord is name as a shell takes it for one word.
func shellWord(name string) string {
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == "" && !strings.HasPrefix(name, "-") {
		return name
	}
	return "'" + strings.ReplaceAll(name, "'", `'\''`) + "'"
}
