package release

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

const (
	manifestMagic = "s3pdman1"
	deltaMagic    = "s3pddif1" // of the difference in a delta's trailer
)

// body is what a manifest and a delta's difference have in common.
type body struct {
	delta   bool
	base    int // frames of the parent, whose numbers come first
	sources []Source
	frames  []Frame
	entries []Entry
}

// codes are the bytes of an entry's kind; the fifth is only for deltas.
var codes = [...]Entry{{Kind: Dir}, {Kind: File}, {Kind: File, Exec: true}, {Kind: Symlink}, {Kind: removed}}

// Payload is the canonical encoding of the manifest, uncompressed: the same tree in the same frames has the same
// bytes. It is the error of whoever made the manifest if it breaks a rule.
func (m *Manifest) Payload() ([]byte, error) {
	b := body{sources: m.Sources, frames: m.Frames, entries: m.Entries}
	out := make([]byte, 0, 64*(len(m.Entries)+len(m.Frames)+1))
	out, err := b.append(append(out, manifestMagic...))
	if err == nil && len(out) > MaxManifest {
		err = &Error{What: "manifest", Rule: "would be larger than 64 MiB"}
	}
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return out, nil
}

// Digest is the SHA-256 of the payload. It says whether two manifests are the same whatever compressed them, which a new
// version of the library may do to other bytes.
func (m *Manifest) Digest() (Sum, error) {
	payload, err := m.Payload()
	return sha256.Sum256(payload), err
}

// Encode is the object m/<release>.
func (m *Manifest) Encode() ([]byte, error) {
	payload, err := m.Payload()
	if err != nil {
		return nil, err
	}
	return deflate(nil, payload), nil
}

// append writes the body, column by column: like next to like compresses best.
func (b *body) append(out []byte) ([]byte, error) {
	if len(b.entries) > MaxEntries || len(b.frames) > MaxFrames || len(b.sources) > MaxSources {
		return nil, &Error{What: "manifest", Rule: "has too many entries, frames or sources"}
	}
	r, err := newRules(b)
	if err != nil {
		return nil, err
	}
	out = binary.AppendUvarint(out, uint64(len(b.sources)))
	out = binary.AppendUvarint(out, uint64(len(b.frames)))
	out = binary.AppendUvarint(out, uint64(len(b.entries)))
	out = b.appendFrames(out)
	for i := range b.entries {
		code, err := b.entries[i].code(b.delta)
		if err != nil {
			return nil, err
		}
		out = append(out, code)
	}
	if out, err = b.appendPaths(out, r); err != nil {
		return nil, err
	}
	if out, err = b.appendContents(out, r); err != nil {
		return nil, err
	}
	return out, r.done(b.entries)
}

func (b *body) appendFrames(out []byte) []byte {
	for _, s := range b.sources {
		if s.Release == "" {
			out = append(append(out, 0), s.Pack[:]...)
		} else {
			out = appendString(appendString(append(out, 1), string(s.Release)), string(s.Parent))
		}
		out = binary.AppendUvarint(out, uint64(s.End))
	}
	for _, f := range b.frames {
		for _, n := range [...]int64{int64(f.Source), f.Offset, f.Stored, f.Length} {
			out = binary.AppendUvarint(out, uint64(n))
		}
	}
	return out
}

// appendPaths writes what is said of every entry: paths, targets, mtimes.
func (b *body) appendPaths(out []byte, r *rules) ([]byte, error) {
	prev, total := "", 0
	for i := range b.entries {
		e := &b.entries[i]
		shared := sharedPrefix(prev, e.Path)
		if err := r.path(e.Path, shared, e.Kind); err != nil {
			return nil, err
		}
		out = binary.AppendUvarint(out, uint64(shared))
		out = appendString(out, e.Path[shared:])
		prev = e.Path
		if total += len(e.Path); total > MaxPathBytes {
			return nil, &Error{What: "paths", Rule: "are longer than 128 MiB together"}
		}
	}
	for i := range b.entries {
		if e := &b.entries[i]; e.Kind == Symlink {
			if err := CheckLinkTarget(e.Path, e.Target); err != nil {
				return nil, err
			}
			out = appendString(out, e.Target)
		}
	}
	var before int64
	for i := range b.entries {
		e := &b.entries[i]
		if e.Kind == removed {
			continue
		}
		if e.MTime < 0 || e.MTime > maxTime {
			return nil, &Error{"path", e.Path, fmt.Sprintf("has mtime %d, which must be 0 to %d", e.MTime, int64(maxTime))}
		}
		out = binary.AppendVarint(out, e.MTime-before)
		before = e.MTime
	}
	return out, nil
}

// appendContents writes what is said of files: sizes, sums, places.
func (b *body) appendContents(out []byte, r *rules) ([]byte, error) {
	for i := range b.entries {
		if e := &b.entries[i]; e.Kind == File {
			if e.Size < 0 {
				return nil, r.place(e)
			}
			out = binary.AppendUvarint(out, uint64(e.Size))
		}
	}
	for i := range b.entries {
		if e := &b.entries[i]; e.hasContent() {
			out = append(out, e.Sum[:]...)
		}
	}
	var at cursor
	for i := range b.entries {
		e := &b.entries[i]
		if !e.hasContent() {
			continue
		}
		if err := r.place(e); err != nil {
			return nil, err
		}
		if at.frame == int64(e.Frame) && at.offset == e.Offset {
			out = append(out, 0)
		} else {
			out = binary.AppendUvarint(out, 1+zigzag(int64(e.Frame)-at.frame))
			out = binary.AppendUvarint(out, uint64(e.Offset))
		}
		at.pass(e)
	}
	return out, nil
}

// cursor is where the contents of the next file lie if they follow those of the file before.
type cursor struct{ frame, offset int64 }

func (c *cursor) pass(e *Entry) { c.frame, c.offset = int64(e.Frame), e.Offset+e.Size }

// code is the byte of the entry's kind. Whatever that kind has no room for must not be set, or two manifests
// would be the same bytes.
func (e *Entry) code(delta bool) (byte, error) {
	fail := func(rule string) (byte, error) { return 0, &Error{"path", e.Path, rule} }
	for c, like := range codes {
		if like.Kind != e.Kind || like.Exec != e.Exec || (e.Kind == removed && !delta) {
			continue
		}
		switch {
		case e.Target != "" && e.Kind != Symlink:
			return fail("has a target and is no link")
		case e.Kind != File && (e.Size != 0 || e.Sum != Sum{}):
			return fail("has contents and is no file")
		case e.Kind == File && e.Size == 0 && e.Sum != emptySum:
			return fail("has no contents, but the sum of some")
		case e.Size == 0 && (e.Frame != 0 || e.Offset != 0):
			return fail("has no contents, but a place")
		}
		return byte(c), nil
	}
	return fail("must be a directory, a file or a symlink")
}

func appendString(out []byte, s string) []byte {
	return append(binary.AppendUvarint(out, uint64(len(s))), s...)
}

func zigzag(n int64) uint64   { return uint64(n<<1) ^ uint64(n>>63) }
func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }
