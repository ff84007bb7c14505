package safefs

import (
	"errors"
	"testing"
)

func TestLinkPolicyAsksWhoCouldHaveMadeTheName(t *testing.T) {
	const app, other = 1000, 1001
	for name, c := range map[string]struct {
		policy   LinkPolicy
		links    uint64
		file     uint32 // owner
		dir      Stat
		archived bool
		want     error
	}{
		"one name":                                   {LinksSameOwner, 1, 0, Stat{UID: app}, false, nil},
		"linked within one owner":                    {LinksSameOwner, 2, app, Stat{UID: app, Mode: 0o777}, false, nil},
		"root's file in a user's directory":          {LinksSameOwner, 2, 0, Stat{UID: app, Mode: 0o755}, false, ErrForeignLink},
		"another user's file":                        {LinksSameOwner, 2, other, Stat{UID: app, Mode: 0o755}, false, ErrForeignLink},
		"a user's file where root alone makes names": {LinksSameOwner, 2, app, Stat{UID: 0, Mode: 0o755}, false, nil},
		"where a group may make names":               {LinksSameOwner, 2, app, Stat{UID: 0, Mode: 0o775}, false, ErrForeignLink},
		"where everybody may, sticky":                {LinksSameOwner, 2, app, Stat{UID: 0, Mode: 0o1777}, false, ErrForeignLink},
		"archived, then linked elsewhere":            {LinksSameOwner, 9, 0, Stat{UID: app}, true, nil},
		"allowed":                                    {LinksAllow, 2, 0, Stat{UID: app}, false, nil},
		"skipped":                                    {LinksSkip, 2, app, Stat{UID: app}, false, ErrLinkSkipped},
		"skip, but archived under one name":          {LinksSkip, 2, app, Stat{UID: app}, true, nil},
	} {
		if got := c.policy.Check(Stat{Nlink: c.links, UID: c.file}, c.dir, c.archived); !errors.Is(got, c.want) {
			t.Errorf("%s: Check = %v, want %v", name, got, c.want)
		}
	}
}
