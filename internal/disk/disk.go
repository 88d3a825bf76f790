// Package disk keeps the releases of one site on this instance: it builds, verifies, names, flips and
// prunes release directories, and keeps the agent's state files. It knows no S3, no table, and not why
// a release should be live. One process owns a root and a state directory at a time.
//
// # What lies where
//
//	<root>/<release>             a complete release; named so only after its contents are durable
//	<root>/active -> <release>   what is served; a relative link, replaced by rename
//	<root>/previous -> <release> what was served before
//	<root>/.incoming-<release>   being built; a left-over one is hashed and continued
//	<root>/.foreign-<release>    what somebody else had put in a release's place; never touched again
//	<root>/.trash-*              being deleted
//	<root>/.flip-*               a link that waits to be renamed; left-over ones go when the disk is opened
//	<state>/<release>.index      what the release looked like when it was published
//	<state>/<name>.json          state files
//	<state>/reserve              1 MiB to give back when the disk is full
//
// # Order of durable steps
//
//	links, Put …, Complete, hooks, syncfs, index, rename to the release's name, fsync the root      (Publish)
//	previous link, rename the temporary link over active, fsync the root                     (Flip)
//
// The index is durable before the name: a crash in between leaves an index without a directory, which
// says nothing, and the staging directory, which the next Stage continues. The other order would leave
// a directory that is ours and looks foreign. Where both directories are on one filesystem the index is written before the
// sync, which then makes it durable as well; a crash before that may leave it torn, which is as good as none.
//
// A directory is ours when an index names its inode and birth time. Where something is in the way of a publication, the
// new tree first takes the name under which the old one shall end (.foreign-… or, when it is ours,
// .trash-…) and then the two change places in one step: `active` never dangles, and no crash leaves a
// foreign directory under a name that clean-up removes. A crash between the two renames costs the new
// tree, which is built again.
//
// previous is set before active: a crash in between leaves both naming the old release, and the flip
// done again puts that right. The other order would lose which release was left.
//
// # Two layouts
//
// A plain release is built from a listing of files ([Disk.Stage]), a packed one from a manifest
// ([Disk.StageManifest]), which also knows each file's SHA-256, empty directories and symlinks. Both end as
// the same: directories 0755, files 0644 or 0755, of one owner, with the mtime that every instance gives
// them (a directory's own mtime is when it was made).
//
// What a packed release shares with one on this disk is a hard link to it: the inode of a released file
// is never written to, nor its owner or mode changed, by anybody. A base file is believed by its index
// (device, inode, size, mtime, mode), else by its hash; a damaged one is left as it is and its content
// fetched into a new inode. A hook that writes to a shared file in place has spoilt the older release:
// its own release is refused.
//
// # Scrub
//
// The index sees what stat shows. A bit that flips shows nothing, so that [Disk.Scrub] reads everything, slowly; what it finds
// loses its inode in every index that has it, and is hashed from then on by whoever meets it. [Stage.Mend] replaces single files
// of a release that may be live, by rename, in a tree that otherwise stays.
//
// # Trust
//
// Names that a release brings are taken part by part: each directory is opened below the staging
// directory's descriptor with openat2(2), which refuses links and "..", and what is in it is made, linked,
// looked at and removed by its single name relative to that. Rare steps go through an [os.Root] instead.
// Files are created with O_EXCL, nothing existing is opened for writing, and links are never followed;
// a release's own links are made last. An owner or mode is only set on an inode made here, through its
// descriptor. What is written is one filesystem; directories with a mount below are not removed.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/release"
)

const (
	incomingPrefix = ".incoming-"
	foreignPrefix  = ".foreign-"
	trashPrefix    = ".trash-"
	linkPrefix     = ".flip-"
)

// Options say where a site's releases live and what is added to each.
type Options struct {
	Root     string // absolute; made (0755) when missing
	Active   string // the name of the live link in Root
	StateDir string // absolute; made (0700) when missing

	Owner    User              // of released files; zero: the process's own
	WebUser  User              // of the writable directories; zero: the process's own
	Writable []string          // directories made in each release for WebUser to write in
	Shared   map[string]string // path in the release -> absolute target outside
	Stamp    string            // path of the PHP file that returns the release's time; "": none

	Logger *slog.Logger // nil: discard

	// Before, when not nil, is called before each system call that makes something durable ("fsync" or "syncfs", of that
	// file), and its error is taken for that call's. The simulation stops and fails there.
	Before func(call string, f *os.File) error
}

// Disk is one site's root and state directory, locked for this process. Its methods are safe for
// concurrent use.
type Disk struct {
	opt  Options
	log  *slog.Logger
	path string // Root without links in it

	root, state       *os.Root
	rootDir, stateDir *os.File // the same directories: locked, synced, renamed in

	mu      sync.Mutex // held while names in the root change
	staging map[release.ID]bool
	stateMu sync.Mutex // held while state files change

	// distrusted says that the indexes were written on another machine: each release is hashed once before it is believed.
	distrusted atomic.Bool
	believed   sync.Map // of release.ID: hashed since

	together bool // root and state directory are one filesystem

	shares bool // releases may share inodes: not when the user that hooks and PHP run as owns them

	// The two calls that make things durable, and the one that shares inodes, replaced by tests.
	fsync, syncfs func(*os.File) error
	link          func(fromDir int, from string, toDir int, to string) error
}

// Open locks the root and the state directory and checks that releases can be kept there: both are
// writable, the active link is a link or absent, no release lies on another filesystem. It removes
// temporary links that a crash left. Errors: [ErrLocked], [ErrReadOnly], [ErrActiveNotLink], or what is
// wrong with the options. A full disk is no error here: what is live must stay live.
func Open(o Options) (*Disk, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	d := &Disk{
		opt: o, log: o.Logger, staging: map[release.ID]bool{},
		fsync:  o.before("fsync", (*os.File).Sync),
		syncfs: o.before("syncfs", func(f *os.File) error { return unix.Syncfs(int(f.Fd())) }),
		link: func(fromDir int, from string, toDir int, to string) error {
			return unix.Linkat(fromDir, from, toDir, to, 0)
		},
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	d.shares = d.opt.Owner.UID == 0 || d.opt.Owner.UID != d.opt.WebUser.UID
	if err := d.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("open disk: %w", err), d.Close())
	}
	return d, nil
}

func (d *Disk) start() (err error) {
	if d.state, d.stateDir, err = lockDir(d.opt.StateDir, 0o700); err != nil {
		return err
	}
	if err := checkPrivate(d.stateDir); err != nil {
		return err
	}
	if d.root, d.rootDir, err = lockDir(d.opt.Root, 0o755); err != nil {
		return err
	}
	if d.path, err = filepath.EvalSymlinks(d.opt.Root); err != nil {
		return blame(err)
	}
	var root, state unix.Stat_t
	d.together = unix.Fstat(int(d.rootDir.Fd()), &root) == nil && unix.Fstat(int(d.stateDir.Fd()), &state) == nil && root.Dev == state.Dev
	if err := d.checkMounts(); err != nil {
		return err
	}
	if err := d.tidy(d.root, d.opt.Root, linkPrefix); err != nil {
		return err
	}
	if err := d.tidy(d.state, d.opt.StateDir, tempPrefix); err != nil {
		return err
	}
	active, err := d.Active()
	if err != nil {
		return err
	}
	d.settleNames()
	if err := d.probe(); err != nil {
		return err
	}
	d.noteLive(active)
	return nil
}

// settleNames makes durable what an earlier life renamed last: it died before it did that itself, perhaps, and from now on the link and
// the state that are found are believed. Where that fails so will whatever is saved next, and what is live must stay live.
func (d *Disk) settleNames() {
	for _, dir := range []*os.File{d.stateDir, d.rootDir} {
		if err := d.syncDir(dir); err != nil {
			d.log.Warn("what an earlier life left may not be durable", "path", dir.Name(), "error", err)
		}
	}
}

// Close releases the locks. Nothing may be staged or flipped after it.
func (d *Disk) Close() error {
	var errs []error
	for _, f := range []*os.File{d.rootDir, d.stateDir} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	for _, r := range []*os.Root{d.root, d.state} {
		if r != nil {
			errs = append(errs, r.Close())
		}
	}
	return errors.Join(errs...)
}

// Path is the absolute name of a release's directory, whether it exists or not.
func (d *Disk) Path(id release.ID) string { return filepath.Join(d.opt.Root, string(id)) }

func (o *Options) before(name string, call func(*os.File) error) func(*os.File) error {
	if o.Before == nil {
		return call
	}
	return func(f *os.File) error {
		if err := o.Before(name, f); err != nil {
			return err
		}
		return call(f)
	}
}

func (o *Options) check() error {
	if !filepath.IsAbs(o.Root) || !filepath.IsAbs(o.StateDir) {
		return fmt.Errorf("root %q and state directory %q: must be absolute", o.Root, o.StateDir)
	}
	if o.Active == "" || strings.ContainsAny(o.Active, "/\x00") || strings.HasPrefix(o.Active, ".") || o.Active == release.PreviousLink {
		return fmt.Errorf("active link %q: must be one plain name, other than %q", o.Active, release.PreviousLink)
	}
	for _, u := range []*User{&o.Owner, &o.WebUser} {
		if *u == (User{}) {
			*u = self()
		}
		if me := os.Geteuid(); me != 0 && u.UID != me {
			return fmt.Errorf("files for user %d: only root can give files away", u.UID)
		}
	}
	added := append([]string(nil), o.Writable...)
	for p, target := range o.Shared {
		if !filepath.IsAbs(target) {
			return fmt.Errorf("shared %q: target %q must be absolute", p, target)
		}
		added = append(added, p)
	}
	if o.Stamp != "" {
		added = append(added, o.Stamp)
	}
	for _, p := range added {
		if err := release.CheckPath(p); err != nil {
			return err
		}
	}
	return nil
}

// lockDir opens a directory, made when missing, and takes its lock, which ends with the process.
func lockDir(name string, mode fs.FileMode) (*os.Root, *os.File, error) {
	if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(name, mode); err != nil {
			return nil, nil, blame(err)
		}
		if err := os.Chmod(name, mode); err != nil { // whatever the umask says
			return nil, nil, blame(err)
		}
	}
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, nil, blame(err)
	}
	dir, err := root.Open(".")
	if err != nil {
		return root, nil, blame(err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if err == unix.EWOULDBLOCK {
			err = ErrLocked
		}
		return root, dir, &fs.PathError{Op: "lock", Path: name, Err: err}
	}
	return root, dir, nil
}

// checkPrivate refuses a state directory that another user could write in.
func checkPrivate(dir *os.File) error {
	info, err := dir.Stat()
	if err != nil {
		return blame(err)
	}
	uid := int(stat(info).Uid)
	if (uid != 0 && uid != os.Geteuid()) || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("state directory %q: owned by user %d with mode %o: others could write in it", dir.Name(), uid, info.Mode().Perm())
	}
	return nil
}

// checkMounts refuses a root in which a release, or one being built, is a mount of its own: it could
// not be renamed, and there is no falling back to copies.
func (d *Disk) checkMounts() error {
	mounts, err := d.mounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if strings.HasPrefix(m, incomingPrefix) && !strings.Contains(m, "/") || d.owns(release.ID(m)) {
			return fmt.Errorf("%q: releases must lie on the filesystem of %q: %w", filepath.Join(d.opt.Root, m), d.opt.Root, ErrMounted)
		}
	}
	return nil
}

// tidy removes what a crash left under the names with prefix, never directories.
func (d *Disk) tidy(dir *os.Root, name, prefix string) error {
	names, err := readNames(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if !strings.HasPrefix(n, prefix) {
			continue
		}
		if err := dir.Remove(n); err != nil {
			d.log.Warn("left-over not removed", "path", filepath.Join(name, n), "error", err)
		}
	}
	return nil
}

// probe makes sure that names can be changed in the root and files written in the state directory.
func (d *Disk) probe() error {
	link, err := d.tempLink("probe")
	if err == nil {
		err = blame(d.root.Remove(link))
	}
	if err == nil {
		err = d.keepReserve()
	}
	if errors.Is(err, ErrNoSpace) {
		d.log.Warn("disk is full", "root", d.opt.Root, "state", d.opt.StateDir, "error", err)
		return nil
	}
	return err
}

func stat(info fs.FileInfo) *syscall.Stat_t { return info.Sys().(*syscall.Stat_t) }
