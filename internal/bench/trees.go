package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// tree is an application on the bench's own disk, to be pushed and changed.
type tree struct {
	name, what string
	dir        string
	files      []string // that may be changed: regular, not empty, at most 64 KB; sorted
	count      int      // of files
	bytes      int64
	round      int    // of changes
	seed       string // where peers find it in the bucket
}

// The packages that the trees come from, and where in them these lie. They are fetched and taken apart, never installed.
var packages = map[string]string{"wordpress": "usr/share/wordpress", "mediawiki": "usr/share/mediawiki"}

// fetchPackage gets a Debian package's files into a directory below cache, once.
func fetchPackage(ctx context.Context, cache, name string) (string, error) {
	dir := filepath.Join(cache, name)
	if _, err := os.Stat(dir); err == nil {
		return filepath.Join(dir, packages[name]), nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	part := dir + ".part"
	script := `set -e; rm -rf "$1"; mkdir "$1"; cd "$1"; apt-get download -q -o APT::Sandbox::User=root "$2"; dpkg-deb -x ./*.deb .; rm ./*.deb`
	if out, err := exec.CommandContext(ctx, "sh", "-c", script, "sh", part, name).CombinedOutput(); err != nil {
		return "", fmt.Errorf("get Debian package %s: %w\n%s", name, err, bytes.TrimSpace(out))
	}
	return filepath.Join(dir, packages[name]), os.Rename(part, dir)
}

// copyTree copies the regular files and directories of a tree, and the links in it that stay in it and lead somewhere: not all of these
// packages' do. What mark is not empty is appended to every file, so that copies share no contents.
func copyTree(from, to, mark string) error {
	return filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, name)
		dest := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return os.MkdirAll(dest, 0o755)
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(name)
			if err != nil || filepath.IsAbs(target) || !filepath.IsLocal(filepath.Join(filepath.Dir(rel), target)) {
				return err
			}
			if _, err := os.Stat(name); err != nil {
				return nil
			}
			return os.Symlink(target, dest)
		case d.Type().IsRegular():
			return copyFile(name, dest, mark, d)
		}
		return nil
	})
}

// copyFile copies a file with its mtime, which tools go by, as a stream: what this process needs at most, its children seem to need
// at least.
func copyFile(from, to, mark string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = out.ReadFrom(in)
	if err == nil {
		_, err = out.WriteString(mark)
	}
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	return os.Chtimes(to, info.ModTime(), info.ModTime())
}

// plant makes a tree on the bench's disk from others; each part goes into a directory of its own when there are several.
func plant(dir, name, what string, parts ...string) (*tree, error) {
	t := &tree{name: name, what: what, dir: filepath.Join(dir, name)}
	for i, p := range parts {
		to, mark := t.dir, ""
		if len(parts) > 1 {
			to, mark = filepath.Join(t.dir, fmt.Sprintf("part%d", i+1)), fmt.Sprintf("\n# %d\n", i+1)
		}
		if err := copyTree(p, to, mark); err != nil {
			return nil, fmt.Errorf("make tree %s: %w", name, err)
		}
	}
	return t, t.survey()
}

// survey lists the files.
func (t *tree) survey() error {
	t.files, t.count, t.bytes = nil, 0, 0
	err := filepath.WalkDir(t.dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		t.count, t.bytes = t.count+1, t.bytes+info.Size()
		if size := info.Size(); size > 0 && size <= 64<<10 {
			t.files = append(t.files, name)
		}
		return nil
	})
	if err == nil && len(t.files) == 0 {
		err = errors.New("no files")
	}
	slices.Sort(t.files)
	return err
}

// change gives n files other contents, as an editor does: a new file in the old one's place. They are spread over the tree, or
// neighbours, as when a library is replaced.
func (t *tree) change(n int, neighbours bool) error {
	t.round++
	n = min(n, len(t.files))
	for i := range n {
		name := t.files[i]
		if !neighbours {
			name = t.files[i*len(t.files)/n]
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		data, _, _ = bytes.Cut(data, []byte("\n// change "))
		// Another size each time: by default aws sees no change that keeps it.
		data = fmt.Appendf(data, "\n// change %d of %s%s\n", t.round, filepath.Base(name), strings.Repeat(".", t.round))
		if err := os.WriteFile(name+".new", data, 0o644); err != nil {
			return err
		}
		if err := os.Rename(name+".new", name); err != nil {
			return err
		}
	}
	return nil
}

// goTree is where Go's own source tree lies.
func goTree(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	return strings.TrimSpace(string(out)), err
}

// plantAll makes the trees that most rows use, and finds out how the aws command is at its best.
func (l *lab) plantAll(ctx context.Context, cache string) error {
	l.trees = map[string]*tree{}
	for _, p := range []struct{ name, what, from string }{
		{"wp", "WordPress", "wordpress"}, {"mw", "MediaWiki", "mediawiki"},
	} {
		from, err := fetchPackage(ctx, cache, p.from)
		if err != nil {
			return err
		}
		t, err := plant(l.disk, p.name, p.what, from)
		if err != nil {
			return err
		}
		t.what = fmt.Sprintf("%s (%d files, %d MB)", p.what, t.count, t.bytes/1e6)
		l.trees[p.name] = t
		l.say("tree %s", t.what)
	}
	l.awsHow = "as it comes"
	if l.quick {
		return nil
	}
	prefix, err := l.seeded(ctx, l.trees["wp"])
	if err != nil {
		return err
	}
	l.awsHow, err = l.awsBest(ctx, prefix)
	return err
}

// plantBig makes the large tree: twice MediaWiki and twice Go's source, without a file that another one equals.
func (l *lab) plantBig(ctx context.Context) error {
	from, err := goTree(ctx)
	if err != nil {
		return err
	}
	mw := l.trees["mw"].dir
	t, err := plant(l.disk, "big", "big", mw, from, mw, from)
	if err != nil {
		return err
	}
	t.what = fmt.Sprintf("a large tree (%d files, %d MB)", t.count, t.bytes/1e6)
	l.trees["big"] = t
	l.say("tree %s", t.what)
	return nil
}

// seeded is where peers find a tree in the bucket, which is put there once.
func (l *lab) seeded(ctx context.Context, t *tree) (prefix string, err error) {
	if t.seed == "" {
		l.say("putting %s into the bucket for the peers", t.name)
		t.seed, err = l.seed(ctx, t)
	}
	return t.seed, err
}

// sameFiles says whether a release has exactly the regular files of a tree.
func sameFiles(want, got string) error {
	got, err := filepath.EvalSymlinks(got)
	if err != nil {
		return err
	}
	n := 0
	err = filepath.WalkDir(want, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		n++
		rel, _ := filepath.Rel(want, name)
		a, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(filepath.Join(got, rel))
		if err == nil && !bytes.Equal(a, b) {
			err = fmt.Errorf("%s is not what was pushed", rel)
		}
		return err
	})
	if err != nil {
		return err
	}
	err = filepath.WalkDir(got, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			n--
		}
		return err
	})
	if err == nil && n != 0 {
		err = fmt.Errorf("%s has %d files too many", got, -n)
	}
	return err
}
