package release

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// MaxPointer is the largest pointer in bytes, signatures included.
const MaxPointer = 4096

// KindRollback is the [Pointer.Kind] of a pointer that push -rollback wrote; an ordinary one has none.
const KindRollback = "rollback"

// Pointer names the release that a site should run. Only the first three fields are always set.
//
// Its text is UTF-8: release id, sequence and number of files on a line each, then lines of a key, one space and a
// Go string literal in double quotes, so a value can never begin a line of its own. Lines end with LF; the last one may, but
// is written without. CR LF is read too, because the older tool reads it and an editor on a laptop may have
// left it, but never written. Numbers are plain decimal digits. A signed pointer is a signed note of golang.org/x/mod/sumdb/note:
// this text with its last LF, an empty line, and a line for each signature, "— name base64".
type Pointer struct {
	Release  ID
	Sequence int64 // Unix seconds or more; above zero; grows with every pointer of the site
	Files    int   // 1 to MaxFiles

	Kind     string    // "" or KindRollback
	Scope    string    // <bucket>/<prefix><site> it was made for
	Manifest *Content  // nil in the plain layout
	Delta    *Delta    // how the manifest differs from the parent's; only with a manifest
	Commit   string    // what people want to know of the release: its commit,
	Author   string    // who pushed it,
	Message  string    // and why
	Policy   Policy    // of this rollout alone
	Extra    []Setting // keys of other versions, in their order: kept and ignored
}

// Content identifies an object by its bytes.
type Content struct {
	SHA256 string // 64 lower-case hex digits
	Length int64  // bytes, above zero
}

// Delta is an object that says what changed since the parent.
type Delta struct {
	Parent ID
	Content
}

// Policy is how one release is rolled out; the zero value: everywhere at once, with the fleet's usual guard.
type Policy struct {
	Waves       []string      // each as CheckWave says
	Bake        time.Duration // healthy for so long before the next wave
	Approve     bool          // a person approves each wave
	MaxExcluded string        // as ParseShare says; "": the default
}

// Setting is one key and its value.
type Setting struct{ Key, Value string }

var (
	keyPattern  = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)
	hashPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// fields are the keys we know, in the order in which they are written.
var fields = []struct {
	key string
	get func(*Pointer) string // "": not set, not written
	set func(*Pointer, string) error
}{
	{"kind", func(p *Pointer) string { return p.Kind }, setKind},
	{"scope", func(p *Pointer) string { return p.Scope }, func(p *Pointer, v string) error { p.Scope = v; return nil }},
	{"manifest", (*Pointer).manifestText, setManifest},
	{"delta", (*Pointer).deltaText, setDelta},
	{"commit", func(p *Pointer) string { return p.Commit }, func(p *Pointer, v string) error { p.Commit = v; return nil }},
	{"author", func(p *Pointer) string { return p.Author }, func(p *Pointer, v string) error { p.Author = v; return nil }},
	{"message", func(p *Pointer) string { return p.Message }, func(p *Pointer, v string) error { p.Message = v; return nil }},
	{"waves", func(p *Pointer) string { return strings.Join(p.Policy.Waves, ",") }, setWaves},
	{"bake", (*Pointer).bakeText, setBake},
	{"approve", (*Pointer).approveText, setApprove},
	{"max_excluded", func(p *Pointer) string { return p.Policy.MaxExcluded }, setMaxExcluded},
}

// ParsePointer reads a pointer of at most [MaxPointer] bytes, and does not look at its signatures: that is [Keyring.Open]. What
// breaks a rule refuses all of it with an [*Error] that names the line.
func ParsePointer(text []byte) (Pointer, error) {
	if len(text) > MaxPointer {
		return Pointer{}, &Error{What: "pointer", Rule: fmt.Sprintf("is longer than %d bytes", MaxPointer)}
	}
	return parse(unsigned(text))
}

// parse reads a pointer's text without signatures.
func parse(text []byte) (Pointer, error) {
	if !utf8.Valid(text) {
		return Pointer{}, &Error{What: "pointer", Rule: "is not valid UTF-8"}
	}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimSuffix(lines[i], "\r")
	}
	if len(lines) < 3 {
		return Pointer{}, &Error{
			What: "pointer", Value: string(text),
			Rule: fmt.Sprintf("has %d lines, needs release, sequence and number of files", len(lines)),
		}
	}
	p, err := parseHead(lines)
	if err != nil {
		return Pointer{}, err
	}
	seen := map[string]bool{}
	for i, line := range lines[3:] {
		if err := p.parseLine(line, seen); err != nil {
			return Pointer{}, &Error{fmt.Sprintf("pointer line %d", i+4), line, rule(err)}
		}
	}
	if p.Delta != nil && p.Manifest == nil {
		return Pointer{}, &Error{What: "pointer", Rule: "has a delta without a manifest"}
	}
	return p, nil
}

// parseHead reads the three lines that every version and the older tool share.
func parseHead(lines []string) (p Pointer, err error) {
	if p.Release, err = ParseID(lines[0]); err != nil {
		return p, &Error{"pointer line 1", lines[0], "release id " + rule(err)}
	}
	if p.Sequence, err = number(lines[1]); err != nil {
		return p, &Error{"pointer line 2", lines[1], "sequence " + rule(err)}
	}
	files, err := number(lines[2])
	if err == nil && files > MaxFiles {
		err = &Error{Rule: fmt.Sprintf("must be at most %d", MaxFiles)}
	}
	if err != nil {
		return p, &Error{"pointer line 3", lines[2], "number of files " + rule(err)}
	}
	p.Files = int(files)
	return p, nil
}

// parseLine reads one `key "value"` line.
func (p *Pointer) parseLine(line string, seen map[string]bool) error {
	key, quoted, _ := strings.Cut(line, " ")
	if !keyPattern.MatchString(key) {
		return &Error{Rule: "must begin with a key of a-z 0-9 _"}
	}
	value, err := strconv.Unquote(quoted)
	if err != nil || quoted[0] != '"' {
		return &Error{Rule: "needs one space and one double-quoted string after the key"}
	}
	for _, f := range fields {
		if f.key != key {
			continue
		}
		if seen[key] {
			return &Error{Rule: "says " + key + " a second time"}
		}
		seen[key] = true
		return f.set(p, value)
	}
	p.Extra = append(p.Extra, Setting{key, value})
	return nil
}

// Text writes the pointer; without optional fields exactly the three lines that the older tool reads. It does not
// check anything: whoever publishes it parses it first, which also tells whether it is too long.
func (p Pointer) Text() []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, "%s\n%d\n%d", p.Release, p.Sequence, p.Files)
	for _, f := range fields {
		if v := f.get(&p); v != "" {
			fmt.Fprintf(&out, "\n%s %q", f.key, v)
		}
	}
	for _, s := range p.Extra {
		fmt.Fprintf(&out, "\n%s %q", s.Key, s.Value)
	}
	return out.Bytes()
}

// Plain reports whether the release is in the plain layout, one object a file, without a manifest.
func (p Pointer) Plain() bool { return p.Manifest == nil }

// number reads a decimal number above zero, without sign, space or leading zero.
func number(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 || s != strconv.FormatInt(n, 10) {
		return 0, &Error{Rule: "must be a whole number above zero, in digits"}
	}
	return n, nil
}

// rule is what a nested error complains of, without naming the value again.
func rule(err error) string {
	if e, ok := err.(*Error); ok {
		return e.Rule
	}
	return err.Error()
}
