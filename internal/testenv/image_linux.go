package testenv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Filesystems are the kinds of [Image] that releases are kept on in the field.
var Filesystems = []string{"ext4", "xfs", "btrfs"}

// images says how a filesystem is made: as small as its tools allow, and as it is by default otherwise. ext4 gets its journal and
// inode tables written at once, so that nothing of the kernel's own goes on in the background; without a discard they are no
// holes of the file.
var images = map[string]struct {
	size    int64
	mkfs    []string
	options string
}{
	"ext4":  {64 << 20, []string{"/usr/sbin/mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"}, "loop"},
	"xfs":   {300 << 20, []string{"/usr/sbin/mkfs.xfs", "-q"}, "loop"},
	"btrfs": {128 << 20, []string{"/usr/sbin/mkfs.btrfs", "-q"}, "loop"},
}

// Image is a filesystem of the test's own, on a disk that is a file behind a loop device. What is in the file has reached the
// disk; what the filesystem still holds in memory has not, so that a copy of the file is what a power loss leaves.
type Image struct {
	Dir string // where it is mounted

	kind, store string // store is a tmpfs for the disk's file, and copies of it
	mounted     bool
}

// imageStore is the size of the tmpfs that a disk and its copies lie on; they are mostly holes.
const imageStore = "size=1g"

// NewImage makes and mounts an empty filesystem of a kind; mkfs are further arguments for the tool that makes it. It is
// unmounted at the end of the test, which fails if somebody still uses it.
func NewImage(t testing.TB, kind string, mkfs ...string) *Image {
	t.Helper()
	Root(t, "a filesystem of one's own is mounted")
	how := images[kind]
	if _, err := os.Stat(how.mkfs[0]); err != nil {
		LeaveOut(t, fmt.Sprintf("tests on %s are left out, `make test` installs what makes one: %v", kind, err))
	}
	i := &Image{Dir: t.TempDir(), kind: kind, store: t.TempDir()}
	if err := unix.Mount("tmpfs", i.store, "tmpfs", 0, imageStore); err != nil {
		LeaveOut(t, fmt.Sprintf("tests on %s are left out, this machine mounts nothing: %v", kind, err))
	}
	t.Cleanup(func() { // a loop device lets go of its file a while after its last user
		if err := unix.Unmount(i.store, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount the disk's file: %v", err)
		}
	})
	f, err := os.Create(i.file())
	if err == nil {
		err = errors.Join(f.Truncate(how.size), f.Close())
	}
	if err != nil {
		t.Fatalf("make a disk of %s: %v", kind, err)
	}
	run(t, slices.Concat(how.mkfs, mkfs, []string{i.file()})...)
	if err := i.mount(); err != nil {
		LeaveOut(t, fmt.Sprintf("tests on %s are left out, this machine mounts none: %v", kind, err))
	}
	t.Cleanup(func() {
		if i.mounted {
			i.Unmount(t)
		}
	})
	return i
}

func (i *Image) file() string { return filepath.Join(i.store, "disk") }

func (i *Image) mount() error {
	out, err := exec.Command("mount", "-t", i.kind, "-o", images[i.kind].options, i.file(), i.Dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mount %s: %w: %s", i.kind, err, out)
	}
	i.mounted = true
	return nil
}

// Unmount is a clean shutdown: everything reaches the disk.
func (i *Image) Unmount(t testing.TB) {
	t.Helper()
	unmount(t, i.Dir)
	i.mounted = false
	if i.kind == "btrfs" { // else the kernel takes an older copy of a disk that it knows for a mistake
		run(t, "btrfs", "device", "scan", "--forget")
	}
}

// Cut copies what has reached the disk, as if power were lost now, and goes on.
func (i *Image) Cut(t testing.TB) (copied string) {
	t.Helper()
	f, err := os.CreateTemp(i.store, "cut-")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	run(t, "cp", "--sparse=always", i.file(), f.Name())
	return f.Name()
}

// Boot mounts what a cut has left in the place of the disk, which must be unmounted; the filesystem recovers by its journal.
// The cut's file becomes the disk's.
func (i *Image) Boot(t testing.TB, cut string) {
	t.Helper()
	if err := os.Rename(cut, i.file()); err != nil {
		t.Fatal(err)
	}
	if err := i.mount(); err != nil {
		t.Fatalf("after a power loss: %v", err)
	}
}

// Rot changes contents on the disk, which must be unmounted, behind the filesystem's back: was and is are of one length, and
// was is replaced wherever it lies. Then the disk is mounted again.
func (i *Image) Rot(t testing.TB, was, is string) {
	t.Helper()
	disk, err := os.ReadFile(i.file())
	if err == nil && !bytes.Contains(disk, []byte(was)) {
		err = fmt.Errorf("%q is not on the disk", was)
	}
	if err == nil {
		err = os.WriteFile(i.file(), bytes.ReplaceAll(disk, []byte(was), []byte(is)), 0o600)
	}
	if err == nil {
		err = i.mount()
	}
	if err != nil {
		t.Fatalf("rot: %v", err)
	}
}

// ReadOnly remounts the filesystem, as an operator or a kernel in trouble does, or makes it writable again.
func (i *Image) ReadOnly(t testing.TB, on bool) {
	t.Helper()
	flags := uintptr(unix.MS_REMOUNT)
	if on {
		flags |= unix.MS_RDONLY // busy while somebody writes
	}
	whileBusy(t, "remount "+i.Dir, func() error { return unix.Mount("", i.Dir, "", flags, "") })
}

// Break makes writes to blocks of the disk that were never written before fail with an I/O error, until it is turned off:
// the file has no room to grow.
func (i *Image) Break(t testing.TB, on bool) {
	t.Helper()
	size := imageStore
	if on {
		var fs unix.Statfs_t
		if err := unix.Statfs(i.store, &fs); err != nil {
			t.Fatal(err)
		}
		size = fmt.Sprintf("size=%d", (fs.Blocks-fs.Bfree)*uint64(fs.Bsize))
	}
	run(t, "mount", "-o", "remount,"+size, i.store)
}

// unmount waits for what has just been closed: a process that is being started holds our descriptors until it runs.
func unmount(t testing.TB, dir string) {
	t.Helper()
	whileBusy(t, "unmount "+dir, func() error { return unix.Unmount(dir, 0) })
}

// whileBusy does something again and again until nothing is busy any more.
func whileBusy(t testing.TB, what string, do func() error) {
	t.Helper()
	for try := 0; ; try++ {
		err := do()
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EBUSY) || try == 3000 {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func run(t testing.TB, command ...string) {
	t.Helper()
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", command, err, out)
	}
}
