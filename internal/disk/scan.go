package disk

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/release"
)

// seen is what the system says of one name, the name itself and never what a link points at.
type seen struct {
	path     string
	mode     uint32 // type and permissions, as stat has them
	uid, gid uint32
	dev      uint64
	inode    uint64
	size     int64
	mtime    int64 // Unix nanoseconds
}

func seenAs(p string, st *unix.Stat_t) seen {
	return seen{p, st.Mode, st.Uid, st.Gid, st.Dev, st.Ino, st.Size, st.Mtim.Nano()}
}

func (s *seen) isDir() bool           { return s.mode&unix.S_IFMT == unix.S_IFDIR }
func (s *seen) ownedBy(u User) bool   { return int(s.uid) == u.UID && int(s.gid) == u.GID }
func (s *seen) sameFile(o *seen) bool { return s.inode == o.inode && s.dev == o.dev }

// workers is how many directories are worked on at once. More than four only contend for the journal.
func workers() int { return min(4, runtime.GOMAXPROCS(0)) }

// each calls do with 0 … n-1, several at once, until one fails.
func each(n int, do func(i int) error) error {
	var next atomic.Int64
	var failed atomic.Bool
	var group errgroup.Group
	for range min(n, workers()) {
		group.Go(func() error {
			for !failed.Load() {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if err := do(i); err != nil {
					failed.Store(true)
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// again repeats a call that a signal cut short; the runtime sends them, and some filesystems answer so.
func again(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

const dirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC

// folder is an open directory. Calls relative to it name one part of a path each, and follow no link.
type folder struct {
	fd   int
	name string // for errors
}

// enter opens a directory below f ("" is f itself): the kernel refuses any link on the way.
func (f folder) enter(dir string) (folder, error) {
	sub := folder{-1, filepath.Join(f.name, dir)}
	how := unix.OpenHow{Flags: dirFlags, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	err := again(func() (err error) {
		sub.fd, err = unix.Openat2(f.fd, cmp.Or(dir, "."), &how)
		if err == unix.EAGAIN { // a rename elsewhere at the same time
			err = unix.EINTR
		}
		return err
	})
	if err == unix.ENOSYS || err == unix.EPERM { // Linux before 5.6, or a filter that does not know the call
		sub.fd, err = f.steps(dir)
	}
	return sub, sub.blame("open", "", err)
}

// steps opens a directory below f part by part.
func (f folder) steps(dir string) (int, error) {
	fd, err := unix.Openat(f.fd, ".", dirFlags, 0)
	for part := range strings.SplitSeq(dir, "/") {
		if err != nil || part == "" {
			return fd, err
		}
		if part == ".." {
			return -1, errors.Join(unix.EXDEV, unix.Close(fd))
		}
		var next int
		next, err = unix.Openat(fd, part, dirFlags, 0)
		unix.Close(fd)
		fd = next
	}
	return fd, err
}

func (f folder) close() { unix.Close(f.fd) }

// blame makes an error of a call on name in f.
func (f folder) blame(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return blame(&fs.PathError{Op: op, Path: filepath.Join(f.name, name), Err: err})
}

func (f folder) look(name string) (seen, error) {
	var st unix.Stat_t
	err := unix.Fstatat(f.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return seenAs(name, &st), f.blame("stat", name, err)
}

func (f folder) remove(name string) error {
	return f.blame("remove", name, unix.Unlinkat(f.fd, name, 0))
}

func (f folder) readlink(name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(f.fd, name, buf)
	return string(buf[:max(n, 0)]), f.blame("readlink", name, err)
}

// open opens a regular file for reading and says what it is. O_NONBLOCK: a fifo in its place stops nobody.
func (f folder) open(name string) (*os.File, seen, error) {
	var fd int
	err := again(func() (err error) {
		fd, err = unix.Openat(f.fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, seen{}, f.blame("open", name, err)
	}
	file := os.NewFile(uintptr(fd), filepath.Join(f.name, name))
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = ErrDamaged
	}
	if err != nil {
		return nil, seen{}, errors.Join(f.blame("open", name, err), file.Close())
	}
	return file, seenAs(name, &st), nil
}

// hash reads the regular file that was seen and checks it against want.
func (f folder) hash(name string, was *seen, want Digest) (release.Sum, error) {
	file, is, err := f.open(name)
	if err != nil {
		return release.Sum{}, err
	}
	defer file.Close()
	if !is.sameFile(was) {
		return release.Sum{}, fmt.Errorf("read %q: %w", file.Name(), ErrDamaged)
	}
	h := newSums(want)
	if _, err := copyAll(h, file); err != nil {
		return release.Sum{}, blame(err)
	}
	return h.check(want)
}

// trust may spare looking at a name, of which the directory itself tells the inode's number.
type trust func(path string, inode uint64) (seen, bool)

// list looks at every name in f, sorted, those that are not trusted with a call each.
func (f folder) list(prefix string, known trust) ([]seen, error) {
	var all []seen
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(f.fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, f.blame("list", "", err)
		}
		if n <= 0 {
			break
		}
		// struct linux_dirent64: inode and offset of 8 bytes each, length of 2, type of 1, the name and a zero.
		for rest := buf[:n]; len(rest) > 0; {
			length := binary.NativeEndian.Uint16(rest[16:])
			name, _, _ := bytes.Cut(rest[19:length], []byte{0})
			if s := string(name); s != "." && s != ".." {
				all = append(all, seen{path: path.Join(prefix, s), inode: binary.NativeEndian.Uint64(rest)})
			}
			rest = rest[length:]
		}
	}
	slices.SortFunc(all, func(a, b seen) int { return strings.Compare(a.path, b.path) })
	for i := range all {
		p := all[i].path
		if was, ok := known(p, all[i].inode); ok {
			all[i] = was
			continue
		}
		_, name := split(p)
		var err error
		if all[i], err = f.look(name); err != nil {
			return nil, err
		}
		all[i].path = p
	}
	return all, nil
}

// noTrust has every name looked at.
func noTrust(string, uint64) (seen, bool) { return seen{}, false }

// scan looks at everything below top, in the order of [release.ComparePaths]; a directory for which skip
// says so is not entered. The directories of one depth are read at the same time.
func scan(top folder, known trust, skip func(dir string) bool) ([]seen, error) {
	below, total := map[string][]seen{}, 0
	for level := []string{""}; len(level) > 0; {
		lists := make([][]seen, len(level))
		err := each(len(level), func(i int) error {
			dir, err := top.enter(level[i])
			if err != nil {
				return err
			}
			defer dir.close()
			lists[i], err = dir.list(level[i], known)
			return err
		})
		if err != nil {
			return nil, err
		}
		var next []string
		for i, list := range lists {
			below[level[i]], total = list, total+len(list)
			for j := range list {
				if list[j].isDir() && !skip(list[j].path) {
					next = append(next, list[j].path)
				}
			}
		}
		level = next
	}
	return flatten(make([]seen, 0, total), below, ""), nil
}

// flatten puts each directory's names behind it.
func flatten(all []seen, below map[string][]seen, dir string) []seen {
	for _, s := range below[dir] {
		all = append(all, s)
		if s.isDir() {
			all = flatten(all, below, s.path)
		}
	}
	return all
}

// directory is the places, in some list of paths, of those that lie in it.
type directory struct {
	path    string // "" at the top
	members []int32
}

// byDirectory groups the paths with the numbers below n for which path gives one.
func byDirectory(n int, pathOf func(i int) (string, bool)) []directory {
	var dirs []directory
	place := map[string]int{}
	at := -1
	for i := range n {
		p, ok := pathOf(i)
		if !ok {
			continue
		}
		if parent, _ := split(p); at < 0 || dirs[at].path != parent {
			if at, ok = place[parent]; !ok {
				at = len(dirs)
				place[parent], dirs = at, append(dirs, directory{path: parent})
			}
		}
		dirs[at].members = append(dirs[at].members, int32(i))
	}
	return dirs
}

// split is a path's directory, "" at the top, and its last part.
func split(p string) (dir, name string) {
	i := strings.LastIndexByte(p, '/')
	return p[:max(i, 0)], p[i+1:]
}
