package release

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// smallManifest has one of everything, in four frames of two packs and a delta.
func smallManifest() *Manifest {
	sum := func(s string) Sum { return sha256.Sum256([]byte(s)) }
	return &Manifest{
		Entries: []Entry{
			{Path: "app", Kind: Dir, MTime: 1_795_205_642},
			{Path: "app/index.php", Kind: File, MTime: 1_795_205_642, Size: 100, Sum: sum("index")},
			{Path: "app/run", Kind: File, Exec: true, MTime: 1_795_300_000, Size: 50, Sum: sum("run"), Offset: 100},
			{Path: "app-b", Kind: File, MTime: 1_795_205_642, Size: 100, Sum: sum("index")},
			{Path: "current", Kind: Symlink, Target: "app/index.php", MTime: 5},
			{Path: "empty", Kind: File, Sum: emptySum},
			{Path: "large.bin", Kind: File, MTime: 7, Size: MaxFrame + 9, Sum: sum("large"), Frame: 1},
			{Path: "new", Kind: Dir, MTime: 8},
			{Path: "new/ü.php", Kind: File, MTime: 8, Size: 3, Sum: sum("new"), Frame: 3, Offset: 4},
		},
		Frames: []Frame{
			{0, 8, 60, 150}, {0, 68, MaxFrame, MaxFrame}, {1, 8, 9, 9}, {2, 8, 40, 90},
		},
		Sources: []Source{
			{Pack: sum("p1"), End: 68 + MaxFrame},
			{Pack: sum("p2"), End: 17},
			{Release: "2026-11-20_20-15-02", Parent: "v1", End: 48},
		},
	}
}

func payload(tb testing.TB, m *Manifest) []byte {
	tb.Helper()
	p, err := m.Payload()
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

func TestManifestGolden(t *testing.T) {
	m := smallManifest()
	got := payload(t, m)
	name := filepath.Join("testdata", "small.manifest")
	if os.Getenv("UPDATE_GOLDENS") != "" {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("payload is\n%x, not\n%x (%v)", got, want, err)
	}
	back, err := ParsePayload(want)
	if err != nil || !reflect.DeepEqual(back, m) {
		t.Errorf("read as %+v, %v", back, err)
	}
}

func TestManifestObjectIsOneZstdFrameOfThePayload(t *testing.T) {
	m := smallManifest()
	object, err := m.Encode()
	if err != nil || !bytes.HasPrefix(object, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		t.Fatalf("object is %x, %v", object, err)
	}
	back, err := ParseManifest(object)
	if err != nil || !reflect.DeepEqual(back, m) {
		t.Errorf("read as %+v, %v", back, err)
	}
}

func TestManifestCountsFilesAndBytes(t *testing.T) {
	m := smallManifest()
	if m.Files() != 7 || m.Bytes() != 100+50+100+MaxFrame+9+3 {
		t.Errorf("%d files, %d bytes", m.Files(), m.Bytes())
	}
	if i, ok := m.Find("app-b"); !ok || m.Entries[i].Path != "app-b" {
		t.Errorf("found %d, %v", i, ok)
	}
	if _, ok := m.Find("app/index"); ok {
		t.Error("found what is not there")
	}
	if first, last := m.Span(&m.Entries[6]); first != 1 || last != 3 {
		t.Errorf("the large file spans %d to %d", first, last)
	}
}

func TestRandomTreesSurviveEncodingAndHaveOneEncoding(t *testing.T) {
	for seed := range uint64(12) {
		tr := randomTree(seed, 1+int(seed)*9)
		first, _ := bucket{}.push(t, tr, "r1", nil, "", 1<<20, 100)
		want := payload(t, first)
		back, err := ParsePayload(want)
		if err != nil || !reflect.DeepEqual(back, first) || !bytes.Equal(payload(t, back), want) {
			t.Fatalf("seed %d: read back otherwise, %v", seed, err)
		}
		slices.Reverse(tr.entries)
		again, _ := bucket{}.push(t, tr, "r2", nil, "", 1<<20, 100)
		if !bytes.Equal(payload(t, again), want) {
			t.Fatalf("seed %d: the same tree in another order gives other bytes", seed)
		}
	}
}

func TestComparePathsIsTheOrderOfAWalk(t *testing.T) {
	sorted := []string{"A", "a", "a/b", "a/b/c", "a/b-c", "a/é", "a b", "a-b", "a-b/x", "ab", "b", "é"}
	for i, a := range sorted {
		for j, b := range sorted {
			if got := ComparePaths(a, b); (got < 0) != (i < j) || (got == 0) != (i == j) {
				t.Errorf("%q and %q: %d", a, b, got)
			}
		}
	}
}

func TestQuickPathNeverTakesWhatCheckPathRefuses(t *testing.T) {
	for _, prefix := range []string{"a", "a/b", "é/x", "a/é", "a/.", "long" + strings.Repeat("x", 250)} {
		for shared := range len(prefix) + 1 {
			for _, rest := range []string{"", "/", "/..", ".", "./x", "b", "\x00", "\\", "\xa9", "/b//c", strings.Repeat("y", 10), "/" + strings.Repeat("z/", 2100) + "z"} {
				path := prefix[:shared] + rest
				name, ok := quickPath(path, shared)
				if ok && CheckPath(path) != nil {
					t.Errorf("%q with %d known bytes passes", path, shared)
				}
				if ok && name != strings.LastIndexByte(path, '/')+1 {
					t.Errorf("%q: the name begins at %d", path, name)
				}
			}
		}
	}
}

func TestTheEncoderRefusesWhatTheParserWould(t *testing.T) {
	for want, spoil := range map[string]func(*Manifest){
		`path "current": has a target and is no link`:           func(m *Manifest) { m.Entries[4].Kind = Dir },
		`path "app": has contents and is no file`:               func(m *Manifest) { m.Entries[0].Sum[0] = 1 },
		`path "app": must be a directory, a file or a symlink`:  func(m *Manifest) { m.Entries[0].Exec = true },
		`path "empty": has no contents, but the sum of some`:    func(m *Manifest) { m.Entries[5].Sum = Sum{} },
		`path "empty": has no contents, but a place`:            func(m *Manifest) { m.Entries[5].Frame = 1 },
		`path "app/run": has mtime -1, which must be 0 to`:      func(m *Manifest) { m.Entries[2].MTime = -1 },
		`path "app/run": has size -5, which must be 0 to 5 TiB`: func(m *Manifest) { m.Entries[2].Size = -5 },
		`frame 3: names a source out of order`:                  func(m *Manifest) { m.Frames[3].Source = 3 },
		`frame 0: lies outside its source p/`:                   func(m *Manifest) { m.Sources[0].End = 67 },
		`frame 1: must be of 1 byte to 4 MiB`:                   func(m *Manifest) { m.Frames[1].Length++ },
		`frame 0: must not be longer stored than decompressed`:  func(m *Manifest) { m.Frames[0].Stored = 151 },
		`source "p/`:                    func(m *Manifest) { m.Sources[1].End = MaxSource + 1 },
		`release id "m": must be`:       func(m *Manifest) { m.Sources[2].Release = "m" },
		`is a pack and a delta at once`: func(m *Manifest) { m.Sources[2].Pack[0] = 1 },
		`path "large.bin": must lie inside one frame or fill seve`: func(m *Manifest) { m.Entries[6].Size-- },
		`path "large.bin": needs frame 2 out of order`:             func(m *Manifest) { m.Entries[6].Frame, m.Entries[6].Size = 2, 9 },
		`path "app/run": must lie inside one frame or fill`:        func(m *Manifest) { m.Entries[2].Size = 51 },
		`path "app/run": begins outside its frame`:                 func(m *Manifest) { m.Entries[2].Offset = -1 },
		`lies in frame 4, which is not listed`:                     func(m *Manifest) { m.Entries[8].Frame = 4 },
		`frame 3: is needed by no file`:                            func(m *Manifest) { m.Entries[8] = m.Entries[1]; m.Entries[8].Path = "new/x" },
		`source "d/2026-11-20_20-15-02/v1": holds no frame`:        func(m *Manifest) { m.Frames = m.Frames[:3] },
		`link "current" to "/etc": target must be relative`:        func(m *Manifest) { m.Entries[4].Target = "/etc" },
	} {
		m := smallManifest()
		spoil(m)
		_, err := m.Payload()
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v\nwant %s", err, want)
		}
	}
}

func TestWriteJSONIsStable(t *testing.T) {
	var out bytes.Buffer
	if err := smallManifest().WriteJSON(&out, "2026-11-20_20-15-02"); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join("testdata", "small.json")
	if os.Getenv("UPDATE_GOLDENS") != "" {
		if err := os.WriteFile(name, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(out.Bytes(), want) {
		t.Errorf("JSON is\n%s(%v)", out.Bytes(), err)
	}
}

func TestWriteJSONReportsABrokenPipe(t *testing.T) {
	if err := smallManifest().WriteJSON(brokenPipe{}, "r1"); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, os.ErrClosed }

// The example of the package comment, byte for byte.
func TestTheDocumentedManifestIsWhatIsWritten(t *testing.T) {
	m := &Manifest{
		Entries: []Entry{
			{Path: "bin", Kind: Dir, MTime: 10},
			{Path: "bin/run", Kind: File, Exec: true, MTime: 10, Size: 8, Sum: Sum{0xe1}},
			{Path: "run", Kind: Symlink, Target: "bin/run", MTime: 10},
		},
		Frames:  []Frame{{0, 8, 8, 8}},
		Sources: []Source{{Pack: Sum{0x9a}, End: 16}},
	}
	zeros := strings.Repeat("\x00", 31)
	want := "s3pdman1" + "\x01\x01\x03" + "\x00\x9a" + zeros + "\x10" + "\x00\x08\x08\x08" + "\x00\x02\x03" + "\x00\x03bin" + "\x03\x04/run" + "\x00\x03run" +
		"\x07bin/run" + "\x14\x00\x00" + "\x08" + "\xe1" + zeros + "\x00"
	if got := payload(t, m); string(got) != want || len(want) != 0x71 || want[0x4f] != 8 {
		t.Errorf("it is\n%q, not\n%q", got, want)
	}
}
