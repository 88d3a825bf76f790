package release

import (
	"crypto/sha256"
	"encoding/binary"
)

// contentsKey identifies what a frame holds, whoever made it.
func contentsKey(parts []Packed) Sum {
	h := sha256.New()
	var number [8]byte
	for _, p := range parts {
		h.Write(p.Sum[:])
		for _, n := range [...]int64{p.Size, p.From, p.Length} {
			binary.LittleEndian.PutUint64(number[:], uint64(n))
			h.Write(number[:])
		}
	}
	return Sum(h.Sum(nil))
}

// Adopt takes the planned frames that a pack holds already, as its index says: they need not be built and packed. A push that
// was interrupted has left such packs, whatever size they have. It returns how many frames that were. All packs are adopted before
// a [Packer] is made.
func (d *Draft) Adopt(pack Sum, index []IndexFrame) (frames int) {
	if len(index) == 0 {
		return 0
	}
	if d.wanted == nil {
		d.wanted = make(map[Sum]int, len(d.Frames))
		for i, f := range d.Frames {
			parts := make([]Packed, len(f.Parts))
			for j, p := range f.Parts {
				parts[j] = p.Packed
			}
			d.wanted[contentsKey(parts)] = i
		}
	}
	last := index[len(index)-1]
	source := int32(len(d.table.sources))
	for _, f := range index {
		i, ok := d.wanted[contentsKey(f.Packed)]
		if !ok || d.Adopted(i) || f.Length != d.Frames[i].Length {
			continue
		}
		f.Source = source
		d.table.frames[d.known+i] = f.Frame
		frames++
		d.NewBytes -= f.Length
		for _, p := range d.Frames[i].Parts {
			if p.From+p.Length == p.Size {
				d.NewFiles--
			}
		}
	}
	if frames > 0 {
		d.table.sources = append(d.table.sources, Source{Pack: pack, End: last.Offset + last.Stored})
	}
	return frames
}

// Adopted says whether the planned frame i has a place already.
func (d *Draft) Adopted(i int) bool {
	return i < len(d.Frames) && d.table.frames[d.known+i].Length > 0
}
