package push

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/release"
)

// packedTree is a directory on this machine as it will be a packed release: links are links, empty directories are
// there, every file has its SHA-256. It must be closed.
type packedTree struct {
	Entries  []release.Entry // without times and places
	Ignored  []string        // sorted; a directory ends in a slash and stands for all that is in it
	Warnings []string
	Bytes    int64                  // the sum of the sizes
	Hashed   int                    // files that had to be read to know their sums
	large    map[string]fs.FileInfo // of files that fill several frames, as they were when they were hashed
	root     *os.Root
}

// Close releases the directory.
func (t *packedTree) Close() error { return t.root.Close() }

// packedScanner walks a tree with all cores. What it shares with the plain layout's scanner are the rules: what
// is ignored, what is no part of a release, what may not be in one.
type packedScanner struct {
	*scanner
	index *statIndex
	walk  errgroup.Group

	entries []*packedEntry // when the walk is over

	mu      sync.Mutex                // over all below, and over the scanner's settings
	within  map[string][]*packedEntry // by directory, sorted by name
	count   int                       // of these
	ignored []string
}

// packedEntry is an entry with what the file system says of it.
type packedEntry struct {
	release.Entry
	info fs.FileInfo
	key  statKey
	seen bool // key says something

	known bool // the index has its sum
	hot   bool // it holds a private key, as it turned out when it was read
}

// scanPacked reads the directory dir as the settings say. Files that the index knows are not read. The index is
// told what was found, and is not saved.
func scanPacked(dir string, c *config.Config, index *statIndex) (*packedTree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		err = fmt.Errorf("scan %q: %w", dir, errors.Unwrap(err))
		return nil, kind{errUsage, advise(err, "-deploy takes the directory of the application, such as -deploy=app/")}
	}
	s := &packedScanner{scanner: &scanner{root: root, tree: &Tree{root: root}, keys: map[string]bool{}}, index: index}
	t, err := s.scan(c)
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("scan %q: %w", dir, err)
	}
	return t, nil
}

func (s *packedScanner) scan(c *config.Config) (*packedTree, error) {
	began := time.Now()
	patterns, err := s.patterns(c.Ignore)
	if err != nil {
		return nil, err
	}
	s.ignore, s.config = release.NewIgnore(patterns), settingsOf(c)
	s.within = map[string][]*packedEntry{}
	s.walk.SetLimit(runtime.GOMAXPROCS(0))
	top, err := s.root.OpenRoot(".")
	if err != nil {
		return nil, err
	}
	s.walk.Go(func() error { return s.dir(top, ".") })
	if err := s.walk.Wait(); err != nil {
		return nil, err
	}
	s.entries = make([]*packedEntry, 0, s.count)
	s.list(".")
	slices.Sort(s.ignored)
	paths, err := s.check(c)
	if err != nil {
		return nil, err
	}
	var twins string
	var looking sync.WaitGroup
	looking.Go(func() { twins = differInCase(paths) })
	hashed, err := s.sums()
	looking.Wait()
	if err != nil {
		return nil, err
	}
	s.index.replace(s.entries, began)
	for _, e := range s.entries {
		if e.hot {
			s.keys[e.Path] = true
		}
	}
	s.tree.warn(twins)
	if err := s.secrets(c.Secrets); err != nil {
		return nil, err
	}
	slices.Sort(s.tree.Warnings)
	t := &packedTree{Ignored: s.ignored, Warnings: s.tree.Warnings, Hashed: hashed, root: s.root}
	t.Entries, t.large = make([]release.Entry, 0, len(s.entries)), map[string]fs.FileInfo{}
	for _, e := range s.entries {
		if e.Size > release.MaxFrame {
			t.large[e.Path] = e.info
		}
		t.Entries = append(t.Entries, e.Entry)
		t.Bytes += e.Size
	}
	return t, nil
}

// dir adds what is in a directory, and closes it. Other directories are walked at the same time where a core is free.
func (s *packedScanner) dir(at *os.Root, name string) error {
	defer at.Close()
	in, err := at.Open(".")
	if err != nil {
		return fmt.Errorf("open directory %q: %w", name, errors.Unwrap(err))
	}
	names, err := in.Readdirnames(-1) // one look at each, below; ReadDir would be another
	in.Close()
	if err != nil {
		return fmt.Errorf("read directory %q: %w", name, errors.Unwrap(err))
	}
	slices.Sort(names)
	mine := make([]*packedEntry, 0, len(names))
	for _, base := range names {
		full := base
		if name != "." {
			full = name + "/" + base
		}
		info, err := at.Lstat(base)
		if err != nil {
			return fmt.Errorf("look at %q: %w", full, errors.Unwrap(err))
		}
		e, err := s.entry(at, full, info)
		if err != nil {
			return err
		}
		if e == nil {
			continue
		}
		if mine = append(mine, e); len(mine) > release.MaxEntries {
			return errMany
		}
		if e.Kind == release.Dir {
			if err := s.below(at, full); err != nil {
				return err
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.within[name] = mine
	if s.count += len(mine); s.count > release.MaxEntries {
		return errMany
	}
	return nil
}

var errMany = fmt.Errorf("more than %d files and directories", release.MaxEntries)

// list puts what is in a directory behind it, which is the order of [release.ComparePaths].
func (s *packedScanner) list(dir string) {
	for _, e := range s.within[dir] {
		s.entries = append(s.entries, e)
		if e.Kind == release.Dir {
			s.list(e.Path)
		}
	}
}

// below walks a directory in the directory at.
func (s *packedScanner) below(at *os.Root, name string) error {
	sub, err := at.OpenRoot(path.Base(name))
	if err != nil {
		return fmt.Errorf("open directory %q: %w", name, errors.Unwrap(err))
	}
	if s.walk.TryGo(func() error { return s.dir(sub, name) }) {
		return nil
	}
	return s.dir(sub, name)
}

// entry is what a name in the directory at is for the release; nil for nothing.
func (s *packedScanner) entry(at *os.Root, name string, info fs.FileInfo) (*packedEntry, error) {
	mode := info.Mode().Type()
	if name == ignoreFile {
		return nil, nil
	}
	if s.ignores(name, mode) {
		if mode.IsDir() {
			name += "/"
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ignored = append(s.ignored, name)
		return nil, nil
	}
	if err := release.CheckPath(name); err != nil {
		return nil, err
	}
	e := &packedEntry{Entry: release.Entry{Path: name}, info: info}
	switch {
	case mode.IsDir():
		e.Kind = release.Dir
		return e, nil
	case mode&fs.ModeSymlink != 0:
		e.Kind = release.Symlink
		return e, s.link(at, e)
	case mode.IsRegular():
		e.Kind = release.File
		return s.regular(at, e)
	}
	return nil, fmt.Errorf("%q is a %s: only files, directories and links can be deployed", name, typeName(mode))
}

// ignores applies the patterns. Those for directories also match links to directories, and links to nothing.
func (s *packedScanner) ignores(name string, mode fs.FileMode) bool {
	if s.ignore.Match(name, mode.IsDir()) {
		return true
	}
	if mode&fs.ModeSymlink == 0 {
		return false
	}
	info, err := s.root.Stat(name)
	return (err != nil || info.IsDir()) && s.ignore.Match(name, true)
}

func (s *packedScanner) link(at *os.Root, e *packedEntry) error {
	target, err := at.Readlink(path.Base(e.Path))
	if err != nil {
		return fmt.Errorf("read link %q: %w", e.Path, errors.Unwrap(err))
	}
	e.Target = target
	if err := release.CheckLinkTarget(e.Path, target); err != nil {
		return advise(err, "make it relative and inside the tree, put it into "+ignoreFile+", or share it with `shared`")
	}
	return nil
}

func (s *packedScanner) regular(at *os.Root, e *packedEntry) (*packedEntry, error) {
	late := &lateFile{at: at, name: path.Base(e.Path)}
	defer late.Close()
	s.mu.Lock()
	same, err := s.settings(e.Path, late, e.info)
	s.mu.Unlock()
	if err != nil || same {
		return nil, err // the settings are nobody's business on the web
	}
	e.Size, e.Exec = e.info.Size(), e.info.Mode()&0o100 != 0
	e.key, e.seen = keyOf(e.info)
	return e, nil
}

// lateFile is opened when it is read: of most files, what they are called says enough.
type lateFile struct {
	at   *os.Root
	name string
	file *os.File
}

func (l *lateFile) Read(p []byte) (n int, err error) {
	if l.file == nil {
		if l.file, err = l.at.Open(l.name); err != nil {
			return 0, err
		}
	}
	return l.file.Read(p)
}

func (l *lateFile) Close() {
	if l.file != nil {
		l.file.Close()
	}
}

// check refuses what no release may have, before any file is read, and returns the paths of all entries.
func (s *packedScanner) check(c *config.Config) ([]string, error) {
	var shape release.Manifest // the rules on links among each other are the manifest's
	paths := make([]string, len(s.entries))
	s.tree.Files = make([]File, 0, len(s.entries))
	files := 0
	for i, e := range s.entries {
		if e.Kind == release.File {
			s.tree.Files = append(s.tree.Files, File{e.Path, e.Size, e.info.ModTime()})
		} else {
			shape.Entries = append(shape.Entries, e.Entry)
		}
		if e.Kind != release.Dir {
			files++
		}
		paths[i] = e.Path
	}
	if files == 0 {
		return nil, kind{errUsage, advise(errors.New("nothing to deploy: it is empty, or everything is ignored"),
			"is it the right directory? What stays out is in `ignore` of the settings and in "+ignoreFile)}
	}
	if _, err := shape.Payload(); err != nil {
		return nil, errors.Unwrap(err)
	}
	return paths, reserved(c, paths)
}
