package release

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func golden(f *testing.F, name string) []byte {
	f.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		f.Fatal(err)
	}
	return data
}

// FuzzManifest: what is accepted has this one encoding and keeps the rules of paths.
func FuzzManifest(f *testing.F) {
	for _, name := range []string{"small.manifest", "small.parent", "small.child"} {
		f.Add(golden(f, name))
	}
	fake := files("a", "b")
	fake.sizes[0] = 8
	f.Add(onePack(fake).payload())
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParsePayload(data)
		if err != nil {
			return
		}
		again, err := m.Payload()
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("%x is written as %x, %v", data, again, err)
		}
		f := m.Fetch(all(m))
		for i := range m.Entries {
			e := &m.Entries[i]
			if err := CheckPath(e.Path); err != nil {
				t.Fatal(err)
			}
			if at, ok := m.Find(parentOf(e.Path)); parentOf(e.Path) != "" && (!ok || m.Entries[at].Kind != Dir) {
				t.Fatalf("%q has no directory", e.Path)
			}
			if e.Kind == Symlink && CheckLinkTarget(e.Path, e.Target) != nil {
				t.Fatalf("%q leads to %q", e.Path, e.Target)
			}
		}
		for _, r := range f.Ranges {
			if r.Offset < headerSize || r.Offset+r.Length > m.Sources[r.Source].End || r.Length > MaxRange {
				t.Fatalf("range %+v of %+v", r, m.Sources[r.Source])
			}
		}
	})
}

// FuzzDelta fuzzes what is behind the compression, where a mutation means something.
func FuzzDelta(f *testing.F) {
	object := golden(f, "small.delta")
	trailer, end, err := readTrailer(bytes.NewReader(object), int64(len(object)), deltaPackMagic)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(trailer)
	parent, err := ParsePayload(golden(f, "small.parent"))
	if err != nil {
		f.Fatal(err)
	}
	before := golden(f, "small.parent")
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := ParseDelta(seal(bytes.Clone(object[:end]), data))
		if err != nil {
			return
		}
		if m, err := d.Apply(parent); err == nil {
			if got, err := m.Digest(); err != nil || got != d.Child {
				t.Fatalf("applied to something else: %v", err)
			}
		}
		if now, err := parent.Payload(); err != nil || !bytes.Equal(now, before) {
			t.Fatalf("the parent was changed: %v", err)
		}
	})
}

// FuzzFrame: exactly the length that was asked for, or an error.
func FuzzFrame(f *testing.F) {
	for _, plain := range []string{"a", "hello hello hello hello hello hello hello hello", string(make([]byte, 70_000))} {
		f.Add(BuildFrame(nil, []byte(plain)), len(plain))
	}
	f.Fuzz(func(t *testing.T, stored []byte, length int) {
		out, err := DecodeFrame(nil, Frame{Stored: int64(len(stored)), Length: int64(length)}, stored)
		if err == nil && len(out) != length {
			t.Fatalf("%d bytes, not %d", len(out), length)
		}
		if len(stored) == 0 || len(stored) > MaxFrame {
			return
		}
		built := BuildFrame(nil, stored)
		back, err := DecodeFrame(nil, Frame{Stored: int64(len(built)), Length: int64(len(stored))}, built)
		if err != nil || !bytes.Equal(back, stored) {
			t.Fatalf("%x comes back as %x, %v", stored, back, err)
		}
	})
}

// FuzzPack: an index that is accepted describes every byte between header and trailer, and is written as it was.
func FuzzPack(f *testing.F) {
	object := golden(f, "small.pack")
	trailer, end, err := readTrailer(bytes.NewReader(object), int64(len(object)), packMagic)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(trailer)
	f.Fuzz(func(t *testing.T, data []byte) {
		pack := seal(bytes.Clone(object[:end]), data)
		index, err := ReadPackIndex(bytes.NewReader(pack), int64(len(pack)))
		if err != nil {
			return
		}
		at := int64(headerSize)
		for _, f := range index {
			if f.Offset != at {
				t.Fatalf("frame at %d, not %d", f.Offset, at)
			}
			at += f.Stored
		}
		if again := appendIndex(nil, index); at != end || !bytes.Equal(again, data) {
			t.Fatalf("%x is written as %x", data, again)
		}
	})
}
