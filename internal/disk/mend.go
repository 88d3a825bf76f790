package disk

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/release"
)

// Mend brings what is damaged in the published release of this id back to what it was, from this stage, which has all contents: each
// damaged file is replaced, by rename, by a new inode, while the release may be live. All else stays: what hooks have made, and
// what PHP keeps in writable directories, which a publication would start anew. [ErrDamaged] when that is not enough, as for a file
// of a hook's making: then the release is to be published anew. The stage is discarded when Mend succeeds.
func (s *Stage) Mend(ctx context.Context) error {
	if err := s.mend(ctx); err != nil {
		return fmt.Errorf("mend release %s: %w", s.id, err)
	}
	return s.Discard()
}

func (s *Stage) mend(ctx context.Context) error {
	if err := s.settle(); err != nil {
		return s.lost(err)
	}
	if err := s.exact(); err != nil {
		return err
	}
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	if !s.d.owns(s.id) {
		return fmt.Errorf("%q: not what was published here: %w", s.d.Path(s.id), ErrDamaged)
	}
	ix, err := s.d.readIndex(s.id)
	if err != nil {
		return err
	}
	tree, err := openDir(s.d.root, string(s.id))
	if err != nil {
		return err
	}
	defer tree.Close()
	top, err := tree.Open(".")
	if err != nil {
		return blame(err)
	}
	defer top.Close()
	if err := s.d.syncfs(s.sync); err != nil { // nothing takes a name in use that is not on the disk
		return s.lost(err)
	}
	for i := range ix.entries {
		if err := s.replace(folder{int(top.Fd()), s.d.Path(s.id)}, &ix.entries[i]); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if err := s.d.syncfs(s.sync); err != nil {
		return fmt.Errorf("%w: %w", ErrSync, err)
	}
	return s.d.writeIndex(ix) // a crash before costs a hash: the new inodes are not the index's
}

// replace puts the staged file in the place of an entry of the release, if that is damaged.
func (s *Stage) replace(tree folder, e *entry) error {
	dir, name := split(e.path)
	there, err := tree.enter(dir)
	if err != nil {
		if isDamage(err) {
			err = fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		return err
	}
	defer there.close()
	_, damage := e.verify(there, false)
	if !errors.Is(damage, ErrDamaged) {
		return damage
	}
	i, ok := s.plan.find(e.path)
	if !ok || !s.brings(i, e) {
		return damage
	}
	here, err := s.folder().enter(dir)
	if err != nil {
		return err
	}
	defer here.close()
	if err := unix.Renameat(here.fd, name, there.fd, name); err != nil {
		return there.blame("replace", name, err)
	}
	s.d.log.Info("damaged file replaced", "release", s.id, "path", e.path, "was", damage)
	e.inode, e.mtime = s.done[i].inode, s.done[i].mtime
	return nil
}

// brings says whether entry i of the stage is what the release's index says was published.
func (s *Stage) brings(i int, e *entry) bool {
	k := &s.done[i]
	return e.kind == 'f' && s.plan.entries[i].Kind == release.File && k.inode != 0 && k.sum == e.sum && k.mode == e.mode
}
