package release

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// forge is a payload written by hand, with no rule checked: the columns as an attacker with a signing key would
// write them.
type forge struct {
	sources, frames []byte
	kinds           []byte
	paths           [][2]any // shared bytes, the rest
	targets         []string
	times, sizes    []uint64
	sums, places    []byte
	counts          [3]uint64 // instead of the true ones, where above zero
	tail            string
}

func (f forge) payload() []byte {
	out := []byte(manifestMagic)
	for i, n := range []int{len(f.sources) / 34, len(f.frames) / 4, len(f.kinds)} {
		if f.counts[i] > 0 {
			n = int(f.counts[i])
		}
		out = binary.AppendUvarint(out, uint64(n))
	}
	out = append(append(append(out, f.sources...), f.frames...), f.kinds...)
	for _, p := range f.paths {
		out = appendString(binary.AppendUvarint(out, uint64(p[0].(int))), p[1].(string))
	}
	for _, t := range f.targets {
		out = appendString(out, t)
	}
	for _, list := range [][]uint64{f.times, f.sizes} {
		for _, n := range list {
			out = binary.AppendUvarint(out, n)
		}
	}
	return append(append(append(out, f.sums...), f.places...), f.tail...)
}

// onePack is a source of 100 bytes and a frame in it, 8 bytes raw.
func onePack(f forge) forge {
	f.sources = append(make([]byte, 33), 100)
	f.frames = []byte{0, 8, 8, 8}
	f.sums, f.places = append(f.sums, make([]byte, 32)...), append(f.places, 0)
	return f
}

// files forges empty files with these paths, nothing shared.
func files(paths ...string) (f forge) {
	for _, p := range paths {
		f.kinds = append(f.kinds, 1)
		f.paths = append(f.paths, [2]any{0, p})
		f.times, f.sizes = append(f.times, 0), append(f.sizes, 0)
	}
	return f
}

func refused(t *testing.T, name string, payload []byte, want string) {
	t.Helper()
	_, err := ParsePayload(payload)
	var e *Error
	if !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
		t.Errorf("%s:\n got %v\nwant %s", name, err, want)
	}
}

func TestForgedManifestIsGoodBeforeItIsSpoiled(t *testing.T) {
	f := files("a", "b")
	f.sizes[0] = 8
	if _, err := ParsePayload(onePack(f).payload()); err != nil {
		t.Fatal(err)
	}
}

func TestF46ATruncatedManifestIsRefusedAtEveryByte(t *testing.T) {
	whole := payload(t, smallManifest())
	for n := range whole {
		if _, err := ParsePayload(whole[:n]); err == nil {
			t.Errorf("cut to %d bytes it is accepted", n)
		}
	}
	refused(t, "trailing byte", append(whole, 0), "has 1 bytes after its end")
	object, _ := smallManifest().Encode()
	for n := range object {
		if _, err := ParseManifest(object[:n]); err == nil {
			t.Errorf("object cut to %d bytes is accepted", n)
		}
	}
	if _, err := ParseManifest(append(object, object...)); err == nil {
		t.Error("a second frame behind the manifest is accepted")
	}
}

func TestF50ManifestPathsOutsideTheTree(t *testing.T) {
	for _, path := range []string{
		"../x", "/etc/x", "a/../../x", "", ".", "..", "a//b", "a/", "a\x00", "a\nb", `a\b`, "\xff", "a\u0085",
		strings.Repeat("x", 256),
	} {
		rule := CheckPath(path)
		if rule == nil {
			t.Fatalf("%q is good", path)
		}
		refused(t, path, files(path).payload(), rule.Error())
	}
	f := files("é", "")
	f.paths[1] = [2]any{1, "a"} // the first byte of é, then a
	refused(t, "half a character", f.payload(), `path "\xc3a": must come before "é"`)
	f.paths[1] = [2]any{3, "a"}
	refused(t, "more shared than there is", f.payload(), `path after "é": repeats more of it than there is`)
	f.paths[1] = [2]any{0, strings.Repeat("x", 5000)}
	refused(t, "5,000 bytes", f.payload(), "paths: has the number 5000 where at most 4096 can be")
	deep := forge{}
	for i := range 2001 { // a, a/a, a/a/a and so on, and one that is longer than it looks
		part := "/a"
		if i == 2000 {
			part += strings.Repeat("b", 200)
		}
		deep.kinds, deep.times = append(deep.kinds, 0), append(deep.times, 0)
		deep.paths = append(deep.paths, [2]any{max(2*i-1, 0), part[max(1-i, 0):]})
	}
	refused(t, "4,200 bytes", deep.payload(), "is longer than 4096 bytes")
}

func TestF51DuplicatesAndFilesThatAreDirectories(t *testing.T) {
	refused(t, "twice", func() []byte { f := files("a", "a"); f.paths[1] = [2]any{1, ""}; return f.payload() }(),
		`path "a": must come before "a", and once`)
	refused(t, "unsorted", files("b", "a").payload(), `path "a": must come before "b"`)
	refused(t, "slash sorts first", func() []byte {
		f := files("a", "a-b", "a/b")
		f.paths[1], f.paths[2] = [2]any{1, "-b"}, [2]any{1, "/b"}
		return f.payload()
	}(), `path "a/b": must come before "a-b"`)
	refused(t, "file as directory", func() []byte { f := files("a", ""); f.paths[1] = [2]any{1, "/b"}; return f.payload() }(),
		`path "a/b": lies in "a", which is not a directory listed before it`)
	refused(t, "no directory", files("a/b").payload(), `path "a/b": lies in "a", which is not a directory listed before it`)
	refused(t, "no middle directory", func() []byte {
		f := files("a", "")
		f.kinds[0], f.sizes = 0, f.sizes[1:]
		f.paths[1] = [2]any{1, "/b/c"}
		return f.payload()
	}(), `path "a/b/c": lies in "a/b", which is not a directory listed before it`)
	refused(t, "repeats", files("ab", "ac").payload(), `path "ac": repeats more of the path before it than it says`)
	if _, err := ParsePayload(files("A", "a", "é", "é").payload()); err == nil {
		t.Error("the front coding of é is not shortest, and it is accepted")
	}
}

func TestF52LinksAndUnknownKinds(t *testing.T) {
	link := func(path, target string) forge {
		return forge{kinds: []byte{3}, paths: [][2]any{{0, path}}, targets: []string{target}, times: []uint64{0}}
	}
	for _, target := range []string{"/etc/passwd", "../x", "", "a/../b", "x\x00"} {
		rule := CheckLinkTarget("a", target)
		refused(t, target, link("a", target).payload(), rule.Error())
	}
	below := link("a", "b")
	below.kinds, below.paths, below.times, below.sizes = []byte{3, 1}, append(below.paths, [2]any{1, "/x"}), []uint64{0, 0}, []uint64{0}
	refused(t, "a file below a link", below.payload(), `path "a/x": lies in "a", which is not a directory`)
	for _, kind := range []byte{4, 5, 6, 0xff} {
		f := files("a")
		f.kinds[0] = kind
		refused(t, "kind", f.payload(), fmt.Sprintf("entry 0: is of kind %d, which is not known", kind))
	}
	chain := func(n int, last string) *Manifest {
		m := &Manifest{}
		for i := range n {
			m.Entries = append(m.Entries, Entry{Path: fmt.Sprintf("l%02d", i), Kind: Symlink, Target: fmt.Sprintf("./l%02d", i+1)})
		}
		m.Entries[n-1].Target = last
		return m
	}
	if _, err := chain(maxChain, "gone").Payload(); err != nil {
		t.Errorf("%d links: %v", maxChain, err)
	}
	for name, m := range map[string]*Manifest{"9 links": chain(maxChain+1, "gone"), "circle": chain(2, "l00"), "itself": chain(1, "l00")} {
		if _, err := m.Payload(); err == nil || !strings.Contains(err.Error(), "leads through more than 8 links") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestF53ThereIsNoWayToWriteAnotherMode(t *testing.T) {
	modes := map[uint32]bool{}
	for c := range codes {
		e := codes[c]
		modes[e.Mode()] = true
	}
	if len(modes) != 2 || !modes[0o644] || !modes[0o755] {
		t.Errorf("modes are %v", modes)
	}
}

func TestF54HugeNumbersCostNoMemory(t *testing.T) {
	sized := func(n uint64) []byte {
		f := files("a")
		f.sizes[0] = n
		return onePack(f).payload()
	}
	frame := func(b ...byte) []byte {
		f := files("a")
		f.sizes[0] = 8
		f = onePack(f)
		f.frames = b
		f.counts[1] = 1
		return f.payload()
	}
	cases := map[string]struct {
		payload []byte
		want    string
	}{
		"file of 2^62":        {sized(1 << 62), "sizes: has the number 4611686018427387904 where at most 5497558138880 can be"},
		"negative file":       {sized(1 << 63), "sizes: ends in the middle of a number, or has one of more than 63 bits"},
		"file beyond frame":   {sized(9), `path "a": must lie inside one frame or fill several`},
		"10^8 entries":        {forge{counts: [3]uint64{0, 0, 100_000_000}}.payload(), "has the number 100000000 where at most 1000000 can be"},
		"10^6 entries, none":  {forge{counts: [3]uint64{0, 0, 1_000_000}}.payload(), "frames: is too short for the 1000000 things that it announces"},
		"10^6 frames, none":   {forge{counts: [3]uint64{0, 1 << 20, 0}}.payload(), "is too short for the 1048576 things"},
		"frame above 4 MiB":   {frame(0, 8, 8, 0x81, 0x80, 0x80, 0x02), "frames: has the number 4194305 where at most 4194304 can be"},
		"frame outside pack":  {frame(0, 93, 8, 8), "frame 0: lies outside its source p/0000"},
		"frame in the header": {frame(0, 7, 8, 8), "frame 0: lies outside its source p/0000"},
		"empty frame":         {frame(0, 8, 0, 8), "frame 0: must not be longer stored than decompressed, nor empty"},
		"frame of no source":  {frame(1, 8, 8, 8), "frame 0: names a source out of order"},
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for name, c := range cases {
		refused(t, name, c.payload, c.want)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 4<<20 {
		t.Errorf("refusing them allocated %d bytes", used)
	}
	if _, err := ParseManifest(make([]byte, MaxManifest+1)); err == nil || err.Error() != "manifest: is larger than 64 MiB" {
		t.Errorf("64 MiB and a byte: %v", err)
	}
}

func TestF54FrontCodingCannotMultiplyPaths(t *testing.T) {
	f := files(strings.Repeat(strings.Repeat("d", 254)+"/", 15)[:3824] + "0")
	for i := range 40_000 { // 150 MiB of paths in 200 KB
		f.kinds = append(f.kinds, 1)
		f.paths = append(f.paths, [2]any{3824, fmt.Sprintf("%05d", i)})
		f.times, f.sizes = append(f.times, 0), append(f.sizes, 0)
	}
	refused(t, "150 MiB of paths", f.payload(), "paths: are longer than 128 MiB together")
}

func TestF54CopiesOfAHugeFileCannotMultiplyFrames(t *testing.T) {
	m := &Manifest{Sources: []Source{{End: 3000}}}
	for i := range 2100 {
		m.Frames = append(m.Frames, Frame{0, int64(headerSize + i), 1, 1})
	}
	for i := range 2000 {
		m.Entries = append(m.Entries, Entry{Path: fmt.Sprintf("%04d", i), Kind: File, Size: 2100})
	}
	if _, err := m.Payload(); err == nil || !strings.Contains(err.Error(), "is one more copy of a large file than a release can have") {
		t.Errorf("4.2 million frames for 2,000 files: %v", err)
	}
	// Numbering, which comes before the check, stops looking too: the last file's second frame is never reached.
	m.Frames = append(m.Frames, Frame{0, 2500, 1, 1}, Frame{0, 2501, 1, 1})
	m.Entries = append(m.Entries, Entry{Path: "z", Kind: File, Size: 2, Frame: 2100})
	if got := canonical(m.Entries, m.Frames, m.Sources); len(got.Frames) != 2101 {
		t.Errorf("%d frames", len(got.Frames))
	}
}

func TestF55Bombs(t *testing.T) {
	zeros := make([]byte, 32<<20)
	enc := func(plain []byte, opts ...zstd.EOption) []byte {
		e, err := zstd.NewWriter(nil, append([]zstd.EOption{zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true)}, opts...)...)
		if err != nil {
			t.Fatal(err)
		}
		return e.EncodeAll(plain, nil)
	}
	small := enc(zeros[:1000])
	lying := bytes.Clone(enc(zeros)) // says 1,000,000 bytes and has 32 MiB
	if i := bytes.Index(lying, binary.LittleEndian.AppendUint32(nil, 32<<20)); i < 0 || i > 5 {
		t.Fatal("the length is not where it should be")
	} else {
		binary.LittleEndian.PutUint32(lying[i:], 1_000_000)
	}
	var stream bytes.Buffer
	s, _ := zstd.NewWriter(&stream)
	s.Write(zeros[:3000])
	s.Close()
	window := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x80, 0xa8, 0xe8, 3, 0, 0, 1, 0, 0} // 2 GiB for 1,000 bytes
	for name, c := range map[string]struct {
		stored []byte
		length int64
		want   string
	}{
		"longer than said":   {lying, 1_000_000, "zstd frame: "},
		"another length":     {small, 999, "must say that it is 999 bytes long"},
		"trailing bytes":     {append(bytes.Clone(small), 0), 1000, "does not end where its object says"},
		"another frame":      {append(bytes.Clone(small), small...), 1000, "does not end where its object says"},
		"skippable behind":   {append(bytes.Clone(small), 0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0), 1000, "does not end where its object says"},
		"skippable":          {[]byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0}, 1000, "must not be skippable"},
		"window of 2 GiB":    {window, 1000, "must be a single segment, whose window is its length"},
		"checksum":           {enc(zeros[:1000], zstd.WithEncoderCRC(true)), 1000, "nor have a dictionary or a checksum"},
		"no length":          {stream.Bytes(), 3000, "zstd frame: must"},
		"cut off":            {small[:len(small)-1], 1000, "does not end where its object says"},
		"no zstd":            {[]byte("plain text of some length"), 1000, "zstd frame: "},
		"above 4 MiB":        {enc(zeros), 32 << 20, "frame: is of"},
		"other stored bytes": {small, -1, "frame: is of"},
	} {
		f := Frame{Stored: int64(len(c.stored)), Length: c.length}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := DecodeFrame(nil, f, c.stored)
		runtime.ReadMemStats(&after)
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s:\n got %v\nwant %s", name, err, c.want)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 64<<20 {
			t.Errorf("%s allocated %d bytes", name, used)
		}
	}
	bomb := enc(make([]byte, MaxManifest+1))
	if _, err := ParseManifest(bomb); err == nil || !strings.Contains(err.Error(), "must say a length of at most 67108864 bytes") {
		t.Errorf("manifest of %d bytes that decompresses to 64 MiB and one: %v", len(bomb), err)
	}
}

func TestF56NumbersHaveOneSpelling(t *testing.T) {
	good := string(files("a").payload())
	refused(t, "zero in two bytes", []byte(strings.Replace(good, "\x00\x01a", "\x80\x00\x01a", 1)), "paths: ")
	for name, b := range map[string]string{
		"10 bytes": "\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", "64 bits": "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
		"cut": "\x80", "two zeros": "\x80\x00", "nothing": "",
	} {
		r := &reader{data: []byte(b)}
		if n := r.uvarint(1<<63 - 1); n != 0 || r.rule == "" {
			t.Errorf("%s read as %d", name, n)
		}
	}
	f := files("a", "b")
	f.sizes[0], f.sizes[1] = 4, 4
	f = onePack(f)
	f.sums = make([]byte, 64)
	f.places = []byte{0, 1, 4} // the second follows the first, and says where it is all the same
	refused(t, "place in two spellings", f.payload(), "places: ")
	refused(t, "another version", []byte("s3pdman2\x00\x00\x00"), "manifest: does not begin with s3pdman1")
}
