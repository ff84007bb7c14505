package admin

import (
	"encoding/base64"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// StatusFormat is the number of the JSON form of Status. Fields are only added
// to it; it is raised when one changes its meaning or goes.
const StatusFormat = 1

// The states of a SourceStatus, from the best to the worst.
const (
	StateCurrent     = "current"     // nothing waits, nothing is in the way
	StateWorking     = "working"     // changes are on their way, nothing is in the way
	StateStarting    = "starting"    // the first canary or the first watches are not done
	StateBehind      = "behind"      // changes wait for longer than they should, or the trail is not published
	StateParked      = "parked"      // something waits for an operator
	StateStopped     = "stopped"     // the server did not confirm the key: nothing is sent there
	StateUnavailable = "unavailable" // the directory is not there
)

// Status is what a running daemon is doing. Times are UTC.
type Status struct {
	Format    int       `json:"format"`
	Time      time.Time `json:"time"`
	Instance  string    `json:"instance"`
	Version   string    `json:"version"`
	Revision  string    `json:"revision"`
	PID       int       `json:"pid"`
	StartedAt time.Time `json:"started_at"`
	State     string    `json:"state"`   // starting | ready | stopping
	Current   bool      `json:"current"` // every source is current or working
	// LastReload is how the last hang-up ended; nil: there was none.
	LastReload *Reload        `json:"last_reload,omitempty"`
	Sources    []SourceStatus `json:"sources"`
}

// Reload is how a daemon took a new configuration.
type Reload struct {
	At         time.Time `json:"at"`
	Successful bool      `json:"successful"`      // it was read, and is in force
	Error      string    `json:"error,omitempty"` // why the old one stays
}

// SourceStatus is what a daemon knows of one source.
type SourceStatus struct {
	Name     string `json:"name"`
	State    string `json:"state"`
	Sentence string `json:"sentence"` // for people, begins with the name
	Reason   string `json:"reason,omitempty"`
	// Since is when it began to be behind, parked, stopped or unavailable, as
	// far as that is known.
	Since *time.Time `json:"since,omitempty"`

	Path              string           `json:"path"`
	Bucket            string           `json:"bucket"`
	Prefix            string           `json:"prefix"`
	Available         bool             `json:"available"`
	UnavailableReason string           `json:"unavailable_reason,omitempty"`
	HungSince         *time.Time       `json:"hung_since,omitempty"` // a check of the directory began then and has not ended
	DeletesWithheld   bool             `json:"deletes_withheld"`     // another directory is in its place: see rescan --confirm-deletes
	Destination       Destination      `json:"destination"`
	Queue             Queue            `json:"queue"`
	Indexed           Indexed          `json:"indexed"`
	Outcomes          map[string]int64 `json:"outcomes"` // by status, since the daemon started
	Parked            map[string]int64 `json:"parked"`   // files by error class
	// Files that fail again and again for causes that may pass, since when the
	// first of them does, and its error class.
	Failing      int             `json:"failing,omitempty"`
	FailingSince *time.Time      `json:"failing_since,omitempty"`
	FailingClass string          `json:"failing_class,omitempty"`
	InFlight     []InFlight      `json:"in_flight"`
	Failures     []Failure       `json:"failures"`      // the last ones, newest first
	LastOutcomes []Outcome       `json:"last_outcomes"` // newest first
	Trail        Trail           `json:"trail"`
	LastScan     *Scan           `json:"last_scan,omitempty"`
	Watched      int64           `json:"watched_directories"`
	Polled       int64           `json:"polled_directories"`
	Busy         []BusyDirectory `json:"busy_directories"` // with the most events, busiest first
}

// Destination is where a source is archived to.
type Destination struct {
	State     string     `json:"state"` // ok | waiting | parked | stopped
	Class     string     `json:"error_class,omitempty"`
	Error     string     `json:"error,omitempty"`
	Since     *time.Time `json:"since,omitempty"`
	NextProbe *time.Time `json:"next_probe,omitempty"`
	// Requests under way that make no progress, and since when.
	Stalled      int        `json:"stalled_requests,omitempty"`
	StalledSince *time.Time `json:"stalled_since,omitempty"`
}

// Queue counts the paths that are on their way.
type Queue struct {
	Settling int        `json:"settling"` // changed, not yet quiet
	Queued   int        `json:"queued"`
	InFlight int        `json:"in_flight"`
	Delayed  int        `json:"delayed"` // wait for a retry or an operator
	Total    int64      `json:"total"`
	Oldest   *time.Time `json:"oldest,omitempty"`
}

// Indexed is what the index holds as stored in S3.
type Indexed struct {
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"`
}

// Name is a path below a source.
type Name struct {
	Path string `json:"path"`
	// B64 is the raw name where it is not UTF-8.
	B64 string `json:"path_b64,omitempty"`
}

// NewName returns the name of a raw path.
func NewName(raw string) Name {
	if utf8.ValidString(raw) {
		return Name{Path: raw}
	}
	return Name{Path: strings.ToValidUTF8(raw, "\uFFFD"), B64: base64.StdEncoding.EncodeToString([]byte(raw))}
}

// Quoted is the name as it may be shown on a terminal.
func (n Name) Quoted() string {
	raw := n.Path
	if b, err := base64.StdEncoding.DecodeString(n.B64); err == nil && n.B64 != "" {
		raw = string(b)
	}
	return strconv.Quote(raw)
}

// Short is Quoted with its middle left out where it is too long for a line.
func (n Name) Short() string {
	const limit = 100
	r := []rune(n.Quoted())
	if len(r) <= limit {
		return string(r)
	}
	return string(r[:limit/3]) + "…" + string(r[len(r)-limit*2/3:])
}

// InFlight is a file with an attempt under way.
type InFlight struct {
	Name
	Size      int64     `json:"size_bytes"`
	Sent      int64     `json:"sent_bytes"`
	Hashed    int64     `json:"hashed_bytes,omitempty"`
	Phase     string    `json:"phase"` // open | hash | ask | send | commit
	StartedAt time.Time `json:"started_at"`
}

// Progress is how many bytes the phase that the file is in has behind it.
func (f *InFlight) Progress() int64 {
	if f.Phase == "hash" {
		return f.Hashed
	}
	return f.Sent
}

// Failure is what went wrong with one path, once or several times in a row.
type Failure struct {
	Name
	Class      string     `json:"error_class"`
	Error      string     `json:"error"`
	FirstAt    time.Time  `json:"first_at"`
	LastAt     time.Time  `json:"last_at"`
	Count      int64      `json:"count"`
	Retried    bool       `json:"retried"` // it is tried again without anyone's help
	Advice     string     `json:"advice"`  // what to do about it
	ResolvedAt *time.Time `json:"resolved_at,omitempty"`
}

// Outcome is what became of one file, as the audit trail has it.
type Outcome struct {
	Name
	Status string    `json:"status"`
	Size   int64     `json:"size_bytes"`
	At     time.Time `json:"at"`
}

// Trail is the state of the audit trail.
type Trail struct {
	Chain              string     `json:"chain"`
	Sequence           uint64     `json:"sequence"` // of the last sealed digest, 0: none
	LastManifest       string     `json:"last_manifest,omitempty"`
	LastManifestAt     *time.Time `json:"last_manifest_at,omitempty"` // published by this process
	LastDigest         string     `json:"last_digest,omitempty"`
	LastDigestAt       *time.Time `json:"last_digest_at,omitempty"`
	LastDigestSHA256   string     `json:"last_digest_sha256,omitempty"` // the chain's head
	Signing            bool       `json:"signing"`                      // digests are signed
	UnsignedDigests    int        `json:"unsigned_digests"`             // published, the signature is still missing
	UnsignedSince      *time.Time `json:"unsigned_since,omitempty"`     // when the oldest of them was sealed
	SigningError       string     `json:"signing_error,omitempty"`
	LeftBy             string     `json:"left_by,omitempty"` // another chain of this instance that left this one
	LeftAt             *time.Time `json:"left_at,omitempty"` // when that was seen
	UnpublishedRecords int64      `json:"unpublished_records"`
	WaitingDocuments   int        `json:"waiting_documents"`       // sealed, not yet acknowledged
	RequestSince       *time.Time `json:"request_since,omitempty"` // of the request for the trail that is under way
	Error              string     `json:"error,omitempty"`
	ErrorSince         *time.Time `json:"error_since,omitempty"`
}

// Scan is the last scan of the whole source.
type Scan struct {
	Trigger    string    `json:"trigger"`
	StartedAt  time.Time `json:"started_at"`
	EndedAt    time.Time `json:"ended_at"`
	Complete   bool      `json:"complete"`
	Files      int64     `json:"files"`
	New        int64     `json:"new"`
	Changed    int64     `json:"changed"`
	Gone       int64     `json:"gone"`
	Unreadable int64     `json:"unreadable"`
	Error      string    `json:"error,omitempty"`
}

// BusyDirectory is a directory in which much happens.
type BusyDirectory struct {
	Name
	Events int64 `json:"events"`
	Window int64 `json:"window_seconds"`
}

// RescanRequest asks for a rescan of one source, of all when Source is "".
type RescanRequest struct {
	Source         string `json:"source"`
	Remote         bool   `json:"remote"`
	ConfirmDeletes bool   `json:"confirm_deletes"`
}

// RescanAnswer says what was asked of which sources.
type RescanAnswer struct {
	Sources []string `json:"sources"`
}

// FlushRequest asks for a flush of the sources, of all when there are none.
type FlushRequest struct {
	Sources []string `json:"sources"`
	Timeout string   `json:"timeout"` // a duration of Go; "0s": none
}

// FlushAnswer says for each source whether all that had changed before the
// request is in S3 and in a published manifest.
type FlushAnswer struct {
	Sources []FlushedSource `json:"sources"`
}

// FlushedSource is the answer for one source.
type FlushedSource struct {
	Source   string   `json:"source"`
	Done     bool     `json:"done"`
	Reasons  []string `json:"reasons"` // why not
	Chain    string   `json:"chain,omitempty"`
	Sequence uint64   `json:"sequence,omitempty"` // of the digest that holds it all
}

// UnknownSourceError names the sources that there are.
type UnknownSourceError struct {
	Source string
	Known  []string
}

// Error names the source and those that there are.
func (e *UnknownSourceError) Error() string {
	quoted := make([]string, len(e.Known))
	for i, k := range e.Known {
		quoted[i] = strconv.Quote(k)
	}
	return "there is no source " + strconv.Quote(e.Source) + "; the sources are " + strings.Join(quoted, ", ")
}
