package release

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// tree is a release before it is packed: entries, and contents by their sum.
type tree struct {
	entries  []Entry
	contents map[Sum][]byte
}

func newTree() *tree { return &tree{contents: map[Sum][]byte{}} }

// dirs adds the directories that path lies in and that are not there yet.
func (t *tree) dirs(path string, have map[string]bool) {
	for i, c := range []byte(path) {
		if c == '/' && !have[path[:i]] {
			have[path[:i]] = true
			t.entries = append(t.entries, Entry{Path: path[:i], Kind: Dir})
		}
	}
}

func (t *tree) file(path string, content []byte) {
	sum := Sum(sha256.Sum256(content))
	t.contents[sum] = content
	t.entries = append(t.entries, Entry{Path: path, Kind: File, Size: int64(len(content)), Sum: sum})
}

// text is like PHP: words that repeat.
func text(r *rand.Rand, n int) []byte {
	words := strings.Fields("function return $this array string public static if else foreach null true false class extends wiki page title user")
	var b strings.Builder
	for b.Len() < n {
		fmt.Fprintf(&b, "%s %s(%d);\n", words[r.IntN(len(words))], words[r.IntN(len(words))], r.IntN(1000))
	}
	return []byte(b.String()[:n])
}

func noise(r *rand.Rand, n int) []byte {
	var seed [32]byte
	seed[0], seed[1] = byte(r.Uint32()), byte(r.Uint32())
	b := make([]byte, n)
	rand.NewChaCha8(seed).Read(b)
	return b
}

// randomTree has every kind of entry, equal contents, empty, large and incompressible files, and odd names.
func randomTree(seed uint64, files int) *tree {
	r := rand.New(rand.NewPCG(seed, 7))
	t, have := newTree(), map[string]bool{}
	names := []string{"a", "a-b", "a.b", "lib", "src", "ü", "vendor", "x y", "é", "A"}
	for i := range files {
		path := ""
		for range r.IntN(4) {
			path += names[r.IntN(len(names))] + "/"
		}
		path += fmt.Sprintf("%s%d.php", names[r.IntN(len(names))], i)
		t.dirs(path, have)
		switch k := r.IntN(40); {
		case k == 0:
			t.file(path, nil)
		case k == 1:
			t.file(path, noise(r, r.IntN(200_000)))
		case k == 2:
			t.entries = append(t.entries, Entry{Path: path, Kind: Symlink, Target: fmt.Sprintf("target-%d", r.IntN(9))})
		case k < 6:
			t.file(path, []byte("the same in many places"))
		default:
			t.file(path, text(r, 1+r.IntN(5000)))
		}
		if e := &t.entries[len(t.entries)-1]; e.Kind == File {
			e.Exec = r.IntN(10) == 0
		}
	}
	t.entries = append(t.entries, Entry{Path: "empty directory", Kind: Dir})
	if files > 100 {
		t.file("large.bin", bytes.Repeat(text(r, 64<<10), 96))
		t.file("large.raw", noise(r, 2*MaxFrame+1))
		t.file("medium.raw", noise(r, groupSize+1))
	}
	return t
}

// bucket is where packs and deltas go.
type bucket map[string][]byte

// push does what the push command does, and returns the release's manifest and delta.
func (b bucket) push(tb testing.TB, t *tree, id ID, parent *Manifest, parentID ID, packSize int64, at int64) (*Manifest, []byte) {
	tb.Helper()
	var kept []*Manifest
	if parent != nil {
		kept = []*Manifest{parent}
	}
	d, err := NewDraft(t.entries, parent, kept, at)
	if err != nil {
		tb.Fatal(err)
	}
	p := d.Packer(packSize)
	for i := range d.Frames { // two workers, the second always first
		if j := i ^ 1; j < len(d.Frames) {
			i = j
		}
		packs, err := p.Put(i, t.build(tb, &d.Frames[i]))
		if err != nil {
			tb.Fatal(err)
		}
		b.put(packs...)
	}
	if parent == nil || !p.Inline(id, parentID) {
		if pack := p.Flush(); pack != nil {
			b.put(pack)
		}
	}
	m, err := d.Manifest()
	if err != nil {
		tb.Fatal(err)
	}
	if parent == nil {
		return m, nil
	}
	delta, err := d.Delta(m, parent)
	if err != nil {
		tb.Fatal(err)
	}
	b["d/"+string(id)+"/"+string(parentID)] = delta
	return m, delta
}

func (b bucket) put(packs ...*Pack) {
	for _, p := range packs {
		b["p/"+p.Sum.String()] = p.Data
	}
}

func (t *tree) build(tb testing.TB, f *FramePlan) []byte {
	tb.Helper()
	var plain []byte
	for _, p := range f.Parts {
		plain = append(plain, t.contents[p.Sum][p.From:p.From+p.Length]...)
	}
	stored, err := f.Build(nil, plain)
	if err != nil {
		tb.Fatal(err)
	}
	return stored
}

// pull fetches all of a release as an instance does, and compares every file with the tree.
func (b bucket) pull(tb testing.TB, m *Manifest, t *tree) {
	tb.Helper()
	all := make([]int, len(m.Entries))
	for i := range all {
		all[i] = i
	}
	got := make([][]byte, len(m.Entries))
	f := m.Fetch(all)
	for _, r := range f.Ranges {
		object := b[m.Sources[r.Source].Key()]
		if r.Offset < headerSize || r.Offset+r.Length > int64(len(object)) || r.Length > MaxRange {
			tb.Fatalf("range %+v is not in %s of %d bytes", r, m.Sources[r.Source].Key(), len(object))
		}
		body := object[r.Offset : r.Offset+r.Length]
		for _, n := range r.Frames {
			frame := m.Frames[n]
			at := frame.Offset - r.Offset
			data, err := DecodeFrame(nil, frame, body[at:at+frame.Stored])
			if err != nil {
				tb.Fatal(err)
			}
			for _, i := range f.Entries(n) {
				part, from := m.Part(&m.Entries[i], n, data)
				if got[i] == nil {
					got[i] = make([]byte, m.Entries[i].Size)
				}
				copy(got[i][from:], part)
			}
		}
	}
	for i := range m.Entries {
		e := &m.Entries[i]
		if e.Kind != File {
			continue
		}
		if err := e.Verify(got[i]); err != nil {
			tb.Error(err)
		}
	}
	want := map[string]Entry{}
	for _, e := range t.entries {
		want[e.Path] = e
	}
	for _, e := range m.Entries {
		if w := want[e.Path]; !w.same(&e) {
			tb.Errorf("entry %+v should be %+v", e, w)
		}
	}
	if len(want) != len(m.Entries) {
		tb.Errorf("%d entries, want %d", len(m.Entries), len(want))
	}
}
