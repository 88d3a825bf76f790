package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
)

// DeltaObject is a parsed object d/<release>/<parent>: how a release's manifest differs from its parent's, and the frames
// that only this object has. It keeps the object's memory.
type DeltaObject struct {
	Child  Sum // the [Manifest.Digest] of the release
	object []byte
	end    int64
	diff   body
}

// encodeDelta writes the object, after making sure that it can be applied.
func encodeDelta(child, parent *Manifest, inline []byte) ([]byte, error) {
	sum, err := child.Digest()
	if err != nil {
		return nil, fmt.Errorf("encode delta: %w", err)
	}
	diff := difference(child, parent)
	out := append(append([]byte(deltaMagic), sum[:]...), binary.AppendUvarint(nil, uint64(diff.base))...)
	if out, err = diff.append(out); err != nil {
		return nil, fmt.Errorf("encode delta: %w", err)
	}
	object := make([]byte, 0, headerSize+len(inline)+len(out)/2+1024)
	object = append(append(object, deltaPackMagic...), inline...)
	object = seal(object, out)
	d, err := ParseDelta(object)
	if err == nil {
		_, err = d.Apply(parent)
	}
	if err != nil {
		return nil, fmt.Errorf("encode delta: %w", err)
	}
	return object, nil
}

// difference compares two manifests, entry by entry.
func difference(child, parent *Manifest) *body {
	d := &body{delta: true, base: len(parent.Frames)}
	var known table
	for _, f := range parent.Frames {
		known.add(f, parent.Sources[f.Source])
	}
	number := make([]int32, len(child.Frames)) // of the child's frames among the parent's
	for i, f := range child.Frames {
		if number[i] = int32(known.add(f, child.Sources[f.Source])); int(number[i]) >= d.base {
			number[i] = -1
		}
	}
	old := parent.Entries
	for i := range child.Entries {
		e := &child.Entries[i]
		for len(old) > 0 && ComparePaths(old[0].Path, e.Path) < 0 {
			d.entries = append(d.entries, Entry{Path: old[0].Path, Kind: removed})
			old = old[1:]
		}
		if len(old) > 0 && old[0].Path == e.Path {
			o := &old[0]
			old = old[1:]
			first, last := child.Span(e)
			moved := e.hasContent() && (number[first] != o.Frame || e.Offset != o.Offset || !inRow(number[first:last]))
			if o.same(e) && o.MTime == e.MTime && !moved {
				continue
			}
		}
		d.change(child, *e, number)
	}
	for i := range old {
		d.entries = append(d.entries, Entry{Path: old[i].Path, Kind: removed})
	}
	return d
}

// inRow says whether frames follow each other, as those of one entry must.
func inRow(number []int32) bool {
	for i, n := range number {
		if n < 0 || n != number[0]+int32(i) {
			return false
		}
	}
	return true
}

// change adds an entry of the child, and the frames that it needs and the parent has not. number maps the child's
// frames and is -1 where there is no number yet.
func (b *body) change(child *Manifest, e Entry, number []int32) {
	first, last := child.Span(&e)
	whole := inRow(number[first:last]) // else, as where one of several packs was stored anew, all are named again
	for f := first; f < last; f++ {
		if whole || number[f] >= 0 && last == first+1 {
			continue
		}
		frame := child.Frames[f]
		source := child.Sources[frame.Source]
		at := slices.Index(b.sources, source)
		if at < 0 {
			at = len(b.sources)
			b.sources = append(b.sources, source)
		}
		frame.Source = int32(at)
		number[f] = int32(b.base + len(b.frames))
		b.frames = append(b.frames, frame)
	}
	if e.hasContent() {
		e.Frame = number[first]
	}
	b.entries = append(b.entries, e)
}

// ParseDelta reads the object, whose SHA-256 the caller has compared with the pointer's. Whatever breaks a rule
// refuses all of it with an [*Error].
func ParseDelta(object []byte) (*DeltaObject, error) {
	if len(object) > headerSize+MaxInline+MaxManifest {
		return nil, &Error{What: "delta", Rule: "is larger than 72 MiB"}
	}
	trailer, end, err := readTrailer(bytes.NewReader(object), int64(len(object)), deltaPackMagic)
	if err != nil {
		return nil, fmt.Errorf("parse delta: %w", err)
	}
	if end > headerSize+MaxInline {
		return nil, &Error{What: "delta", Rule: "carries more than 8 MiB of frames"}
	}
	d := &DeltaObject{object: object, end: end, diff: body{delta: true}}
	r := &reader{data: trailer}
	if string(r.bytes(len(deltaMagic))) != deltaMagic {
		return nil, &Error{What: "delta", Rule: "does not begin with " + deltaMagic}
	}
	copy(d.Child[:], r.bytes(len(d.Child)))
	d.diff.base = int(r.uvarint(MaxFrames))
	if err := d.diff.parse(r); err != nil {
		return nil, fmt.Errorf("parse delta: %w", err)
	}
	return d, nil
}

// Stored is the part of the object at f, if f is in the source of that name: with the delta in hand such frames need no
// request. The caller compares the source with what it fetched.
func (d *DeltaObject) Stored(f Frame) ([]byte, error) {
	if f.Offset < headerSize || f.Stored < 1 || f.Offset > d.end-f.Stored {
		return nil, &Error{What: "frame", Rule: "lies outside the delta"}
	}
	return d.object[f.Offset : f.Offset+f.Stored : f.Offset+f.Stored], nil
}

// Apply makes the release's manifest from the parent's. It is the manifest that was pushed, byte for byte of its
// payload, or an error: then the manifest itself has to be fetched. The parent stays as it is.
func (d *DeltaObject) Apply(parent *Manifest) (*Manifest, error) {
	if d.diff.base != len(parent.Frames) {
		return nil, &Error{What: "delta", Rule: fmt.Sprintf("is of a parent with %d frames, not %d", d.diff.base, len(parent.Frames))}
	}
	entries, err := d.merge(parent.Entries)
	if err != nil {
		return nil, err
	}
	frames, sources := slices.Clone(parent.Frames), slices.Concat(parent.Sources, d.diff.sources)
	for _, f := range d.diff.frames {
		f.Source += int32(len(parent.Sources))
		frames = append(frames, f)
	}
	m := canonical(entries, frames, sources)
	payload, err := m.Payload()
	if err != nil {
		return nil, fmt.Errorf("apply delta: %w", err)
	}
	if sha256.Sum256(payload) != d.Child {
		return nil, &Error{What: "delta", Rule: "does not give the manifest that it names"}
	}
	return m, nil
}

// merge copies the parent's entries between those that change.
func (d *DeltaObject) merge(old []Entry) ([]Entry, error) {
	out := make([]Entry, 0, len(old)+len(d.diff.entries))
	for _, e := range d.diff.entries {
		at, ok := find(old, e.Path)
		if !ok && e.Kind == removed {
			return nil, &Error{"path", e.Path, "is removed and is not in the parent"}
		}
		out = append(out, old[:at]...)
		if e.Kind != removed {
			out = append(out, e)
		}
		if ok {
			at++
		}
		old = old[at:]
	}
	return append(out, old...), nil
}
