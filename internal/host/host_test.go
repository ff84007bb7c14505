package host

import (
	"strings"
	"testing"
)

func TestHostIDIsStablePrivateAndOfOneInstance(t *testing.T) {
	const machine = "0123456789abcdef0123456789abcdef"
	id := ID(machine+"\n", "a", "app-01")
	if len(id) != 32 || id != ID(machine, "b", "app-01") || strings.Contains(id, machine[:8]) {
		t.Errorf("hostID = %q, want 32 stable hex digits that do not show the machine's id", id)
	}
	if id == ID(machine, "a", "app-02") || id == ID(strings.Replace(machine, "0", "1", 1), "a", "app-01") {
		t.Error("another instance or machine has the same id")
	}
	for _, none := range []string{"", "\n", "uninitialized\n", strings.Repeat("0", 32), machine[:30]} {
		pod := ID(none, "pod-0", "app-01")
		if len(pod) != 32 || pod != ID("", "pod-0", "app-01") || pod == ID(none, "pod-1", "app-01") {
			t.Errorf("hostID(%q) = %q, want what the host's name says", none, pod)
		}
		for _, name := range []string{"", "localhost", "localhost.localdomain"} {
			if got := ID(none, name, "app-01"); got != "" {
				t.Errorf("hostID(%q, %q) = %q, want none", none, name, got)
			}
		}
	}
}
