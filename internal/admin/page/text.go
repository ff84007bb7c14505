package page

import (
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/s3syncd/s3syncd/internal/admin"
)

// nameRunes is how much of a file's name is shown.
const nameRunes = 160

// shown is a file's name as the page shows it: as it is where it is plain, else
// quoted and escaped as in Go source, so that control characters and those that
// turn the direction of text are seen. The middle of a long one is left out.
func shown(n admin.Name) string {
	q := n.Quoted()
	if n.B64 == "" && q == `"`+n.Path+`"` && strings.TrimSpace(n.Path) == n.Path && n.Path != "" {
		q = n.Path
	}
	r := []rune(q)
	if len(r) > nameRunes {
		return string(r[:nameRunes/2]) + " … " + string(r[len(r)-nameRunes/2:])
	}
	return q
}

// textRunes is how much of any other text is shown.
const textRunes = 500

// visible escapes what cannot be seen in a text that is not a file's name, and
// cuts it where it is too long.
func visible(s string) string {
	s = escaped(s)
	if r := []rune(s); len(r) > textRunes {
		return string(r[:textRunes-1]) + "…"
	}
	return s
}

func escaped(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 && !strings.ContainsRune(s, unicode.ReplacementChar) {
		return s
	}
	q := strconv.Quote(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

// clock is a time of the last day without its date.
func clock(t, now time.Time) string {
	if d := now.Sub(t); d > -24*time.Hour && d < 24*time.Hour {
		return t.UTC().Format("15:04:05Z")
	}
	return t.UTC().Format("2006-01-02 15:04Z")
}

// since is a time and how long ago that was.
func since(t *time.Time, now time.Time) string {
	if t == nil {
		return ""
	}
	return clock(*t, now) + ", " + ago(now.Sub(*t))
}

// ago is coarse, so that what is shown does not change each second.
func ago(d time.Duration) string {
	if d < time.Minute {
		return "less than a minute ago"
	}
	return admin.Duration(d) + " ago"
}

// seconds is a latency.
func seconds(v float64) string {
	switch {
	case v < 0:
		return "–"
	case v < 10:
		return strconv.FormatFloat(v, 'f', 1, 64) + " s"
	default:
		return admin.Duration(time.Duration(v * float64(time.Second)))
	}
}

// speed is a rate of bytes.
func speed(v float64) string {
	if v < 0 {
		return "–"
	}
	return admin.Bytes(int64(v)) + "/s"
}

// plural is n and the noun.
func plural[N int | int64](n N, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return admin.Count(n) + " " + many
}
