package disk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"s3pulldeploy/internal/release"
)

// index is what a release looked like when it was published, hooks included, without what lies in its
// writable directories. On disk it is a state file: a line of JSON and a line an entry.
type index struct {
	header
	entries []entry
}

type header struct {
	Release  release.ID `json:"release"`
	Digest   string     `json:"digest"` // of the listing
	Built    int64      `json:"built"`  // Unix seconds
	Device   uint64     `json:"device"`
	identity            // of the release's directory: what makes it ours
}

// entry is one file (f), directory (d), writable directory (w) or link (l). Links and directories are
// compared by what they are; files by inode, size, time and mode, and where only the inode (or the
// device, after a restore or with a renumbered disk) is another, by content.
type entry struct {
	kind  byte
	mode  uint32 // as stat has it
	inode uint64
	size  int64
	mtime int64  // Unix nanoseconds
	extra string // a file's SHA-256, a link's target
	path  string
}

func newEntry(n node, writable []string) (entry, error) {
	st := stat(n.info)
	e := entry{kind: 'f', mode: st.Mode, inode: st.Ino, size: n.info.Size(), mtime: n.info.ModTime().UnixNano(), path: n.path}
	switch {
	case n.info.Mode().IsRegular():
	case n.info.IsDir() && below(n.path, writable):
		e.kind = 'w'
	case n.info.IsDir():
		e.kind = 'd'
	case n.info.Mode().Type() == fs.ModeSymlink:
		target, err := n.dir.Readlink(n.name)
		if err != nil {
			return e, blame(err)
		}
		e.kind, e.extra = 'l', target
	default:
		return e, fmt.Errorf("%q: neither file, directory nor link: %w", n.path, ErrContent)
	}
	return e, nil
}

// index takes stock of the staged tree. Files that are as they were verified keep their digest, others
// (a hook's) are hashed.
func (s *Stage) index(ctx context.Context) (*index, error) {
	top, err := s.tree.Stat(".")
	if err != nil {
		return nil, blame(err)
	}
	self, err := s.d.identify(incomingPrefix + string(s.id))
	if err != nil {
		return nil, err
	}
	ix := &index{header: header{Release: s.id, Digest: s.digest, Built: time.Now().Unix(), Device: stat(top).Dev, identity: self}}
	err = walk(s.tree, "", func(n node) error {
		e, err := newEntry(n, s.d.opt.Writable)
		if err != nil {
			return errors.Join(err, ctx.Err())
		}
		if e.kind == 'f' {
			if k, ok := s.done[n.path]; ok && k == knownAs(n.info, k.sum) {
				e.extra = k.sum
			} else if e.extra, err = hashFile(n.dir, n.name, n.info, ""); err != nil {
				return err
			}
		}
		ix.entries = append(ix.entries, e)
		if e.kind == 'w' {
			return fs.SkipDir
		}
		return ctx.Err()
	})
	return ix, err
}

func indexFile(id release.ID) string { return string(id) + ".index" }

func (d *Disk) writeIndex(ix *index) error {
	head, err := json.Marshal(ix.header)
	if err != nil {
		return err
	}
	data := append(head, '\n')
	for _, e := range ix.entries {
		data = append(data, e.kind, ' ')
		data = strconv.AppendUint(data, uint64(e.mode), 8)
		data = fmt.Appendf(data, " %d %d %d ", e.inode, e.size, e.mtime)
		data = append(append(data, url.PathEscape(e.extra)...), ' ')
		data = append(append(data, url.PathEscape(e.path)...), '\n')
	}
	return d.replaceState(indexFile(ix.Release), data)
}

func (d *Disk) readIndex(id release.ID) (*index, error) {
	data, err := d.readState(indexFile(id))
	if err != nil {
		return nil, err
	}
	head, data, _ := bytes.Cut(data, []byte("\n"))
	ix := &index{entries: make([]entry, 0, bytes.Count(data, []byte("\n")))}
	err = json.Unmarshal(head, &ix.header)
	for line := range strings.Lines(string(data)) {
		var e entry
		e, bad := parseEntry(strings.TrimSuffix(line, "\n"))
		ix.entries, err = append(ix.entries, e), errors.Join(err, bad)
	}
	if err != nil || ix.Release != id {
		return nil, fmt.Errorf("load state %q: %w: %w", d.statePath(indexFile(id)), ErrState, err)
	}
	return ix, nil
}

func parseEntry(line string) (e entry, err error) {
	f := strings.Split(line, " ")
	if len(f) != 7 || len(f[0]) != 1 {
		return e, fmt.Errorf("index line %q", line)
	}
	e.kind = f[0][0]
	mode, err1 := strconv.ParseUint(f[1], 8, 32)
	inode, err2 := strconv.ParseUint(f[2], 10, 64)
	size, err3 := strconv.ParseInt(f[3], 10, 64)
	mtime, err4 := strconv.ParseInt(f[4], 10, 64)
	extra, err5 := url.PathUnescape(f[5])
	name, err6 := url.PathUnescape(f[6])
	e.mode, e.inode, e.size, e.mtime, e.extra, e.path = uint32(mode), inode, size, mtime, extra, name
	return e, errors.Join(err1, err2, err3, err4, err5, err6)
}

// readHeader reads the first lines of an index, without the checksum over all of it.
func (d *Disk) readHeader(id release.ID) (header, error) {
	var h header
	f, err := d.state.Open(indexFile(id))
	if err != nil {
		return h, blame(err)
	}
	defer f.Close()
	r := bufio.NewReader(f)
	if _, err := r.ReadSlice('\n'); err != nil {
		return h, fmt.Errorf("load state %q: %w: %w", d.statePath(indexFile(id)), ErrState, err)
	}
	line, err := r.ReadSlice('\n')
	if err == nil {
		err = json.Unmarshal(line, &h)
	}
	if err != nil {
		return h, fmt.Errorf("load state %q: %w: %w", d.statePath(indexFile(id)), ErrState, err)
	}
	return h, nil
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
	ix, err := d.readIndex(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	there, err := d.identify(string(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the crash between index and name
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
	moved, err := ix.verify(tree)
	if err != nil {
		return nil, err
	}
	if moved || there != ix.identity {
		ix.identity = there
		d.log.Info("release has other inodes and the same content", "release", id)
		return ix, d.writeIndex(ix)
	}
	return ix, nil
}

// verify compares the tree with the index, a directory at a time. It says whether inodes have moved, and
// the index then has the new ones.
func (ix *index) verify(tree *os.Root) (bool, error) {
	top, err := tree.Stat(".")
	if err != nil {
		return false, blame(err)
	}
	otherDevice := stat(top).Dev != ix.Device
	var moved atomic.Bool
	moved.Store(otherDevice)
	ix.Device = stat(top).Dev
	inDir := map[string][]*entry{}
	for i := range ix.entries {
		dir := path.Dir(ix.entries[i].path)
		inDir[dir] = append(inDir[dir], &ix.entries[i])
	}
	var work errgroup.Group
	work.SetLimit(runtime.GOMAXPROCS(0))
	for name, entries := range inDir {
		work.Go(func() error {
			dir, err := tree.OpenRoot(name)
			if err != nil {
				return fmt.Errorf("%q: %w: %w", filepath.Join(tree.Name(), name), ErrDamaged, blame(err))
			}
			defer dir.Close()
			for _, e := range entries {
				renewed, err := e.verify(dir, otherDevice)
				if err != nil {
					return err
				}
				if renewed {
					moved.Store(true)
				}
			}
			return nil
		})
	}
	err = work.Wait()
	return moved.Load(), err
}

// verify compares one entry of dir; it says whether the entry has changed inode (and is updated).
func (e *entry) verify(dir *os.Root, rehash bool) (bool, error) {
	name := path.Base(e.path)
	damaged := func(what string) error {
		return fmt.Errorf("%q: %s: %w", filepath.Join(dir.Name(), name), what, ErrDamaged)
	}
	info, err := dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, damaged("missing")
	}
	if err != nil {
		return false, blame(err)
	}
	st := stat(info)
	if st.Mode&syscall.S_IFMT != e.mode&syscall.S_IFMT {
		return false, damaged("of another type")
	}
	if e.kind != 'w' && st.Mode != e.mode {
		return false, damaged("another mode")
	}
	switch e.kind {
	case 'l':
		if target, err := dir.Readlink(name); err != nil || target != e.extra {
			return false, damaged("another target")
		}
	case 'f':
		if info.Size() != e.size {
			return false, damaged("another size")
		}
		if info.ModTime().UnixNano() != e.mtime {
			return false, damaged("another time")
		}
		if rehash || st.Ino != e.inode {
			if _, err := hashFile(dir, name, info, Digest(e.extra)); errors.Is(err, ErrContent) {
				return false, damaged("another content")
			} else if err != nil {
				return false, err
			}
		}
	}
	renewed := st.Ino != e.inode
	e.inode = st.Ino
	return renewed, nil
}
