package release

import (
	"fmt"
	"slices"
	"sort"
	"strings"
)

// maxChain is how many links one after the other a link may lead through; the kernel gives up at 40.
const maxChain = 8

// rules checks entries one after another, in the order in which they stand in a manifest or delta. Encoder and
// parser both run it, so nothing is written that would not be read.
type rules struct {
	delta  bool    // directories and parts of the frames are the parent's, looked at when the delta is applied
	base   int     // number of the first frame that is known here: the parent's frames come before it
	frames []Frame // those from base on
	starts []int64 // decompressed bytes before each of frames, and of all
	used   int     // frames that entries have needed so far
	spans  int     // how many each has needed, added up
	prev   string  // the path before
	dirs   []int   // lengths of the directories that prev is in, or is
}

// newRules begins with checked frames and sources.
func newRules(b *body) (*rules, error) {
	r := &rules{delta: b.delta, base: b.base, frames: b.frames, starts: make([]int64, len(b.frames)+1)}
	for _, s := range b.sources {
		if err := checkSource(s); err != nil {
			return nil, err
		}
	}
	used := 0
	for i, f := range b.frames {
		fail := func(rule string) error { return &Error{What: fmt.Sprintf("frame %d", i), Rule: rule} }
		switch {
		case int(f.Source) > used || int(f.Source) >= len(b.sources) || f.Source < 0:
			return nil, fail("names a source out of order")
		case f.Length < 1 || f.Length > MaxFrame:
			return nil, fail("must be of 1 byte to 4 MiB")
		case f.Stored < 1 || f.Stored > f.Length:
			return nil, fail("must not be longer stored than decompressed, nor empty")
		case f.Offset < headerSize || f.Offset > b.sources[f.Source].End-f.Stored:
			return nil, fail("lies outside its source " + b.sources[f.Source].Key())
		}
		used = max(used, int(f.Source)+1)
		r.starts[i+1] = r.starts[i] + f.Length
	}
	if used < len(b.sources) {
		return nil, &Error{"source", b.sources[used].Key(), "holds no frame"}
	}
	return r, nil
}

func checkSource(s Source) error {
	if s.End < headerSize || s.End > MaxSource {
		return &Error{"source", s.Key(), "must end at byte 8 to 256 MiB"}
	}
	if s.Release == "" && s.Parent == "" {
		return nil
	}
	for _, id := range []ID{s.Release, s.Parent} {
		if _, err := ParseID(string(id)); err != nil {
			return err
		}
	}
	if s.Pack != (Sum{}) {
		return &Error{"source", s.Key(), "is a pack and a delta at once"}
	}
	return nil
}

// path checks the next path, which shares its first bytes with the one before: it is good in itself, comes after that
// one, and lies in a directory that was listed. That last rule alone refuses files and links that are also directories.
func (r *rules) path(path string, shared int, kind Kind) error {
	prev := r.prev
	switch {
	case shared == len(path) && shared <= len(prev) && path != "":
		return &Error{"path", path, "must come before " + quote(prev) + ", and once"}
	case shared < len(prev) && path != "" && prev[shared] == path[shared]:
		return &Error{"path", path, "repeats more of the path before it than it says"}
	case shared < len(prev) && path != "" && rank(prev[shared]) > rank(path[shared]):
		return &Error{"path", path, "must come before " + quote(prev)}
	}
	name, ok := quickPath(path, shared)
	if !ok {
		if err := CheckPath(path); err != nil {
			return err
		}
		name = strings.LastIndexByte(path, '/') + 1
	}
	r.prev = path
	if r.delta {
		return nil
	}
	n := len(r.dirs)
	for n > 0 && (r.dirs[n-1] > shared || path[r.dirs[n-1]] != '/') {
		n--
	}
	r.dirs = r.dirs[:n]
	parent := max(name-1, 0)
	if (n == 0 && parent > 0) || (n > 0 && r.dirs[n-1] != parent) {
		return &Error{"path", path, "lies in " + quote(path[:parent]) + ", which is not a directory listed before it"}
	}
	if kind == Dir {
		r.dirs = append(r.dirs, len(path))
	}
	return nil
}

// quickPath reports that a path is certainly good, given that its first bytes begin a path that is, and where its last
// part begins. It looks only at the rest, a third of the bytes; what it is not sure of is for [CheckPath].
func quickPath(path string, shared int) (name int, ok bool) {
	if len(path) > maxPath || (shared > 0 && path[shared-1] >= 0x7f) { // the cut may be inside a character
		return 0, false
	}
	start := strings.LastIndexByte(path[:shared], '/') + 1
	for i := shared; i < len(path); i++ {
		switch c := path[i]; {
		case c == '/':
			if partRule(path[start:i]) != "" {
				return 0, false
			}
			start = i + 1
		case c < ' ' || c >= 0x7f || c == '\\':
			return 0, false
		}
	}
	return start, partRule(path[start:]) == ""
}

// place checks that a file's contents lie in frames, and that frames are numbered as they are needed.
func (r *rules) place(e *Entry) error {
	fail := func(rule string) error { return &Error{"path", e.Path, rule} }
	if e.Size < 0 || e.Size > MaxFileSize {
		return fail(fmt.Sprintf("has size %d, which must be 0 to 5 TiB", e.Size))
	}
	first := int(e.Frame) - r.base
	switch {
	case e.Frame < 0 || first >= len(r.frames):
		return fail(fmt.Sprintf("lies in frame %d, which is not listed", e.Frame))
	case e.Offset < 0 || e.Offset >= MaxFrame:
		return fail("begins outside its frame")
	case first < 0:
		return nil // the parent's
	}
	last := first + 1
	if e.Offset+e.Size > r.frames[first].Length {
		end := r.starts[first] + e.Size
		last = sort.Search(len(r.starts), func(i int) bool { return r.starts[i] >= end })
		if e.Offset != 0 || last == len(r.starts) || r.starts[last] != end {
			return fail("must lie inside one frame or fill several")
		}
	}
	r.spans += last - first
	switch {
	case r.spans > MaxSpans:
		return fail("is one more copy of a large file than a release can have")
	case first > r.used:
		return fail(fmt.Sprintf("needs frame %d out of order", e.Frame))
	case last > r.used:
		r.used = last
	}
	return nil
}

// done checks what can be said only at the end.
func (r *rules) done(entries []Entry) error {
	if r.used < len(r.frames) {
		return &Error{What: fmt.Sprintf("frame %d", r.used), Rule: "is needed by no file"}
	}
	if r.delta {
		return nil
	}
	return checkChains(entries)
}

// checkChains refuses a link that leads through too many others, or round in a circle. Each link is looked up once.
func checkChains(entries []Entry) error {
	next := map[int]int{}
	for i := range entries {
		if e := &entries[i]; e.Kind == Symlink {
			if to, ok := find(entries, resolve(e.Path, e.Target)); ok && entries[to].Kind == Symlink {
				next[i] = to
			}
		}
	}
	for i := range next {
		at, ok := i, true
		for range maxChain {
			if at, ok = next[at]; !ok {
				break
			}
		}
		if ok {
			return &Error{"link", entries[i].Path, fmt.Sprintf("leads through more than %d links", maxChain)}
		}
	}
	return nil
}

// resolve is the path that a good link's target names, as it is written.
func resolve(path, target string) string {
	parts := strings.Split(parentOf(path), "/")
	if parts[0] == "" {
		parts = nil
	}
	for part := range strings.SplitSeq(target, "/") {
		switch part {
		case "", ".":
		case "..":
			parts = parts[:len(parts)-1] // CheckLinkTarget has counted them
		default:
			parts = append(parts, part)
		}
	}
	return strings.Join(parts, "/")
}

func find(entries []Entry, path string) (int, bool) {
	return slices.BinarySearchFunc(entries, path, func(e Entry, p string) int { return ComparePaths(e.Path, p) })
}
