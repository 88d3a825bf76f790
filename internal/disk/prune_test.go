package disk

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/release"
)

func TestPruneKeepsWhatTheRulesSay(t *testing.T) {
	id := func(n int) release.ID { return release.ID(fmt.Sprintf("2026-11-20_20-00-%02d", n)) }
	synctest.Test(t, func(t *testing.T) {
		d := open(t, options(t))
		for n := range 9 { // 0 … 7 were live one after the other, a minute each; 8 never
			build(t, d, id(n), content{"n": fmt.Sprint(n)})
			if n < 8 {
				must(t, d.Flip(id(n)))
				time.Sleep(time.Minute)
			}
		}
		now := time.Now()
		for _, c := range []struct {
			name string
			r    Retention
			want []int // removed
		}{
			{"enough kept", Retention{N: 9, Keep: keep(id(8))}, nil},
			{"still recent", Retention{For: time.Hour, Keep: keep(id(8))}, nil},
			{"never live", Retention{N: 9}, []int{8}},
			{"the last of the good", Retention{N: 4, Keep: keep(id(1)), Bad: keep(id(6), id(5))}, []int{0, 5}},
			{"bad are not kept for N", Retention{N: 2, Keep: keep(id(1)), Bad: keep(id(6), id(3))}, []int{3}},
			{"live within keep_for", Retention{For: 3*time.Minute + time.Second, Keep: keep(id(1))}, []int{2}},
			{"live and previous stay", Retention{}, []int{1, 4}},
		} {
			c.r.Now = now
			removed, err := d.Prune(c.r)
			must(t, err)
			slices.Sort(removed)
			var want []release.ID
			for _, n := range c.want {
				want = append(want, id(n))
			}
			if !slices.Equal(removed, want) {
				t.Errorf("%s: removed %q, want %q", c.name, removed, want)
			}
		}
		if got := names(t, d.opt.Root); !slices.Equal(got, []string{string(id(6)), string(id(7)), "active", "previous"}) {
			t.Errorf("in root: %q", got)
		}
		if got := names(t, d.opt.StateDir); !slices.Equal(got, []string{indexFile(id(6)), indexFile(id(7)), "live.json", "reserve"}) {
			t.Errorf("in the state directory: %q", got)
		}
	})
}

func keep(ids ...release.ID) map[release.ID]bool {
	m := map[release.ID]bool{}
	for _, id := range ids {
		m[id] = true
	}
	return m
}

func TestReleasesAreListedLastLiveFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := open(t, options(t))
		for _, id := range []release.ID{r1, r2, r3} {
			build(t, d, id, app)
		}
		must(t, os.Mkdir(d.Path("foreign"), 0o755))
		start := time.Now()
		must(t, d.Flip(r2))
		time.Sleep(time.Minute)
		must(t, d.Flip(r1))
		infos, err := d.Releases()
		must(t, err)
		if len(infos) != 3 || infos[2].ID != r3 || !infos[2].LastLive.IsZero() {
			t.Fatalf("got %+v", infos)
		}
		for _, i := range infos {
			if i.Active != (i.ID == r1) || !i.Built.Equal(start) || i.Digest != "digest of "+string(i.ID) {
				t.Errorf("got %+v", i)
			}
			if i.ID != r3 && !i.LastLive.Equal(start.Add(time.Minute)) {
				t.Errorf("%s was last live %v", i.ID, i.LastLive)
			}
		}
	})
}

func TestPruneLeavesWhatIsNotOurs(t *testing.T) {
	d := open(t, options(t))
	for _, n := range []string{"2020-01-01_00-00-00", ".foreign-x", "data", ".git"} {
		must(t, os.MkdirAll(d.Path(release.ID(n))+"/sub", 0o755))
	}
	must(t, os.WriteFile(d.Path("file"), nil, 0o644))
	build(t, d, r1, app)
	must(t, os.RemoveAll(d.Path(r1))) // somebody put another one there
	must(t, os.Mkdir(d.Path(r1)+"x", 0o755))
	must(t, os.Rename(d.Path(r1)+"x", d.Path(r1)))
	before := snapshot(t, d.opt.Root)
	if removed, err := d.Prune(Retention{}); len(removed) != 0 || err != nil {
		t.Errorf("removed %q, %v", removed, err)
	}
	if after := snapshot(t, d.opt.Root); len(after) != len(before) {
		t.Errorf("left %v, of %v", after, before)
	}
}

func TestPruneRemovesLeftOvers(t *testing.T) {
	d := open(t, options(t))
	outside := t.TempDir()
	must(t, os.WriteFile(outside+"/precious", nil, 0o644))
	for _, n := range []string{incomingPrefix + string(r1), incomingPrefix + string(r2), trashPrefix + "x"} {
		dir := d.Path(release.ID(n))
		must(t, os.MkdirAll(dir+"/sub", 0o755))
		must(t, os.Symlink(outside, dir+"/link"))
	}
	s := stage(t, d, r3, app.files())
	_, err := d.Prune(Retention{Keep: keep(r2)})
	must(t, err)
	if got, want := names(t, d.opt.Root), []string{incomingPrefix + string(r2), incomingPrefix + string(r3)}; !slices.Equal(got, want) {
		t.Errorf("left %q, want %q", got, want)
	}
	if len(names(t, outside)) != 1 {
		t.Error("a link was followed")
	}
	must(t, s.Discard())
}

func TestPruneLeavesWhatAnyLinkInTheRootLeadsTo(t *testing.T) {
	d := open(t, options(t))
	for _, id := range []release.ID{r1, r2, r3} {
		build(t, d, id, app)
	}
	must(t, os.Symlink(string(r1)+"/lib", d.Path("canary")))
	must(t, os.Symlink(d.Path(r2), d.Path("active")))
	removed, err := d.Prune(Retention{})
	must(t, err)
	if !slices.Equal(removed, []release.ID{r3}) {
		t.Errorf("removed %q", removed)
	}
}

func TestPruneLeavesOpenFilesReadable(t *testing.T) {
	d := open(t, options(t))
	build(t, d, r1, app)
	f, err := os.Open(d.Path(r1) + "/index.php")
	must(t, err)
	defer f.Close()
	_, err = d.Prune(Retention{})
	must(t, err)
	body := make([]byte, 5)
	if _, err := f.Read(body); err != nil || string(body) != "<?php" {
		t.Errorf("read %q, %v", body, err)
	}
}

func TestPruneNeverReachesIntoAMount(t *testing.T) {
	asRoot(t)
	d := open(t, options(t))
	build(t, d, r1, app)
	build(t, d, r2, app)
	uploads := t.TempDir()
	must(t, os.WriteFile(uploads+"/photo", nil, 0o644))
	mount := d.Path(r1) + "/lib"
	must(t, unix.Mount(uploads, mount, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(mount, unix.MNT_DETACH)) })
	removed, err := d.Prune(Retention{})
	wantErr(t, err, ErrMounted, mount)
	if !slices.Equal(removed, []release.ID{r2}) {
		t.Errorf("removed %q: one that cannot go must not keep the others", removed)
	}
	if len(names(t, uploads)) != 1 {
		t.Error("the mounted directory was emptied")
	}
}

func TestCrashAnywhereInPruneIsCompletedLater(t *testing.T) {
	for n := 1; ; n++ {
		o := options(t)
		d := open(t, o)
		for _, id := range []release.ID{r1, r2, r3} {
			build(t, d, id, app)
			must(t, d.Flip(id))
		}
		crashed, err := crashAt(d, n, func() error { _, err := d.Prune(Retention{}); return err })
		must(t, err)
		must(t, d.Close())
		d = open(t, o)
		_, err = d.Prune(Retention{})
		must(t, err)
		if got := names(t, o.Root); !slices.Equal(got, []string{string(r2), string(r3), "active", "previous"}) {
			t.Errorf("step %d: %q", n, got)
		}
		if found, _ := filepath.Glob(o.StateDir + "/*.index"); len(found) != 2 {
			t.Errorf("step %d: %q", n, found)
		}
		if !crashed {
			return
		}
	}
}

func TestLostRecordOfLiveReleasesRemovesNothing(t *testing.T) {
	o := options(t)
	d := open(t, o)
	build(t, d, r1, app)
	build(t, d, r2, app)
	must(t, d.Flip(r1))
	must(t, d.Close())
	must(t, os.WriteFile(o.StateDir+"/live.json", []byte("garbage"), 0o600))
	d = open(t, o)
	if removed, err := d.Prune(Retention{For: time.Hour, Now: time.Now()}); len(removed) != 0 || err != nil {
		t.Errorf("removed %q, %v", removed, err)
	}
}
