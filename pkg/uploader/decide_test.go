package uploader

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/s3syncd/s3syncd/pkg/state"
)

func TestDecide(t *testing.T) {
	data := []byte("content")
	c := content{size: 7, md5: md5.Sum(data), sha256: sha256.Sum256(data)}
	sum := hex.EncodeToString(c.md5[:])
	sha := hex.EncodeToString(c.sha256[:])
	object := func(size int64, etag string, meta ...string) state.Object {
		o := state.Object{Size: size, ETag: etag, VersionID: "v1", Metadata: map[string]string{}}
		for i := 0; i < len(meta); i += 2 {
			o.Metadata[meta[i]] = meta[i+1]
		}
		return o
	}
	asked := func(key KeyVerdict, o state.Object) standing {
		return standing{asked: true, present: true, key: key, object: o}
	}
	replace := func(etag string) decision {
		return decision{cond: state.Condition{ETag: etag}, replaces: state.Object{ETag: etag, VersionID: "v1"}}
	}
	create := decision{cond: state.Condition{Absent: true}}
	conflict := decision{act: actConflict}
	skip := func(b state.Basis) decision { return decision{act: actSkip, basis: b} }
	tests := []struct {
		name string
		s    standing
		want decision
	}{
		{"nothing is believed to be there", standing{}, create},
		{"the server says that nothing is there", standing{asked: true}, create},
		{"the index has an ETag", standing{present: true, object: state.Object{ETag: "e", VersionID: "v1"}}, replace("e")},
		{"equal by metadata", asked(KeyOK, object(7, "e", state.MetaMD5, sum)), skip(state.BasisMetadata)},
		{"equal by metadata in capitals", asked(KeyOK, object(7, "e", state.MetaMD5, "9A0364B9E99BB480DD25E1F0284C8555")), skip(state.BasisMetadata)},
		{"equal by metadata with an equal sha256", asked(KeyOK, object(7, "e", state.MetaMD5, sum, state.MetaSHA256, sha)), skip(state.BasisMetadata)},
		{"equal MD5 but another sha256", asked(KeyOK, object(7, "e", state.MetaMD5, sum, state.MetaSHA256, "00")), replace("e")},
		{"equal by ETag", asked(KeyOK, object(7, sum)), skip(state.BasisETag)},
		{"equal by ETag though the metadata is older", asked(KeyOK, object(7, sum, state.MetaMD5, "00")), skip(state.BasisETag)},
		{"another ETag and no metadata proves nothing", asked(KeyOK, object(7, "e")), replace("e")},
		{"copied metadata on another size", asked(KeyOK, object(8, "e", state.MetaMD5, sum)), replace("e")},
		{"equal under another key", asked(KeyOther, object(7, "e", state.MetaMD5, sum)), replace("e")},
		{"equal without encryption", asked(KeyMissing, object(7, sum)), replace(sum)},
		{"other content of ours", asked(KeyOK, object(7, "e", state.MetaMD5, "00", state.MetaID, "app-01/0a1b2c3d/7")), replace("e")},
		{"other content of another instance", asked(KeyOK, object(7, "e", state.MetaMD5, "00", state.MetaID, "app-02/0a1b2c3d/7")), conflict},
		{"other content with an id that cannot be read", asked(KeyOK, object(7, "e", state.MetaMD5, "00", state.MetaID, "?")), conflict},
		{"equal content of another instance", asked(KeyOK, object(7, "e", state.MetaMD5, sum, state.MetaID, "app-02/0a1b2c3d/7")), skip(state.BasisMetadata)},
		{"equal content of another instance under another key", asked(KeyOther, object(7, "e", state.MetaMD5, sum, state.MetaID, "app-02/0a1b2c3d/7")), conflict},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := decide(c, tt.s, "app-01")
			if got.act != tt.want.act || got.basis != tt.want.basis || got.cond != tt.want.cond ||
				got.replaces.ETag != tt.want.replaces.ETag || got.replaces.VersionID != tt.want.replaces.VersionID {
				t.Errorf("decide = %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestShowsOnlyTheVeryWrite(t *testing.T) {
	in := &state.Intent{Attempt: 7, Chain: "0a1b2c3d", Fence: state.Fence{Size: 3}, MD5: [16]byte{1}}
	sum := hex.EncodeToString(in.MD5[:])
	object := func(size int64, md5, id string) state.Object {
		return state.Object{Size: size, Metadata: map[string]string{state.MetaMD5: md5, state.MetaID: id}}
	}
	tests := []struct {
		name string
		o    state.Object
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

func TestPartSizeKeepsBelowTheLimitOfParts(t *testing.T) {
	for _, tt := range []struct{ size, configured, want int64 }{
		{100 << 20, 16 << 20, 16 << 20},
		{9000 * (16 << 20), 16 << 20, 16 << 20},
		{9000*(16<<20) + 1, 16 << 20, 17 << 20},
		{5 << 40, 16 << 20, 583 << 20},
	} {
		if got := PartSize(tt.size, tt.configured); got != tt.want {
			t.Errorf("PartSize(%d, %d) = %d, want %d", tt.size, tt.configured, got, tt.want)
		}
	}
}

func TestFormatMtime(t *testing.T) {
	for ns, want := range map[int64]string{
		0: "0.000000000", 1_700_000_000_123_456_789: "1700000000.123456789", -1_500_000_000: "-1.500000000",
	} {
		if got := formatMtime(ns); got != want {
			t.Errorf("formatMtime(%d) = %q, want %q", ns, got, want)
		}
	}
}
