package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/release"
)

// index is what a release looked like when it was published, hooks included, without what lies in its
// writable directories. Entries are in the order of [release.ComparePaths].
type index struct {
	header
	entries []entry
}

type header struct {
	Format   int        `json:"format"`
	Release  release.ID `json:"release"`
	Digest   string     `json:"digest"` // of the listing
	Built    int64      `json:"built"`  // Unix seconds
	Device   uint64     `json:"device"`
	Entries  int        `json:"entries"`
	identity            // of the release's directory: what makes it ours
}

// entry is one file (f), directory (d), writable directory (w) or link (l). Links and directories are
// compared by what they are; files by inode, size, time and mode, and where only the inode (or the
// device, after a restore or with a renumbered disk) is another, by content. Not by ctime: each link to an
// inode, which a later release makes, changes it.
type entry struct {
	kind   byte
	mode   uint32 // as stat has it
	inode  uint64
	size   int64
	mtime  int64       // Unix nanoseconds
	sum    release.Sum // of a file
	target string      // of a link
	path   string
}

// entry is what the index shall say of something found in the tree, still without content or target.
func (s *Stage) entry(f *seen) (entry, error) {
	e := entry{kind: 'f', mode: f.mode, inode: f.inode, size: f.size, mtime: f.mtime, path: f.path}
	switch f.mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFLNK:
		e.kind = 'l'
	case unix.S_IFDIR:
		if e.kind = 'd'; below(f.path, s.d.opt.Writable) {
			e.kind = 'w'
		}
	default:
		return e, fmt.Errorf("%q: neither file, directory nor link: %w", path.Join(s.path(), f.path), ErrContent)
	}
	return e, nil
}

// index takes stock of the staged tree. Files that are as they were verified keep their digest,
// others (a hook's) are hashed. A file that a hook changed in place while an older release shares it has spoilt
// that one: this one is refused ([ErrContent]).
func (s *Stage) index(ctx context.Context) (*index, error) {
	self, err := s.d.identify(incomingPrefix + string(s.id))
	if err != nil {
		return nil, err
	}
	var top unix.Stat_t
	if err := unix.Fstat(int(s.top.Fd()), &top); err != nil {
		return nil, s.folder().blame("stat", "", err)
	}
	found, err := s.found()
	if err != nil {
		return nil, err
	}
	ix := &index{
		header:  header{Format: indexFormat, Release: s.id, Digest: s.digest, Built: time.Now().Unix(), Device: top.Dev, identity: self},
		entries: make([]entry, len(found)),
	}
	var unknown []int
	n := 0
	for i := range found {
		f := &found[i]
		if ix.entries[i], err = s.entry(f); err != nil {
			return nil, err
		}
		for n < len(s.plan.entries) && release.ComparePaths(s.plan.entries[n].Path, f.path) < 0 {
			n++
		}
		k := known{}
		if n < len(s.plan.entries) && s.plan.entries[n].Path == f.path {
			k = s.done[n]
		}
		switch kind := ix.entries[i].kind; {
		case kind == 'f' && k.is(f):
			ix.entries[i].sum = k.sum
		case kind == 'f' && k.shared && k.inode == f.inode:
			return nil, fmt.Errorf("%q: changed in place by a hook, and an older release shares it: %w", path.Join(s.path(), f.path), ErrContent)
		case kind == 'f' || kind == 'l':
			unknown = append(unknown, i)
		}
	}
	return ix, s.study(ctx, ix, found, unknown)
}

// found is what is in the tree, but for what is in its writable directories: by a look at everything, or, when nobody else
// was told where the tree is, by what Complete saw and what was added since.
func (s *Stage) found() ([]seen, error) {
	if s.touched {
		return scan(s.folder(), noTrust, func(dir string) bool { return below(dir, s.d.opt.Writable) })
	}
	extra := slices.Collect(maps.Keys(s.extra))
	found := make([]seen, 0, len(s.plan.entries)+len(extra))
	for i := range s.plan.entries {
		p := s.plan.entries[i].Path
		if dir, _ := split(p); below(dir, s.d.opt.Writable) {
			continue
		}
		switch {
		case s.done[i].inode != 0:
			found = append(found, s.done[i].seenAt(p))
		case s.plan.entries[i].Kind == release.Symlink:
			extra = append(extra, p)
		}
	}
	for _, p := range extra {
		dir, name := split(p)
		if below(dir, s.d.opt.Writable) {
			continue
		}
		in, err := s.folder().enter(dir)
		if err != nil {
			return nil, err
		}
		is, err := in.look(name)
		in.close()
		if err != nil {
			return nil, err
		}
		is.path = p
		found = append(found, is)
	}
	if len(extra) > 0 {
		slices.SortStableFunc(found, func(a, b seen) int { return release.ComparePaths(a.path, b.path) })
	}
	return found, nil
}

// study reads the files and links of the index that nothing is known of yet.
func (s *Stage) study(ctx context.Context, ix *index, found []seen, unknown []int) error {
	dirs := byDirectory(len(unknown), func(i int) (string, bool) { return found[unknown[i]].path, true })
	return each(len(dirs), func(n int) error {
		in, err := s.folder().enter(dirs[n].path)
		if err != nil {
			return err
		}
		defer in.close()
		for _, u := range dirs[n].members {
			e := &ix.entries[unknown[u]]
			_, name := split(e.path)
			if e.kind == 'l' {
				e.target, err = in.readlink(name)
			} else {
				e.sum, err = in.hash(name, &found[unknown[u]], "")
			}
			if err = errors.Join(err, ctx.Err()); err != nil {
				return err
			}
		}
		return nil
	})
}

// owns says whether what has the release's name is the directory that we published. In doubt it is not.
func (d *Disk) owns(id release.ID) bool {
	h, err := d.readHeader(id)
	if err != nil {
		return false
	}
	there, err := d.identify(string(id))
	return err == nil && there == h.identity
}

// Distrust is for a disk that was cloned from another machine's: inodes and times are equal there whatever happened to the
// contents, so each release is hashed once before [Disk.Has] and [Disk.Arm] believe its index.
func (d *Disk) Distrust() {
	d.believed.Clear()
	d.distrusted.Store(true)
}

func (d *Disk) believes(id release.ID) bool {
	_, hashed := d.believed.Load(id)
	return hashed || !d.distrusted.Load()
}

// Has says whether release id is here, complete and as it was published, and of which listing digest.
// A release that is here but is not that any more is [ErrDamaged], naming the path (or [ErrState] when it is
// the index); it is to be staged again. Files that were added, as hooks do, are no damage, and neither is
// anything below a writable directory.
func (d *Disk) Has(id release.ID) (digest string, ok bool, err error) {
	ix, err := d.verified(id)
	if err != nil {
		return "", false, fmt.Errorf("verify release %s: %w", id, err)
	}
	if ix == nil {
		return "", false, nil
	}
	return ix.Digest, true, nil
}

// verified returns the index of a release that is as its index says, and nil when there is none.
func (d *Disk) verified(id release.ID) (*index, error) {
	if d.checkID(id) != nil {
		return nil, nil
	}
	there, err := d.identify(string(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // whatever the index says, or a crash left of it
	}
	ix, unread := d.readIndex(id)
	if errors.Is(unread, fs.ErrNotExist) {
		return nil, nil
	}
	if unread != nil {
		return nil, unread
	}
	if errors.Is(err, syscall.ENOTDIR) {
		return nil, fmt.Errorf("%q: not a directory: %w", d.Path(id), ErrDamaged)
	}
	if err != nil {
		return nil, err
	}
	tree, err := openDir(d.root, string(id))
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	dir, err := tree.Open(".")
	if err != nil {
		return nil, blame(err)
	}
	defer dir.Close()
	moved, err := ix.verify(folder{int(dir.Fd()), d.Path(id)}, !d.believes(id))
	if err != nil {
		return nil, err
	}
	d.believed.Store(id, true)
	if moved || there != ix.identity {
		ix.identity = there
		d.log.Info("release has other inodes and the same content", "release", id)
		return ix, d.writeIndex(ix)
	}
	return ix, nil
}

// verify compares the tree with the index, several directories at a time, and the contents too where that is asked for or
// the device is another. It says whether inodes have moved, and the index then has the new ones.
func (ix *index) verify(top folder, rehash bool) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(top.fd, &st); err != nil {
		return false, top.blame("stat", "", err)
	}
	otherDevice := st.Dev != ix.Device
	ix.Device = st.Dev
	var moved atomic.Bool
	moved.Store(otherDevice)
	dirs := byDirectory(len(ix.entries), func(i int) (string, bool) { return ix.entries[i].path, true })
	err := each(len(dirs), func(n int) error {
		in, err := top.enter(dirs[n].path)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		defer in.close()
		for _, i := range dirs[n].members {
			renewed, err := ix.entries[i].verify(in, rehash || otherDevice)
			if err != nil {
				return err
			}
			if renewed {
				moved.Store(true)
			}
		}
		return nil
	})
	return moved.Load(), err
}

// verify compares one entry of dir; it says whether the entry has changed inode (and is updated).
func (e *entry) verify(dir folder, rehash bool) (bool, error) {
	_, name := split(e.path)
	damaged := func(what string) error {
		return fmt.Errorf("%q: %s: %w", path.Join(dir.name, name), what, ErrDamaged)
	}
	is, err := dir.look(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, damaged("missing")
	}
	if err != nil {
		return false, err
	}
	if is.mode&unix.S_IFMT != e.mode&unix.S_IFMT {
		return false, damaged("of another type")
	}
	if e.kind != 'w' && is.mode != e.mode {
		return false, damaged("another mode")
	}
	switch e.kind {
	case 'l':
		if target, err := dir.readlink(name); err != nil || target != e.target {
			return false, damaged("another target")
		}
	case 'f':
		if is.size != e.size {
			return false, damaged("another size")
		}
		if is.mtime != e.mtime {
			return false, damaged("another time")
		}
		if rehash || is.inode != e.inode {
			if _, err := dir.hash(name, &is, Digest(e.sum.String())); errors.Is(err, ErrContent) || errors.Is(err, unix.EIO) {
				return false, damaged("another content")
			} else if err != nil {
				return false, err
			}
		}
	}
	renewed := is.inode != e.inode
	e.inode = is.inode
	return renewed, nil
}
