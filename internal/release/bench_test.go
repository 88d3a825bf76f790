package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// bigTree is 76,456 entries with the names and sizes of a large PHP application, without contents: of what was measured,
// the largest. Sums are random, so they compress as little as real ones.
var bigTree = sync.OnceValue(func() []Entry {
	r := rand.New(rand.NewPCG(1, 2))
	words := []string{"includes", "extensions", "vendor", "resources", "languages", "api", "Special", "Widget", "parser", "images", "lib", "skins", "modules"}
	var entries []Entry
	for dir := 0; len(entries) < 76_456; dir++ {
		top := fmt.Sprintf("%s%d", words[dir/500%len(words)], dir/500)
		mid := fmt.Sprintf("%s/%s%d", top, words[dir/25%len(words)], dir/25)
		low := fmt.Sprintf("%s/%s%d", mid, words[dir%len(words)], dir)
		if dir%500 == 0 {
			entries = append(entries, Entry{Path: top, Kind: Dir})
		}
		if dir%25 == 0 {
			entries = append(entries, Entry{Path: mid, Kind: Dir})
		}
		entries = append(entries, Entry{Path: low, Kind: Dir})
		for i := range 12 {
			e := Entry{Path: fmt.Sprintf("%s/%s%sHandler%d.php", low, words[r.IntN(len(words))], words[i], i), Kind: File, Size: 1 + int64(r.ExpFloat64()*5000)}
			binary.BigEndian.PutUint64(e.Sum[:], r.Uint64())
			e.Sum = sha256.Sum256(e.Sum[:])
			entries = append(entries, e)
		}
	}
	return entries[:76_456]
})

// bigManifest pretends that the tree's frames were packed.
var bigManifest = sync.OnceValue(func() *Manifest {
	d, err := NewDraft(bigTree(), nil, nil, 1_795_205_642)
	if err != nil {
		panic(err)
	}
	return fakePacked(d)
})

// fakePacked places the planned frames, stored at a fourth of their length.
func fakePacked(d *Draft) *Manifest {
	at := int64(headerSize)
	for i, f := range d.Frames {
		if i%64 == 0 {
			at = headerSize
			d.table.sources = append(d.table.sources, Source{Pack: sha256.Sum256([]byte{byte(i), byte(len(d.table.sources))}), End: 64 << 18})
		}
		stored := f.Length/4 - 1
		d.table.frames[d.known+i] = Frame{int32(len(d.table.sources) - 1), at, max(stored, 1), f.Length}
		at += stored
	}
	m, err := d.Manifest()
	if err != nil {
		panic(err)
	}
	return m
}

func BenchmarkManifestParse(b *testing.B) {
	object, err := bigManifest().Encode()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseManifest(object); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(object))/float64(len(bigTree())), "B/entry")
}

func BenchmarkManifestEncode(b *testing.B) {
	m := bigManifest()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := m.Encode(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkManifestDigest(b *testing.B) {
	m := bigManifest()
	for b.Loop() {
		if _, err := m.Digest(); err != nil {
			b.Fatal(err)
		}
	}
}

// changed is the big tree with 100 other files.
func changed() []Entry {
	entries := slices.Clone(bigTree())
	for i := range 100 {
		e := &entries[i*700+3]
		if e.Kind == File {
			e.Sum[0]++
			e.Size++
		}
	}
	return entries
}

func BenchmarkDraft(b *testing.B) {
	parent, tree := bigManifest(), changed()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := NewDraft(tree, parent, []*Manifest{parent}, 1_795_300_000); err != nil {
			b.Fatal(err)
		}
	}
}

func bigDelta(b *testing.B) (delta []byte, parent *Manifest) {
	parent = bigManifest()
	d, err := NewDraft(changed(), parent, []*Manifest{parent}, 1_795_300_000)
	if err != nil {
		b.Fatal(err)
	}
	m := fakePacked(d)
	delta, err = d.Delta(m, parent)
	if err != nil {
		b.Fatal(err)
	}
	return delta, parent
}

func BenchmarkDeltaEncode(b *testing.B) {
	parent := bigManifest()
	d, err := NewDraft(changed(), parent, []*Manifest{parent}, 1_795_300_000)
	if err != nil {
		b.Fatal(err)
	}
	m := fakePacked(d)
	for b.Loop() {
		if _, err := d.Delta(m, parent); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDeltaApply(b *testing.B) {
	delta, parent := bigDelta(b)
	b.ReportAllocs()
	for b.Loop() {
		d, err := ParseDelta(delta)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := d.Apply(parent); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(delta)), "B")
}

func BenchmarkFetchAll(b *testing.B) {
	m := bigManifest()
	for b.Loop() {
		m.FreshCost()
	}
}

func BenchmarkWriteJSON(b *testing.B) {
	m := bigManifest()
	var out bytes.Buffer
	for b.Loop() {
		out.Reset()
		if err := m.WriteJSON(&out, "2026-11-20_20-15-02"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFrame shows what grouping is worth: the same 8 MiB of small files, in frames of so much.
func BenchmarkFrame(b *testing.B) {
	plain := text(rand.New(rand.NewPCG(3, 4)), 8<<20)
	for _, size := range []int{4 << 10, 256 << 10, 1 << 20, 4 << 20} {
		var frames [][]byte
		b.Run(fmt.Sprintf("build/%dK", size>>10), func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			for b.Loop() {
				frames = frames[:0]
				stored := 0
				for at := 0; at < len(plain); at += size {
					frames = append(frames, BuildFrame(nil, plain[at:at+size]))
					stored += len(frames[len(frames)-1])
				}
				b.ReportMetric(float64(stored)/float64(len(plain)), "ratio")
			}
		})
		b.Run(fmt.Sprintf("decode/%dK", size>>10), func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			b.ReportAllocs()
			var buf []byte
			for b.Loop() {
				for _, f := range frames {
					var err error
					if buf, err = DecodeFrame(buf, Frame{0, headerSize, int64(len(f)), int64(size)}, f); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkPack is the whole of a push's own work but hashing: plan, build, pack, manifest.
func BenchmarkPack(b *testing.B) {
	t := randomTree(5, 4000)
	var size int64
	for _, e := range t.entries {
		size += e.Size
	}
	b.SetBytes(size)
	for b.Loop() {
		bucket{}.push(b, t, "new", nil, "", 0, 1)
	}
}
