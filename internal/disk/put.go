package disk

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/release"
)

// Put writes one missing file of the plain layout from r, which must give exactly f.Size bytes of the
// digest that f names ([ErrContent]). After an error nothing of it is left. Safe for concurrent use, for
// different files. f may know more or less of the digest than the listing did.
func (s *Stage) Put(f File, r io.Reader) error {
	i, ok := s.plan.find(f.Path)
	if !ok || s.packed || s.plan.plain[i] < 0 || s.plan.entries[i].Size != f.Size || !f.Digest.valid() {
		return fmt.Errorf("put %q: not this file in the listing: %w", f.Path, ErrListing)
	}
	dir, name := split(f.Path)
	in, err := s.folder().enter(dir)
	if err != nil {
		return fmt.Errorf("put %q: %w", f.Path, err)
	}
	defer in.close()
	err = s.create(in, name, i, func(out *os.File) (release.Sum, error) {
		h := newSums(f.Digest)
		n, err := copyAll(io.MultiWriter(out, h), io.LimitReader(r, f.Size+1))
		if err != nil {
			return release.Sum{}, err
		}
		if n != f.Size {
			return release.Sum{}, fmt.Errorf("%d bytes or more, not %d: %w", n, f.Size, ErrContent)
		}
		return h.check(f.Digest)
	})
	if err != nil {
		return fmt.Errorf("put %q: %w", f.Path, blame(err))
	}
	return nil
}

// create makes file i in its directory, has it filled, and gives it owner, mode and time. After an error
// nothing of it is left.
func (s *Stage) create(in folder, name string, i int, fill func(*os.File) (release.Sum, error)) error {
	out, err := in.create(name, s.mode(i)&0o777)
	if err != nil {
		return err
	}
	sum, err := fill(out)
	if err == nil {
		err = failpoint.Hit("A8") // the worst moment: the contents are there, and what says that they are whole is not
	}
	if err == nil {
		err = s.finish(in, name, i, out, sum)
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return s.drop(in, name, i, err)
	}
	return nil
}

func (f folder) create(name string, mode uint32) (*os.File, error) {
	var fd int
	err := again(func() (err error) {
		fd, err = unix.Openat(f.fd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
		return err
	})
	if err != nil {
		return nil, f.blame("create", name, err)
	}
	return os.NewFile(uintptr(fd), filepath.Join(f.name, name)), nil
}

// drop removes the new file i, whose making ended with err.
func (s *Stage) drop(in folder, name string, i int, err error) error {
	s.mu.Lock()
	s.done[i] = known{}
	s.mu.Unlock()
	if gone := in.remove(name); gone != nil && !errors.Is(gone, os.ErrNotExist) {
		err = errors.Join(err, gone)
	}
	return err
}

// finish gives a new file, whose content was verified, its owner, mode and time, and notes it as done. The
// descriptor has the last word on what was done by name.
func (s *Stage) finish(in folder, name string, i int, out *os.File, sum release.Sum) error {
	fd := int(out.Fd())
	want, timed := s.plan.time(i)
	if timed {
		at := []unix.Timespec{unix.NsecToTimespec(want), unix.NsecToTimespec(want)}
		if err := unix.UtimesNanoAt(in.fd, name, at, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return in.blame("set the time of", name, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return in.blame("stat", name, err)
	}
	is := seenAs(name, &st)
	if owner := s.d.opt.Owner; !is.ownedBy(owner) {
		if err := unix.Fchown(fd, owner.UID, owner.GID); err != nil {
			return in.blame("own", name, err)
		}
		is.uid, is.gid = uint32(owner.UID), uint32(owner.GID)
	}
	if is.mode != s.mode(i) {
		if err := unix.Fchmod(fd, s.mode(i)&0o777); err != nil {
			return in.blame("own", name, err)
		}
		is.mode = s.mode(i)
	}
	if timed && is.mtime/1e9 != want/1e9 {
		return fmt.Errorf("%q: replaced as it was written: %w", out.Name(), ErrDamaged)
	}
	s.written.Add(is.size)
	s.mu.Lock()
	s.done[i] = knownAs(&is, sum)
	s.mu.Unlock()
	return nil
}

// Writer is one worker's hand in a [Stage] of the packed layout. It keeps the last directory open, for
// contents come in the order of paths. Not safe for concurrent use: each worker has its own.
type Writer struct {
	s   *Stage
	dir string
	in  folder
}

// Writer returns a new writer, to be closed before the stage is.
func (s *Stage) Writer() *Writer { return &Writer{s: s, in: folder{fd: -1}} }

// Close lets go of the last directory.
func (w *Writer) Close() error {
	if w.in.fd >= 0 {
		w.in.close()
		w.in.fd = -1
	}
	return nil
}

func (w *Writer) enter(dir string) error {
	if w.in.fd >= 0 && w.dir == dir {
		return nil
	}
	w.Close()
	in, err := w.s.folder().enter(dir)
	if err == nil {
		w.in, w.dir = in, dir
	}
	return err
}

// Put writes bytes of file i of the manifest's entries, those that begin at offset at: all of them, or, of
// a file that is in several frames, those of one frame, in any order and by several writers. The content
// is verified here against the manifest before it counts ([ErrContent]; nothing of the file is left then,
// and all of it is to be put again). What is there already is not written twice. data is not kept.
func (w *Writer) Put(i int, at int64, data []byte) error {
	s := w.s
	if !s.packed || i < 0 || i >= len(s.plan.entries) || s.plan.entries[i].Kind != release.File {
		return fmt.Errorf("put entry %d: not a file of the manifest: %w", i, ErrListing)
	}
	e := &s.plan.entries[i]
	s.mu.Lock()
	there := s.done[i].inode != 0
	s.mu.Unlock()
	if there {
		return nil
	}
	dir, name := split(e.Path)
	err := w.enter(dir)
	if err == nil {
		if at == 0 && int64(len(data)) == e.Size {
			err = s.putWhole(w.in, name, i, data)
		} else {
			err = s.putPart(w.in, name, i, at, data)
		}
	}
	if err != nil {
		return fmt.Errorf("put %q: %w", e.Path, blame(err))
	}
	return nil
}

// putWhole verifies and writes a whole file: open, one write, time, stat, close.
func (s *Stage) putWhole(in folder, name string, i int, data []byte) error {
	sum := release.Sum(sha256.Sum256(data))
	if want := s.plan.entries[i].Sum; sum != want {
		return fmt.Errorf("digest is %s, not %s: %w", sum, want, ErrContent)
	}
	return s.create(in, name, i, func(out *os.File) (release.Sum, error) {
		if len(data) == 0 {
			return sum, nil
		}
		_, err := out.Write(data)
		return sum, err
	})
}

// partial is a large file of which some parts are written.
type partial struct {
	mu   sync.Mutex
	out  *os.File
	got  map[int64]bool // offsets of parts that were claimed
	left int64          // bytes not written yet
}

// putPart writes one part; whoever writes the last one has the whole file read back and verified.
func (s *Stage) putPart(in folder, name string, i int, at int64, data []byte) error {
	e := &s.plan.entries[i]
	if at < 0 || len(data) == 0 || int64(len(data)) > e.Size-at {
		return fmt.Errorf("%d bytes at %d of %d: %w", len(data), at, e.Size, ErrContent)
	}
	p, err := s.part(in, name, i)
	if err != nil {
		return err
	}
	p.mu.Lock()
	again := p.got[at]
	p.got[at] = true
	p.mu.Unlock()
	if again {
		return nil
	}
	_, err = p.out.WriteAt(data, at)
	s.written.Add(int64(len(data)))
	p.mu.Lock()
	p.left -= int64(len(data))
	last := p.left == 0
	p.mu.Unlock()
	if err == nil && !last {
		return nil
	}
	s.mu.Lock()
	delete(s.parts, i)
	s.mu.Unlock()
	var sum release.Sum
	if err == nil {
		h := newSums("")
		if _, err = copyAll(h, io.NewSectionReader(p.out, 0, e.Size)); err == nil {
			sum, err = h.check(s.plan.digest(i))
		}
	}
	if err == nil {
		err = s.finish(in, name, i, p.out, sum)
	}
	if err = errors.Join(err, p.out.Close()); err != nil {
		return s.drop(in, name, i, err)
	}
	return nil
}

// part is the partial file i, which the first to come makes. Until it is verified its mode says that it is
// not: what a crash leaves of it is not continued from.
func (s *Stage) part(in folder, name string, i int) (*partial, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.parts[i]; p != nil {
		return p, nil
	}
	out, err := in.create(name, 0o600)
	if err != nil {
		return nil, err
	}
	p := &partial{out: out, got: map[int64]bool{}, left: s.plan.entries[i].Size}
	s.parts[i] = p
	return p, nil
}
