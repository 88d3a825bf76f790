package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/release"
)

// Stage is a release being built in <root>/.incoming-<release>: Put what is Missing, Complete, run the
// operator's hook in Dir, Publish. After an error, Close it and stage again later, which continues with
// what is there, or Discard it.
type Stage struct {
	d      *Disk
	id     release.ID
	digest string
	plan   *layout
	tree   *os.Root
	sync   *os.File // of the filesystem; opened before the first write, so that syncfs reports its errors

	mu       sync.Mutex
	done     map[string]known // files that are in the tree, whole
	dirs     map[string]bool  // directories that are
	complete bool
	closed   bool
}

// known is a file whose content was verified, as it looked then.
type known struct {
	inode uint64
	size  int64
	mtime int64 // Unix nanoseconds
	sum   string
}

func knownAs(info fs.FileInfo, sum string) known {
	return known{stat(info).Ino, info.Size(), info.ModTime().UnixNano(), sum}
}

// Stage begins or continues to build release id, whose listing has this digest. Before it writes it
// checks the whole listing ([ErrListing]) and the space for what is not there yet ([ErrNoSpace]). What
// an earlier try left is hashed and kept where the listing knows a digest; the rest is removed.
func (d *Disk) Stage(ctx context.Context, id release.ID, digest string, files []File) (*Stage, error) {
	s, err := d.stage(ctx, id, digest, files)
	if err != nil {
		return nil, fmt.Errorf("stage release %s: %w", id, err)
	}
	return s, nil
}

func (d *Disk) stage(ctx context.Context, id release.ID, digest string, files []File) (*Stage, error) {
	if err := d.checkID(id); err != nil {
		return nil, err
	}
	plan, err := d.lay(files)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	busy := d.staging[id]
	d.staging[id] = true
	d.mu.Unlock()
	if busy {
		return nil, errors.New("already being staged")
	}
	s := &Stage{d: d, id: id, digest: digest, plan: plan, done: map[string]known{}, dirs: map[string]bool{}}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// checkID refuses what cannot be a release's directory in this root.
func (d *Disk) checkID(id release.ID) error {
	if _, err := release.ParseID(string(id)); err != nil {
		return fmt.Errorf("%w: %w", ErrListing, err)
	}
	if id.Collides(d.opt.Active) {
		return fmt.Errorf("%q is a link's name in %q: %w", id, d.opt.Root, ErrListing)
	}
	return nil
}

func (s *Stage) open(ctx context.Context) (err error) {
	if s.sync, err = s.d.root.Open("."); err != nil {
		return blame(err)
	}
	name := incomingPrefix + string(s.id)
	info, err := s.d.root.Lstat(name)
	found := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return blame(err)
	}
	if err := s.d.unmounted(name); err != nil {
		return err
	}
	if found && (!info.IsDir() || !ownedBy(info, s.d.opt.Owner)) { // planted, or built with other settings
		if err := s.d.root.RemoveAll(name); err != nil {
			return blame(err)
		}
		found = false
	}
	if found {
		if s.tree, err = openDir(s.d.root, name); err != nil {
			return err
		}
		if err := s.sweep(ctx); err != nil {
			return err
		}
	}
	if err := s.d.room(s.Missing(), len(s.plan.dirs)-len(s.dirs)); err != nil {
		return err
	}
	if !found {
		if err := makeDir(s.d.root, name, s.d.opt.Owner); err != nil {
			return err
		}
		if s.tree, err = openDir(s.d.root, name); err != nil {
			return err
		}
	}
	for _, p := range s.plan.dirs {
		if err := s.makeDirs(p); err != nil {
			return err
		}
	}
	return nil
}

// Dir is where the release is being built, for the after_sync hook.
func (s *Stage) Dir() string { return filepath.Join(s.d.opt.Root, incomingPrefix+string(s.id)) }

// Missing lists what must still be Put, in the listing's order.
func (s *Stage) Missing() []File {
	s.mu.Lock()
	defer s.mu.Unlock()
	var missing []File
	for _, p := range s.plan.order {
		if _, ok := s.done[p]; !ok {
			missing = append(missing, s.plan.files[p])
		}
	}
	return missing
}

// Put writes one missing file from r, which must give exactly f.Size bytes of the digest that f names
// ([ErrContent]). After an error nothing of it is left. Safe for concurrent use, for different files. f
// may know more or less of the digest than the listing did.
func (s *Stage) Put(f File, r io.Reader) error {
	planned, ok := s.plan.files[f.Path]
	if !ok || planned.Size != f.Size || !f.Digest.valid() {
		return fmt.Errorf("put %q: not this file in the listing: %w", f.Path, ErrListing)
	}
	out, err := s.tree.OpenFile(f.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("put %q: %w", f.Path, blame(err))
	}
	got, err := s.fill(out, f, r)
	if err = errors.Join(err, out.Close()); err != nil {
		if gone := s.tree.Remove(f.Path); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
		return fmt.Errorf("put %q: %w", f.Path, blame(err))
	}
	s.mu.Lock()
	s.done[f.Path] = got
	s.mu.Unlock()
	return nil
}

// fill gives a new file its content, owner, mode and time.
func (s *Stage) fill(out *os.File, f File, r io.Reader) (known, error) {
	h := newSums(f.Digest)
	n, err := copyAll(io.MultiWriter(out, h), io.LimitReader(r, f.Size+1))
	if err != nil {
		return known{}, err
	}
	if n != f.Size {
		return known{}, fmt.Errorf("%d bytes or more, not %d: %w", n, f.Size, ErrContent)
	}
	sum, err := h.check(f.Digest)
	if err != nil {
		return known{}, err
	}
	if err := own(out, s.d.opt.Owner, f.mode()); err != nil {
		return known{}, err
	}
	if !f.Modified.IsZero() {
		if err := s.tree.Chtimes(f.Path, f.Modified, f.Modified); err != nil {
			return known{}, err
		}
	}
	info, err := out.Stat()
	if err != nil {
		return known{}, err
	}
	return knownAs(info, sum), nil
}

func (f File) mode() fs.FileMode {
	if f.Exec {
		return 0o755
	}
	return 0o644
}

// sweep keeps what an earlier try left whole, and removes everything else.
func (s *Stage) sweep(ctx context.Context) error {
	wanted := map[string]bool{}
	for _, p := range s.plan.dirs {
		wanted[p] = true
	}
	var left []File
	err := walk(s.tree, "", func(n node) error {
		if wanted[n.path] && n.info.IsDir() && n.info.Mode().Perm() == 0o755 && ownedBy(n.info, s.dirOwner(n.path)) {
			s.dirs[n.path] = true
			return nil
		}
		if f, ok := s.plan.files[n.path]; ok && s.resembles(n.info, f) {
			left = append(left, f)
			return nil
		}
		if err := n.dir.RemoveAll(n.name); err != nil {
			return blame(err)
		}
		return fs.SkipDir
	})
	if err != nil {
		return err
	}
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(runtime.GOMAXPROCS(0))
	for _, f := range left {
		work.Go(func() error { return errors.Join(ctx.Err(), s.keep(f)) })
	}
	return work.Wait()
}

// resembles says whether what is there could be f, without reading it. Times are compared in seconds,
// which every filesystem and S3 keeps.
func (s *Stage) resembles(info fs.FileInfo, f File) bool {
	return f.Digest != "" && info.Mode() == f.mode() && info.Size() == f.Size && ownedBy(info, s.d.opt.Owner) &&
		(f.Modified.IsZero() || info.ModTime().Unix() == f.Modified.Unix())
}

// keep hashes a file that an earlier try left, and removes it when it is not what it should be.
func (s *Stage) keep(f File) error {
	info, err := s.tree.Lstat(f.Path)
	if err != nil {
		return blame(err)
	}
	sum, err := hashFile(s.tree, f.Path, info, f.Digest)
	if errors.Is(err, ErrContent) || errors.Is(err, unix.EIO) {
		return blame(s.tree.Remove(f.Path))
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.done[f.Path] = knownAs(info, sum)
	s.mu.Unlock()
	return nil
}
