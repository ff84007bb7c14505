package config

import "strings"

const credentialsHint = "credentials are never configured here: the AWS default chain supplies them " +
	"(environment, profile, SSO, web identity, container or instance role)"

// looksLikeCredential reports whether a key that is not ours was meant to hold
// a credential.
func looksLikeCredential(key string) bool {
	k := strings.ToLower(strings.NewReplacer("_", "", "-", "", ".", "").Replace(key))
	for _, word := range []string{"accesskey", "secret", "token", "password", "passwd", "credential", "apikey"} {
		if strings.Contains(k, word) {
			return true
		}
	}
	return false
}

// didYouMean returns "; did you mean X?" for the name that is nearest to s, or
// "" where none is near.
func didYouMean(s string, names []string) string {
	if best := Nearest(s, names); best != "" {
		return "; did you mean " + best + "?"
	}
	return ""
}

// Nearest returns the name that s was probably meant to be: one that differs by
// few letters, else one that s begins or that begins s.
func Nearest(s string, names []string) string {
	if len(s) > 64 {
		return ""
	}
	s = strings.ReplaceAll(strings.ToLower(s), "-", "_")
	best, least := "", max(len(s)/3, 1)+1
	for _, n := range names {
		if d := distance(s, strings.ReplaceAll(strings.ToLower(n), "-", "_")); n != "" && d < least {
			best, least = n, d
		}
	}
	if best != "" || len(s) < 3 {
		return best
	}
	for _, n := range names {
		low := strings.ToLower(n)
		if low != "" && (strings.HasPrefix(low, s) || strings.HasSuffix(low, "_"+s) || strings.HasPrefix(s, low+"_")) {
			return n
		}
	}
	return ""
}

// distance is the number of bytes to insert, delete, replace or swap with their
// neighbor to turn a into b.
func distance(a, b string) int {
	before, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev, row = prev, row, before
	}
	return prev[len(b)]
}
