package remote

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/s3syncd/s3syncd/pkg/archive"
	"github.com/s3syncd/s3syncd/pkg/localfile"
)

func TestDecide(t *testing.T) {
	data := []byte("content")
	c := localfile.Content{Size: 7, MD5: md5.Sum(data), SHA256: sha256.Sum256(data)}
	sum := hex.EncodeToString(c.MD5[:])
	sha := hex.EncodeToString(c.SHA256[:])
	object := func(size int64, etag string, meta ...string) archive.Object {
		o := archive.Object{Size: size, ETag: etag, VersionID: "v1", Metadata: map[string]string{}}
		for i := 0; i < len(meta); i += 2 {
			o.Metadata[meta[i]] = meta[i+1]
		}
		return o
	}
	asked := func(key archive.KeyVerdict, o archive.Object) State {
		return State{Asked: true, Present: true, Key: key, Object: o}
	}
	replace := func(etag string) Decision {
		return Decision{Cond: archive.Condition{ETag: etag}, Replaces: archive.Object{ETag: etag, VersionID: "v1"}}
	}
	create := Decision{Cond: archive.Condition{Absent: true}}
	conflict := Decision{Act: Conflict}
	skip := func(b archive.Basis) Decision { return Decision{Act: Skip, Basis: b} }
	self := Writer{Instance: "app-01", Chain: "0a1b2c3d", Host: "here"}
	read := Decision{Act: Read}
	ours := []string{archive.MetaMD5, sum, archive.MetaID, "app-01/0a1b2c3d/7"}
	there := func(v Bytes, o archive.Object) State {
		s := asked(archive.KeyOK, o)
		s.Bytes = v
		return s
	}
	tests := []struct {
		name string
		s    State
		want Decision
	}{
		{"nothing is believed to be there", State{}, create},
		{"the server says that nothing is there", State{Asked: true}, create},
		{"the index has an ETag", State{Present: true, Object: archive.Object{ETag: "e", VersionID: "v1"}}, replace("e")},
		{"equal by metadata", asked(archive.KeyOK, object(7, "e", archive.MetaMD5, sum)), skip(archive.BasisMetadata)},
		{"equal by metadata in capitals", asked(archive.KeyOK, object(7, "e", archive.MetaMD5, "9A0364B9E99BB480DD25E1F0284C8555")), skip(archive.BasisMetadata)},
		{"equal by metadata with an equal sha256", asked(archive.KeyOK, object(7, "e", archive.MetaMD5, sum, archive.MetaSHA256, sha)), skip(archive.BasisMetadata)},
		{"equal MD5 but another sha256", asked(archive.KeyOK, object(7, "e", archive.MetaMD5, sum, archive.MetaSHA256, "00")), replace("e")},
		{"equal by ETag", asked(archive.KeyOK, object(7, sum)), skip(archive.BasisETag)},
		{"equal by ETag though the metadata is older", asked(archive.KeyOK, object(7, sum, archive.MetaMD5, "00")), skip(archive.BasisETag)},
		{"another ETag and no metadata proves nothing", asked(archive.KeyOK, object(7, "e")), replace("e")},
		{"copied metadata on another size", asked(archive.KeyOK, object(8, "e", archive.MetaMD5, sum)), replace("e")},
		{"equal under another key", asked(archive.KeyOther, object(7, "e", archive.MetaMD5, sum)), replace("e")},
		{"equal without encryption", asked(archive.KeyMissing, object(7, sum)), replace(sum)},
		{"other content of ours", asked(archive.KeyOK, object(7, "e", archive.MetaMD5, "00", archive.MetaID, "app-01/0a1b2c3d/7")), replace("e")},
		{"other content of another instance", asked(archive.KeyOK, object(7, "e", archive.MetaMD5, "00", archive.MetaID, "app-02/0a1b2c3d/7")), conflict},
		{"other content with an id that cannot be read", asked(archive.KeyOK, object(7, "e", archive.MetaMD5, "00", archive.MetaID, "?")), conflict},
		{"equal content of another instance, as it says", asked(archive.KeyOK, object(7, "e", archive.MetaMD5, sum, archive.MetaID, "app-02/0a1b2c3d/7")), read},
		{"equal content of another instance, as its bytes say", there(BytesEqual, object(7, "e", archive.MetaMD5, sum, archive.MetaID, "app-02/0a1b2c3d/7")), skip(archive.BasisMetadata)},
		{"other bytes of another instance", there(BytesOther, object(7, "e", archive.MetaMD5, sum, archive.MetaID, "app-02/0a1b2c3d/7")), conflict},
		{"equal content of ours, as it says", asked(archive.KeyOK, object(7, "e", ours...)), read},
		{"equal content of ours, as its bytes say", there(BytesEqual, object(7, "e", ours...)), skip(archive.BasisMetadata)},
		{"other bytes that say they are ours", there(BytesOther, object(7, "e", ours...)), replace("e")},
		{"other content of another host", asked(archive.KeyOK, object(7, "e", archive.MetaMD5, "00", archive.MetaID, "app-01/11111111/7", archive.MetaHost, "there")), conflict},
		{"other content of this host under an earlier chain", asked(archive.KeyOK, object(7, "e", archive.MetaMD5, "00", archive.MetaID, "app-01/11111111/7", archive.MetaHost, "here")), replace("e")},
		{"other content of an earlier release under another chain", asked(archive.KeyOK, object(7, "e", archive.MetaMD5, "00", archive.MetaID, "app-01/11111111/7")), conflict},
		{"equal content of another instance under another key", asked(archive.KeyOther, object(7, "e", archive.MetaMD5, sum, archive.MetaID, "app-02/0a1b2c3d/7")), conflict},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Decide(c, tt.s, Memory{}, self)
			if got.Act != tt.want.Act || got.Basis != tt.want.Basis || got.Cond != tt.want.Cond ||
				got.Replaces.ETag != tt.want.Replaces.ETag || got.Replaces.VersionID != tt.want.Replaces.VersionID {
				t.Errorf("decide = %+v, want %+v", got, tt.want)
			}
		})
	}
}

// Of a key that the index knows nothing counts but the version or ETag that was
// acknowledged, whatever metadata says: everybody who writes the bucket can copy it.
func TestTheIndexBelievesOnlyTheObjectThatItKnows(t *testing.T) {
	data := []byte("content")
	c := localfile.Content{Size: 7, MD5: md5.Sum(data), SHA256: sha256.Sum256(data)}
	sum := hex.EncodeToString(c.MD5[:])
	self := Writer{Instance: "app-01", Chain: "0a1b2c3d"}
	entry := func(etag, version string) archive.Entry {
		return archive.Entry{Stored: true, ETag: etag, VersionID: version, MD5: c.MD5, SHA256: c.SHA256, Fence: archive.Fence{Size: 7}}
	}
	object := func(etag, version string, meta ...string) State {
		o := archive.Object{Size: 7, ETag: etag, VersionID: version, Metadata: map[string]string{archive.MetaMD5: sum}}
		for i := 0; i < len(meta); i += 2 {
			o.Metadata[meta[i]] = meta[i+1]
		}
		return State{Asked: true, Present: true, Key: archive.KeyOK, Object: o}
	}
	racy := entry("e", "")
	racy.MD5, racy.SHA256 = [16]byte{1}, [32]byte{}
	tests := []struct {
		name string
		e    archive.Entry
		more bool // An earlier chain has written here.
		s    State
		want Action
	}{
		{"the ETag that is known", entry("e", ""), false, object("e", ""), Skip},
		{"the version that is known", entry("e", "v1"), false, object("e", "v1"), Skip},
		{"another ETag with the same metadata", entry("e", ""), false, object("f", ""), Write},
		{"another version with the same metadata and ETag", entry("e", "v1"), false, object("e", "v2"), Write},
		{"the null version, overwritten", entry("e", "null"), false, object("f", "null"), Write},
		{"the null version as it was", entry("e", "null"), false, object("e", "null"), Skip},
		{"versioning was switched on since", entry("e", ""), false, object("e", "null"), Skip},
		{"another ETag with our id", entry("e", ""), false, object("f", "", archive.MetaID, "app-01/0a1b2c3d/9"), Write},
		{"an entry that names no object", entry("", ""), false, object("f", ""), Read},
		{"the known object holds other content than the file", racy, false, object("e", ""), Write},
		{"never seen, by a script", archive.Entry{}, false, object("f", ""), Skip},
		{"only failed before", archive.Entry{FailClass: archive.ClassFile}, false, object("f", ""), Skip},
		{"never seen, and says that s3syncd wrote it", archive.Entry{}, false, object("f", "", archive.MetaID, "app-01/0a1b2c3d/9"), Read},
		{"never seen since the state was lost", archive.Entry{}, true, object("f", ""), Read},
		{"never seen since the state was lost, and the ETag is the MD5", archive.Entry{}, true, object(sum, ""), Skip},
	}
	for _, tt := range tests {
		if got := Decide(c, tt.s, Memory{Entry: tt.e, Succeeds: tt.more}, self); got.Act != tt.want {
			t.Errorf("%s: decide = %+v, want Action %d", tt.name, got, tt.want)
		}
	}
}

func TestOwnerTellsHostsOfOneNameApart(t *testing.T) {
	here := Writer{Instance: "app-01", Chain: "0a1b2c3d", Host: "here"}
	nameless := Writer{Instance: "app-01", Chain: "0a1b2c3d"}
	tests := []struct {
		name     string
		w        Writer
		id, host string
		want     owner
	}{
		{"no id", here, "", "there", ownerSelf},
		{"our chain and host", here, "app-01/0a1b2c3d/1", "here", ownerSelf},
		{"our host, an earlier chain", here, "app-01/11111111/1", "here", ownerSelf},
		{"our chain, an earlier release", here, "app-01/0a1b2c3d/1", "", ownerSelf},
		{"another host", here, "app-01/11111111/1", "there", ownerNamesake},
		{"another chain of an earlier release", here, "app-01/11111111/1", "", ownerNamesake},
		{"a machine without identity, its chain", nameless, "app-01/0a1b2c3d/1", "", ownerSelf},
		{"a machine without identity, another chain", nameless, "app-01/11111111/1", "", ownerNamesake},
		{"another instance on our host", here, "app-02/0a1b2c3d/1", "here", ownerOther},
		{"no id of ours", here, "?", "here", ownerOther},
	}
	for _, tt := range tests {
		o := archive.Object{Metadata: map[string]string{archive.MetaID: tt.id, archive.MetaHost: tt.host}}
		if got := tt.w.owner(o); got != tt.want {
			t.Errorf("%s: owner = %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestShowsOnlyTheVeryWrite(t *testing.T) {
	in := &archive.Intent{Attempt: 7, Chain: "0a1b2c3d", Fence: archive.Fence{Size: 3}, MD5: [16]byte{1}}
	sum := hex.EncodeToString(in.MD5[:])
	object := func(size int64, md5, id string) archive.Object {
		return archive.Object{Size: size, Metadata: map[string]string{archive.MetaMD5: md5, archive.MetaID: id}}
	}
	tests := []struct {
		name string
		o    archive.Object
		want bool
	}{
		{"the write", object(3, sum, "app-01/0a1b2c3d/7"), true},
		{"another attempt", object(3, sum, "app-01/0a1b2c3d/8"), false},
		{"another instance", object(3, sum, "app-02/0a1b2c3d/7"), false},
		{"another chain", object(3, sum, "app-01/00000000/7"), false},
		{"another size", object(4, sum, "app-01/0a1b2c3d/7"), false},
		{"another content", object(3, "00", "app-01/0a1b2c3d/7"), false},
		{"no id", object(3, sum, ""), false},
	}
	for _, tt := range tests {
		if got := shows(tt.o, in, "app-01"); got != tt.want {
			t.Errorf("%s: shows = %v, want %v", tt.name, got, tt.want)
		}
	}
}
