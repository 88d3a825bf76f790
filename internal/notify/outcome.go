package notify

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The ends of an epoch.
const (
	Done       = "done"
	Aborted    = "aborted"
	RolledBack = "rolled_back" // it was live, and the fleet left it by itself
)

// Outcome is how an epoch ended.
type Outcome struct {
	Site     string
	Epoch    int64
	Outcome  string // one of the above
	Kind     string // deploy or rollback
	Release  string
	Author   string
	Commit   string
	Message  string
	Instance string        // whose agent says so
	Took     time.Duration // since the push; 0: unknown
	Members  int           // how many counted
	Excluded []string      // "instance: why": those that were not waited for
	Nos      []string      // "instance: reason"
	Reason   string        // why it did not go as it should; empty: it did
}

// Success says that the release is live and nothing was wrong with it.
func (o Outcome) Success() bool { return o.Outcome == Done && o.Reason == "" }

// shown is how many names of a list a person reads.
const shown = 5

// headline is the first line: which site, what, which release.
func (o Outcome) headline() string {
	what := "deploy"
	if o.Kind == "rollback" {
		what = "rollback"
	}
	switch {
	case o.Success():
		return fmt.Sprintf("%s: %s of %s is live", o.Site, what, o.Release)
	case o.Outcome == Done:
		return fmt.Sprintf("%s: %s of %s is live, but not well everywhere", o.Site, what, o.Release)
	case o.Outcome == RolledBack:
		return fmt.Sprintf("%s: %s of %s failed and was taken back", o.Site, what, o.Release)
	}
	return fmt.Sprintf("%s: %s of %s was aborted", o.Site, what, o.Release)
}

// Text is the whole message: the headline, how many and how long, the push, why, and who was left out and why. Each
// list is cut, so it is never longer than a few kilobytes.
func (o Outcome) Text() string {
	lines := []string{o.headline()}
	add := func(format string, args ...any) { lines = append(lines, clip(fmt.Sprintf(format, args...), 500)) }
	plural := "s"
	if o.Members == 1 {
		plural = ""
	}
	took := ""
	if o.Took > 0 {
		took = fmt.Sprintf(", %v after the push", o.Took.Round(time.Second))
	}
	add("%d instance%s%s (epoch %d, told by %s)", o.Members, plural, took, o.Epoch, o.Instance)
	if o.Reason != "" {
		add("why: %s", o.Reason)
	}
	if o.Message != "" || o.Author != "" || o.Commit != "" {
		add("pushed: %s", strings.Join(strings.Fields(strings.Join([]string{cmp.Or(o.Message, "(no message)"), o.Commit, o.Author}, " ")), " "))
	}
	if len(o.Excluded) > 0 {
		add("left out: %s", some(o.Excluded))
	}
	nos := slices.DeleteFunc(slices.Clone(o.Nos), func(no string) bool { return slices.Contains(o.Excluded, no) })
	if len(nos) > 0 {
		add("said no: %s", some(nos))
	}
	return strings.Join(lines, "\n")
}

// some names the first of a list.
func some(list []string) string {
	if len(list) > shown {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:shown], "; "), len(list)-shown)
	}
	return strings.Join(list, "; ")
}

// clip cuts a text to one line of so many bytes of valid UTF-8.
func clip(s string, most int) string {
	s = strings.ReplaceAll(s, "\n", " ")
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most-len("…")], "") + "…"
}

// subject is the headline as SNS takes it: up to 100 characters of ASCII, none of which controls.
func (o Outcome) subject() string {
	ascii := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, o.headline())
	return ascii[:min(len(ascii), 100)]
}

// slack escapes the characters that mean something in its markup.
func slack(text string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(text)
}
