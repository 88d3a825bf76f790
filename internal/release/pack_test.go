package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

func TestPackedTreesComeBack(t *testing.T) {
	for seed, files := range []int{1, 3, 30, 300} {
		tr := randomTree(uint64(seed), files)
		b := bucket{}
		m, _ := b.push(t, tr, "r1", nil, "", 2<<20, 50)
		b.pull(t, m, tr)
		for key, object := range b {
			if key != "p/"+hex.EncodeToString(sum(object)) {
				t.Errorf("%s is not the sum of its bytes", key)
			}
		}
	}
}

func sum(b []byte) []byte { s := sha256.Sum256(b); return s[:] }

func TestAPackIsReadableWithoutAManifest(t *testing.T) {
	tr := randomTree(2, 120)
	b := bucket{}
	b.push(t, tr, "r1", nil, "", 3<<20, 50)
	found := map[Sum]int64{}
	for _, object := range b {
		index, err := ReadPackIndex(bytes.NewReader(object), int64(len(object)))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range index {
			data, err := DecodeFrame(nil, f.Frame, object[f.Offset:f.Offset+f.Stored])
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range f.Packed {
				if want := tr.contents[c.Sum]; int64(len(want)) != c.Size || !bytes.Equal(data[:c.Length], want[c.From:c.From+c.Length]) {
					t.Errorf("contents %s at %d are others", c.Sum, c.From)
				}
				data = data[c.Length:]
				found[c.Sum] += c.Length
			}
		}
	}
	for s, content := range tr.contents {
		if found[s] != int64(len(content)) {
			t.Errorf("of %d bytes %d are in packs, once", len(content), found[s])
		}
	}
}

func TestAPackThatMisdescribesItselfIsRefused(t *testing.T) {
	one := func(size int64) []Packed { return []Packed{{Size: size, Length: size}} }
	part := func(size, from int64) []Packed { return []Packed{{Size: size, From: from, Length: 8}} }
	frame := func(stored, length int64, p []Packed) IndexFrame {
		return IndexFrame{Frame{Stored: stored, Length: length}, p}
	}
	read := func(trailer []byte) error {
		pack := seal(append([]byte(packMagic), "8 bytes."...), trailer)
		_, err := ReadPackIndex(bytes.NewReader(pack), int64(len(pack)))
		return err
	}
	if err := read(appendIndex(nil, []IndexFrame{frame(8, 8, part(20, 12))})); err != nil {
		t.Fatal(err)
	}
	for want, f := range map[string]IndexFrame{
		"does not fill its object":             frame(7, 8, one(8)),
		"longer stored than decompressed":      frame(8, 7, one(7)),
		"contents that do not fit their frame": frame(8, 8, one(9)),
		"a frame that its contents do not":     frame(8, 8, one(7)),
		"has a part outside its contents":      frame(8, 8, part(20, 13)),
	} {
		if err := read(appendIndex(nil, []IndexFrame{f})); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", f, err)
		}
	}
	good := appendIndex(nil, []IndexFrame{frame(8, 8, one(8))})
	if err := read(append(good, 0)); err == nil || !strings.Contains(err.Error(), "does not fill its object") {
		t.Errorf("trailing byte: %v", err)
	}
	whole := append([]byte{1, 8, 8, 0}, make([]byte, 34)...) // a part that is the whole
	whole[36] = 8
	if err := read(whole); err == nil || !strings.Contains(err.Error(), "has a part outside its contents") {
		t.Errorf("a part of everything: %v", err)
	}
}

func TestPackGolden(t *testing.T) {
	tr := newTree()
	tr.file("a.php", []byte(strings.Repeat("<?php echo 1;\n", 20)))
	tr.file("b.php", []byte(strings.Repeat("<?php echo 2;\n", 20)))
	b := bucket{}
	b.push(t, tr, "r1", nil, "", 0, 50)
	name := filepath.Join("testdata", "small.pack")
	if os.Getenv("UPDATE_GOLDENS") != "" {
		for _, object := range b {
			if err := os.WriteFile(name, object, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	stored, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	index, err := ReadPackIndex(bytes.NewReader(stored), int64(len(stored)))
	if err != nil || len(index) != 1 || len(index[0].Packed) != 2 || index[0].Length != 560 {
		t.Fatalf("index %+v, %v", index, err)
	}
	data, err := DecodeFrame(nil, index[0].Frame, stored[index[0].Offset:index[0].Offset+index[0].Stored])
	if err != nil || !bytes.Equal(data[:280], tr.contents[index[0].Packed[0].Sum]) {
		t.Errorf("contents are %q, %v", data, err)
	}
}

func TestPacksDoNotDependOnWhoBuiltTheFramesWhen(t *testing.T) {
	tr := randomTree(4, 150)
	one, other := bucket{}, bucket{}
	want, _ := one.push(t, tr, "r1", nil, "", 1<<20, 1)
	d, err := NewDraft(tr.entries, nil, nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	p := d.Packer(1 << 20)
	var mu sync.Mutex
	var workers sync.WaitGroup
	for _, i := range rand.New(rand.NewPCG(1, 1)).Perm(len(d.Frames)) {
		workers.Go(func() {
			stored := tr.build(t, &d.Frames[i])
			mu.Lock()
			defer mu.Unlock()
			packs, err := p.Put(i, stored)
			if err != nil {
				t.Error(err)
			}
			other.put(packs...)
		})
	}
	workers.Wait()
	other.put(p.Flush())
	if p.Flush() != nil {
		t.Error("a second flush makes an empty pack")
	}
	m, err := d.Manifest()
	if err != nil || !bytes.Equal(payload(t, m), payload(t, want)) {
		t.Errorf("another manifest, %v", err)
	}
	if len(one) < 2 || len(one) != len(other) {
		t.Errorf("%d packs and %d", len(one), len(other))
	}
	for key := range one {
		if !bytes.Equal(one[key], other[key]) {
			t.Errorf("pack %s differs", key)
		}
	}
}

func TestPacksFillWholeReads(t *testing.T) {
	tr := newTree()
	r := rand.New(rand.NewPCG(9, 9))
	for i := range 50 { // 35 MB that cannot be compressed
		tr.file(strings.Repeat("f", i+1), noise(r, 700_000))
	}
	b := bucket{}
	m, _ := b.push(t, tr, "r1", nil, "", 0, 1)
	c := m.FreshCost()
	if len(b) != 3 || c.Requests != 5 || c.Live != 35_000_000 || c.Fetched != c.Live {
		t.Errorf("%d packs, cost %+v", len(b), c)
	}
	for _, f := range m.Frames {
		if !f.Raw() {
			t.Errorf("frame %+v is compressed for nothing", f)
		}
	}
}

func TestPackerRefusesWhatWasNotPlanned(t *testing.T) {
	d, err := NewDraft(randomTree(1, 30).entries, nil, nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Manifest(); err == nil || !strings.Contains(err.Error(), "frame 0 is not packed yet") {
		t.Errorf("manifest before the packs: %v", err)
	}
	p := d.Packer(0)
	if p.Inline("v2", "v1") {
		t.Error("nothing was put inline")
	}
	if _, err := p.Put(len(d.Frames), []byte("x")); err == nil {
		t.Error("a frame that is not planned is taken")
	}
	if _, err := p.Put(0, nil); err == nil {
		t.Error("an empty frame is taken")
	}
	if _, err := p.Put(0, []byte("x")); err != nil {
		t.Error(err)
	}
	if _, err := p.Put(0, []byte("x")); err == nil {
		t.Error("a frame is taken twice")
	}
}

func TestAFileThatChangedIsNotPublished(t *testing.T) {
	tr := randomTree(1, 10)
	d, err := NewDraft(tr.entries, nil, nil, 1)
	if err != nil {
		t.Fatal(err)
	}
	var plain []byte
	for _, p := range d.Frames[0].Parts {
		plain = append(plain, tr.contents[p.Sum]...)
	}
	plain[0]++
	if _, err := d.Frames[0].Build(nil, plain); err == nil || !strings.Contains(err.Error(), "build frame: file has changed: path ") {
		t.Errorf("changed: %v", err)
	}
	if _, err := d.Frames[0].Build(nil, plain[1:]); err == nil {
		t.Error("a shorter frame is built")
	}
}

func TestVerifier(t *testing.T) {
	e := Entry{Path: "a", Size: 5, Sum: sha256.Sum256([]byte("hello"))}
	for _, c := range []struct{ content, want string }{
		{"hello", ""},
		{"hallo", `path "a": is not what the manifest's SHA-256 says`},
		{"hello!", `path "a": has 6 bytes where the manifest says 5`},
	} {
		v := e.Verifier()
		for part := range slices.Chunk([]byte(c.content), 2) {
			v.Write(part)
		}
		if got := errText(v.Close()); got != c.want {
			t.Errorf("%s in parts: %s", c.content, got)
		}
		if got := errText(e.Verify([]byte(c.content))); got != c.want {
			t.Errorf("%s: %s", c.content, got)
		}
	}
}

func TestDecodeFrameUsesTheBufferAgain(t *testing.T) {
	plain := text(rand.New(rand.NewPCG(1, 1)), 100_000)
	stored := BuildFrame([]byte("before"), plain)[6:]
	f := Frame{Stored: int64(len(stored)), Length: int64(len(plain))}
	buf := make([]byte, 10, MaxFrame)
	out, err := DecodeFrame(buf, f, stored)
	if err != nil || !bytes.Equal(out, plain) || &out[0] != &buf[0] {
		t.Errorf("another buffer, or %v", err)
	}
	raw, err := DecodeFrame(buf, Frame{Stored: 3, Length: 3}, []byte("raw"))
	if err != nil || string(raw) != "raw" {
		t.Errorf("raw is %q, %v", raw, err)
	}
}

func TestF45DamagedPacksAreFound(t *testing.T) {
	tr := randomTree(3, 20)
	b := bucket{}
	m, _ := b.push(t, tr, "r1", nil, "", 0, 1)
	for key, object := range b {
		index, err := ReadPackIndex(bytes.NewReader(object), int64(len(object)))
		if err != nil || key != "p/"+Sum(sha256.Sum256(object)).String() {
			t.Fatalf("%s: %v", key, err)
		}
		for n := 0; n < len(object); n += 1 + n/1000 {
			if _, err := ReadPackIndex(bytes.NewReader(object[:n]), int64(n)); err == nil {
				t.Fatalf("cut to %d bytes it is accepted", n)
			}
		}
		if _, err := ReadPackIndex(bytes.NewReader(append(object, 0)), int64(len(object)+1)); err == nil {
			t.Error("a longer pack is accepted")
		}
		for at := headerSize; at < headerSize+int(index[0].Stored); at += 7 {
			spoiled := bytes.Clone(object)
			spoiled[at] ^= 1
			if m.intact(spoiled) && !bytes.Equal(decodeFirst(m, spoiled), decodeFirst(m, object)) {
				t.Errorf("a bit flipped at %d goes unnoticed", at)
			}
		}
	}
}

func decodeFirst(m *Manifest, object []byte) []byte {
	f := m.Frames[0]
	data, _ := DecodeFrame(nil, f, object[f.Offset:f.Offset+f.Stored])
	return data
}

// intact reports whether all contents of the first frame are verified.
func (m *Manifest) intact(object []byte) bool {
	data := decodeFirst(m, object)
	if data == nil {
		return false
	}
	for i := range m.Entries {
		if e := &m.Entries[i]; e.hasContent() && e.Frame == 0 && e.Verify(data[e.Offset:e.Offset+e.Size]) != nil {
			return false
		}
	}
	return true
}
