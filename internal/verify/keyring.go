package verify

import (
	"context"
	"regexp"
	"strings"

	"github.com/s3syncd/s3syncd/pkg/trail"
)

var (
	keyPattern      = regexp.MustCompile(`^([0-9a-f]{64})\.pem$`)
	announcePattern = regexp.MustCompile(`^([0-9a-f]{64})\.announced-by-([0-9a-f]{64})\.sig$`)
)

// keyring is the public keys of a trail, and which of them are trusted.
type keyring struct {
	keys      map[string]*trail.PublicKey
	announces map[string][]string // by the announcing key: those that it announces
	trusted   map[string]bool     // and those that they announce
	named     []*trail.PublicKey
	given     bool             // the caller named keys to trust
	unread    map[string]error // keys that are there and could not be read
	begun     map[string]bool  // instances whose first key was taken for theirs, where none was named
}

func newKeyring(trusted []*trail.PublicKey) *keyring {
	r := &keyring{
		keys: map[string]*trail.PublicKey{}, announces: map[string][]string{}, trusted: map[string]bool{},
		unread: map[string]error{}, begun: map[string]bool{}, named: trusted, given: len(trusted) > 0,
	}
	for _, k := range trusted {
		r.keys[k.Fingerprint()] = k
	}
	return r
}

// load reads the keys and announcements of a trail. What is wrong with one of
// them goes to fault, one that cannot be read to unread. An error says that ctx
// ended.
func (r *keyring) load(ctx context.Context, t *trail.Trail, entries []trail.Entry, fault func(kind FindingKind, key, detail string), unread func(Finding, error)) error {
	pems, sigs := map[string][]byte{}, []trail.Entry{}
	for _, e := range entries {
		name := strings.TrimPrefix(e.Key, t.Root()+trail.KeysDir+"/")
		m := keyPattern.FindStringSubmatch(name)
		if m == nil {
			if announcePattern.MatchString(name) {
				sigs = append(sigs, e)
			} else {
				fault(NoteForeignObject, e.Key, "neither a public key nor an announcement of one")
			}
			continue
		}
		data, err := t.Small(ctx, e.Key)
		if err != nil {
			r.unread[m[1]] = err
			unread(Finding{Key: e.Key}, err)
			continue
		}
		k, err := trail.ParsePublicKey(data)
		switch {
		case err != nil:
			fault(FindingKey, e.Key, err.Error())
		case k.Fingerprint() != m[1]:
			fault(FindingKey, e.Key, "it holds the key "+k.Fingerprint())
		case !trail.CanonicalPEM(data):
			fault(FindingKey, e.Key, "it is not written as a public key is")
		default:
			r.keys[k.Fingerprint()] = k
			pems[k.Fingerprint()] = data
		}
	}
	for _, e := range sigs {
		data, err := t.Small(ctx, e.Key)
		if err != nil {
			unread(Finding{Key: e.Key}, err)
			continue
		}
		r.announcement(t, e, data, pems, fault)
	}
	for _, k := range r.named {
		r.trust(k.Fingerprint())
	}
	return ctx.Err()
}

// announcement checks one announcement.
func (r *keyring) announcement(t *trail.Trail, e trail.Entry, data []byte, pems map[string][]byte, fault func(kind FindingKind, key, detail string)) {
	m := announcePattern.FindStringSubmatch(strings.TrimPrefix(e.Key, t.Root()+trail.KeysDir+"/"))
	fresh, old := m[1], m[2]
	s, err := trail.ParseSignature(data)
	switch {
	case err != nil:
		fault(FindingKey, e.Key, err.Error())
	case r.unread[fresh] != nil || r.unread[old] != nil: // That was found already.
	case pems[fresh] == nil || r.keys[old] == nil:
		fault(FindingKey, e.Key, "a key that it names is not under "+trail.KeysDir+"/")
	case s.PublicKeyFingerprint != old:
		fault(FindingKey, e.Key, "it is signed by the key "+s.PublicKeyFingerprint)
	default:
		if err := r.keys[old].Verify(s, pems[fresh]); err != nil {
			fault(FindingKey, e.Key, err.Error())
			return
		}
		r.announces[old] = append(r.announces[old], fresh)
	}
}

// trusts reports whether a key is trusted, or announced by one that is.
func (r *keyring) trusts(fingerprint string) bool { return r.trusted[fingerprint] }

// trust trusts a key, and those that it announces.
func (r *keyring) trust(fingerprint string) {
	for todo := []string{fingerprint}; len(todo) > 0; todo = todo[1:] {
		if k := todo[0]; !r.trusted[k] {
			r.trusted[k] = true
			todo = append(todo, r.announces[k]...)
		}
	}
}
