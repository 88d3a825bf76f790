package release

import (
	"regexp"
	"slices"
	"strings"
)

// Ignore decides which files of a tree never become part of a release, in the syntax and with the meaning of gitignore:
// the last pattern that matches wins, "!" takes a file back in but not out of a directory that is ignored, a slash at the
// end is for directories only, a slash anywhere else ties the pattern to the top. Anything called .git, file or directory,
// at any depth, is ignored whatever the patterns say: it holds the history and often credentials.
//
// It is written out here because the usual library ties no pattern with a slash to the top, does not
// know "?" and "[!a]", and leaves "!" below an ignored directory to its caller.
type Ignore struct{ patterns []pattern }

// pattern is one line: its parts between slashes, where nil stands for "**".
type pattern struct {
	parts   []*regexp.Regexp
	negate  bool
	dirOnly bool
}

// NewIgnore compiles patterns, one a line of a gitignore file; comments and empty lines are skipped. As in git, a
// pattern that is malformed matches nothing; [CheckPattern] finds those.
func NewIgnore(patterns []string) *Ignore {
	ig := &Ignore{}
	for _, line := range patterns {
		if p, ok, err := compile(line); ok && err == nil {
			ig.patterns = append(ig.patterns, p)
		}
	}
	return ig
}

// CheckPattern refuses a malformed pattern, such as one with a bracket that is not closed.
func CheckPattern(line string) error {
	if _, _, err := compile(line); err != nil {
		return &Error{"ignore pattern", line, "is malformed"}
	}
	return nil
}

// Match reports whether path, relative to the tree and with slashes, is ignored, by itself or because a directory above it is.
func (ig *Ignore) Match(path string, dir bool) bool {
	parts := strings.Split(path, "/")
	for n := 1; n <= len(parts); n++ {
		if ig.matchOne(parts[:n], dir || n < len(parts)) {
			return true
		}
	}
	return false
}

func (ig *Ignore) matchOne(parts []string, dir bool) bool {
	if parts[len(parts)-1] == ".git" {
		return true
	}
	for _, p := range slices.Backward(ig.patterns) {
		if (dir || !p.dirOnly) && matchParts(p.parts, parts) {
			return !p.negate
		}
	}
	return false
}

func matchParts(pats []*regexp.Regexp, parts []string) bool {
	switch {
	case len(pats) == 0:
		return len(parts) == 0
	case pats[0] == nil && len(pats) == 1: // "a/**": everything below a, not a itself
		return len(parts) > 0
	case pats[0] == nil:
		for n := range len(parts) {
			if matchParts(pats[1:], parts[n:]) {
				return true
			}
		}
		return false
	}
	return len(parts) > 0 && pats[0].MatchString(parts[0]) && matchParts(pats[1:], parts[1:])
}

// compile parses one line; not ok: the line holds no pattern.
func compile(line string) (p pattern, ok bool, err error) {
	line = strings.TrimRight(line, "\r\n")
	for strings.HasSuffix(line, " ") && !strings.HasSuffix(line, `\ `) {
		line = line[:len(line)-1]
	}
	if line == "" || line[0] == '#' {
		return p, false, nil
	}
	if line[0] == '!' {
		p.negate, line = true, line[1:]
	}
	line, p.dirOnly = strings.CutSuffix(line, "/")
	if !strings.Contains(line, "/") {
		line = "**/" + line
	}
	line = strings.TrimPrefix(line, "/")
	for part := range strings.SplitSeq(line, "/") {
		var re *regexp.Regexp
		if part != "**" {
			if re, err = compilePart(part); err != nil {
				return p, false, err
			}
		} else if n := len(p.parts); n > 0 && p.parts[n-1] == nil {
			continue // "**/**" says no more than "**", and would cost much more
		}
		p.parts = append(p.parts, re)
	}
	return p, true, nil
}

// compilePart turns the shell pattern of one part of a path into an expression.
func compilePart(glob string) (*regexp.Regexp, error) {
	var expr strings.Builder
	expr.WriteString(`^(?s:`)
	for i := 0; i < len(glob); i++ {
		switch c := glob[i]; c {
		case '*':
			expr.WriteString(`.*`)
		case '?':
			expr.WriteString(`.`)
		case '[':
			class, n := bracket(glob[i:])
			expr.WriteString(class)
			i += n - 1
		case '\\':
			if i++; i < len(glob) {
				expr.WriteString(regexp.QuoteMeta(glob[i : i+1]))
			} else {
				expr.WriteString(`[`) // nothing to escape: malformed
			}
		default:
			expr.WriteString(regexp.QuoteMeta(glob[i : i+1]))
		}
	}
	expr.WriteString(`)$`)
	return regexp.Compile(expr.String())
}

// bracket translates a character class, "[!a-z]" or "[[:digit:]_]", and says how long it is. One that is not
// closed stays a lone "[", which does not compile.
func bracket(glob string) (class string, length int) {
	var out strings.Builder
	out.WriteByte('[')
	i := 1
	if i < len(glob) && (glob[i] == '!' || glob[i] == '^') {
		out.WriteByte('^')
		i++
	}
	for first := i; i < len(glob); i++ {
		switch c := glob[i]; {
		case c == ']' && i > first:
			return out.String() + "]", i + 1
		case c == '[' && i+1 < len(glob) && glob[i+1] == ':':
			out.WriteByte(c)
			if end := strings.Index(glob[i:], ":]"); end > 0 {
				out.WriteString(glob[i+1 : i+end+2])
				i += end + 1
			}
		case c == '\\' && i+1 < len(glob):
			i++
			out.WriteString(literal(glob[i]))
		case c == '-':
			out.WriteByte(c)
		default:
			out.WriteString(literal(c))
		}
	}
	return "[", 1
}

// literal is a byte that stands for itself in a character class; bytes of a longer character go as they are.
func literal(c byte) string {
	if strings.IndexByte(`[]^-\`, c) >= 0 {
		return `\` + string(rune(c))
	}
	return string([]byte{c})
}
