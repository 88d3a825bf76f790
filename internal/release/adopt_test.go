package release

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"testing"
)

// packAll packs what a draft has not adopted, in packs of so many bytes, and returns those.
func packAll(t *testing.T, d *Draft, contents map[string][]byte, size int64) (packs []*Pack) {
	t.Helper()
	p := d.Packer(size)
	for i, f := range d.Frames {
		if d.Adopted(i) {
			continue
		}
		var plain []byte
		for _, part := range f.Parts {
			plain = append(plain, contents[part.Path][part.From:part.From+part.Length]...)
		}
		stored, err := f.Build(nil, plain)
		if err != nil {
			t.Fatal(err)
		}
		full, err := p.Put(i, stored)
		if err != nil {
			t.Fatal(err)
		}
		packs = append(packs, full...)
	}
	if last := p.Flush(); last != nil {
		packs = append(packs, last)
	}
	return packs
}

func TestWhatPacksOfAnySizeHoldIsAdoptedAndNotPackedAgain(t *testing.T) {
	contents := map[string][]byte{}
	var tree []Entry
	for i, size := range []int{100, 700_000, 600_000, 14 << 20, 2 << 20, 3000} {
		e := Entry{Path: fmt.Sprintf("f%d", i), Kind: File}
		text := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(i)}).Read(text)
		contents[e.Path], e.Size, e.Sum = text, int64(len(text)), sha256.Sum256(text)
		tree = append(tree, e)
	}
	draft := func() *Draft {
		d, err := NewDraft(tree, nil, nil, 1)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	first := draft()
	total, files := first.NewBytes, first.NewFiles
	packs := packAll(t, first, contents, 1<<20)
	if len(packs) < 5 {
		t.Fatalf("%d packs", len(packs))
	}
	again := draft()
	adopted := 0
	packs = packs[:len(packs)/2] // as if the connection broke here
	for _, p := range packs {
		index, err := ReadPackIndex(bytes.NewReader(p.Data), int64(len(p.Data)))
		if err != nil {
			t.Fatal(err)
		}
		adopted += again.Adopt(p.Sum, index) + again.Adopt(p.Sum, index) // the second time there is nothing left to take
	}
	if adopted == 0 || adopted == len(again.Frames) || again.NewBytes >= total || again.NewBytes <= 0 || again.NewFiles >= files {
		t.Fatalf("%d of %d frames adopted, %d bytes and %d files new", adopted, len(again.Frames), again.NewBytes, again.NewFiles)
	}
	packs = append(packs, packAll(t, again, contents, 16<<20)...)
	m, err := again.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	whole(t, m, packs)
	other := draft()
	other.Frames[0].Parts[0].Sum[0]++ // another file's contents
	if index, _ := ReadPackIndex(bytes.NewReader(packs[0].Data), int64(len(packs[0].Data))); other.Adopt(packs[0].Sum, index[:1]) != 0 {
		t.Error("contents were taken for others")
	}
}

// whole reads every file of a manifest out of packs.
func whole(t *testing.T, m *Manifest, packs []*Pack) {
	t.Helper()
	objects := map[Sum][]byte{}
	for _, p := range packs {
		objects[p.Sum] = p.Data
	}
	for i := range m.Entries {
		e := &m.Entries[i]
		var got []byte
		for from, to := m.Span(e); from < to; from++ {
			f := m.Frames[from]
			data, err := DecodeFrame(nil, f, objects[m.Sources[f.Source].Pack][f.Offset:][:f.Stored])
			if err != nil {
				t.Fatal(err)
			}
			part, _ := m.Part(e, from, data)
			got = append(got, part...)
		}
		if err := e.Verify(got); err != nil {
			t.Error(err)
		}
	}
}
