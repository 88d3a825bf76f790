package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/release"
)

func TestCompleteAddsWhatTheSettingsSay(t *testing.T) {
	o := options(t)
	uploads := t.TempDir()
	o.Stamp, o.Writable, o.Shared = "inc/_cache.php", []string{"var/cache", "tmp"}, map[string]string{"web/uploads": uploads}
	d := open(t, o)
	c := content{"index.php": "x", "tmp/sub/.gitkeep": ""}
	build(t, d, r1, c)
	got := snapshot(t, d.Path(r1))
	if want := "-> " + uploads; got["web/uploads"] != want {
		t.Errorf("shared: %q, want %q", got["web/uploads"], want)
	}
	if want := fmt.Sprintf("-rw-r--r-- %s %q", released, "<?php return '1795205702';\n"); got["inc/_cache.php"] != want {
		t.Errorf("stamp: %s, want %s", got["inc/_cache.php"], want)
	}
	for _, dir := range []string{"var", "var/cache", "tmp", "tmp/sub", "web", "inc"} {
		if got[dir] != "drwxr-xr-x" {
			t.Errorf("%s: %q", dir, got[dir])
		}
	}
	must(t, os.WriteFile(d.Path(r1)+"/tmp/sub/session", nil, 0o666))
	must(t, os.Remove(d.Path(r1)+"/tmp/sub/.gitkeep"))
	must(t, os.Chmod(d.Path(r1)+"/tmp", 0o777))
	if _, ok, err := d.Has(r1); !ok {
		t.Errorf("what PHP does in its directories counts as damage: %v", err)
	}
}

func TestOwnersAreApplied(t *testing.T) {
	asRoot(t)
	o := options(t)
	o.Owner, o.WebUser = User{65001, 65002}, User{65003, 65004}
	o.Writable, o.Shared, o.Stamp = []string{"tmp"}, map[string]string{"up": "/tmp"}, "s.php"
	d := open(t, o)
	c := content{"a/b": "x", "tmp/sub/f": "y"}
	build(t, d, r1, c)
	want := map[string]User{
		".": o.Owner, "a": o.Owner, "a/b": o.Owner, "up": o.Owner, "s.php": o.Owner,
		"tmp": o.WebUser, "tmp/sub": o.WebUser, "tmp/sub/f": o.Owner,
	}
	for p, u := range want {
		info, err := os.Lstat(filepath.Join(d.Path(r1), p))
		must(t, err)
		if !ownedBy(info, u) {
			t.Errorf("%s belongs to %d:%d, want %v", p, stat(info).Uid, stat(info).Gid, u)
		}
	}
	if info, _ := os.Stat("/tmp"); ownedBy(info, o.Owner) {
		t.Error("the shared target was given away")
	}
	s := stage(t, d, r2, c.files())
	fill(t, s, c)
	must(t, s.Close())
	if missing := stage(t, d, r2, c.files()).Missing(); len(missing) != 0 {
		t.Errorf("fetched again after an interruption: %v", missing)
	}
}

func TestFilesOfAnotherOwnerAreMadeAnew(t *testing.T) {
	asRoot(t)
	d := open(t, options(t))
	s := stage(t, d, r1, app.files())
	fill(t, s, app)
	must(t, os.Chown(s.Dir()+"/index.php", 65001, 0))
	must(t, os.Chmod(s.Dir()+"/bin/run", 0o4777))
	must(t, s.Close())
	var missing []string
	for _, f := range stage(t, d, r1, app.files()).Missing() {
		missing = append(missing, f.Path)
	}
	if !slices.Equal(missing, []string{"bin/run", "index.php"}) {
		t.Errorf("missing %q", missing)
	}
}

func TestMissingSharedTargetIsNamed(t *testing.T) {
	o := options(t)
	gone := filepath.Join(t.TempDir(), "efs")
	o.Shared = map[string]string{"uploads": gone}
	d := open(t, o)
	s := stage(t, d, r1, app.files())
	fill(t, s, app)
	err := s.Complete()
	wantErr(t, err, ErrSharedMissing, gone)
	if !Fault(err) {
		t.Error("a missing target is about this machine")
	}
	wantErr(t, d.CheckShared(), ErrSharedMissing, gone)
	must(t, os.Mkdir(gone, 0o755))
	must(t, s.Complete()) // the same stage, once it is mounted
	must(t, s.Publish(t.Context()))
}

func TestHooksMayChangeTheTreeBeforePublish(t *testing.T) {
	d := open(t, options(t))
	s := stage(t, d, r1, app.files())
	fill(t, s, app)
	must(t, s.Complete())
	must(t, os.WriteFile(s.Dir()+"/autoload.php", []byte("made"), 0o644))
	must(t, os.WriteFile(s.Dir()+"/index.php", []byte("rewritten"), 0o644))
	must(t, os.Symlink("index.php", s.Dir()+"/li nk"))
	must(t, s.Publish(t.Context()))
	if _, ok, err := d.Has(r1); !ok {
		t.Error("not as published:", err)
	}
	must(t, os.WriteFile(d.Path(r1)+"/autoload.php", []byte("fake!"), 0o644))
	_, _, err := d.Has(r1)
	wantErr(t, err, ErrDamaged, "autoload.php")
}

func TestHookThatLeavesASocketIsRefused(t *testing.T) {
	d := open(t, options(t))
	s := stage(t, d, r1, app.files())
	fill(t, s, app)
	must(t, s.Complete())
	must(t, unix.Mkfifo(s.Dir()+"/pipe", 0o644))
	wantErr(t, s.Publish(t.Context()), ErrContent, "pipe")
}

func TestDamageIsFoundAndNamed(t *testing.T) {
	for name, harm := range map[string]func(dir string) error{
		"size":     func(dir string) error { return os.WriteFile(dir+"/lib/a/b.php", []byte("x"), 0o644) },
		"time":     func(dir string) error { return os.WriteFile(dir+"/lib/a/b.php", []byte("<?php // c"), 0o644) },
		"mode":     func(dir string) error { return os.Chmod(dir+"/lib/a/b.php", 0o666) },
		"gone":     func(dir string) error { return os.Remove(dir + "/lib/a/b.php") },
		"gone dir": func(dir string) error { return os.RemoveAll(dir + "/lib/a") },
		"now a link": func(dir string) error {
			return errors.Join(os.Rename(dir+"/lib/a", dir+"/lib/z"), os.Symlink("z", dir+"/lib/a"))
		},
		"other content in a new inode": func(dir string) error {
			return errors.Join(os.WriteFile(dir+"/new", []byte("<?php // c"), 0o644), os.Chtimes(dir+"/new", released, released),
				os.Rename(dir+"/new", dir+"/lib/a/b.php"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, options(t))
			build(t, d, r1, app)
			must(t, harm(d.Path(r1)))
			_, ok, err := d.Has(r1)
			wantErr(t, err, ErrDamaged, "lib/a")
			if ok || !Fault(err) {
				t.Errorf("ok %v, fault %v", ok, Fault(err))
			}
			wantErr(t, d.Flip(r1), ErrDamaged, string(r1))
			build(t, d, r1, app)
			if _, ok, err := d.Has(r1); !ok {
				t.Error("not repaired:", err)
			}
		})
	}
}

func TestRestoredCopyIsVerifiedByContent(t *testing.T) {
	o := options(t)
	d := open(t, o)
	build(t, d, r1, app)
	old := d.Path(r1)
	must(t, os.Rename(old, old+".orig"))
	must(t, os.CopyFS(old, os.DirFS(old+".orig")))
	for _, p := range []string{"index.php", "lib/a/b.php", "bin/run", "empty"} {
		must(t, os.Chtimes(filepath.Join(old, p), released, released))
	}
	must(t, os.Chmod(old+"/bin/run", 0o755))
	if _, ok, err := d.Has(r1); !ok {
		t.Fatal("a true copy is refused:", err)
	}
	if !d.owns(r1) {
		t.Error("the copy was verified and is not ours")
	}
}

func TestClonedDiskIsHashedBeforeItIsBelieved(t *testing.T) {
	d := open(t, options(t))
	build(t, d, r1, app)
	build(t, d, r2, app)
	f, err := os.OpenFile(d.Path(r1)+"/index.php", os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("X"), 0) // the same inode, size and, in a moment, time
	must(t, errors.Join(err, f.Close(), os.Chtimes(d.Path(r1)+"/index.php", released, released)))
	if _, ok, err := d.Has(r1); !ok {
		t.Fatal("the stat index sees more than it can:", err)
	}
	d.Distrust()
	_, _, err = d.Has(r1)
	wantErr(t, err, ErrDamaged, "index.php")
	build(t, d, r1, app)
	if _, ok, err := d.Has(r1); !ok {
		t.Error("not repaired:", err)
	}
}

func TestLiveReleaseIsRepairedWithoutTouchingIt(t *testing.T) {
	d := open(t, options(t))
	build(t, d, r1, app)
	must(t, d.Flip(r1))
	must(t, os.WriteFile(d.Path(r1)+"/index.php", []byte("tampered"), 0o644))
	held, err := os.Open(d.Path("active") + "/index.php")
	must(t, err)
	defer held.Close()
	build(t, d, r1, app)
	if got, _ := os.ReadFile(d.Path("active") + "/index.php"); string(got) != app["index.php"] {
		t.Errorf("served: %q", got)
	}
	body := make([]byte, 8)
	if _, err := held.Read(body); err != nil || string(body) != "tampered" {
		t.Errorf("an open file changed: %q, %v", body, err)
	}
	if _, err := d.Prune(Retention{}); err != nil {
		t.Error(err)
	}
	if got := names(t, d.opt.Root); !slices.Equal(got, []string{string(r1), "active"}) {
		t.Errorf("in root: %q", got)
	}
}

func TestForeignDirectoryChangesPlacesAndIsKept(t *testing.T) {
	o := options(t)
	d := open(t, o)
	for range 2 {
		must(t, os.MkdirAll(d.Path(r1), 0o755))
		must(t, os.WriteFile(d.Path(r1)+"/theirs", []byte("old tool"), 0o600))
		if _, ok, err := d.Has(r1); ok || err != nil {
			t.Fatalf("a foreign directory counts as ours: %v", err)
		}
		build(t, d, r1, app)
		must(t, os.RemoveAll(d.Path(r1)))
		must(t, d.state.Remove(indexFile(r1)))
	}
	if _, err := d.Prune(Retention{}); err != nil {
		t.Error(err)
	}
	got := names(t, o.Root)
	if len(got) != 2 || got[0] != foreignPrefix+string(r1) || !strings.HasPrefix(got[1], got[0]+".") {
		t.Fatalf("in root: %q", got)
	}
	for _, n := range got {
		if body, _ := os.ReadFile(filepath.Join(o.Root, n, "theirs")); string(body) != "old tool" {
			t.Errorf("%s: %q", n, body)
		}
	}
}

func TestForeignLiveDirectoryIsServedUntilExchanged(t *testing.T) {
	o := options(t)
	theirs := filepath.Join(o.Root, string(r1))
	must(t, os.MkdirAll(theirs, 0o755))
	must(t, os.WriteFile(theirs+"/index.php", []byte("theirs"), 0o644))
	must(t, os.Symlink(theirs, filepath.Join(o.Root, "active"))) // absolute, as the older tool made it
	d := open(t, o)
	if id, err := d.Active(); id != r1 || err != nil {
		t.Fatalf("Active = %q, %v", id, err)
	}
	stop := readLoop(t, filepath.Join(o.Root, "active", "index.php"))
	build(t, d, r1, app)
	must(t, d.Flip(r1))
	stop()
}

func TestSyncErrorThrowsTheTreeAway(t *testing.T) {
	o := options(t)
	d := open(t, o)
	s := stage(t, d, r1, app.files())
	fill(t, s, app)
	must(t, s.Complete())
	calls := 0
	d.syncfs = func(*os.File) error { calls++; return syscall.EIO }
	err := s.Publish(t.Context())
	wantErr(t, err, ErrSync, s.Dir())
	if calls != 1 || !Fault(err) {
		t.Errorf("%d syncs, fault %v", calls, Fault(err))
	}
	if got := names(t, o.Root); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
	must(t, s.Close())
	if n := len(stage(t, d, r1, app.files()).Missing()); n != len(app) {
		t.Errorf("%d files to fetch again, want all %d", n, len(app))
	}
}

func TestPublishNeedsComplete(t *testing.T) {
	d := open(t, options(t))
	s := stage(t, d, r1, app.files())
	fill(t, s, app)
	if err := s.Publish(t.Context()); err == nil {
		t.Error("published without being checked")
	}
}

// crash is what the next durable step of a disk panics with: nothing after it runs, no cleaning up either.
type crash struct{}

// crashAt runs f and stops it dead at its n-th durable step; it says whether f came that far.
func crashAt(d *Disk, n int, f func() error) (crashed bool, err error) {
	step := func(file *os.File) error {
		if n--; n == 0 {
			panic(crash{})
		}
		return file.Sync()
	}
	d.fsync, d.syncfs = step, step
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(crash); !ok {
				panic(p)
			}
			crashed = true
		}
	}()
	return false, f()
}

func TestCrashAnywhereInPublishLeavesAllOrNothing(t *testing.T) {
	for _, before := range []string{"nothing", "foreign", "damaged"} {
		for n := 1; ; n++ {
			o := options(t)
			d := open(t, o)
			switch before {
			case "foreign":
				must(t, os.MkdirAll(d.Path(r1)+"/theirs", 0o755))
			case "damaged":
				build(t, d, r1, app)
				must(t, os.Remove(d.Path(r1)+"/index.php"))
			}
			s := stage(t, d, r1, app.files())
			fill(t, s, app)
			must(t, s.Complete())
			crashed, err := crashAt(d, n, func() error { return s.Publish(t.Context()) })
			must(t, err)
			must(t, d.Close())
			if !crashed {
				if want := stepsToName(before) + 1; n-1 != want {
					t.Errorf("%s: %d durable steps, want %d", before, n-1, want)
				}
				break
			}
			checkAfterCrash(t, o, before, n)
		}
	}
}

// stepsToName is how many durable steps there are before a release gets its name: the sync has the index too, unless there is
// one that must stay true until then.
func stepsToName(before string) int {
	if before == "damaged" {
		return 3
	}
	return 1
}

func checkAfterCrash(t *testing.T, o Options, before string, n int) {
	d := open(t, o)
	if _, ok, err := d.Has(r1); ok {
		want := snapshotOf(t, app)
		if got := snapshot(t, d.Path(r1)); !reflect.DeepEqual(got, want) {
			t.Errorf("%s, step %d: has %v", before, n, got)
		}
	} else if err != nil && !errors.Is(err, ErrDamaged) {
		t.Errorf("%s, step %d: %v", before, n, err)
	}
	if _, err := d.Prune(Retention{Keep: map[release.ID]bool{r1: true}}); err != nil {
		t.Errorf("%s, step %d: %v", before, n, err)
	}
	s := stage(t, d, r1, app.files())
	if missing := s.Missing(); n <= stepsToName(before) && len(missing) > 0 {
		t.Errorf("%s, step %d: %d files fetched again", before, n, len(missing))
	}
	fill(t, s, app)
	must(t, s.Complete())
	must(t, s.Publish(t.Context()))
	must(t, d.Flip(r1))
	if before == "foreign" {
		if found, _ := filepath.Glob(filepath.Join(o.Root, foreignPrefix+"*", "theirs")); len(found) != 1 {
			t.Errorf("step %d: the foreign directory is gone: %q", n, names(t, o.Root))
		}
	}
}

func snapshotOf(t *testing.T, c content) map[string]string {
	d := open(t, options(t))
	build(t, d, r1, c)
	return snapshot(t, d.Path(r1))
}
