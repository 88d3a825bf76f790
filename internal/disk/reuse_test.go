package disk

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCopiesWhereALinkCannotBe(t *testing.T) {
	for _, errno := range []error{unix.EMLINK, unix.EPERM, unix.EXDEV} {
		t.Run(errno.Error(), func(t *testing.T) {
			d := open(t, options(t))
			deploy(t, d, r1, site)
			d.link = func(int, string, int, string) error { return errno }
			if got := deploy(t, d, r2, site); len(got) != 0 {
				t.Errorf("fetched %q", got)
			}
			if a, b := snapshot(t, d.Path(r1)), snapshot(t, d.Path(r2)); !reflect.DeepEqual(a, b) {
				t.Errorf("got %v\nwant %v", b, a)
			}
			if inode(t, d.Path(r1)+"/index.php") == inode(t, d.Path(r2)+"/index.php") {
				t.Error("linked")
			}
		})
	}
}

func TestOwnersOfAllFilesShareNoInodes(t *testing.T) {
	asRoot(t)
	o := options(t)
	o.Owner, o.WebUser = User{65001, 65001}, User{65001, 65002}
	d := open(t, o)
	deploy(t, d, r1, site)
	if got := deploy(t, d, r2, site); len(got) != 0 {
		t.Errorf("fetched %q", got)
	}
	if inode(t, d.Path(r1)+"/index.php") == inode(t, d.Path(r2)+"/index.php") {
		t.Error("PHP could write to both releases at once")
	}
}

func TestWritableDirectoriesShareNoInodes(t *testing.T) {
	o := options(t)
	o.Writable = []string{"tmp"}
	d := open(t, o)
	p := packed{"tmp/seed": "seed", "seed": "seed"}
	deploy(t, d, r1, p)
	if got := deploy(t, d, r2, p); len(got) != 0 {
		t.Errorf("fetched %q", got)
	}
	for _, other := range []string{d.Path(r1) + "/seed", d.Path(r1) + "/tmp/seed", d.Path(r2) + "/seed"} {
		if inode(t, d.Path(r2)+"/tmp/seed") == inode(t, other) {
			t.Errorf("shares its inode with %s", other)
		}
	}
}

func TestAnotherOwnerMeansANewInode(t *testing.T) {
	asRoot(t)
	o := options(t)
	d := open(t, o)
	deploy(t, d, r1, site)
	must(t, d.Close())
	o.Owner = User{65001, 65002}
	d = open(t, o)
	if got := deploy(t, d, r2, site); len(got) != 0 {
		t.Errorf("fetched %q", got)
	}
	for p, body := range site {
		p = strings.TrimRight(p, "/*@")
		for id, want := range map[string]User{string(r1): self(), string(r2): o.Owner} {
			if info, err := os.Lstat(filepath.Join(o.Root, id, p)); err != nil || !ownedBy(info, want) {
				t.Errorf("%s of %s (%q) belongs to %d: %v", p, id, body, stat(info).Uid, err)
			}
		}
	}
}

func TestDamagedBaseFilesAreFetchedAgain(t *testing.T) {
	body := site["index.php"]
	evil := strings.Replace(body, "1", "6", 1)
	outside := filepath.Join(t.TempDir(), "outside")
	must(t, os.WriteFile(outside, []byte(evil), 0o644))
	must(t, os.Chtimes(outside, released, released))
	for name, harm := range map[string]func(p string) error{
		"size":     func(p string) error { return os.WriteFile(p, []byte("x"), 0o644) },
		"time":     func(p string) error { return os.WriteFile(p, []byte(evil), 0o644) },
		"mode":     func(p string) error { return os.Chmod(p, 0o600) },
		"gone":     os.Remove,
		"link":     func(p string) error { return errors.Join(os.Remove(p), os.Symlink(outside, p)) },
		"fifo":     func(p string) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o644)) },
		"dir":      func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o755)) },
		"hardlink": func(p string) error { return errors.Join(os.Remove(p), os.Link(outside, p)) },
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, options(t))
			deploy(t, d, r1, site)
			p := d.Path(r1) + "/index.php"
			must(t, harm(p))
			before, err := os.Lstat(p)
			if got := deploy(t, d, r2, site); !slices.Equal(got, []string{"index.php"}) {
				t.Errorf("fetched %q", got)
			}
			if got, _ := os.ReadFile(d.Path(r2) + "/index.php"); string(got) != body {
				t.Errorf("got %q", got)
			}
			after, err2 := os.Lstat(p)
			if err == nil && (err2 != nil || after.Mode() != before.Mode() || after.Size() != before.Size()) {
				t.Errorf("the damaged file was repaired in place: %v, %v", after, err2)
			}
		})
	}
}

func TestDirectoryOfABaseThatBecameALinkIsNotFollowed(t *testing.T) {
	d := open(t, options(t))
	deploy(t, d, r1, site)
	must(t, os.Rename(d.Path(r1)+"/lib", d.Path(r1)+"/away"))
	must(t, os.Symlink("away", d.Path(r1)+"/lib"))
	if got := deploy(t, d, r2, site); !slices.Equal(got, []string{"lib/a/b.php"}) {
		t.Errorf("fetched %q", got)
	}
}

func TestRestoredBaseIsHashedBeforeItIsLinked(t *testing.T) {
	d := open(t, options(t))
	deploy(t, d, r1, site)
	for p, body := range map[string]string{"index.php": site["index.php"], "lib/a/b.php": "<?php X"} {
		p = filepath.Join(d.Path(r1), p)
		must(t, os.WriteFile(p+".new", []byte(body), 0o644))
		must(t, os.Chtimes(p+".new", released, released))
		must(t, os.Rename(p+".new", p))
	}
	if got := deploy(t, d, r2, site); !slices.Equal(got, []string{"lib/a/b.php"}) {
		t.Errorf("fetched %q", got)
	}
	if inode(t, d.Path(r1)+"/index.php") != inode(t, d.Path(r2)+"/index.php") {
		t.Error("a true copy in the base was not linked")
	}
	must(t, os.Chmod(d.Path(r1)+"/bin", 0o755))
	late := packed{"x+": "<?php X", "y+": site["lib/a/b.php"]} // to be copied: the first from a damaged file
	must(t, d.state.Remove(indexFile(r2)))
	if got := deploy(t, d, r3, late); !slices.Equal(got, []string{"x", "y"}) {
		t.Errorf("fetched %q: a copy was not verified", got)
	}
}

func TestDamagedReleaseIsItsOwnBase(t *testing.T) {
	d := open(t, options(t))
	deploy(t, d, r1, site)
	must(t, d.Flip(r1))
	must(t, os.WriteFile(d.Path(r1)+"/index.php", []byte("tampered"), 0o644))
	if got := deploy(t, d, r1, site); !slices.Equal(got, []string{"index.php"}) {
		t.Errorf("fetched %q", got)
	}
	if got, _ := os.ReadFile(d.Path("active") + "/index.php"); string(got) != site["index.php"] {
		t.Errorf("served: %q", got)
	}
}

func TestHookMustNotWriteToSharedFiles(t *testing.T) {
	d := open(t, options(t))
	deploy(t, d, r1, site)
	s, _ := stagePacked(t, d, r2, site)
	must(t, s.Complete())
	must(t, os.Remove(s.Dir()+"/index.php"))
	must(t, os.WriteFile(s.Dir()+"/index.php", []byte("replaced"), 0o644)) // as it should
	must(t, s.Publish(t.Context()))
	if got, _ := os.ReadFile(d.Path(r1) + "/index.php"); string(got) != site["index.php"] {
		t.Errorf("the older release has %q", got)
	}
	s, bodies := stagePacked(t, d, r3, site) // index.php is another one now in the newest release
	putAll(t, s, bodies)
	must(t, s.Complete())
	must(t, os.WriteFile(s.Dir()+"/bin/run", []byte("appended"), 0o755))
	err := s.Publish(t.Context())
	wantErr(t, err, ErrContent, "bin/run", "in place")
	if Fault(err) {
		t.Error("a hook of the release is not about this machine")
	}
}

func TestHookMustNotOwnSharedFiles(t *testing.T) {
	asRoot(t)
	for name, change := range map[string]func(p string) error{
		"owner": func(p string) error { return os.Chown(p, 65001, 65001) },
		"mode":  func(p string) error { return os.Chmod(p, 0o666) },
	} {
		d := open(t, options(t))
		deploy(t, d, r1, site)
		s, _ := stagePacked(t, d, r2, site)
		must(t, s.Complete())
		must(t, change(s.Dir()+"/index.php"))
		err := s.Publish(t.Context())
		if !errors.Is(err, ErrContent) {
			t.Errorf("%s changed: %v", name, err)
		}
	}
}

func TestFoldersFollowNoLink(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/a/b", 0o755))
	must(t, os.Symlink("a", dir+"/in"))
	must(t, os.Symlink("/", dir+"/out"))
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	top := folder{int(f.Fd()), dir}
	for _, p := range []string{"", "a", "a/b"} {
		sub, err := top.enter(p)
		must(t, err)
		steps, err := top.steps(p)
		must(t, err)
		var one, two unix.Stat_t
		must(t, errors.Join(unix.Fstat(sub.fd, &one), unix.Fstat(steps, &two), unix.Close(steps)))
		sub.close()
		if one.Ino != two.Ino || one.Ino != inode(t, filepath.Join(dir, p)) {
			t.Errorf("%q leads elsewhere", p)
		}
	}
	for _, p := range []string{"in", "in/b", "out", "out/etc", "..", "a/../..", "missing"} {
		if sub, err := top.enter(p); err == nil {
			sub.close()
			t.Errorf("entered %q", p)
		}
		if fd, err := top.steps(p); err == nil {
			unix.Close(fd)
			t.Errorf("stepped into %q", p)
		}
	}
}
