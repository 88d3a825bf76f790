package push

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/release"
)

// ignoreFile holds patterns beside those of the settings; it lies at the top of the tree. Like .git it is about the
// way to a release and no part of one.
const ignoreFile = ".deployignore"

// Tree is a directory on this machine as it will be a release: links followed, ignored files left out. It must
// be closed.
type Tree struct {
	Files    []File   // sorted by path
	Ignored  []string // sorted; a directory ends in a slash and stands for all that is in it
	Warnings []string
	root     *os.Root
}

// File is one file of a tree.
type File struct {
	Path    string // in the release, with slashes
	Size    int64  // bytes
	ModTime time.Time
}

// Scan reads the directory dir as the settings say. Every file is opened once, so that what cannot be read is known before
// anything is uploaded. A directory that is missing or has nothing to deploy is wrong usage; any rule that the
// tree breaks is an error that names the path.
func Scan(dir string, c *config.Config) (*Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		err = fmt.Errorf("scan %q: %w", dir, errors.Unwrap(err))
		return nil, kind{errUsage, advise(err, "-deploy takes the directory of the application, such as -deploy=app/")}
	}
	s := &scanner{root: root, tree: &Tree{root: root}, keys: map[string]bool{}}
	if err := s.scan(c); err != nil {
		root.Close()
		return nil, fmt.Errorf("scan %q: %w", dir, err)
	}
	return s.tree, nil
}

// Close releases the directory.
func (t *Tree) Close() error { return t.root.Close() }

// Bytes is the sum of the sizes.
func (t *Tree) Bytes() (sum int64) {
	for _, f := range t.Files {
		sum += f.Size
	}
	return sum
}

// Open opens a file and makes sure that it is the one that was scanned.
func (t *Tree) Open(f File) (*os.File, error) {
	in, err := t.root.Open(f.Path)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", f.Path, errors.Unwrap(err))
	}
	if err := f.unchanged(in); err != nil {
		in.Close()
		return nil, err
	}
	return in, nil
}

// unchanged says whether an open file still is what was scanned, as far as size and time tell.
func (f File) unchanged(in *os.File) error {
	info, err := in.Stat()
	if err != nil {
		return fmt.Errorf("look at %q: %w", f.Path, err)
	}
	if info.Size() != f.Size || !info.ModTime().Equal(f.ModTime) {
		return advise(fmt.Errorf("file %q changed while it was read", f.Path),
			"let what writes there finish, or put the file into "+ignoreFile)
	}
	return nil
}

// scanner walks a tree. All access goes through the root, which no link leads out of.
type scanner struct {
	root   *os.Root
	tree   *Tree
	ignore *release.Ignore
	config *settings
	above  []fs.FileInfo // the directories that lead to where the walk is
	head   [keyHead]byte
	keys   map[string]bool // files that hold a private key, whatever they are called
}

func (s *scanner) scan(c *config.Config) error {
	patterns, err := s.patterns(c.Ignore)
	if err != nil {
		return err
	}
	s.ignore = release.NewIgnore(patterns)
	s.config = settingsOf(c)
	if err := s.dir("."); err != nil {
		return err
	}
	if len(s.tree.Files) == 0 {
		return kind{errUsage, advise(errors.New("nothing to deploy: it is empty, or everything is ignored"),
			"is it the right directory? What stays out is in `ignore` of the settings and in "+ignoreFile)}
	}
	slices.Sort(s.tree.Ignored)
	slices.SortFunc(s.tree.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	paths := make([]string, len(s.tree.Files))
	for i, f := range s.tree.Files {
		paths[i] = f.Path
	}
	if err := reserved(c, paths); err != nil {
		return err
	}
	s.tree.warn(differInCase(paths))
	return s.secrets(c.Secrets)
}

// patterns joins the settings' ignore patterns and those of the tree.
func (s *scanner) patterns(list []string) ([]string, error) {
	text, err := s.root.ReadFile(ignoreFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read %s: %w", ignoreFile, errors.Unwrap(err))
	}
	list = append(slices.Clone(list), strings.Split(string(text), "\n")...)
	for _, p := range list {
		if err := release.CheckPattern(p); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// dir adds what is in a directory.
func (s *scanner) dir(name string) error {
	info, err := s.root.Stat(name)
	if err != nil {
		return fmt.Errorf("%q: %w", name, errors.Unwrap(err))
	}
	for _, a := range s.above {
		if os.SameFile(a, info) {
			return advise(fmt.Errorf("link %q leads back into a directory that it is in", name),
				"remove the link, or put it into "+ignoreFile)
		}
	}
	s.above = append(s.above, info)
	defer func() { s.above = s.above[:len(s.above)-1] }()
	in, err := s.root.Open(name)
	if err != nil {
		return fmt.Errorf("open directory %q: %w", name, errors.Unwrap(err))
	}
	entries, err := in.ReadDir(-1)
	in.Close()
	if err != nil {
		return fmt.Errorf("read directory %q: %w", name, errors.Unwrap(err))
	}
	for _, e := range entries {
		if err := s.entry(path.Join(name, e.Name()), e.Type()); err != nil {
			return err
		}
	}
	return nil
}

// entry adds one name of a directory. Patterns for directories also match links to them, which will be directories.
func (s *scanner) entry(name string, mode fs.FileMode) error {
	link := mode&fs.ModeSymlink != 0
	if name == ignoreFile {
		return nil
	}
	if s.ignore.Match(name, mode.IsDir()) {
		if mode.IsDir() {
			name += "/"
		}
		s.tree.Ignored = append(s.tree.Ignored, name)
		return nil
	}
	if link {
		info, err := s.root.Stat(name)
		if (err != nil || info.IsDir()) && s.ignore.Match(name, true) {
			s.tree.Ignored = append(s.tree.Ignored, name)
			return nil
		}
		if err != nil {
			return s.badLink(name, err)
		}
		mode = info.Mode().Type()
	}
	if err := release.CheckPath(name); err != nil {
		return err
	}
	switch {
	case mode.IsDir():
		return s.dir(name)
	case mode.IsRegular():
		return s.file(name)
	}
	return fmt.Errorf("%q is a %s: only files, directories and links can be deployed", name, typeName(mode))
}

func (s *scanner) file(name string) error {
	in, err := s.root.Open(name)
	if err != nil {
		return fmt.Errorf("open %q: %w", name, errors.Unwrap(err))
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return fmt.Errorf("look at %q: %w", name, errors.Unwrap(err))
	}
	same, err := s.settings(name, in, info)
	if err != nil || same {
		return err // the settings are nobody's business on the web
	}
	if len(s.tree.Files) == release.MaxFiles {
		return fmt.Errorf("more than %d files", release.MaxFiles)
	}
	s.tree.Files = append(s.tree.Files, File{Path: name, Size: info.Size(), ModTime: info.ModTime()})
	if info.Size() > keyFile {
		return nil
	}
	n, err := in.ReadAt(s.head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %q: %w", name, errors.Unwrap(err))
	}
	if holdsKey(name, s.head[:n]) {
		s.keys[name] = true
	}
	return nil
}

// badLink says what is wrong with a link that cannot be followed inside the tree.
func (s *scanner) badLink(name string, err error) error {
	target, rerr := s.root.Readlink(name)
	if rerr != nil {
		return fmt.Errorf("read link %q: %w", name, errors.Unwrap(rerr))
	}
	const advice = "make it relative and inside the tree, put it into " + ignoreFile + ", or share it with `shared`"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return advise(fmt.Errorf("link %q points to %q, which does not exist", name, target), advice)
	case filepath.IsAbs(target):
		return advise(fmt.Errorf("link %q points to %q: it leaves the tree on every other machine", name, target), advice)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("link %q points to %q: %w", name, target, errors.Unwrap(err))
	}
	return advise(fmt.Errorf("link %q points to %q, which leaves the tree or goes in a circle", name, target), advice)
}

func typeName(mode fs.FileMode) string {
	switch {
	case mode&fs.ModeSocket != 0:
		return "socket"
	case mode&fs.ModeNamedPipe != 0:
		return "named pipe"
	case mode&fs.ModeDevice != 0:
		return "device"
	}
	return "special file"
}

// reserved refuses files where an instance puts something of its own.
func reserved(c *config.Config, paths []string) error {
	within := "."
	for _, p := range paths {
		if p == c.Stamp {
			return fmt.Errorf("file %q has the name of `stamp`, which every instance writes itself", p)
		}
		dir := path.Dir(p)
		if dir == within { // as the one before
			continue
		}
		within = dir
		for ; dir != "."; dir = path.Dir(dir) {
			if _, ok := c.Shared[dir]; ok {
				return advise(fmt.Errorf("directory %q is in `shared` but not empty: %q would be hidden", dir, p),
					"put it into "+ignoreFile)
			}
		}
	}
	return nil
}

// warn adds a warning, unless it is "".
func (t *Tree) warn(text string) {
	if text != "" {
		t.Warnings = append(t.Warnings, text)
	}
}

// differInCase names a pair of files or directories that are one on some developers' machines; "" where there is none.
func differInCase(paths []string) string {
	seen := make(map[string]string, len(paths))
	for _, name := range paths {
		for ; name != ""; name = name[:max(strings.LastIndexByte(name, '/'), 0)] {
			lower := strings.ToLower(name)
			other, ok := seen[lower]
			if ok && other == name {
				break // what is above was seen with it
			}
			if ok {
				return fmt.Sprintf("%q and %q differ only in case", other, name)
			}
			seen[lower] = name
		}
	}
	return ""
}
