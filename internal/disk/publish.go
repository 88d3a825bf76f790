package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/weak"
)

// Complete checks that the tree is exactly the listing, and adds the release's symlinks and what the options
// say: writable directories, shared links ([ErrSharedMissing] names a target that is not there; nothing is
// added then), the stamp. Afterwards hooks may change the tree, until Publish; but a file that an older
// release shares must be replaced, not written to. After [ErrSync] the tree is gone, as with Publish.
func (s *Stage) Complete() error {
	err := s.exact()
	if err == nil {
		err = s.d.CheckShared()
	}
	for _, add := range []func() error{s.addLinks, s.addWritable, s.addShared, s.addStamp} {
		if err == nil {
			err = add()
		}
	}
	if failed := s.settle(); failed != nil {
		err = s.lost(failed)
	}
	if err != nil {
		return fmt.Errorf("complete release %s: %w", s.id, err)
	}
	s.complete = true
	return nil
}

// CheckShared says which shared target is missing, as [ErrSharedMissing], for a machine that is about to
// promise a release it has had for longer.
func (d *Disk) CheckShared() error {
	for _, p := range sortedKeys(d.opt.Shared) {
		if _, err := os.Stat(d.opt.Shared[p]); err != nil {
			return fmt.Errorf("shared %q: %w: %w", p, ErrSharedMissing, err)
		}
	}
	return nil
}

// exact compares the tree with what is known of it: all there as it was verified, and nothing else. Of an
// inode that is shared only the name is looked at: written to meanwhile, Publish refuses it.
func (s *Stage) exact() error {
	missing, first := 0, ""
	for i := range s.plan.entries {
		if s.plan.entries[i].Kind == release.File && s.done[i].inode == 0 {
			if missing++; first == "" {
				first = s.plan.entries[i].Path
			}
		}
	}
	if missing > 0 {
		return fmt.Errorf("%d files are missing, the first is %q: %w", missing, first, ErrContent)
	}
	found, err := scan(s.folder(), s.sharedAs, func(string) bool { return false })
	if err != nil {
		return err
	}
	n := 0
	for i := range s.plan.entries {
		k := &s.done[i]
		if k.inode == 0 { // a link, or left out for a shared one
			continue
		}
		p := s.plan.entries[i].Path
		if n == len(found) || release.ComparePaths(found[n].path, p) > 0 {
			return fmt.Errorf("%q: removed by somebody else: %w", path.Join(s.path(), p), ErrDamaged)
		}
		if found[n].path != p || !k.is(&found[n]) {
			break
		}
		n++
	}
	if n < len(found) {
		return fmt.Errorf("%q: put there or altered by somebody else: %w", path.Join(s.path(), found[n].path), ErrDamaged)
	}
	return nil
}

// sharedAs says how the shared file p looked when it was linked, if this is still its inode.
func (s *Stage) sharedAs(p string, inode uint64) (seen, bool) {
	i, ok := s.plan.find(p)
	if !ok || !s.done[i].shared || s.done[i].inode != inode {
		return seen{}, false
	}
	return s.done[i].seenAt(p), true
}

func (s *Stage) addWritable() error {
	for _, p := range s.d.opt.Writable {
		if err := s.makeDirs(p); err != nil {
			return err
		}
	}
	return nil
}

func (s *Stage) addShared() error {
	for _, p := range sortedKeys(s.d.opt.Shared) {
		if err := s.makeDirs(path.Dir(p)); err != nil {
			return err
		}
		if err := s.tree.Symlink(s.d.opt.Shared[p], p); err != nil {
			return blame(err)
		}
		s.extra[p] = true
		if s.d.opt.Owner != self() {
			if err := s.tree.Lchown(p, s.d.opt.Owner.UID, s.d.opt.Owner.GID); err != nil {
				return blame(err)
			}
		}
	}
	return nil
}

// addStamp writes the file that tells PHP which release it runs. Its time is the newest file's, equal on
// every instance.
func (s *Stage) addStamp() error {
	p := s.d.opt.Stamp
	if p == "" {
		return nil
	}
	if err := s.makeDirs(path.Dir(p)); err != nil {
		return err
	}
	f, err := s.tree.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return blame(err)
	}
	s.extra[p] = true
	_, err = fmt.Fprintf(f, "<?php return '%s';\n", s.id.Stamp())
	if err == nil {
		err = own(f, s.d.opt.Owner, 0o644)
	}
	if err == nil && s.plan.mtime > 0 {
		at := time.Unix(0, s.plan.mtime)
		err = s.tree.Chtimes(p, at, at)
	}
	return blame(errors.Join(err, f.Close()))
}

// makeDirs makes directory p of the tree and those above it, where they are not there yet.
func (s *Stage) makeDirs(p string) error {
	if p == "." || s.extra[p] {
		return nil
	}
	if i, ok := s.plan.find(p); ok && s.done[i].inode != 0 {
		return nil
	}
	if err := s.makeDirs(path.Dir(p)); err != nil {
		return err
	}
	if err := makeDir(s.tree, p, s.dirOwner(p)); err != nil {
		return err
	}
	s.extra[p] = true
	return nil
}

// Publish makes the completed tree durable, writes its index and gives it the release's name. Something
// else of that name, live or not, changes places with it: ours goes to be deleted, a foreign one is
// kept as .foreign-<release>. After [ErrSync] the tree is gone: what was written cannot be trusted, and
// a second sync would say nothing about it. The stage is closed when Publish succeeds.
func (s *Stage) Publish(ctx context.Context) error {
	if err := s.publish(ctx); err != nil {
		return fmt.Errorf("publish release %s: %w", s.id, err)
	}
	return s.Close()
}

func (s *Stage) publish(ctx context.Context) error {
	if !s.complete {
		return errors.New("not completed")
	}
	ix, err := s.index(ctx)
	if err != nil {
		return err
	}
	early, err := s.indexEarly(ix)
	if err != nil {
		return err
	}
	if err := failpoint.Hit("A9"); err != nil {
		return s.lost(err)
	}
	if weak.Rule != "M11" {
		if err := s.d.syncfs(s.sync); err != nil {
			return s.lost(err)
		}
	}
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	ours := s.d.owns(s.id)
	if err := failpoint.Hit("A10"); err != nil {
		return err
	}
	if !early {
		if err := s.d.writeIndex(ix); err != nil {
			return err
		}
	}
	if err := failpoint.Hit("A11"); err != nil {
		return err
	}
	if err := s.d.install(s.id, ours); err != nil {
		return err
	}
	if err := s.d.syncDir(s.d.rootDir); err != nil {
		// Nobody may count on a name that can vanish; without its index it is nobody's.
		return errors.Join(err, s.d.state.Remove(indexFile(s.id)))
	}
	return nil
}

// indexEarly writes the index where the one sync that the tree needs makes it durable too, which spares two. Not while the release has
// an index: until another tree has its name, that is the truth about it.
func (s *Stage) indexEarly(ix *index) (bool, error) {
	if !s.d.together {
		return false, nil
	}
	if _, err := s.d.state.Lstat(indexFile(s.id)); !errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return true, s.d.putIndex(ix, func(*os.File) error { return nil })
}

// install gives the staged tree its name, changing places with what is there.
func (d *Disk) install(id release.ID, ours bool) error {
	incoming := incomingPrefix + string(id)
	err := d.rename(incoming, string(id), unix.RENAME_NOREPLACE)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	prefix := foreignPrefix
	if ours {
		prefix = trashPrefix
	}
	end, err := d.aside(incoming, prefix)
	if err != nil {
		return err
	}
	if err := d.rename(end, string(id), unix.RENAME_EXCHANGE); err != nil {
		return errors.Join(err, d.rename(end, incoming, unix.RENAME_NOREPLACE))
	}
	d.log.Info("release changed places with what was there", "release", id, "kept_as", end)
	return nil
}

// Discard removes the tree and closes the stage.
func (s *Stage) Discard() error {
	if err := errors.Join(s.discard(), s.Close()); err != nil {
		return fmt.Errorf("discard release %s: %w", s.id, err)
	}
	return nil
}

// discard first takes the tree's name away: a crash in the middle must leave nothing to continue from.
func (s *Stage) discard() error {
	trash, err := s.d.aside(incomingPrefix+string(s.id), trashPrefix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.d.unmounted(trash); err != nil {
		return err
	}
	return blame(s.d.root.RemoveAll(trash))
}

// GiveUp is Close for a stage that ended with err, after which the tree is worth continuing from, but for [ErrNoSpace]: then it
// is discarded, for what is served may need the room.
func (s *Stage) GiveUp(err error) error {
	if errors.Is(err, ErrNoSpace) && !s.closed {
		return s.Discard()
	}
	return s.Close()
}

// Close lets go of the tree and leaves it for a later Stage of the same release. It may be called again.
func (s *Stage) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	var errs []error
	if err := s.settle(); err != nil { // nobody may continue from this
		errs = append(errs, s.lost(err))
	}
	for _, p := range s.parts {
		errs = append(errs, p.out.Close())
	}
	if s.top != nil {
		errs = append(errs, s.top.Close())
	}
	if s.tree != nil {
		errs = append(errs, s.tree.Close())
	}
	if s.sync != nil {
		errs = append(errs, s.sync.Close())
	}
	s.d.mu.Lock()
	delete(s.d.staging, s.id)
	s.d.mu.Unlock()
	return errors.Join(errs...)
}

func sortedKeys(m map[string]string) []string {
	return slices.Sorted(maps.Keys(m))
}
