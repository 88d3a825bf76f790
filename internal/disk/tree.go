package disk

import (
	"bufio"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/release"
)

// openDir opens the directory name, which must be one itself and not a link to one.
func openDir(in *os.Root, name string) (*os.Root, error) {
	dir, err := in.OpenRoot(name)
	if err != nil {
		return nil, blame(err)
	}
	opened, err := dir.Stat(".")
	if err == nil {
		var there fs.FileInfo
		if there, err = in.Lstat(name); err == nil && !os.SameFile(opened, there) {
			err = fmt.Errorf("open %q: not a directory of its own: %w", filepath.Join(in.Name(), name), ErrDamaged)
		}
	}
	if err != nil {
		return nil, errors.Join(blame(err), dir.Close())
	}
	return dir, nil
}

func readNames(dir *os.Root) ([]string, error) {
	f, err := dir.Open(".")
	if err != nil {
		return nil, blame(err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, blame(err)
}

// sums hashes content once for all that is asked: always SHA-256, for the index, and MD5 where that is
// what the listing knows.
type sums struct {
	io.Writer
	sha, md5 hash.Hash
}

func newSums(want Digest) *sums {
	s := &sums{sha: sha256.New()}
	s.Writer = s.sha
	if len(want) == 2*md5.Size {
		s.md5 = md5.New()
		s.Writer = io.MultiWriter(s.sha, s.md5)
	}
	return s
}

// check says whether the content was what want says, and returns its SHA-256.
func (s *sums) check(want Digest) (release.Sum, error) {
	got := release.Sum(s.sha.Sum(nil))
	if want == "" {
		return got, nil
	}
	named := got.String()
	if s.md5 != nil {
		named = hex.EncodeToString(s.md5.Sum(nil))
	}
	if named != string(want) {
		return got, fmt.Errorf("digest is %s, not %s: %w", named, want, ErrContent)
	}
	return got, nil
}

// buffers holds copy buffers; 128 KiB, so that a file costs few calls and workers little memory.
var buffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

func copyAll(w io.Writer, r io.Reader) (int64, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	// The wrappers hide ReadFrom and WriteTo, which would allocate buffers of their own.
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, *buf)
}

// identity tells a directory from a later one of the same name: inode numbers are used again at once, but
// not within the same birth time, which ext4, xfs, btrfs and tmpfs keep.
type identity struct {
	Inode uint64 `json:"inode"`
	Born  int64  `json:"born,omitempty"` // Unix nanoseconds; 0 where the filesystem does not say
}

// identify looks at a directory of the root.
func (d *Disk) identify(name string) (identity, error) {
	var st unix.Statx_t
	err := unix.Statx(int(d.rootDir.Fd()), name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE|unix.STATX_INO|unix.STATX_BTIME, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		err = unix.ENOTDIR
	}
	if err != nil {
		return identity{}, blame(&fs.PathError{Op: "stat", Path: filepath.Join(d.opt.Root, name), Err: err})
	}
	id := identity{Inode: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.Born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return id, nil
}

// rename moves a name within the root; flags are renameat2's. Both are single names, and a link among
// them is moved itself.
func (d *Disk) rename(from, to string, flags uint) error {
	fd := int(d.rootDir.Fd())
	if err := unix.Renameat2(fd, from, fd, to, flags); err != nil {
		return blame(&os.LinkError{Op: "rename", Old: filepath.Join(d.opt.Root, from), New: filepath.Join(d.opt.Root, to), Err: err})
	}
	return nil
}

// syncDir makes the names in a directory durable.
func (d *Disk) syncDir(dir *os.File) error { return wrapSync(dir, d.fsync(dir)) }

// wrapSync makes an error of a sync of dir.
func wrapSync(dir *os.File, err error) error {
	if err != nil {
		return fmt.Errorf("sync %q: %w: %w", dir.Name(), ErrSync, blame(err))
	}
	return nil
}

// aside moves what is at name to a new name with prefix and returns that.
func (d *Disk) aside(name, prefix string) (string, error) {
	to := prefix + strings.TrimPrefix(name, incomingPrefix)
	if prefix == trashPrefix {
		to += "." + rand.Text()
	}
	err := d.rename(name, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, fs.ErrExist) {
		to += "." + rand.Text()
		err = d.rename(name, to, unix.RENAME_NOREPLACE)
	}
	return to, err
}

// unmounted refuses a directory in which something is mounted: removing it would remove that as well.
func (d *Disk) unmounted(name string) error {
	mounts, err := d.mounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if below(m, []string{name}) {
			return fmt.Errorf("remove %q: %q: %w", filepath.Join(d.opt.Root, name), filepath.Join(d.opt.Root, m), ErrMounted)
		}
	}
	return nil
}

// mounts lists the mount points below the root, relative to it.
func (d *Disk) mounts() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find mounts below %q: %w", d.opt.Root, err)
	}
	defer f.Close()
	var below []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		if rel, ok := strings.CutPrefix(unescape.Replace(fields[4]), d.path+"/"); ok {
			below = append(below, rel)
		}
	}
	return below, lines.Err()
}
