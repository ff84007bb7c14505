// Package host is what this machine is to the program: its identity, its memory, its
// users.
package host

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"strings"
)

// ID tells machines with one instance name apart, in the metadata of objects.
// It is a keyed hash, so that the machine's own id, which others may know it by,
// does not leave it. A container usually has no such id: there it is the host's name,
// which survives a restart. "" where there is neither.
func ID(machine, name, instance string) string {
	id := strings.TrimSpace(machine)
	if b, err := hex.DecodeString(id); err != nil || len(b) != 16 || strings.Trim(id, "0") == "" {
		if id = name; id == "" || id == "localhost" || strings.HasPrefix(id, "localhost.") {
			return ""
		}
	}
	h := hmac.New(sha256.New, []byte(id))
	_, _ = io.WriteString(h, "s3syncd-host\x00"+instance) // It cannot fail.
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Name is the name of this host, "" where it is unknown.
func Name() string {
	name, err := os.Hostname()
	if err != nil {
		return ""
	}
	return name
}

// MachineID returns what machine-id(5) holds, "" where there is none.
func MachineID() string {
	b, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return ""
	}
	return string(b)
}
