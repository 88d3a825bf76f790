package release

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// Limits of the packed layout, checked before memory or disk is spent on what an object claims.
const (
	// MaxEntries is the largest number of entries of a manifest: files, directories and links together.
	MaxEntries = MaxFiles
	// MaxManifest is the largest manifest in bytes, as it is stored and as it is decompressed.
	MaxManifest = 64 << 20
	// MaxPathBytes bounds the sum of all paths' lengths, which front coding would let a small manifest make huge.
	MaxPathBytes = 128 << 20
	// MaxFrame is the largest frame decompressed, in bytes: what a reader holds at once for each worker.
	MaxFrame = 4 << 20
	// MaxFrames is the largest number of frames of a manifest; with [MaxFrame] that is 4 TiB.
	MaxFrames = 1 << 20
	// MaxSpans bounds the sum of all files' numbers of frames: many copies of a huge file must not cost a reader
	// their product.
	MaxSpans = 4 << 20
	// MaxSources is the largest number of packs and deltas that a manifest names.
	MaxSources = 1 << 16
	// MaxSource is the largest frame area of a pack or delta, in bytes: several times what is ever written.
	MaxSource = 256 << 20
	// maxTime is the latest mtime, in Unix seconds: far away, and safe to add to.
	maxTime = 1 << 40
)

// Sum is a SHA-256 in its 32 bytes.
type Sum [sha256.Size]byte

// emptySum is the sum of a file without a byte, which has no place in a frame.
var emptySum = Sum(sha256.Sum256(nil))

// String is the sum in lower-case hex.
func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// MarshalText is [Sum.String], for JSON.
func (s Sum) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, s[:]), nil }

// Kind says what an entry of a manifest is. There are no others: a device, a socket or a hard link cannot be written
// down.
type Kind uint8

// The kinds of entries. removed is what only a delta says of a path.
const (
	Dir Kind = iota
	File
	Symlink
	removed
)

// String is the kind as `push -manifest` prints it.
func (k Kind) String() string { return [...]string{"dir", "file", "symlink", "removed"}[k&3] }

// Entry is one path of a release.
type Entry struct {
	Path   string // as [CheckPath] wants it
	Target string // a symlink's, as [CheckLinkTarget] wants it
	MTime  int64  // Unix seconds, the same on every instance
	Size   int64  // of a file, in bytes
	Sum    Sum    // of a file's contents
	Offset int64  // where the contents begin in the decompressed frame
	Frame  int32  // the number of the first frame that holds the contents; 0 for what has none
	Kind   Kind
	Exec   bool // a file's mode is 0755, else 0644
}

// hasContent reports whether the entry has bytes in a frame.
func (e *Entry) hasContent() bool { return e.Kind == File && e.Size > 0 }

// same reports whether nothing of the entry differs that an instance would see, but for the mtime.
func (e *Entry) same(o *Entry) bool {
	return e.Kind == o.Kind && e.Exec == o.Exec && e.Size == o.Size && e.Sum == o.Sum && e.Target == o.Target
}

// Mode is what the entry's permission bits are on an instance before umask and owner are thought of: 0755 or 0644.
func (e *Entry) Mode() uint32 {
	if e.Exec || e.Kind == Dir {
		return 0o755
	}
	return 0o644
}

// Source is an object that holds frames: a pack, or the delta of a release to its parent.
type Source struct {
	Pack    Sum   // of the pack's bytes; zero for a delta
	Release ID    // of the delta; empty for a pack
	Parent  ID    // of the delta; empty for a pack
	End     int64 // frames lie from byte 8 to before this one; behind it is the trailer, which nobody needs to fetch
}

// Key is the object's key below <prefix><site>/.
func (s Source) Key() string {
	if s.Release != "" {
		return "d/" + string(s.Release) + "/" + string(s.Parent)
	}
	return "p/" + s.Pack.String()
}

// Frame is a part of a source that is decompressed as a whole.
type Frame struct {
	Source int32 // index into [Manifest.Sources]
	Offset int64 // in the source
	Stored int64 // bytes there
	Length int64 // bytes decompressed, at most [MaxFrame]
}

// Raw reports whether the frame is stored as it is; otherwise it is one zstd frame.
func (f Frame) Raw() bool { return f.Stored == f.Length }

// Manifest is everything that a release consists of. One that was parsed keeps every rule of the package comment; who
// makes one gets them checked when it is encoded. It is not changed once it is made, so many may read it.
type Manifest struct {
	Entries []Entry  // sorted as [ComparePaths] does, each after its directory
	Frames  []Frame  // in the order in which the entries first need them
	Sources []Source // in the order in which the frames first need them
}

// Files is the number of files and symlinks, as line 3 of the pointer has it: directories do not count.
func (m *Manifest) Files() int {
	n := 0
	for i := range m.Entries {
		if m.Entries[i].Kind != Dir {
			n++
		}
	}
	return n
}

// Bytes is the sum of all files' sizes, which [MaxEntries] and [MaxFileSize] keep from overflowing.
func (m *Manifest) Bytes() int64 {
	var sum int64
	for i := range m.Entries {
		sum += m.Entries[i].Size
	}
	return sum
}

// Find is the index of the entry with this path, and whether there is one.
func (m *Manifest) Find(path string) (int, bool) { return find(m.Entries, path) }

// Span is the range of frames, first to before last, that hold the entry's contents: none for what has no contents,
// several for a file larger than [MaxFrame].
func (m *Manifest) Span(e *Entry) (first, last int) {
	if !e.hasContent() {
		return 0, 0
	}
	first, last = int(e.Frame), int(e.Frame)+1
	for rest := e.Offset + e.Size - m.Frames[first].Length; rest > 0; last++ {
		rest -= m.Frames[last].Length
	}
	return first, last
}

// Part is what of an entry lies in a frame: the bytes, and where in the file they begin. The frame is one of the
// entry's [Manifest.Span], and data its decompressed bytes.
func (m *Manifest) Part(e *Entry, frame int, data []byte) (part []byte, at int64) {
	for f := int(e.Frame); f < frame; f++ {
		at += m.Frames[f].Length
	}
	if at > 0 {
		return data, at
	}
	return data[e.Offset:min(e.Offset+e.Size, int64(len(data)))], 0
}

// ComparePaths orders paths as a walk of the tree meets them: by bytes, with the slash before all others, so a
// directory's contents follow it at once ("a", "a/b", "a-b").
func ComparePaths(a, b string) int {
	n := sharedPrefix(a, b)
	switch {
	case n == len(a) && n == len(b):
		return 0
	case n == len(a):
		return -1
	case n == len(b):
		return 1
	}
	return rank(a[n]) - rank(b[n])
}

// rank is a byte's place in the order of paths, in which no byte below the slash's is allowed.
func rank(c byte) int {
	if c == '/' {
		return 0
	}
	return int(c) + 1
}

func sharedPrefix(a, b string) int {
	n, i := min(len(a), len(b)), 0
	for i+8 <= n && eight(a[i:i+8]) == eight(b[i:i+8]) { // neighbours share most of their paths
		i += 8
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

// eight is eight bytes as a number; compilers make one load of it, where comparing short strings is a call.
func eight(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// parentOf is the path of the directory that path lies in; "" at the top.
func parentOf(path string) string { return path[:max(strings.LastIndexByte(path, '/'), 0)] }
