package disk

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/release"

	"s3pulldeploy/internal/testenv"
)

const (
	r1 = release.ID("2026-11-20_20-15-02")
	r2 = release.ID("2026-11-20_20-16-00")
	r3 = release.ID("2026-11-20_20-17-00")
)

var released = time.Date(2026, 11, 20, 20, 14, 2, 0, time.UTC)

// content is a release by path; a name that ends in * is executable.
type content map[string]string

func (c content) files() []File {
	var files []File
	for _, p := range sortedKeys(c) {
		files = append(files, fileOf(p, c[p]))
	}
	return files
}

func fileOf(path, body string) File {
	f := File{Path: strings.TrimSuffix(path, "*"), Exec: strings.HasSuffix(path, "*"), Size: int64(len(body)), Modified: released}
	if len(body)%2 == 0 {
		sum := sha256.Sum256([]byte(body))
		f.Digest = Digest(hex.EncodeToString(sum[:]))
	} else {
		sum := md5.Sum([]byte(body))
		f.Digest = ETagDigest(`"` + hex.EncodeToString(sum[:]) + `"`)
	}
	return f
}

func (c content) body(f File) string {
	if f.Exec {
		return c[f.Path+"*"]
	}
	return c[f.Path]
}

var app = content{"index.php": "<?php echo 1;", "bin/run*": "#!/bin/sh\n", "lib/a/b.php": "<?php // b", "empty": ""}

func options(t testing.TB) Options {
	dir := t.TempDir()
	return Options{Root: filepath.Join(dir, "root"), Active: "active", StateDir: filepath.Join(dir, "state")}
}

func open(t testing.TB, o Options) *Disk {
	t.Helper()
	d, err := Open(o)
	for try := 0; errors.Is(err, ErrLocked) && try < 1000; try++ { // a process that another test starts holds all descriptors until it runs
		time.Sleep(10 * time.Millisecond)
		d, err = Open(o)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if os.Geteuid() != 0 {
		d.shares = true // who is not root has no other user to be safe from
	}
	return d
}

func stage(t testing.TB, d *Disk, id release.ID, files []File) *Stage {
	t.Helper()
	s, err := d.Stage(t.Context(), id, "digest of "+string(id), files)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func fill(t testing.TB, s *Stage, c content) {
	t.Helper()
	for _, f := range s.Missing() {
		must(t, s.Put(f, strings.NewReader(c.body(f))))
	}
}

// build publishes a release from nothing or from what is there.
func build(t testing.TB, d *Disk, id release.ID, c content) {
	t.Helper()
	s := stage(t, d, id, c.files())
	fill(t, s, c)
	must(t, s.Complete())
	must(t, s.Publish(t.Context()))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantErr asserts which error it is, and that its text names the thing.
func wantErr(t testing.TB, err, which error, names ...string) {
	t.Helper()
	if !errors.Is(err, which) {
		t.Fatalf("got error %v, want %v", err, which)
	}
	for _, n := range names {
		if !strings.Contains(err.Error(), n) {
			t.Errorf("error %q does not name %q", err, n)
		}
	}
}

// snapshot describes everything below dir: type, mode, size, time, content or target, by path.
func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	must(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		switch {
		case info.Mode().IsRegular():
			body, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			got[rel] = fmt.Sprintf("%v %s %q", info.Mode(), info.ModTime().UTC(), body)
		case info.Mode().Type() == fs.ModeSymlink:
			target, _ := os.Readlink(p)
			got[rel] = "-> " + target
		default:
			got[rel] = info.Mode().String()
		}
		return nil
	}))
	return got
}

func asRoot(t testing.TB) {
	t.Helper()
	testenv.Root(t, "owners and mounts")
}

// tmpfs mounts a filesystem of its own for the test.
func tmpfs(t testing.TB, opts string) string {
	t.Helper()
	asRoot(t)
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, opts))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	return got
}

func TestTwoAgentsRefuseEachOther(t *testing.T) {
	first := options(t)
	open(t, first)
	sameRoot, sameState := options(t), options(t)
	sameRoot.Root, sameState.StateDir = first.Root, first.StateDir
	_, err := Open(sameRoot)
	wantErr(t, err, ErrLocked, first.Root)
	_, err = Open(sameState)
	wantErr(t, err, ErrLocked, first.StateDir)
	if !Fault(err) {
		t.Error("a lock is about this machine")
	}
}

func TestClosedDiskCanBeOpenedAgain(t *testing.T) {
	o := options(t)
	must(t, open(t, o).Close())
	open(t, o)
}

func TestOpenMakesDirectoriesWhateverTheUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	o := options(t)
	d := open(t, o)
	build(t, d, r1, app)
	for path, want := range map[string]fs.FileMode{o.Root: 0o755, o.StateDir: 0o700, d.Path(r1): 0o755, d.Path(r1) + "/lib/a": 0o755, d.Path(r1) + "/index.php": 0o644, d.Path(r1) + "/bin/run": 0o755} {
		info, err := os.Stat(path)
		must(t, err)
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", path, info.Mode().Perm(), want)
		}
	}
}

func TestOpenRefusesActiveThatIsNoLink(t *testing.T) {
	o := options(t)
	must(t, os.MkdirAll(filepath.Join(o.Root, "active", "site"), 0o755))
	_, err := Open(o)
	wantErr(t, err, ErrActiveNotLink, filepath.Join(o.Root, "active"))
	if _, err := os.Stat(filepath.Join(o.Root, "active", "site")); err != nil {
		t.Error("the directory in the way was touched:", err)
	}
}

func TestOpenRemovesLeftOverLinks(t *testing.T) {
	o := options(t)
	must(t, os.MkdirAll(o.Root, 0o755))
	must(t, os.Symlink("nowhere", filepath.Join(o.Root, linkPrefix+"x")))
	open(t, o)
	if got := names(t, o.Root); len(got) != 0 {
		t.Errorf("left in root: %q", got)
	}
}

func TestOpenRefusesReadOnlyRoot(t *testing.T) {
	o := options(t)
	o.Root = tmpfs(t, "size=1m")
	must(t, unix.Mount("", o.Root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	_, err := Open(o)
	wantErr(t, err, ErrReadOnly, o.Root)
	if !Fault(err) {
		t.Error("a read-only disk is about this machine")
	}
}

func TestOpenRefusesReleaseOnAnotherFilesystem(t *testing.T) {
	asRoot(t)
	o := options(t)
	dir := filepath.Join(o.Root, incomingPrefix+string(r1))
	must(t, os.MkdirAll(dir, 0o755))
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	_, err := Open(o)
	wantErr(t, err, ErrMounted, dir)
}

func TestOpenRefusesStateDirectoryOfOthers(t *testing.T) {
	o := options(t)
	must(t, os.Mkdir(o.StateDir, 0o700))
	must(t, os.Chmod(o.StateDir, 0o777))
	if _, err := Open(o); err == nil || !strings.Contains(err.Error(), o.StateDir) {
		t.Errorf("got %v, want an error that names the state directory", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"relative root":         func(o *Options) { o.Root = "root" },
		"active with slash":     func(o *Options) { o.Active = "a/b" },
		"active is previous":    func(o *Options) { o.Active = "previous" },
		"hidden active":         func(o *Options) { o.Active = ".incoming-x" },
		"writable outside":      func(o *Options) { o.Writable = []string{"../x"} },
		"shared path absolute":  func(o *Options) { o.Shared = map[string]string{"/x": "/y"} },
		"shared target rel":     func(o *Options) { o.Shared = map[string]string{"x": "y"} },
		"stamp with empty part": func(o *Options) { o.Stamp = "a//b" },
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			change(&o)
			if d, err := Open(o); err == nil {
				d.Close()
				t.Error("opened")
			}
		})
	}
}

func TestLookupUser(t *testing.T) {
	for spec, want := range map[string]User{
		"": self(), "root": {0, 0}, "0": {0, 0}, "65000": {65000, 65000}, "root:65001": {0, 65001}, "65000:root": {65000, 0},
	} {
		if got, err := LookupUser(spec); err != nil || got != want {
			t.Errorf("LookupUser(%q) = %v, %v; want %v", spec, got, err, want)
		}
	}
	for _, spec := range []string{"no-such-user", "root:no-such-group", "-1", "4294967295", ":root"} {
		if got, err := LookupUser(spec); err == nil {
			t.Errorf("LookupUser(%q) = %v, want an error", spec, got)
		}
	}
}
