package agent

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"s3pulldeploy/internal/release"
)

// The (de)compressor is one for the process; made in a bubble, it could not be used in the next.
func init() {
	plain := make([]byte, 100)
	stored := release.BuildFrame(nil, plain)
	if _, err := release.DecodeFrame(nil, release.Frame{Stored: int64(len(stored)), Length: 100}, stored); err != nil {
		panic(err)
	}
}

// noise is what does not compress.
func noise(seed uint64, n int) string {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	out := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(out)
	return string(out)
}

// site is a tree with one of each kind.
var site = tree{
	"index.php": "<?php echo 1;", "lib/a.php": "<?php // a", "lib/deep/b.php": "<?php // b", "bin/run.sh": "#!/bin/sh", "empty.txt": "",
	"cache/": "", "lib/latest.php": "-> a.php", "big.bin": noise(1, 9<<20), "big.txt": strings.Repeat("nine bytes", 1<<20),
}

// holds compares a release on a disk with its tree: contents, modes, links and nothing else.
func (b *box) holds(id release.ID, tr tree) {
	b.r.t.Helper()
	want := map[string]string{}
	for _, e := range tr.entries() {
		want[e.Path] = map[release.Kind]string{
			release.Dir: "dir", release.File: fmt.Sprintf("%o %s", e.Mode(), e.Sum), release.Symlink: "-> " + e.Target,
		}[e.Kind]
	}
	got := map[string]string{}
	top := filepath.Join(b.cfg.Root, string(id))
	err := filepath.WalkDir(top, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == top {
			return err
		}
		rel, _ := filepath.Rel(top, name)
		switch info, _ := d.Info(); {
		case d.IsDir():
			got[rel] = "dir"
		case d.Type() == fs.ModeSymlink:
			to, _ := os.Readlink(name)
			got[rel] = "-> " + to
		default:
			body, _ := os.ReadFile(name)
			got[rel] = fmt.Sprintf("%o %s", info.Mode().Perm(), sum256(body))
		}
		return nil
	})
	if err != nil || !maps.Equal(got, want) {
		b.r.t.Errorf("release %s on disk: %v\n%v\nwant\n%v", id, err, got, want)
	}
}

// inode is a file's in a release.
func (b *box) inode(id release.ID, p string) uint64 {
	b.r.t.Helper()
	info, err := os.Stat(filepath.Join(b.cfg.Root, string(id), p))
	if err != nil {
		b.r.t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

// asked fails unless exactly these objects were asked for since the last time, once each.
func (r *rig) asked(what string, keys ...string) {
	r.t.Helper()
	want := map[string]int{}
	for _, k := range keys {
		want[k]++
	}
	if got := r.bucket.requests(); !maps.Equal(got, want) {
		r.t.Errorf("%s: asked for %v, want %v", what, got, want)
	}
}

// sources are the keys of a release's packs and deltas, each as often as a fresh instance reads it.
func (p *packed) sources() (keys []string) {
	all := make([]int, len(p.manifest.Entries))
	for i := range all {
		all[i] = i
	}
	for _, r := range p.manifest.Fetch(all).Ranges {
		keys = append(keys, p.manifest.Sources[r.Source].Key())
	}
	return keys
}

func deltaKey(id, parent release.ID) string { return "d/" + string(id) + "/" + string(parent) }

func TestPackedReleaseIsManifestAndRanges(t *testing.T) {
	bubble(t, func(r *rig) {
		boxes := r.boot("i-1")
		p := r.packed(r1, nil, site)
		r.live(r1, 15*time.Second, boxes...)
		boxes[0].holds(r1, site)
		r.asked("fresh", append(p.sources(), "m/"+string(r1))...)
		info, err := os.Stat(filepath.Join(boxes[0].cfg.Root, "active", "lib/a.php"))
		if err != nil || info.ModTime().Unix() != p.manifest.Entries[0].MTime {
			t.Errorf("mtime %v, %v, want what the manifest says", info.ModTime().Unix(), err)
		}
	})
}

func TestDeltaOnTheParentIsTheOnlyRequestAfterThePointer(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		first := r.packed(r1, nil, site)
		r.live(r1, 15*time.Second, b)
		b.stop() // what is known of the parent outlives the process
		b.boot()
		b.says("serving "+string(r1), 10*time.Second, true)
		r.bucket.requests()
		_, before := r.bucket.stands()
		next := site.with(tree{"index.php": "<?php echo 2;", "lib/deep/b.php": "", "lib/deep/c.php": "<?php // c", "new/": ""})
		second := r.packed(r2, first, next)
		r.live(r2, 15*time.Second, b)
		if _, now := r.bucket.stands(); now != before+1 {
			t.Errorf("the pointer was answered %d times", now-before)
		}
		r.asked("on the parent", deltaKey(r2, r1))
		b.holds(r2, next)
		if b.inode(r1, "big.bin") != b.inode(r2, "big.bin") || b.inode(r1, "index.php") == b.inode(r2, "index.php") {
			t.Error("unchanged files are not links, or changed ones are")
		}

		// One that joins has no parent: it reads the manifest, and what is inline as a range of the delta.
		joins := r.boot("i-2")[0]
		r.live(r2, time.Minute, b, joins)
		joins.holds(r2, next)
		r.until("the release to go back to is there too", time.Minute, func() bool { return slices.Contains(joins.names(), string(r1)) })
		got := r.bucket.requests()
		for _, k := range []string{"m/" + string(r2), "m/" + string(r1), deltaKey(r2, r1)} {
			if got[k] != 1 {
				t.Errorf("not on the parent: asked for %v, want %s once", got, k)
			}
		}
		joins.holds(r1, site)

		r.packed(r3, second, next.with(tree{"index.php": "<?php echo 3;"}))
		r.live(r3, 15*time.Second, b, joins)
		r.asked("two on the parent", deltaKey(r3, r2), deltaKey(r3, r2))

		// Back to what is on the disk: not a byte, whatever the pointer names.
		r.point(r2, second.manifest.Files(), append(second.lines(), `kind "rollback"`)...)
		r.live(r2, 15*time.Second, b, joins)
		r.asked("rollback")
		b.holds(r2, next)
	})
}

func TestPlainAndPackedReleasesFollowEachOther(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		p := r.packed(r2, nil, site)
		r.live(r2, 15*time.Second, b)
		r.bucket.requests()
		r.push(r3)
		r.live(r3, 15*time.Second, b)
		b.holds(r2, site)
		if _, err := os.Stat(filepath.Join(b.cfg.Root, "active", "a.php")); err != nil {
			t.Error(err)
		}
		r.bucket.requests()
		r.packed(r4, p, site.with(tree{"index.php": "<?php echo 4;"}))
		r.live(r4, 15*time.Second, b)
		r.asked("packed, plain, packed", deltaKey(r4, r2))
	})
}

func TestDamagedBaseFileIsFetchedIntoANewInode(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		first := r.packed(r1, nil, site)
		r.live(r1, 15*time.Second, b)
		name := filepath.Join(b.cfg.Root, string(r1), "lib/a.php")
		if err := os.WriteFile(name, []byte("<?php // X"), 0o644); err != nil {
			t.Fatal(err)
		}
		r.bucket.requests()
		next := site.with(tree{"index.php": "<?php echo 2;"})
		r.packed(r2, first, next)
		r.live(r2, 15*time.Second, b)
		b.holds(r2, next)
		at, _ := first.manifest.Find("lib/a.php")
		pack := first.manifest.Sources[first.manifest.Frames[first.manifest.Entries[at].Frame].Source].Key()
		r.asked("one damaged base file", deltaKey(r2, r1), pack)
		if got, _ := os.ReadFile(name); string(got) != "<?php // X" || b.inode(r1, "lib/a.php") == b.inode(r2, "lib/a.php") {
			t.Errorf("the damaged file was written to: %q", got)
		}
	})
}

func TestStoppedHalfWayOnlyTheRestIsFetched(t *testing.T) {
	bubble(t, func(r *rig) {
		tr := tree{}
		for i := range 12 {
			tr[fmt.Sprintf("f%02d.bin", i)] = noise(uint64(i), 3<<20)
		}
		p := packing{size: 3 << 20, put: r.bucket.put}.pack(t, r1, tr) // a pack a file
		held := map[string]bool{}
		for _, k := range p.sources()[6:] {
			held[k] = true
		}
		r.bucket.through(func(ctx context.Context, what string) error {
			if held[what] {
				<-ctx.Done()
			}
			return ctx.Err()
		})
		b := r.boot("i-1")[0]
		r.point(r1, p.manifest.Files(), p.lines()...)
		b.says("stage "+string(r1), 10*time.Second, true)
		r.until("half of it", 10*time.Second, func() bool { return r.progress("i-1") == "19 of 38 MB" })
		b.stop()
		r.asked("first half", append(p.sources()[:6], "m/"+string(r1))...)
		r.bucket.through(nil)
		b.boot()
		r.live(r1, 30*time.Second, b)
		r.asked("second half", p.sources()[6:]...)
		b.holds(r1, tr)
	})
}

// progress is a member's, as everybody can read it.
func (r *rig) progress(id string) string {
	m, _ := r.row(id)
	return m.Progress
}
