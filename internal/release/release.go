package release

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"time"
	"unicode/utf8"
)

// PointerName is the name of the pointer's object under <prefix><site>/; no release may have it.
const PointerName = "latest-deploy"

// PreviousLink is the name of the link to the release that was live before; no release may have it either.
const PreviousLink = "previous"

// idLayout is how push names releases: UTC, to the second, in an order that sorts by time.
const idLayout = "2006-01-02_15-04-05"

var (
	idPattern   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	sitePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
)

// Error says which foreign value broke which rule. Whoever meets one refuses the release, not the machine.
type Error struct {
	What  string // what it is: "pointer line 2", "path", "listing"
	Value string // as it was read; printed quoted and cut; empty: none
	Rule  string // what should hold, or what is wrong with it
}

// Error is one line: what, the quoted value, the rule.
func (e *Error) Error() string {
	if e.Value == "" {
		return e.What + ": " + e.Rule
	}
	return fmt.Sprintf("%s %s: %s", e.What, quote(e.Value), e.Rule)
}

// quote makes a value safe and short enough for a log line.
func quote(s string) string {
	const limit = 120
	if len(s) <= limit {
		return strconv.Quote(s)
	}
	cut := limit
	for cut > limit-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strconv.Quote(s[:cut]) + "..."
}

// ID is a release's name: a directory on every instance and a part of every object's key.
type ID string

// NewID names a release by its time in UTC, to the second. A second push within the second waits for the next.
func NewID(t time.Time) ID { return ID(t.UTC().Format(idLayout)) }

// ParseID accepts what may name a release: a letter or digit, then up to 127 of letters, digits, dot, underscore
// and dash. One character alone is refused (the packed layout's folders are m, d and p), and so is the pointer's name.
// The name of the active link is refused by [ID.Collides], where it is known.
func ParseID(s string) (ID, error) {
	switch {
	case !idPattern.MatchString(s):
		return "", &Error{"release id", s, "must be 2 to 128 of A-Z a-z 0-9 . _ - and begin with a letter or digit"}
	case len(s) == 1:
		return "", &Error{"release id", s, "must be longer than one character"}
	case s == PointerName:
		return "", &Error{"release id", s, "is the name of the pointer"}
	}
	return ID(s), nil
}

// Collides reports whether the id would take the place of a link beside the release directories: active, as
// it is called on this site, or previous.
func (id ID) Collides(active string) bool { return string(id) == active || id == PreviousLink }

// Time is the time in UTC that an id of [NewID] says; ok is false for any other id.
func (id ID) Time() (t time.Time, ok bool) {
	// Parse takes fractions of a second that the layout does not name: only what reads back the same is ours.
	t, err := time.Parse(idLayout, string(id))
	return t, err == nil && NewID(t) == id && t.Unix() > 0
}

// Stamp is the number that the stamp file returns: the id's time as Unix seconds, for ids that
// [NewID] makes; for any other the first 48 bits of its SHA-256. It is the same on every instance and after
// a rollback, in decimal, and fits a PHP integer.
func (id ID) Stamp() string {
	if t, ok := id.Time(); ok {
		return strconv.FormatInt(t.Unix(), 10)
	}
	sum := sha256.Sum256([]byte(id))
	return strconv.FormatUint(binary.BigEndian.Uint64(sum[:8])>>16, 10)
}

// ParseSite accepts the name of a site or of a group: 1 to 63 of a-z, 0-9 and dash, not beginning with a dash.
func ParseSite(s string) error {
	if !sitePattern.MatchString(s) {
		return &Error{"name", s, "must be 1 to 63 of a-z 0-9 - and begin with a letter or digit"}
	}
	return nil
}

// NextSequence is the sequence of a new pointer, in Unix seconds: now, or one more than the highest
// of last where that is later. It stays at the largest number when there is none above it; agents refuse a
// sequence that far ahead anyway.
func NextSequence(now time.Time, last ...int64) int64 {
	next := now.Unix()
	for _, l := range last {
		if l == math.MaxInt64 {
			return l
		}
		next = max(next, l+1)
	}
	return next
}
