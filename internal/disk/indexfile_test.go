package disk

import (
	"bytes"
	"os"
	"reflect"
	"strings"
	"testing"

	"s3pulldeploy/internal/release"
)

func TestIndexIsReadAsItWasWritten(t *testing.T) {
	d := open(t, options(t))
	ix := &index{header: header{Release: r1, Digest: "d", Built: 7, Device: 1 << 63, identity: identity{1, 2}}, entries: []entry{
		{kind: 'd', mode: 0o40755, inode: 1<<64 - 1, mtime: -5, path: "a"},
		{kind: 'f', mode: 0o100644, inode: 2, size: 1 << 62, mtime: 1 << 62, sum: release.Sum{1, 31: 9}, path: "a/b"},
		{kind: 'l', mode: 0o120777, target: "b\nc %", path: "a/" + strings.Repeat("é\n", 90)},
		{kind: 'w', mode: 0o40755, path: "z"},
	}}
	must(t, d.writeIndex(ix))
	got, err := d.readIndex(r1)
	must(t, err)
	if !reflect.DeepEqual(got, ix) {
		t.Errorf("got %+v\nwant %+v", got, ix)
	}
}

func TestIndexOfAnotherFormatIsAsNone(t *testing.T) {
	d := open(t, options(t))
	deploy(t, d, r1, site)
	data, err := d.readState(indexFile(r1))
	must(t, err)
	must(t, d.replaceState(indexFile(r1), bytes.Replace(data, []byte(`"format":2`), []byte(`"format":9`), 1)))
	_, _, err = d.Has(r1)
	wantErr(t, err, ErrState, indexFile(r1))
	if got := deploy(t, d, r1, site); len(got) != 3 {
		t.Errorf("built from a release that nothing is known of: fetched only %q", got)
	}
}

func FuzzIndexParse(f *testing.F) {
	d := open(f, options(f))
	deploy(f, d, r1, site)
	data, err := d.readState(indexFile(r1))
	must(f, err)
	_, body, _ := bytes.Cut(data, []byte("\n"))
	f.Add(body, 11)
	f.Add([]byte{}, 0)
	f.Add([]byte(strings.Repeat("\xff", 99)), 9)
	f.Add([]byte("f\x00\x00\x00\x00"), 1)
	f.Fuzz(func(t *testing.T, data []byte, n int) {
		ix := &index{header: header{Entries: n}}
		if err := ix.parse(data); err == nil && len(ix.entries) != n {
			t.Errorf("%d entries of %d", len(ix.entries), n)
		}
	})
}

func TestEveryByteOfAnIndexCounts(t *testing.T) {
	d := open(t, options(t))
	deploy(t, d, r1, site)
	file := d.opt.StateDir + "/" + indexFile(r1)
	good, err := os.ReadFile(file)
	must(t, err)
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		must(t, os.WriteFile(file, bad, 0o600))
		_, err := d.readIndex(r1)
		wantErr(t, err, ErrState, file)
	}
}
