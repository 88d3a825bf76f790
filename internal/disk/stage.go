package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/release"
)

// Stage is a release being built in <root>/.incoming-<release>: [Stage.Put] what is [Stage.Missing] (in the
// packed layout, [Writer.Put] what it Needs), Complete, run the operator's hook in Dir, Publish. After an
// error, Close it and stage again later, which continues with what is there, or Discard it.
type Stage struct {
	d      *Disk
	id     release.ID
	digest string
	plan   *layout
	tree   *os.Root
	top    *os.File // the same directory
	sync   *os.File // of the filesystem; opened before the first write, so that syncfs reports its errors

	packed  bool
	donors  []donor      // by entry, until they were used
	written atomic.Int64 // bytes
	links   atomic.Int64
	flush   *flusher // nil: little is to be written, or it has stopped

	mu       sync.Mutex
	done     []known // by entry: files and directories that are in the tree, whole
	parts    map[int]*partial
	extra    map[string]bool // what only the settings want, once it is there
	spoilt   []error         // why donors were of no use
	complete bool
	touched  bool // somebody else may have been there since
	closed   bool
}

// known is a file whose content was verified, or a directory that was made, as it looked then. The zero
// value is not there yet.
type known struct {
	inode    uint64
	size     int64
	mtime    int64 // Unix nanoseconds
	sum      release.Sum
	mode     uint32
	uid, gid uint32
	shared   bool // the inode is another release's too
}

func knownAs(s *seen, sum release.Sum) known {
	return known{inode: s.inode, size: s.size, mtime: s.mtime, mode: s.mode, uid: s.uid, gid: s.gid, sum: sum}
}

// seenAt is what a look at path p gave.
func (k *known) seenAt(p string) seen {
	return seen{path: p, mode: k.mode, uid: k.uid, gid: k.gid, inode: k.inode, size: k.size, mtime: k.mtime}
}

// is says whether the file or directory looks as it did. Of a directory, only which one it is matters.
func (k *known) is(s *seen) bool {
	if s.isDir() {
		return k.inode == s.inode && k.mode&unix.S_IFMT == unix.S_IFDIR
	}
	return k.inode == s.inode && k.size == s.size && k.mtime == s.mtime && k.mode == s.mode &&
		k.uid == s.uid && k.gid == s.gid
}

// Stage begins or continues to build release id, whose listing has this digest. Before it writes it
// checks the whole listing ([ErrListing]) and the space for what is not there yet ([ErrNoSpace]). What
// an earlier try left is hashed and kept where the listing knows a digest; the rest is removed.
func (d *Disk) Stage(ctx context.Context, id release.ID, digest string, files []File) (*Stage, error) {
	plan, err := d.lay(files)
	if err == nil {
		var s *Stage
		if s, err = d.stage(ctx, id, digest, plan, false); err == nil {
			return s, nil
		}
	}
	return nil, fmt.Errorf("stage release %s: %w", id, err)
}

func (d *Disk) stage(ctx context.Context, id release.ID, digest string, plan *layout, packed bool) (*Stage, error) {
	if err := d.checkID(id); err != nil {
		return nil, err
	}
	d.mu.Lock()
	busy := d.staging[id]
	d.staging[id] = true
	d.mu.Unlock()
	if busy {
		return nil, errors.New("already being staged")
	}
	s := &Stage{
		d: d, id: id, digest: digest, plan: plan, packed: packed,
		done: make([]known, len(plan.entries)), parts: map[int]*partial{}, extra: map[string]bool{},
	}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.GiveUp(err))
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
	if s.packed {
		bases, err := s.findDonors(ctx)
		defer closeBases(bases)
		if err != nil {
			return err
		}
	}
	found, err := s.resume(ctx)
	if err != nil {
		return err
	}
	fresh, err := s.room()
	if err != nil {
		return err
	}
	if !found {
		name := incomingPrefix + string(s.id)
		if err := makeDir(s.d.root, name, s.d.opt.Owner); err != nil {
			return err
		}
		if err := s.enter(name); err != nil {
			return err
		}
	}
	if fresh > flushAbove {
		s.startFlush()
	}
	if err := s.makeTree(); err != nil {
		return err
	}
	if !s.packed {
		return nil
	}
	err = s.reuse(ctx)
	if err == nil && s.links.Load() > flushLinks && s.flush == nil {
		s.startFlush() // while the download and the last look at them go on
	}
	return err
}

// resume opens and sweeps the directory that an earlier try left; false: there is none.
func (s *Stage) resume(ctx context.Context) (bool, error) {
	name := incomingPrefix + string(s.id)
	info, err := s.d.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, blame(err)
	}
	if err := s.d.unmounted(name); err != nil {
		return false, err
	}
	if !info.IsDir() || !ownedBy(info, s.d.opt.Owner) { // planted, or built with other settings
		return false, blame(s.d.root.RemoveAll(name))
	}
	if err := s.enter(name); err != nil {
		return false, err
	}
	return true, s.sweep(ctx)
}

func (s *Stage) enter(name string) (err error) {
	if s.tree, err = openDir(s.d.root, name); err != nil {
		return err
	}
	s.top, err = s.tree.Open(".")
	return blame(err)
}

// folder is the top of the staged tree.
func (s *Stage) folder() folder { return folder{int(s.top.Fd()), s.path()} }

// Dir is where the release is being built, for the after_sync hook. Who asks for it may change what lies there: Publish then looks
// at every file again, and else relies on what Complete saw.
func (s *Stage) Dir() string {
	s.touched = true
	return s.path()
}

func (s *Stage) path() string { return filepath.Join(s.d.opt.Root, incomingPrefix+string(s.id)) }

// Missing lists what of a plain listing must still be Put, in its order.
func (s *Stage) Missing() []File {
	s.mu.Lock()
	defer s.mu.Unlock()
	var missing []File
	for i, f := range s.plan.files {
		if s.done[s.plan.file[i]].inode == 0 {
			missing = append(missing, f)
		}
	}
	return missing
}

// room checks the space for what is new: files that are neither there nor to be linked, and all other
// names. It returns the new bytes.
func (s *Stage) room() (fresh int64, err error) {
	var sizes []int64
	others := 0
	for i := range s.plan.entries {
		e := &s.plan.entries[i]
		switch {
		case s.done[i].inode != 0:
		case e.Kind != release.File:
			others++
		case !s.packed || !s.donors[i].link:
			sizes, fresh = append(sizes, e.Size), fresh+e.Size
		}
	}
	return fresh, s.d.room(sizes, others)
}

// mode is what stat shall say of entry i.
func (s *Stage) mode(i int) uint32 {
	if s.plan.entries[i].Kind == release.Dir {
		return unix.S_IFDIR | 0o755
	}
	return unix.S_IFREG | s.plan.entries[i].Mode()
}

// dirOwner is the web user for the writable directories and the directories in them.
func (s *Stage) dirOwner(p string) User {
	if below(p, s.d.opt.Writable) {
		return s.d.opt.WebUser
	}
	return s.d.opt.Owner
}

// makeTree makes the release's directories, those of one depth at the same time. An empty one where a
// shared link goes is left out.
func (s *Stage) makeTree() error {
	levels := map[int][]directory{}
	for _, dir := range byDirectory(len(s.plan.entries), func(i int) (string, bool) {
		e := &s.plan.entries[i]
		_, shared := s.d.opt.Shared[e.Path]
		return e.Path, e.Kind == release.Dir && s.done[i].inode == 0 && !shared
	}) {
		depth := 0
		if dir.path != "" {
			depth = 1 + strings.Count(dir.path, "/")
		}
		levels[depth] = append(levels[depth], dir)
	}
	for _, depth := range slices.Sorted(maps.Keys(levels)) {
		dirs := levels[depth]
		err := each(len(dirs), func(n int) error {
			in, err := s.folder().enter(dirs[n].path)
			if err != nil {
				return err
			}
			defer in.close()
			for _, i := range dirs[n].members {
				_, name := split(s.plan.entries[i].Path)
				made, err := in.mkdir(name, s.dirOwner(s.plan.entries[i].Path))
				if err != nil {
					return err
				}
				s.done[i] = knownAs(&made, release.Sum{})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// mkdir makes one directory of mode 0755, whatever the umask.
func (f folder) mkdir(name string, owner User) (seen, error) {
	if err := unix.Mkdirat(f.fd, name, 0o755); err != nil {
		return seen{}, f.blame("mkdir", name, err)
	}
	is, err := f.look(name)
	if err != nil || is.mode == unix.S_IFDIR|0o755 && is.ownedBy(owner) {
		return is, err
	}
	sub, err := f.enter(name)
	if err != nil {
		return is, err
	}
	defer sub.close()
	err = unix.Fchown(sub.fd, owner.UID, owner.GID)
	if err == nil {
		err = unix.Fchmod(sub.fd, 0o755)
	}
	if err != nil {
		return is, f.blame("own", name, err)
	}
	return f.look(name)
}
