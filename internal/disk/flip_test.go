package disk

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"s3pulldeploy/internal/release"
)

// readLoop reads a file until the returned function is called, which fails the test if it was ever absent.
func readLoop(t *testing.T, name string) (stop func()) {
	done := make(chan struct{})
	var loop sync.WaitGroup
	reads := 0
	loop.Go(func() {
		for {
			if _, err := os.ReadFile(name); err != nil {
				t.Errorf("read %d: %v", reads, err)
				return
			}
			reads++
			select {
			case <-done:
				return
			default:
			}
		}
	})
	return func() { close(done); loop.Wait() }
}

func wantLink(t *testing.T, d *Disk, name string, want release.ID) {
	t.Helper()
	got, err := os.Readlink(filepath.Join(d.opt.Root, name))
	if err != nil && want != "" || got != string(want) {
		t.Errorf("%s -> %q (%v), want %q", name, got, err, want)
	}
}

func TestFlipSwitchesActiveAndPrevious(t *testing.T) {
	d := open(t, options(t))
	for _, id := range []release.ID{r1, r2, r3} {
		build(t, d, id, app)
	}
	if id, err := d.Active(); id != "" || err != nil {
		t.Errorf("Active = %q, %v before any flip", id, err)
	}
	must(t, d.Flip(r1))
	wantLink(t, d, "active", r1)
	wantLink(t, d, "previous", "")
	must(t, d.Flip(r2))
	must(t, d.Flip(r2)) // again: nothing changes
	wantLink(t, d, "active", r2)
	wantLink(t, d, "previous", r1)
	must(t, d.Flip(r1))
	wantLink(t, d, "active", r1)
	wantLink(t, d, "previous", r2)
	if id, err := d.Active(); id != r1 || err != nil {
		t.Errorf("Active = %q, %v", id, err)
	}
}

func TestFlipNeedsAPublishedRelease(t *testing.T) {
	d := open(t, options(t))
	must(t, os.MkdirAll(d.Path(r1), 0o755))
	for _, id := range []release.ID{r1, r2, "active", "..", ""} {
		wantErr(t, d.Flip(id), ErrDamaged)
	}
	if got := names(t, d.opt.Root); !slices.Equal(got, []string{string(r1)}) {
		t.Errorf("in root: %q", got)
	}
}

func TestReadersNeverMissAFileDuringFlips(t *testing.T) {
	d := open(t, options(t))
	build(t, d, r1, app)
	build(t, d, r2, app)
	must(t, d.Flip(r1))
	must(t, d.Flip(r2))
	stopActive := readLoop(t, filepath.Join(d.opt.Root, "active", "index.php"))
	stopPrevious := readLoop(t, filepath.Join(d.opt.Root, "previous", "index.php"))
	for i := range 200 {
		must(t, d.Flip([]release.ID{r1, r2}[i%2]))
	}
	stopActive()
	stopPrevious()
}

func TestArmedFlipNeedsNeitherSpaceNorTheIndex(t *testing.T) {
	d := open(t, options(t))
	build(t, d, r1, app)
	a, err := d.Arm(r1)
	must(t, err)
	wantLink(t, d, "active", "")
	must(t, d.state.Remove(indexFile(r1)))
	must(t, a.Flip())
	wantLink(t, d, "active", r1)
}

func TestArmedFlipThatDoesNotHappenLeavesNothing(t *testing.T) {
	d := open(t, options(t))
	build(t, d, r1, app)
	a, err := d.Arm(r1)
	must(t, err)
	must(t, a.Close())
	must(t, a.Close())
	if got := names(t, d.opt.Root); !slices.Equal(got, []string{string(r1)}) {
		t.Errorf("in root: %q", got)
	}
}

func TestArmedFlipRefusesAReleaseThatWasReplaced(t *testing.T) {
	d := open(t, options(t))
	build(t, d, r1, app)
	a, err := d.Arm(r1)
	must(t, err)
	must(t, os.Rename(d.Path(r1), d.Path(r1+".x")))
	must(t, os.Mkdir(d.Path(r1), 0o755))
	wantErr(t, a.Flip(), ErrDamaged, d.Path(r1))
	wantLink(t, d, "active", "")
}

func TestActiveThatBecameADirectoryIsNeverRemoved(t *testing.T) {
	for name, replace := range map[string]func(string) error{
		"directory": func(p string) error { return os.MkdirAll(p+"/site", 0o755) },
		"empty":     func(p string) error { return os.Mkdir(p, 0o755) },
		"file":      func(p string) error { return os.WriteFile(p, []byte("x"), 0o644) },
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, options(t))
			build(t, d, r1, app)
			must(t, d.Flip(r1))
			active := d.Path("active")
			must(t, os.Remove(active))
			must(t, replace(active))
			build(t, d, r2, app)
			wantErr(t, d.Flip(r2), ErrActiveNotLink, active)
			_, err := d.Active()
			wantErr(t, err, ErrActiveNotLink, active)
			_, err = d.Prune(Retention{})
			wantErr(t, err, ErrActiveNotLink, active)
			if _, err := os.Lstat(d.Path(r1)); err != nil {
				t.Error("pruned without knowing what is live:", err)
			}
			if info, err := os.Lstat(active); err != nil || info.Mode().Type() == os.ModeSymlink {
				t.Errorf("what was in the way is %v, %v", info, err)
			}
			if left := names(t, d.opt.Root); slices.ContainsFunc(left, func(n string) bool { return strings.HasPrefix(n, linkPrefix) }) {
				t.Errorf("a temporary link is left: %q", left)
			}
		})
	}
}

func TestActiveIsMadeAgainAfterItWasDeletedOrBent(t *testing.T) {
	for name, target := range map[string]string{"deleted": "", "outside": "/etc", "below a release": string(r1) + "/lib", "root": ".", "up": "..", "dangling": "2001-01-01_00-00-00", "itself": "active"} {
		t.Run(name, func(t *testing.T) {
			d := open(t, options(t))
			build(t, d, r1, app)
			must(t, d.Flip(r1))
			must(t, os.Remove(d.Path("active")))
			if target != "" {
				must(t, os.Symlink(target, d.Path("active")))
			}
			if id, err := d.Active(); id == r1 || err != nil {
				t.Errorf("Active = %q, %v", id, err)
			}
			must(t, d.Flip(r1))
			wantLink(t, d, "active", r1)
		})
	}
}

func TestAbsoluteAndIndirectLinksAreAdopted(t *testing.T) {
	o := options(t)
	must(t, os.MkdirAll(o.Root, 0o755))
	via := filepath.Join(t.TempDir(), "www")
	must(t, os.Symlink(o.Root, via))
	for _, link := range []string{filepath.Join(o.Root, string(r1)), filepath.Join(via, string(r1)), "./" + string(r1) + "/", "../root/" + string(r1)} {
		active := filepath.Join(o.Root, "active")
		os.Remove(active)
		must(t, os.Symlink(link, active))
		o.Root = via
		d := open(t, o)
		if id, err := d.Active(); id != r1 || err != nil {
			t.Errorf("%s: Active = %q, %v", link, id, err)
		}
		must(t, d.Close())
		o.Root = filepath.Dir(active)
	}
}

func TestPreviousThatIsNoLinkDoesNotStopAFlip(t *testing.T) {
	d := open(t, options(t))
	build(t, d, r1, app)
	build(t, d, r2, app)
	must(t, d.Flip(r1))
	must(t, os.MkdirAll(d.Path("previous")+"/x", 0o755))
	must(t, d.Flip(r2))
	wantLink(t, d, "active", r2)
	if _, err := os.Stat(d.Path("previous") + "/x"); err != nil {
		t.Error("what was in the way was touched:", err)
	}
}

func TestCrashAnywhereInFlipLeavesOldOrNew(t *testing.T) {
	for n := 1; ; n++ {
		o := options(t)
		d := open(t, o)
		build(t, d, r1, app)
		build(t, d, r2, app)
		must(t, d.Flip(r1))
		crashed, err := crashAt(d, n, func() error { return d.Flip(r2) })
		must(t, err)
		must(t, d.Close())
		if !crashed {
			if n < 3 {
				t.Errorf("only %d durable steps", n-1)
			}
			return
		}
		d = open(t, o)
		if id, err := d.Active(); err != nil || id != r1 && id != r2 {
			t.Errorf("step %d: Active = %q, %v", n, id, err)
		}
		must(t, d.Flip(r2))
		wantLink(t, d, "active", r2)
		if removed, err := d.Prune(Retention{N: 1}); len(removed) != 0 || err != nil {
			t.Errorf("step %d: pruned %q, %v", n, removed, err)
		}
	}
}

func TestCrashBetweenPreviousAndActiveConverges(t *testing.T) {
	d := open(t, options(t))
	for _, id := range []release.ID{r1, r2, r3} {
		build(t, d, id, app)
	}
	must(t, d.Flip(r1))
	must(t, d.Flip(r2))
	d.setPrevious(r2) // the step before the rename, and then nothing
	must(t, d.Flip(r3))
	wantLink(t, d, "active", r3)
	wantLink(t, d, "previous", r2)
}

func TestFlipThatCannotBeMadeDurableSaysSo(t *testing.T) {
	d := open(t, options(t))
	build(t, d, r1, app)
	d.fsync = func(*os.File) error { return errors.New("input/output error") }
	err := d.Flip(r1)
	wantErr(t, err, ErrSync, d.opt.Root)
	d.fsync = (*os.File).Sync
	must(t, d.Flip(r1))
}
