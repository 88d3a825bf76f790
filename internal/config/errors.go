package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxProblems is how many errors of a file are reported.
const maxProblems = 50

// Error is one thing that is wrong with the file. Its text never holds a secret.
type Error struct {
	Path  string // YAML path, such as "opcache.mode"; empty: the file as a whole
	File  string // as given to Parse
	Line  int    // 0: none, such as for a key that is missing
	Rule  string // what should hold, or what is wrong
	Value string // as found, already cut; empty: none
	Hint  string // what a person can do about it; may be empty
	cause error
}

// Error is one line: file:line: path: rule, not "value" (hint).
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Text()
	}
	return e.Text() + " (" + e.Hint + ")"
}

// Text is Error without the hint, for who shows that in a place of its own.
func (e *Error) Text() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	if e.Path != "" {
		b.WriteString(": " + e.Path)
	}
	b.WriteString(": " + e.Rule)
	if e.Value != "" {
		b.WriteString(", not " + strconv.Quote(e.Value))
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.cause }

// problems collects errors, and the lines of all keys for those that are found after decoding.
type problems struct {
	file  string
	lines map[string]int // by YAML path
	found []*Error
}

// add notes a problem with the value at path, unless that value has one already.
func (p *problems) add(path, rule, value, hint string) { p.at(p.lines[path], path, rule, value, hint) }

// at is add for a line of its own. A file of nonsense is not reported to its end.
func (p *problems) at(line int, path, rule, value, hint string) {
	if len(p.found) == maxProblems {
		return
	}
	for _, e := range p.found {
		if e.Path == path && e.Line == line {
			return
		}
	}
	p.found = append(p.found, &Error{Path: path, File: p.file, Line: line, Rule: rule, Value: cut(value), Hint: hint})
}

// unreadable reports whether the file as a whole has a problem, so that what it lacks says nothing.
func (p *problems) unreadable() bool {
	return slices.ContainsFunc(p.found, func(e *Error) bool { return e.Path == "" })
}

// err joins the problems in the order of the file; what has no line comes last.
func (p *problems) err() error {
	slices.SortStableFunc(p.found, func(a, b *Error) int {
		return cmp.Compare(uint(a.Line-1), uint(b.Line-1))
	})
	errs := make([]error, len(p.found))
	for i, e := range p.found {
		errs[i] = e
	}
	return errors.Join(errs...)
}

// cut keeps a value short enough for a line.
func cut(s string) string {
	const limit = 100
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "") + "…"
}

// nearest is the name that a person most likely meant, or "" when none is near: one letter away, and one more for
// every four letters of the word.
func nearest(word string, names []string) string {
	best, distance := "", len(word)/4+2
	for _, name := range names {
		if d := edits(strings.ToLower(word), name); d < distance {
			best, distance = name, d
		}
	}
	return best
}

// edits is the number of letters to insert, delete, replace or swap with the next between two words (optimal
// string alignment). Words are cut, so that a hostile key costs nothing.
func edits(a, b string) int {
	a, b = a[:min(len(a), 64)], b[:min(len(b), 64)]
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replace := rows[i-1][j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			rows[i][j] = min(replace, rows[i-1][j]+1, rows[i][j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
