package disk

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/release"
)

// StageManifest is [Disk.Stage] for the packed layout: it begins or continues to build a release from its
// manifest, which stays the caller's to read. Contents that a release on this disk has already are linked
// or copied from there at once, and a file without content is made; what is left to bring is
// [Stage.Need]. Only what is new counts for the space ([ErrNoSpace]).
//
// A link is made where content, mode and mtime are the same; it keeps the page cache warm. Where mode or
// mtime differ, the file lies in a writable directory, or Owner is also WebUser (who could write to all
// releases at once through a link; root can anyway), a copy, which shares its blocks where the filesystem
// can. What is linked is looked at under its new name: as its release's index says, or else hashed. What
// turns out damaged is logged and fetched again, into a new inode.
func (d *Disk) StageManifest(ctx context.Context, id release.ID, digest string, m *release.Manifest) (*Stage, error) {
	plan, err := d.layEntries(m.Entries)
	if err == nil {
		var s *Stage
		if s, err = d.stage(ctx, id, digest, plan, true); err == nil {
			return s, nil
		}
	}
	return nil, fmt.Errorf("stage release %s: %w", id, err)
}

// Need lists the entries of the manifest whose contents must still be put, in ascending order, as
// [release.Manifest.Fetch] takes them.
func (s *Stage) Need() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	var need []int
	for i := range s.plan.entries {
		if s.plan.entries[i].Kind == release.File && s.done[i].inode == 0 {
			need = append(need, i)
		}
	}
	return need
}

// addLinks makes the release's symlinks. They come last, when nothing of the release is written any more
// that could go through one.
func (s *Stage) addLinks() error {
	dirs := byDirectory(len(s.plan.entries), func(i int) (string, bool) {
		return s.plan.entries[i].Path, s.plan.entries[i].Kind == release.Symlink
	})
	return each(len(dirs), func(n int) error {
		in, err := s.folder().enter(dirs[n].path)
		if err != nil {
			return err
		}
		defer in.close()
		for _, i := range dirs[n].members {
			if err := s.addLink(in, int(i)); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Stage) addLink(in folder, i int) error {
	e := &s.plan.entries[i]
	_, name := split(e.Path)
	err := unix.Symlinkat(e.Target, in.fd, name)
	if owner := s.d.opt.Owner; err == nil && owner != self() {
		err = unix.Fchownat(in.fd, name, owner.UID, owner.GID, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil {
		at := unix.NsecToTimespec(e.MTime * 1e9)
		err = unix.UtimesNanoAt(in.fd, name, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
	}
	return in.blame("symlink", name, err)
}

// sweep keeps what an earlier try left whole, and removes everything else. What is still the inode of the
// release that it would be linked from counts by that release's index, other files by their hash.
func (s *Stage) sweep(ctx context.Context) error {
	top := s.folder()
	found, err := scan(top, noTrust, func(dir string) bool { is, _ := s.plan.isDir(dir); return !is })
	if err != nil {
		return err
	}
	var left []seen
	gone := ""
	for i := range found {
		f := &found[i]
		if gone != "" && below(f.path, []string{gone}) {
			continue
		}
		n, ok := s.plan.find(f.path)
		if _, shared := s.d.opt.Shared[f.path]; shared {
			ok = false // built with other settings
		}
		switch {
		case ok && f.isDir() && s.plan.entries[n].Kind == release.Dir && f.mode == s.mode(n) && f.ownedBy(s.dirOwner(f.path)):
			s.done[n] = knownAs(f, release.Sum{})
		case ok && s.plan.entries[n].Kind == release.File && s.resembles(f, n):
			left = append(left, *f)
		default:
			if err := s.tree.RemoveAll(f.path); err != nil {
				return blame(err)
			}
			gone = f.path
		}
	}
	return s.keep(ctx, left)
}

// resembles says whether what is there could be file i, without reading it. Times are compared in seconds,
// which every filesystem and S3 keeps.
func (s *Stage) resembles(f *seen, i int) bool {
	at, timed := s.plan.time(i)
	return s.plan.digest(i) != "" && f.mode == s.mode(i) && f.size == s.plan.entries[i].Size &&
		f.ownedBy(s.d.opt.Owner) && (!timed || f.mtime/1e9 == at/1e9)
}

// keep verifies files that an earlier try left, and removes those that are not what they should be.
func (s *Stage) keep(ctx context.Context, left []seen) error {
	dirs := byDirectory(len(left), func(i int) (string, bool) { return left[i].path, true })
	return each(len(dirs), func(n int) error {
		in, err := s.folder().enter(dirs[n].path)
		if err != nil {
			return err
		}
		defer in.close()
		for _, m := range dirs[n].members {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := s.keepFile(in, &left[m]); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Stage) keepFile(in folder, f *seen) error {
	i, _ := s.plan.find(f.path)
	_, name := split(f.path)
	if s.packed {
		if d := &s.donors[i]; d.link && d.is(f) {
			s.done[i] = knownAs(f, d.entry.sum)
			s.done[i].shared = true
			return nil
		}
	}
	sum, err := in.hash(name, f, s.plan.digest(i))
	if errors.Is(err, ErrContent) || errors.Is(err, unix.EIO) {
		return in.remove(name)
	}
	if err == nil {
		s.done[i] = knownAs(f, sum)
	}
	return err
}
