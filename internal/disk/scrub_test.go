package disk

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/testenv"
)

const fast = 1 << 40 // bytes a second

// flipBit changes a file as bad memory or a bad disk does: no stat tells.
func flipBit(t *testing.T, name string) {
	t.Helper()
	info, err := os.Stat(name)
	must(t, err)
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, 3)
	b[0] ^= 4
	if err == nil {
		_, err = f.WriteAt(b, 3)
	}
	must(t, errors.Join(err, f.Close(), os.Chtimes(name, info.ModTime(), info.ModTime())))
}

func scrubbed(t *testing.T, d *Disk) map[release.ID][]string {
	t.Helper()
	found, err := d.Scrub(t.Context(), fast)
	must(t, err)
	return found.Damaged
}

func TestScrubFindsAFlippedBitInEveryReleaseThatHasIt(t *testing.T) {
	o := options(t)
	d := open(t, o)
	deploy(t, d, r1, site)
	deploy(t, d, r2, site)
	deploy(t, d, r3, packed{"else": "other"})
	must(t, d.Flip(r2))
	if found, err := d.Scrub(t.Context(), fast); err != nil || len(found.Damaged) != 0 || found.Files != 6 || found.Bytes != 30 {
		t.Fatalf("found %+v, %v on a disk that is well", found, err)
	}
	flipBit(t, d.Path(r2)+"/index.php")
	if _, ok, err := d.Has(r2); !ok {
		t.Fatal("the stat index sees more than it can:", err)
	}
	want := map[release.ID][]string{r1: {"index.php"}, r2: {"index.php"}}
	if got := scrubbed(t, d); !reflect.DeepEqual(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
	must(t, d.Close())
	d = open(t, o) // the mark is durable
	for _, id := range []release.ID{r1, r2} {
		_, _, err := d.Has(id)
		wantErr(t, err, ErrDamaged, "index.php")
		_, err = d.Arm(id)
		wantErr(t, err, ErrDamaged, "index.php")
	}
	if _, ok, err := d.Has(r3); !ok {
		t.Error("a release that is well:", err)
	}
	if got := deploy(t, d, "r4", site); !slices.Equal(got, []string{"index.php"}) {
		t.Errorf("fetched %q: a damaged inode was linked", got)
	}
}

func TestScrubNamesWhatAStatShowsToo(t *testing.T) {
	d := open(t, options(t))
	deploy(t, d, r1, bodies(1))
	must(t, os.RemoveAll(d.Path(r1)+"/lib/0"))
	must(t, os.Chmod(d.Path(r1)+"/index.php", 0o666))
	got := scrubbed(t, d)[r1]
	gone := slices.DeleteFunc(slices.Clone(got), func(p string) bool { return !strings.HasPrefix(p, "lib/0") })
	if len(gone) != 11 || !slices.Contains(got, "index.php") || len(got) != 12 {
		t.Errorf("found %q", got)
	}
	must(t, os.WriteFile(d.statePath(indexFile(r1)), []byte("torn"), 0o600))
	if got := scrubbed(t, d); len(got) != 0 {
		t.Errorf("found %v: a release without an index is nobody's", got)
	}
}

func TestScrubKeepsToItsRateAndEndsWhenTold(t *testing.T) {
	d := open(t, options(t))
	p := packed{"a": strings.Repeat("x", 3<<20), "b": strings.Repeat("y", 1<<20)}
	deploy(t, d, r1, p)
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		found, err := d.Scrub(t.Context(), 1<<20)
		if took := time.Since(began); err != nil || took < 4*time.Second || took > 5*time.Second || found.Bytes != 4<<20 {
			t.Errorf("%d bytes in %v at 1 MiB/s: %v", found.Bytes, took, err)
		}
		flipBit(t, d.Path(r1)+"/a")
		ctx, cancel := context.WithTimeout(t.Context(), 3500*time.Millisecond) // a is done then
		defer cancel()
		began = time.Now()
		if _, err := d.Scrub(ctx, 1<<20); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 3600*time.Millisecond {
			t.Errorf("ended with %v after %v", err, time.Since(began))
		}
	})
	_, _, err := d.Has(r1)
	wantErr(t, err, ErrDamaged, "a")
}

// mend stages a release that is there, from what is not damaged, and mends it.
func mend(t *testing.T, d *Disk, id release.ID, p packed) (fetched []string, err error) {
	t.Helper()
	s, bodies := stagePacked(t, d, id, p)
	defer s.Close()
	fetched = paths(s)
	putAll(t, s, bodies)
	return fetched, s.Mend(t.Context())
}

func TestMendReplacesWhatIsDamagedAndNothingElse(t *testing.T) {
	o := options(t)
	o.Writable, o.Stamp = []string{"var"}, "stamp.php"
	d := open(t, o)
	deploy(t, d, r1, site)
	deploy(t, d, r2, site)
	must(t, d.Flip(r2))
	want := snapshot(t, d.Path(r2))
	live := d.Path("active")
	must(t, os.WriteFile(live+"/var/session", []byte("logged in"), 0o644))
	must(t, os.WriteFile(live+"/cache.php", []byte("made by before_flip"), 0o644))
	flipBit(t, live+"/index.php")
	must(t, os.Remove(live+"/bin/run"))
	held, err := os.Open(live + "/index.php")
	must(t, err)
	defer held.Close()
	scrubbed(t, d)
	before, dir := inode(t, live+"/index.php"), inode(t, d.Path(r2))
	stop := readLoop(t, live+"/index.php")

	fetched, err := mend(t, d, r2, site)
	must(t, err)
	stop()
	if !slices.Equal(fetched, []string{"bin/run", "index.php"}) {
		t.Errorf("fetched %q", fetched)
	}
	if inode(t, live+"/index.php") == before || inode(t, d.Path(r2)) != dir {
		t.Error("want a new file in the same directory")
	}
	body := make([]byte, 8)
	if _, err := held.Read(body); err != nil || string(body) == site["index.php"] {
		t.Errorf("the damaged inode was written to: %q, %v", body, err)
	}
	got := snapshot(t, d.Path(r2))
	if !strings.HasSuffix(got["var/session"], `"logged in"`) || !strings.HasSuffix(got["cache.php"], `"made by before_flip"`) {
		t.Errorf("lost what was made since: %v", got)
	}
	delete(got, "var/session")
	delete(got, "cache.php")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if _, ok, err := d.Has(r2); !ok {
		t.Error("mended, and", err)
	}
	if found := scrubbed(t, d); !reflect.DeepEqual(found, map[release.ID][]string{r1: {"index.php"}}) {
		t.Errorf("found %v, want what the other release still has", found)
	}
	if left := names(t, o.Root); slices.ContainsFunc(left, func(n string) bool { return n[0] == '.' }) {
		t.Errorf("left: %q", left)
	}
}

func TestMendRefusesWhatOnlyAPublicationCanBringBack(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, dir string){
		"a file of a hook": func(t *testing.T, dir string) { flipBit(t, dir+"/index.php") },
		"a directory":      func(t *testing.T, dir string) { must(t, os.RemoveAll(dir+"/lib")) },
		"a link":           func(t *testing.T, dir string) { must(t, os.Remove(dir+"/up")) },
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, options(t))
			s, all := stagePacked(t, d, r1, site)
			putAll(t, s, all)
			must(t, s.Complete())
			must(t, os.WriteFile(s.Dir()+"/index.php", []byte("by a hook"), 0o644))
			must(t, s.Publish(t.Context()))
			harm(t, d.Path(r1))
			scrubbed(t, d)
			_, err := mend(t, d, r1, site)
			wantErr(t, err, ErrDamaged, string(r1))
			deploy(t, d, r1, site)
		})
	}
}

func TestScrubFindsRotOnARealDisk(t *testing.T) {
	const body, rot = "<?php // what was written to the disk", "<?php // what was writtem to the disk"
	for _, kind := range testenv.Filesystems { // btrfs tells by its own checksum, with EIO
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			image := testenv.NewImage(t, kind)
			o := Options{Root: image.Dir + "/root", Active: "active", StateDir: image.Dir + "/state"}
			d := open(t, o)
			p := packed{"index.php": strings.Repeat(body, 1000), "b": "b"}
			deploy(t, d, r1, p)
			must(t, d.Flip(r1))
			must(t, d.Close())
			image.Unmount(t)
			image.Rot(t, body, rot)
			d = open(t, o)
			if got := scrubbed(t, d)[r1]; !slices.Equal(got, []string{"index.php"}) {
				t.Fatalf("found %q", got)
			}
			_, _, err := d.Has(r1)
			wantErr(t, err, ErrDamaged, "index.php")
			_, err = mend(t, d, r1, p)
			must(t, err)
			if got, err := os.ReadFile(filepath.Join(o.Root, "active", "index.php")); string(got) != p["index.php"] {
				t.Errorf("served: %.40q, %v", got, err)
			}
			if found := scrubbed(t, d); len(found) != 0 {
				t.Errorf("still damaged: %v", found)
			}
		})
	}
}
