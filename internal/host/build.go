package host

import (
	"runtime"
	"runtime/debug"
)

// Build says which program this is.
type Build struct{ Version, Revision, GoVersion string }

// ReadBuild returns version with the commit that the toolchain stamped into the
// binary, "unknown" where it stamped none.
func ReadBuild(version string) Build {
	b := Build{Version: version, Revision: "unknown", GoVersion: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	dirty := ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "-dirty"
			}
		}
	}
	if b.Revision != "unknown" {
		b.Revision += dirty
	}
	return b
}
