package release

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// The limits of Linux filesystems: bytes of one part of a path, and of a whole path.
const (
	maxPart = 255
	maxPath = 4096
)

// CheckPath refuses a path that must not be in a release: one that leaves the tree, that has two spellings, or that
// a person or a shell would misread. Names that differ only in case or Unicode form are different files on
// Linux and both allowed. The error is an [*Error] that names path and rule.
func CheckPath(path string) error {
	if rule := textRule(path); rule != "" {
		return &Error{"path", path, rule}
	}
	if path[0] == '/' {
		return &Error{"path", path, "must not be absolute"}
	}
	for part := range strings.SplitSeq(path, "/") {
		if rule := partRule(part); rule != "" {
			return &Error{"path", path, rule}
		}
	}
	return nil
}

// CheckLinkTarget refuses a symlink at path whose target is absolute or leaves the tree. ".." is allowed only at the
// target's beginning: there it climbs real directories, because a link is nobody's parent; further on it
// could climb out of wherever another link leads.
func CheckLinkTarget(path, target string) error {
	if err := CheckPath(path); err != nil {
		return err
	}
	fail := func(rule string) error { return &Error{"link " + quote(path) + " to", target, rule} }
	if target == "" {
		return fail("has no target")
	}
	if rule := textRule(target); rule != "" {
		return fail(rule)
	}
	if target[0] == '/' {
		return fail("target must be relative")
	}
	depth, climbing := strings.Count(path, "/"), true
	for part := range strings.SplitSeq(target, "/") {
		switch {
		case part == "" || part == ".":
		case part != "..":
			climbing = false
			if len(part) > maxPart {
				return fail("a part is longer than 255 bytes")
			}
		case !climbing:
			return fail(`target has ".." after a name`)
		default:
			if depth--; depth < 0 {
				return fail("target leaves the release")
			}
		}
	}
	return nil
}

// textRule is the rule that text as a whole breaks, or "".
func textRule(s string) string {
	switch {
	case s == "":
		return "must not be empty"
	case len(s) > maxPath:
		return "is longer than 4096 bytes"
	case !utf8.ValidString(s):
		return "is not valid UTF-8"
	case strings.ContainsRune(s, '\\'):
		return "has a backslash"
	case strings.ContainsFunc(s, unicode.IsControl):
		return "has a control character"
	}
	return ""
}

// partRule is the rule that one part of a path breaks, or "".
func partRule(part string) string {
	switch {
	case part == "":
		return "has an empty part"
	case part == "." || part == "..":
		return `has a part "` + part + `"`
	case len(part) > maxPart:
		return "has a part longer than 255 bytes"
	}
	return ""
}
