package release

import (
	"fmt"
	"math/bits"
	"strings"
)

// ParseManifest reads the object m/<release>, at most [MaxManifest] bytes, whose SHA-256 the caller has compared with the
// pointer's. Whatever breaks a rule refuses all of it with an [*Error].
func ParseManifest(object []byte) (*Manifest, error) {
	if len(object) > MaxManifest {
		return nil, &Error{What: "manifest", Rule: "is larger than 64 MiB"}
	}
	payload, err := inflateAll(object, MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("parse manifest: %w", err)
	}
	return ParsePayload(payload)
}

// ParsePayload reads what [Manifest.Payload] wrote. Nothing of the payload is kept.
func ParsePayload(payload []byte) (*Manifest, error) {
	r := &reader{data: payload}
	if string(r.bytes(len(manifestMagic))) != manifestMagic {
		return nil, &Error{What: "manifest", Rule: "does not begin with " + manifestMagic}
	}
	var b body
	if err := b.parse(r); err != nil {
		return nil, fmt.Errorf("parse manifest: %w", err)
	}
	return &Manifest{b.entries, b.frames, b.sources}, nil
}

// reader takes numbers and bytes off data; after the first error it gives nothing but zeros.
type reader struct {
	data []byte
	rule string
}

func (r *reader) fail(rule string) {
	if r.rule == "" {
		r.rule, r.data = rule, nil
	}
}

// uvarint reads a number up to limit in the only way in which it is written.
func (r *reader) uvarint(limit uint64) uint64 {
	if len(r.data) > 0 && r.data[0] < 0x80 && uint64(r.data[0]) <= limit {
		n := r.data[0]
		r.data = r.data[1:]
		return uint64(n)
	}
	var n uint64
	for i, c := range r.data {
		n |= uint64(c&0x7f) << (7 * i)
		if c >= 0x80 {
			if i == 8 { // 63 bits are enough for everybody, and nothing can be shifted out
				break
			}
			continue
		}
		if c == 0 && i > 0 {
			r.fail("has a number that is longer than need be")
		} else if n > limit {
			r.fail(fmt.Sprintf("has the number %d where at most %d can be", n, limit))
		} else {
			r.data = r.data[i+1:]
			return n
		}
		return 0
	}
	r.fail("ends in the middle of a number, or has one of more than 63 bits")
	return 0
}

// count reads a number of things that take at least each bytes, so there is memory only for what can be there.
func (r *reader) count(limit, each int) int {
	n := int(r.uvarint(uint64(limit)))
	if n > len(r.data)/each {
		r.fail(fmt.Sprintf("is too short for the %d things that it announces", n))
		return 0
	}
	return n
}

func (r *reader) bytes(n int) []byte {
	if n > len(r.data) {
		r.fail("ends too early")
		return nil
	}
	b := r.data[:n:n]
	r.data = r.data[n:]
	return b
}

func (r *reader) string(limit int) string { return string(r.bytes(int(r.uvarint(uint64(limit))))) }

func (r *reader) err(what string) error {
	if r.rule == "" {
		return nil
	}
	return &Error{What: what, Rule: r.rule}
}

// parse reads the body to the end of the data, column by column as [body.append] wrote it.
func (b *body) parse(r *reader) error {
	b.sources = make([]Source, r.count(MaxSources, 4))
	b.frames = make([]Frame, r.count(MaxFrames, 4))
	entries := r.count(MaxEntries, 4)
	if err := b.parseFrames(r); err != nil {
		return err
	}
	checks, err := newRules(b)
	if err != nil {
		return err
	}
	b.entries = make([]Entry, entries)
	for _, column := range []func(*reader, *rules) error{b.parseKinds, b.parsePaths, b.parseTargets, b.parseTimes, b.parseSizes, b.parseSums, b.parsePlaces} {
		if err := column(r, checks); err != nil {
			return err
		}
	}
	if len(r.data) > 0 {
		return &Error{What: "manifest", Rule: fmt.Sprintf("has %d bytes after its end", len(r.data))}
	}
	return checks.done(b.entries)
}

func (b *body) parseFrames(r *reader) error {
	for i := range b.sources {
		s := &b.sources[i]
		if tag := r.uvarint(1); tag == 0 {
			copy(s.Pack[:], r.bytes(len(s.Pack)))
		} else {
			s.Release, s.Parent = ID(r.string(128)), ID(r.string(128))
			if s.Release == "" {
				r.fail("has a delta without a release")
			}
		}
		s.End = int64(r.uvarint(MaxSource))
	}
	for i := range b.frames {
		b.frames[i] = Frame{
			int32(r.uvarint(MaxSources)), int64(r.uvarint(MaxSource)),
			int64(r.uvarint(MaxFrame)), int64(r.uvarint(MaxFrame)),
		}
	}
	return r.err("frames")
}

func (b *body) parseKinds(r *reader, _ *rules) error {
	known := len(codes)
	if !b.delta {
		known-- // nothing is removed from nothing
	}
	for i, c := range r.bytes(len(b.entries)) {
		if int(c) >= known {
			return &Error{What: fmt.Sprintf("entry %d", i), Rule: fmt.Sprintf("is of kind %d, which is not known", c)}
		}
		b.entries[i] = codes[c]
	}
	return r.err("kinds")
}

// parsePaths puts all paths into one string, whose size it adds up first: no allocation for each, and none that an
// announced number alone would cause.
func (b *body) parsePaths(r *reader, checks *rules) error {
	total := 0
	for sizes, i := *r, 0; i < len(b.entries); i++ {
		shared, rest := sizes.uvarint(maxPath), int(sizes.uvarint(maxPath))
		sizes.bytes(rest)
		if total += int(shared) + rest; total > MaxPathBytes {
			sizes.fail("are longer than 128 MiB together")
		}
		if sizes.rule != "" {
			return sizes.err("paths")
		}
	}
	var all strings.Builder
	all.Grow(total)
	prev := ""
	for i := range b.entries {
		shared := int(r.uvarint(maxPath))
		rest := r.bytes(int(r.uvarint(maxPath)))
		if shared > len(prev) {
			return &Error{"path after", prev, "repeats more of it than there is"}
		}
		start := all.Len()
		all.WriteString(prev[:shared])
		all.Write(rest)
		prev = all.String()[start:] // the builder has room: what it holds does not move
		if err := checks.path(prev, shared, b.entries[i].Kind); err != nil {
			return err
		}
		b.entries[i].Path = prev
	}
	return r.err("paths")
}

func (b *body) parseTargets(r *reader, _ *rules) error {
	for i := range b.entries {
		if e := &b.entries[i]; e.Kind == Symlink {
			e.Target = r.string(maxPath)
			if r.rule != "" {
				break
			}
			if err := CheckLinkTarget(e.Path, e.Target); err != nil {
				return err
			}
		}
	}
	return r.err("targets")
}

func (b *body) parseTimes(r *reader, _ *rules) error {
	var at int64
	for i := range b.entries {
		e := &b.entries[i]
		if e.Kind == removed {
			continue
		}
		if at += unzigzag(r.uvarint(2 * maxTime)); at < 0 || at > maxTime {
			return &Error{"path", e.Path, fmt.Sprintf("has mtime %d, which must be 0 to %d", at, int64(maxTime))}
		}
		e.MTime = at
	}
	return r.err("mtimes")
}

func (b *body) parseSizes(r *reader, _ *rules) error {
	for i := range b.entries {
		if e := &b.entries[i]; e.Kind == File {
			e.Size = int64(r.uvarint(MaxFileSize))
		}
	}
	return r.err("sizes")
}

func (b *body) parseSums(r *reader, _ *rules) error {
	for i := range b.entries {
		if e := &b.entries[i]; e.hasContent() {
			copy(e.Sum[:], r.bytes(len(e.Sum)))
		} else if e.Kind == File {
			e.Sum = emptySum
		}
	}
	return r.err("sums")
}

func (b *body) parsePlaces(r *reader, checks *rules) error {
	var at cursor
	for i := range b.entries {
		e := &b.entries[i]
		if !e.hasContent() {
			continue
		}
		frame, offset := at.frame, at.offset
		if step := r.uvarint(1 << 23); step > 0 {
			frame += unzigzag(step - 1)
			offset = int64(r.uvarint(MaxFrame))
			if frame == at.frame && offset == at.offset {
				r.fail("says where contents begin that follow the ones before")
			}
		}
		if r.rule != "" || frame < 0 || bits.Len64(uint64(frame)) > 30 {
			r.fail("has a frame number out of range")
			break
		}
		e.Frame, e.Offset = int32(frame), offset
		if err := checks.place(e); err != nil {
			return err
		}
		at.pass(e)
	}
	return r.err("places")
}
