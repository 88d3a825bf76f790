package release

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// change makes another tree of the same: files removed, added, moved, changed, made executable.
func (t *tree) change(seed uint64, n int) *tree {
	r := rand.New(rand.NewPCG(seed, 11))
	next := &tree{slices.Clone(t.entries), t.contents}
	for i := range n {
		at := r.IntN(len(next.entries))
		e := &next.entries[at]
		if e.Kind == Dir {
			next.file(fmt.Sprintf("%s/added%d.%d", e.Path, seed, i), text(r, 1+r.IntN(3000)))
			continue
		}
		switch r.IntN(4) {
		case 0:
			next.entries = slices.Delete(next.entries, at, at+1)
		case 1:
			e.Path += fmt.Sprintf("-moved%d", seed)
		case 2:
			e.Exec = e.Kind == File && !e.Exec
		default:
			path := e.Path
			next.entries = slices.Delete(next.entries, at, at+1)
			next.file(path, text(r, 1+r.IntN(3000)))
		}
	}
	return next
}

func TestDeltaOfRandomTreesGivesTheVeryManifest(t *testing.T) {
	for seed := range uint64(10) {
		tr := randomTree(seed, 1+int(seed)*9)
		b := bucket{}
		parent, _ := b.push(t, tr, "r00", nil, "", 1<<20, 100)
		before := payload(t, parent)
		for i := range 4 { // releases on top of one another
			id, parentID := ID(fmt.Sprintf("r%02d", i+1)), ID(fmt.Sprintf("r%02d", i))
			tr = tr.change(seed*10+uint64(i), 1+i*5)
			child, object := b.push(t, tr, id, parent, parentID, 1<<20, int64(101+i))
			d, err := ParseDelta(object)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			got, err := d.Apply(parent)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if !bytes.Equal(payload(t, got), payload(t, child)) || !bytes.Equal(payload(t, parent), before) {
				t.Fatalf("seed %d: another manifest, or a changed parent", seed)
			}
			a, _ := got.Encode()
			if c, _ := child.Encode(); !bytes.Equal(a, c) {
				t.Fatalf("seed %d: the objects differ", seed)
			}
			b.pull(t, got, tr)
			parent, before = child, payload(t, child)
		}
	}
}

// smallDelta changes two files of the small manifest, removes one, and adds one, whose frame is inline.
func smallDelta(tb testing.TB) (object []byte, parent, child *Manifest) {
	tb.Helper()
	tr := newTree()
	tr.file("a.php", []byte(strings.Repeat("hello ", 50)))
	tr.file("b.php", []byte("gone soon"))
	tr.entries = append(tr.entries, Entry{Path: "dir", Kind: Dir}, Entry{Path: "dir/link", Kind: Symlink, Target: "../a.php"})
	b := bucket{}
	parent, _ = b.push(tb, tr, "v1", nil, "", 0, 1_795_205_642)
	next := newTree()
	next.contents = tr.contents
	next.file("a.php", []byte(strings.Repeat("hello ", 50)))
	next.file("c.php", []byte(strings.Repeat("world ", 50)))
	next.entries = append(next.entries, Entry{Path: "dir", Kind: Dir}, Entry{Path: "dir/link", Kind: Symlink, Target: "../c.php"})
	next.entries[0].Exec = true
	child, object = b.push(tb, next, "v2", parent, "v1", 0, 1_795_300_000)
	return object, parent, child
}

func TestDeltaGolden(t *testing.T) {
	object, parent, child := smallDelta(t)
	for name, got := range map[string][]byte{"small.delta": object, "small.parent": payload(t, parent), "small.child": payload(t, child)} {
		name = filepath.Join("testdata", name)
		if os.Getenv("UPDATE_GOLDENS") != "" {
			if err := os.WriteFile(name, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Ext(name) != ".delta" && !bytes.Equal(got, want) {
			t.Errorf("%s is\n%x, not\n%x", name, got, want)
		}
	}
	// The stored object is read, not written again: another version of the compressor may write it otherwise.
	stored, err := os.ReadFile(filepath.Join("testdata", "small.delta"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := ParseDelta(stored)
	if err != nil {
		t.Fatal(err)
	}
	m, err := d.Apply(parent)
	if err != nil || !bytes.Equal(payload(t, m), payload(t, child)) {
		t.Errorf("applied: %v", err)
	}
	if m.Sources[1].Key() != "d/v2/v1" || m.Entries[1].Path != "c.php" {
		t.Fatalf("manifest is %+v", m)
	}
	inline, err := d.Stored(m.Frames[1])
	if err != nil {
		t.Fatal(err)
	}
	data, err := DecodeFrame(nil, m.Frames[1], inline)
	if err != nil || m.Entries[1].Verify(data) != nil {
		t.Errorf("inline frame is %q, %v", data, err)
	}
	for _, f := range []Frame{{Offset: 7, Stored: 1}, {Offset: 8, Stored: d.end}, {Offset: d.end, Stored: 1}, {Offset: 8}} {
		if _, err := d.Stored(f); err == nil {
			t.Errorf("%+v lies outside and is handed out", f)
		}
	}
}

func TestDeltaIsSmallWhateverTheTree(t *testing.T) {
	parent := bigManifest()
	d, err := NewDraft(changed(), parent, []*Manifest{parent}, 1)
	if err != nil {
		t.Fatal(err)
	}
	delta, err := d.Delta(fakePacked(d), parent)
	if err != nil || len(delta) > 100*100 {
		t.Errorf("delta of 100 files in %d has %d bytes, %v", len(bigTree()), len(delta), err)
	}
}

func TestDeltaNeedsItsParent(t *testing.T) {
	object, parent, child := smallDelta(t)
	d, err := ParseDelta(object)
	if err != nil {
		t.Fatal(err)
	}
	other := *parent
	other.Entries = slices.Clone(parent.Entries)
	other.Entries[0].MTime++
	for name, m := range map[string]*Manifest{"child": child, "empty": {}, "other mtime": &other, "small": smallManifest()} {
		if _, err := d.Apply(m); name != "other mtime" && err == nil {
			t.Errorf("applied to %s", name)
		}
	}
	other.Entries[2].MTime++ // the directory, which the delta does not touch
	if _, err := d.Apply(&other); err == nil || err.Error() != "delta: does not give the manifest that it names" {
		t.Errorf("applied to a parent with another mtime: %v", err)
	}
	missing := *parent
	missing.Entries = slices.Delete(slices.Clone(parent.Entries), 1, 2)
	if _, err := d.Apply(&missing); err == nil || err.Error() != `path "b.php": is removed and is not in the parent` {
		t.Errorf("applied to a parent without what it removes: %v", err)
	}
}

func TestF46DamagedDeltasAreRefused(t *testing.T) {
	object, parent, child := smallDelta(t)
	want := payload(t, child)
	for n := range object {
		if _, err := ParseDelta(object[:n]); err == nil {
			t.Errorf("cut to %d bytes it is accepted", n)
		}
	}
	d, _ := ParseDelta(object)
	for at := int(d.end); at < len(object); at++ { // the frames before that have the files' sums
		spoiled := bytes.Clone(object)
		spoiled[at] ^= 0x10
		if d, err := ParseDelta(spoiled); err == nil {
			if m, err := d.Apply(parent); err == nil && !bytes.Equal(payload(t, m), want) {
				t.Errorf("a bit flipped at %d gives another manifest", at)
			}
		}
	}
	if _, err := ParseDelta(append(object, 0)); err == nil {
		t.Error("a byte behind the delta is accepted")
	}
	big := seal(append([]byte(deltaPackMagic), make([]byte, MaxInline+1)...), []byte("x"))
	if _, err := ParseDelta(big); err == nil || !strings.Contains(err.Error(), "carries more than 8 MiB of frames") {
		t.Errorf("9 MiB inline: %v", err)
	}
}

func TestDraftKeepsWhatIsThereAndItsTime(t *testing.T) {
	_, parent, child := smallDelta(t)
	for path, want := range map[string]int64{"a.php": 1_795_300_000, "c.php": 1_795_300_000, "dir": 1_795_205_642, "dir/link": 1_795_300_000} {
		if i, ok := child.Find(path); !ok || child.Entries[i].MTime != want {
			t.Errorf("%s: mtime %d, want %d", path, child.Entries[i].MTime, want)
		}
	}
	if child.Sources[child.Frames[child.Entries[0].Frame].Source] != parent.Sources[0] {
		t.Error("the file that only became executable is stored again")
	}
	again, err := NewDraft(child.Entries, child, []*Manifest{child}, 9)
	if err != nil {
		t.Fatal(err)
	}
	m, err := again.Manifest()
	if err != nil || !bytes.Equal(payload(t, m), payload(t, child)) || len(again.Frames) != 0 || again.NewBytes != 0 || again.Unchanged != 3 {
		t.Errorf("the same tree again: %v, %+v", err, again)
	}
	back, err := NewDraft(parent.Entries, child, []*Manifest{child, parent}, 9)
	if err != nil || len(back.Frames) != 0 {
		t.Errorf("b.php is in a kept release and stored again: %v", err)
	}
}

func TestDeltaCarriesATimeAlone(t *testing.T) {
	_, parent, child := smallDelta(t)
	later := &Manifest{slices.Clone(child.Entries), child.Frames, child.Sources}
	later.Entries[1].MTime++
	for _, from := range []*Manifest{child, parent} {
		object, err := encodeDelta(later, from, nil)
		if err != nil {
			t.Fatal(err)
		}
		d, _ := ParseDelta(object)
		if m, err := d.Apply(from); err != nil || m.Entries[1].MTime != later.Entries[1].MTime {
			t.Errorf("the time is lost: %v", err)
		}
	}
	d, _ := ParseDelta(seal([]byte(deltaPackMagic), append([]byte(deltaMagic), make([]byte, 36)...)))
	if _, err := d.Apply(child); err == nil || err.Error() != "delta: is of a parent with 0 frames, not 2" {
		t.Errorf("applied to a parent with other frames: %v", err)
	}
}

func TestAboveEightMiBFramesLieInPacks(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	tr := newTree()
	tr.file("a", []byte("a"))
	for seed, want := range map[int]string{8 << 20: "d/v2/v1", 8<<20 + 1: "p/"} {
		b := bucket{}
		parent, _ := b.push(t, tr, "v1", nil, "", 0, 1)
		next := &tree{slices.Clone(tr.entries), tr.contents}
		for rest := seed; rest > 0; rest -= min(rest, 1<<20) {
			next.file(fmt.Sprintf("new%d", rest), noise(r, min(rest, 1<<20)))
		}
		m, object := b.push(t, next, "v2", parent, "v1", 0, 2)
		if key := m.Sources[1].Key(); !strings.HasPrefix(key, want) || (want == "p/") != (len(object) < 2000) {
			t.Errorf("%d new bytes lie in %s; the delta has %d bytes", seed, key, len(object))
		}
		b.pull(t, m, next)
	}
}

func TestDraftRefusesOneSumWithTwoSizes(t *testing.T) {
	if _, err := NewDraft([]Entry{{Path: "a", Kind: File, Size: 1}, {Path: "b", Kind: File, Size: 2}}, nil, nil, 1); err == nil {
		t.Error("accepted")
	}
}
