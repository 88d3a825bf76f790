package release

import "fmt"

const (
	// PackSize is the usual size of a pack in bytes, two requests of a reader, and MinPackSize that on a slow uplink, where less
	// is better: what is lost when it breaks is one pack.
	PackSize, MinPackSize = 16 << 20, 1 << 20
	// MaxInline is the most that a delta carries of frames, in bytes.
	MaxInline = 8 << 20
)

// Packer puts a draft's frames into packs, in the order of the plan whatever order they are built in: the same tree
// makes the same packs, if their size is the same. Frames that were adopted are passed over. One goroutine at a time may use it.
type Packer struct {
	draft   *Draft
	size    int64
	next    int
	waiting map[int][]byte
	bundle  bundle
	numbers []int // of the bundle's frames in the plan
	ranges  int64 // reads that the bundle takes
	start   int64 // where the last of them begins
	packs   int
}

// Packer packs the draft's frames into packs of about size bytes; 0 is [PackSize].
func (d *Draft) Packer(size int64) *Packer {
	if size == 0 {
		size = PackSize
	}
	p := &Packer{draft: d, waiting: map[int][]byte{}}
	p.Resize(size)
	p.reset()
	p.advance()
	return p
}

// Resize changes the size of the packs that are not full yet.
func (p *Packer) Resize(size int64) { p.size = min(size, MaxSource-MaxFrame-headerSize) }

// advance goes to the next frame that was not adopted.
func (p *Packer) advance() {
	for p.draft.Adopted(p.next) {
		p.next++
	}
}

// Put takes what is stored of the plan's frame i, and returns the packs that became full. Frames that come before
// their turn are kept, and must not be changed: the caller bounds how far ahead it builds.
func (p *Packer) Put(i int, stored []byte) ([]*Pack, error) {
	if _, ok := p.waiting[i]; ok || i < p.next || i >= len(p.draft.Frames) || p.draft.Adopted(i) {
		return nil, fmt.Errorf("pack frame %d: it is not planned, or was put before", i)
	}
	if n := int64(len(stored)); n < 1 || n > p.draft.Frames[i].Length {
		return nil, fmt.Errorf("pack frame %d: %d bytes cannot be stored of %d", i, n, p.draft.Frames[i].Length)
	}
	p.waiting[i] = stored
	var full []*Pack
	for {
		stored, ok := p.waiting[p.next]
		if !ok {
			return full, nil
		}
		delete(p.waiting, p.next)
		if p.full(int64(len(stored))) {
			full = append(full, p.Flush())
		}
		plan := p.draft.Frames[p.next]
		f := IndexFrame{Frame: Frame{Length: plan.Length}}
		for _, part := range plan.Parts {
			f.Packed = append(f.Packed, part.Packed)
		}
		p.bundle.add(stored, f)
		p.numbers = append(p.numbers, p.next)
		p.next++
		p.advance()
	}
}

// full reports whether another frame belongs into the next pack, and counts the reads that this one takes. They end
// at frames and so are rarely of [MaxRange] exactly: a pack ends where it would need one more for a rest.
func (p *Packer) full(stored int64) bool {
	end := int64(len(p.bundle.data)) + stored
	if end-p.start > MaxRange {
		p.ranges, p.start = p.ranges+1, end-stored
	}
	return len(p.bundle.index) > 0 && (end > p.size+headerSize || p.ranges > max(1, p.size/MaxRange))
}

// Flush makes a pack of the frames that are in none yet; nil if there are none.
func (p *Packer) Flush() *Pack {
	if len(p.bundle.index) == 0 {
		return nil
	}
	pack := p.bundle.seal()
	p.assign(Source{Pack: pack.Sum, End: int64(len(p.bundle.data))})
	p.packs++
	return pack
}

// Inline puts all new frames into the delta to the parent instead of a pack, and reports whether that was possible:
// there are any, and they are no more than [MaxInline].
func (p *Packer) Inline(release, parent ID) bool {
	if p.packs > 0 || len(p.bundle.index) == 0 || p.next < len(p.draft.Frames) || len(p.bundle.data)-headerSize > MaxInline {
		return false
	}
	p.draft.inline = p.bundle.data[headerSize:]
	p.assign(Source{Release: release, Parent: parent, End: int64(len(p.bundle.data))})
	return true
}

// assign tells the draft where the bundle's frames are, and begins a new bundle.
func (p *Packer) assign(s Source) {
	t := &p.draft.table
	at := int32(len(t.sources))
	t.sources = append(t.sources, s)
	for i, f := range p.bundle.index {
		f.Source = at
		t.frames[p.draft.known+p.numbers[i]] = f.Frame
	}
	p.reset()
}

func (p *Packer) reset() { p.bundle, p.numbers, p.ranges, p.start = bundle{}, nil, 1, headerSize }
