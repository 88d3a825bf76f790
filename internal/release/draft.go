package release

import (
	"fmt"
	"slices"
)

// groupSize is the most that small files fill of a frame together, in bytes decompressed. Of 256 KiB, 1 MiB and 4
// MiB it is the best trade: 18 % smaller than a frame a file and half as much again faster to decode; 4 MiB gain
// another 3 %.
const groupSize = 1 << 20

// Draft is a release on its way: its entries, what of them is stored already, and the frames that are missing.
type Draft struct {
	Frames    []FramePlan // to be built and handed to a [Packer]
	Unchanged int         // files and links that are as in the parent
	NewFiles  int         // different contents that no kept release has
	NewBytes  int64       // their size

	table   table // the frames: first those that are kept, then Frames, without a length while they have no place
	known   int   // how many are kept
	entries []Entry
	inline  []byte      // the frames that go into the delta, behind its header
	wanted  map[Sum]int // Frames by what they hold, once somebody asks
}

// FramePlan says what a new frame is made of.
type FramePlan struct {
	Parts  []Part
	Length int64 // bytes decompressed
}

// Part is a part of a file: one file's whole contents, or up to [MaxFrame] bytes of a large one's.
type Part struct {
	Path   string
	Packed // Sum and Size of the whole contents, From and Length of the part
}

// place is where contents lie, or first are in the tree.
type place struct {
	frame, entry int32
	offset, size int64
	stored       bool
}

// NewDraft makes the release of a tree from its entries with kind, mode, size, sum and target, in any order.
//
// An entry that is as in the parent (nil: none) keeps that one's mtime; for all others it is mtime, which should be the
// release's time minus 60 s. Contents that one of the kept manifests has are not stored again: the first that has
// them says where. A new baseline keeps none. Equal contents share a place.
func NewDraft(tree []Entry, parent *Manifest, kept []*Manifest, mtime int64) (*Draft, error) {
	d := &Draft{entries: slices.Clone(tree)}
	slices.SortFunc(d.entries, func(a, b Entry) int { return ComparePaths(a.Path, b.Path) })
	d.setTimes(parent, mtime)
	places, all := make(map[Sum]*place, len(tree)), make([]place, 0, len(tree))
	for i := range d.entries {
		e := &d.entries[i]
		e.Frame, e.Offset = 0, 0
		if !e.hasContent() {
			continue
		}
		p := places[e.Sum]
		if p == nil {
			all = append(all, place{entry: int32(i), size: e.Size})
			p = &all[len(all)-1] // it never moves: there is room for all
			places[e.Sum] = p
		}
		if p.size != e.Size {
			return nil, &Error{"path", e.Path, "has the SHA-256 of contents of another size"}
		}
	}
	missing := len(places)
	for _, m := range kept {
		if missing == 0 {
			break
		}
		missing -= d.reuse(m, places)
	}
	d.known = len(d.table.frames)
	d.NewFiles = missing
	d.plan(places)
	d.table.frames = append(d.table.frames, make([]Frame, len(d.Frames))...)
	for i := range d.entries {
		if e := &d.entries[i]; e.hasContent() {
			p := places[e.Sum]
			e.Frame, e.Offset = p.frame, p.offset
		}
	}
	return d, nil
}

func (d *Draft) setTimes(parent *Manifest, mtime int64) {
	var old []Entry
	if parent != nil {
		old = parent.Entries
	}
	for i := range d.entries {
		e := &d.entries[i]
		for len(old) > 0 && ComparePaths(old[0].Path, e.Path) < 0 {
			old = old[1:]
		}
		e.MTime = mtime
		if len(old) > 0 && old[0].Path == e.Path && old[0].same(e) {
			e.MTime = old[0].MTime
			if e.Kind != Dir {
				d.Unchanged++
			}
		}
	}
}

// reuse finds contents in a kept manifest, and returns how many it found.
func (d *Draft) reuse(m *Manifest, places map[Sum]*place) (found int) {
	for i := range m.Entries {
		e := &m.Entries[i]
		if !e.hasContent() {
			continue
		}
		p := places[e.Sum]
		if p == nil || p.stored || p.size != e.Size {
			continue
		}
		first, last := m.Span(e)
		if frame, ok := d.table.addRange(m, first, last); ok {
			p.frame, p.offset, p.stored = int32(frame), e.Offset, true
			found++
		}
	}
	return found
}

// plan groups what is not stored, in the order of paths: neighbours compress well together and are needed together.
func (d *Draft) plan(places map[Sum]*place) {
	group := -1 // the frame that takes more small files
	for i := range d.entries {
		e := &d.entries[i]
		if !e.hasContent() {
			continue
		}
		p := places[e.Sum]
		if p.stored || int(p.entry) != i {
			continue
		}
		d.NewBytes += e.Size
		if e.Size > groupSize {
			p.frame = int32(d.known + len(d.Frames))
			for from := int64(0); from < e.Size; from += MaxFrame {
				length := min(e.Size-from, MaxFrame)
				d.Frames = append(d.Frames, FramePlan{[]Part{{e.Path, Packed{e.Sum, e.Size, from, length}}}, length})
			}
			continue
		}
		if group < 0 || d.Frames[group].Length+e.Size > groupSize {
			group = len(d.Frames)
			d.Frames = append(d.Frames, FramePlan{})
		}
		f := &d.Frames[group]
		p.frame, p.offset = int32(d.known+group), f.Length
		f.Parts = append(f.Parts, Part{e.Path, Packed{e.Sum, e.Size, 0, e.Size}})
		f.Length += e.Size
	}
}

// Build verifies that plain is what was planned and appends what will be stored to dst, as [BuildFrame] does: a file that
// changed since it was hashed must not be published. Parts of large files have no sum of their own: who reads
// them hashes the file along.
func (f *FramePlan) Build(dst, plain []byte) ([]byte, error) {
	if int64(len(plain)) != f.Length {
		return nil, fmt.Errorf("build frame: have %d bytes, need %d", len(plain), f.Length)
	}
	rest := plain
	for _, p := range f.Parts {
		if p.Length == p.Size {
			e := Entry{Path: p.Path, Size: p.Size, Sum: p.Sum}
			if err := e.Verify(rest[:p.Length]); err != nil {
				return nil, fmt.Errorf("build frame: file has changed: %w", err)
			}
		}
		rest = rest[p.Length:]
	}
	return BuildFrame(dst, plain), nil
}

// Manifest is the release's, once all frames have been packed.
func (d *Draft) Manifest() (*Manifest, error) {
	for i := range d.Frames {
		if d.table.frames[d.known+i].Length == 0 {
			return nil, fmt.Errorf("make manifest: frame %d is not packed yet", i)
		}
	}
	m := canonical(slices.Clone(d.entries), d.table.frames, d.table.sources)
	if _, err := m.Payload(); err != nil {
		return nil, err
	}
	return m, nil
}

// KeptCost is [Manifest.FreshCost] without the contents that have no place yet.
func (d *Draft) KeptCost() Cost {
	kept := slices.DeleteFunc(slices.Clone(d.entries), func(e Entry) bool { return e.hasContent() && !d.placed(&e) })
	return canonical(kept, d.table.frames, d.table.sources).FreshCost()
}

// placed says whether all frames of an entry have a place.
func (d *Draft) placed(e *Entry) bool {
	rest := e.Offset + e.Size
	for _, f := range d.table.frames[e.Frame:] {
		if rest -= f.Length; f.Length == 0 || rest <= 0 {
			return f.Length > 0
		}
	}
	return false
}

// Delta is the object d/<release>/<parent>: how m, this draft's manifest, differs from the parent's, with the frames that
// were put inline.
func (d *Draft) Delta(m, parent *Manifest) ([]byte, error) { return encodeDelta(m, parent, d.inline) }
