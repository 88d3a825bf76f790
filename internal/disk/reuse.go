package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/release"
)

// base is a release on this disk whose contents another may use.
type base struct {
	tree   *os.Root
	top    folder
	dir    *os.File // top's
	device uint64   // that the index speaks of
}

func closeBases(bases []*base) {
	for _, b := range bases {
		b.dir.Close()
		b.tree.Close()
	}
}

// donor is a file of another release that has an entry's content. The zero value is none.
type donor struct {
	base  *base
	entry *entry
	link  bool // mode and mtime are right too: the inode itself will do
}

// is says whether f is the donor's inode, as its release's index says it looks.
func (d *donor) is(f *seen) bool {
	return d.base != nil && f.dev == d.base.device && f.inode == d.entry.inode && f.size == d.entry.size &&
		f.mtime == d.entry.mtime && f.mode == d.entry.mode
}

// lookFurther is how many bytes the last live release may lack before others are looked into: that many come with the delta or in one
// request, while an index of 23,000 files takes some 10 ms to read, and a site that deploys often has many.
const lookFurther = 1 << 20

// findDonors finds contents in the releases of this disk, the last live first: under the same path, and
// under any other for what that did not settle. It only reads indexes. A release that cannot be read is no
// base. The bases are to be closed.
func (s *Stage) findDonors(ctx context.Context) ([]*base, error) {
	s.donors = make([]donor, len(s.plan.entries))
	infos, err := s.d.releases()
	if err != nil {
		s.d.log.Warn("no release used as a base", "release", s.id, "error", err)
	}
	var bases []*base
	var open map[release.Sum][]int32 // entries without a donor to link
	for _, info := range infos {
		if err := ctx.Err(); err != nil {
			return bases, err
		}
		if open != nil && s.lacking(open) <= lookFurther {
			break
		}
		b, ix, err := s.d.openBase(info.ID)
		if err != nil {
			s.d.log.Warn("release not used as a base", "release", info.ID, "error", err)
			continue
		}
		bases = append(bases, b)
		s.matchPaths(b, ix)
		if open == nil {
			open = s.unsettled()
		}
		s.matchContents(b, ix, open)
	}
	return bases, nil
}

func (d *Disk) openBase(id release.ID) (*base, *index, error) {
	ix, err := d.readIndex(id)
	if err != nil {
		return nil, nil, err
	}
	tree, err := openDir(d.root, string(id))
	if err != nil {
		return nil, nil, err
	}
	dir, err := tree.Open(".")
	if err != nil {
		return nil, nil, errors.Join(blame(err), tree.Close())
	}
	device := ix.Device
	if !d.believes(id) {
		device = 0 // as if moved from another: hashed before it is linked
	}
	return &base{tree, folder{int(dir.Fd()), d.Path(id)}, dir, device}, ix, nil
}

// offer notes a donor for entry i, if it is better than what there is.
func (s *Stage) offer(i int, b *base, e *entry) {
	at, _ := s.plan.time(i)
	link := s.d.shares && e.mode == s.mode(i) && e.mtime == at && !below(s.plan.entries[i].Path, s.d.opt.Writable)
	if s.donors[i].base == nil || link && !s.donors[i].link {
		s.donors[i] = donor{b, e, link}
	}
}

// wants says whether entry i has content that is worth looking for: a file without any is made.
func (s *Stage) wants(i int) bool {
	e := &s.plan.entries[i]
	return e.Kind == release.File && e.Size > 0 && !s.donors[i].link
}

// matchPaths goes through both lists, which are in the same order.
func (s *Stage) matchPaths(b *base, ix *index) {
	n := 0
	for i := range s.plan.entries {
		p := s.plan.entries[i].Path
		for n < len(ix.entries) && release.ComparePaths(ix.entries[n].path, p) < 0 {
			n++
		}
		if n == len(ix.entries) {
			return
		}
		if e := &ix.entries[n]; e.path == p && e.kind == 'f' && s.wants(i) && e.size == s.plan.entries[i].Size && e.sum == s.plan.entries[i].Sum {
			s.offer(i, b, e)
		}
	}
}

func (s *Stage) matchContents(b *base, ix *index, open map[release.Sum][]int32) {
	if len(open) == 0 {
		return
	}
	for n := range ix.entries {
		e := &ix.entries[n]
		if e.kind != 'f' {
			continue
		}
		for _, i := range open[e.sum] {
			if e.size == s.plan.entries[i].Size {
				s.offer(int(i), b, e)
			}
		}
	}
}

// unsettled lists by content what has no donor to link.
func (s *Stage) unsettled() map[release.Sum][]int32 {
	open := map[release.Sum][]int32{}
	for i := range s.plan.entries {
		if s.wants(i) {
			open[s.plan.entries[i].Sum] = append(open[s.plan.entries[i].Sum], int32(i))
		}
	}
	return open
}

// lacking is how many bytes no base has, of the contents that are open.
func (s *Stage) lacking(open map[release.Sum][]int32) (bytes int64) {
	for _, same := range open {
		if i := same[0]; s.donors[i].base == nil {
			bytes += s.plan.entries[i].Size
		}
	}
	return bytes
}

// reuse links and copies from the donors what is not there yet, a directory of the new tree at a time, and
// makes files without content.
func (s *Stage) reuse(ctx context.Context) error {
	dirs := byDirectory(len(s.plan.entries), func(i int) (string, bool) {
		e := &s.plan.entries[i]
		return e.Path, e.Kind == release.File && s.done[i].inode == 0 && (e.Size == 0 || s.donors[i].base != nil)
	})
	err := each(len(dirs), func(n int) error {
		in, err := s.folder().enter(dirs[n].path)
		if err != nil {
			return err
		}
		defer in.close()
		from := source{}
		defer from.close()
		for _, i := range dirs[n].members {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := s.take(&from, in, int(i)); err != nil {
				return err
			}
		}
		return nil
	})
	if n := len(s.spoilt); n > 0 {
		s.d.log.Warn("files of kept releases are not as they were, to be fetched", "release", s.id, "files", n, "first", s.spoilt[0])
	}
	s.donors, s.spoilt = nil, nil // the indexes are large, and the download comes now
	return err
}

// source is the directory that a worker took the last file from.
type source struct {
	base *base
	path string
	folder
}

func (o *source) close() {
	if o.base != nil {
		o.folder.close()
		o.base = nil
	}
}

func (o *source) move(b *base, dir string) error {
	if o.base == b && o.path == dir {
		return nil
	}
	o.close()
	in, err := b.top.enter(dir)
	if err == nil {
		o.base, o.path, o.folder = b, dir, in
	}
	return err
}

// take brings one file from its donor. What is wrong there leaves the file to be fetched.
func (s *Stage) take(from *source, in folder, i int) error {
	_, name := split(s.plan.entries[i].Path)
	if s.plan.entries[i].Size == 0 {
		return s.putWhole(in, name, i, nil)
	}
	d := s.donors[i]
	dir, old := split(d.entry.path)
	err := from.move(d.base, dir)
	if err == nil && d.link {
		err = s.link(from, old, in, name, i)
		if err == nil {
			return nil
		}
	}
	if err == nil || isNoLink(err) {
		err = s.copy(from, old, in, name, i)
	}
	if err = blame(err); errors.Is(err, ErrNoSpace) || errors.Is(err, ErrReadOnly) {
		return err
	}
	if err != nil {
		s.mu.Lock()
		s.spoilt = append(s.spoilt, err)
		s.mu.Unlock()
	}
	return nil
}

// errOwner is about a file that has another owner than releases should have now.
var errOwner = errors.New("has another owner")

// isNoLink says whether a copy may do where a link would not: EMLINK, EPERM (the filesystem has no links, or
// the kernel protects the file from us), EXDEV, or another owner.
func isNoLink(err error) bool {
	return errors.Is(err, unix.EMLINK) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EXDEV) || errors.Is(err, errOwner)
}

// link links a donor's file and verifies what came of it; after an error nothing did.
func (s *Stage) link(from *source, old string, in folder, name string, i int) error {
	if err := s.d.link(from.fd, old, in.fd, name); err != nil {
		return blame(&os.LinkError{Op: "link", Old: from.name + "/" + old, New: in.name + "/" + name, Err: err})
	}
	is, err := in.look(name)
	d := &s.donors[i]
	switch {
	case err != nil:
	case is.mode != d.entry.mode || is.size != d.entry.size || is.mtime != d.entry.mtime:
		err = fmt.Errorf("%q: not as it was published: %w", from.name+"/"+old, ErrDamaged)
	case !is.ownedBy(s.d.opt.Owner):
		err = errOwner
	case !d.is(&is): // restored, or on a disk with another number
		_, err = in.hash(name, &is, s.plan.digest(i))
	}
	if err != nil {
		return errors.Join(err, in.remove(name))
	}
	s.links.Add(1)
	s.mu.Lock()
	s.done[i] = knownAs(&is, s.plan.entries[i].Sum)
	s.done[i].shared = true
	s.mu.Unlock()
	return nil
}

// copy makes a new inode with a donor's content: sharing blocks where the filesystem can, else copied in
// the kernel, else by us. Unless the donor is as its index says, the copy is hashed.
func (s *Stage) copy(from *source, old string, in folder, name string, i int) error {
	file, is, err := from.open(old)
	if err != nil {
		return err
	}
	defer file.Close()
	if is.size != s.plan.entries[i].Size {
		return fmt.Errorf("%q: another size: %w", file.Name(), ErrDamaged)
	}
	trusted := s.donors[i].is(&is)
	return s.create(in, name, i, func(out *os.File) (release.Sum, error) {
		sum := s.plan.entries[i].Sum
		if unix.IoctlFileClone(int(out.Fd()), int(file.Fd())) != nil {
			// os.File copies by copy_file_range(2) and falls back to reading and writing.
			if n, err := io.CopyN(out, file, is.size); err != nil {
				return sum, fmt.Errorf("%d of %d bytes copied: %w", n, is.size, err)
			}
		}
		if trusted {
			return sum, nil
		}
		h := newSums("")
		if _, err := copyAll(h, io.NewSectionReader(out, 0, is.size+1)); err != nil {
			return sum, err
		}
		return h.check(s.plan.digest(i))
	})
}
