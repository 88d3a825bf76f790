package push

import (
	"crypto/sha256"
	"errors"
	"hash"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/release"
)

// scanIndexed scans with what the cache knows, as if files had to be so much older than the scan to be known again.
func scanIndexed(t *testing.T, c *cache, dir string, racy time.Duration) *packedTree {
	t.Helper()
	index := c.loadIndex()
	index.racy = racy
	tree, err := scanPacked(dir, minimalConfig(), index)
	if err != nil {
		t.Fatal(err)
	}
	tree.Close()
	c.saveIndex(index)
	return tree
}

func TestScanPackedRefuses(t *testing.T) {
	cases := map[string]struct {
		tree map[string]string
		want string
	}{
		"a link out by an absolute path": {map[string]string{"x": "1", "l": "-> /etc/passwd"}, `"/etc/passwd": target must be relative`},
		"a link out":                     {map[string]string{"x": "1", "d/l": "-> ../../other"}, `"../../other": target leaves`},
		"links in a circle":              {map[string]string{"a": "-> b", "b": "-> a"}, "leads through more than"},
		"a name with a line break":       {map[string]string{"a\nb": "1"}, `"a\nb"`},
		"a private key":                  {map[string]string{"id_rsa": "-----BEGIN OPENSSH PRIVATE KEY-----"}, `"id_rsa" is a private key`},
		"an environment":                 {map[string]string{"d/.env": "1"}, `"d/.env" holds`},
		"a private key by another name":  {map[string]string{"inc/data": aKey, "x": "1"}, `"inc/data" is a private key`},
		"only directories":               {map[string]string{"e/": ""}, "nothing to deploy"},
	}
	for name, c := range cases {
		tree, err := scanPacked(plant(t, c.tree), minimalConfig(), (*cache)(nil).loadIndex())
		if err == nil {
			tree.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want something with %q", name, err, c.want)
		}
	}
	if _, err := scanPacked(filepath.Join(t.TempDir(), "none"), minimalConfig(), nil); !errors.Is(err, errUsage) {
		t.Errorf("a missing directory: %v", err)
	}
}

func TestASecondScanReadsOnlyWhatChanged(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	dir := plant(t, map[string]string{"a/x": "1", "a/y": "2", "empty": "", "l": "-> a/x"})
	c := openCache("b/s", dir)
	scan := func(racy time.Duration) *packedTree { return scanIndexed(t, c, dir, racy) }
	scan(time.Hour)
	if tree := scan(-time.Hour); tree.Hashed != 3 {
		t.Errorf("%d files were read, want all 3: they are too young to be known again", tree.Hashed)
	}
	first := scan(-time.Hour)
	if first.Hashed != 0 {
		t.Errorf("%d files were read again", first.Hashed)
	}
	if err := os.WriteFile(filepath.Join(dir, "a/y"), []byte("3"), 0o644); err != nil {
		t.Fatal(err)
	}
	second := scan(-time.Hour)
	if second.Hashed != 1 {
		t.Errorf("%d files were read, want the changed one", second.Hashed)
	}
	for i, e := range second.Entries {
		if (e.Sum != first.Entries[i].Sum) != (e.Path == "a/y") {
			t.Errorf("%q has sum %s, before %s", e.Path, e.Sum, first.Entries[i].Sum)
		}
	}
}

func TestADamagedIndexIsNotBelieved(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	dir := plant(t, map[string]string{"a": "1", "b": "2"})
	c := openCache("b/s", dir)
	scanIndexed(t, c, dir, -time.Hour)
	if tree := scanIndexed(t, c, dir, -time.Hour); tree.Hashed != 0 {
		t.Fatalf("%d files were read again", tree.Hashed)
	}
	text, err := os.ReadFile(c.index)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)/2] ^= 1
	if err := os.WriteFile(c.index, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if tree := scanIndexed(t, c, dir, -time.Hour); tree.Hashed != 2 {
		t.Errorf("a damaged index was believed: %d files were read", tree.Hashed)
	}
}

// meddler is a hash that does something else first when it has a file's beginning.
type meddler struct {
	hash.Hash
	meddle func()
}

func (m *meddler) Write(p []byte) (int, error) {
	if m.meddle != nil {
		m.meddle()
		m.meddle = nil
	}
	return m.Hash.Write(p)
}

func TestAFileThatChangesWhileItIsHashedIsNamed(t *testing.T) {
	const size = 1 << 20 // of which a hasher has an eighth at a time
	for name, c := range map[string]struct {
		change func(*os.File) error
		steady bool
	}{
		"only read":        {func(f *os.File) error { _, err := f.ReadAt(make([]byte, 1), 0); return err }, true},
		"written over":     {func(f *os.File) error { _, err := f.WriteAt([]byte{1}, size-1); return err }, false},
		"written to again": {func(f *os.File) error { _, err := f.WriteAt([]byte{1}, 0); return err }, false},
		"longer":           {func(f *os.File) error { _, err := f.WriteAt([]byte{1}, size); return err }, false},
		"shorter":          {func(f *os.File) error { return f.Truncate(size - 1) }, false},
		"emptied":          {func(f *os.File) error { return f.Truncate(0) }, false},
	} {
		body := noise(1, size)
		dir := plant(t, map[string]string{"d/unsteady": body})
		file := filepath.Join(dir, "d/unsteady")
		then := time.Now().Add(-time.Hour) // the clock of files is coarse
		if err := os.Chtimes(file, then, then); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(file)
		if err != nil {
			t.Fatal(err)
		}
		e := &packedEntry{Entry: release.Entry{Path: "d/unsteady", Kind: release.File, Size: size}, info: info}
		e.key, e.seen = keyOf(info)
		h := &hasher{files: opener{root: root}, buffer: make([]byte, size/8)}
		h.hash = &meddler{sha256.New(), func() {
			out, err := os.OpenFile(file, os.O_RDWR, 0)
			if err == nil {
				err = errors.Join(c.change(out), out.Close())
			}
			if err != nil {
				t.Error(err)
			}
		}}
		err = h.read(e)
		h.files.Close()
		root.Close()
		if c.steady {
			if err != nil || e.Sum != sha256.Sum256([]byte(body)) {
				t.Errorf("%s: sum %s, %v", name, e.Sum, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), `file "d/unsteady" changed while it was read`) || e.Sum != (release.Sum{}) {
			t.Errorf("%s: sum %s, %v", name, e.Sum, err)
		}
	}
}

func TestAPrivateKeyThatWasAllowedIsFoundAgain(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	dir := plant(t, map[string]string{"inc/data": aKey, "x": "1", "large": aKey + strings.Repeat("x", keyFile)})
	c := openCache("b/s", dir)
	for _, mode := range []string{config.Allow, config.Warn, config.Refuse} {
		index := c.loadIndex()
		index.racy = -time.Hour
		tree, err := scanPacked(dir, &config.Config{Secrets: mode}, index)
		c.saveIndex(index)
		if mode == config.Refuse {
			if err == nil || !strings.Contains(err.Error(), `"inc/data" is a private key`) {
				t.Errorf("once it was allowed, it is no secret: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		tree.Close()
		if warned := len(tree.Warnings) == 1; warned != (mode == config.Warn) {
			t.Errorf("%s: warnings %q", mode, tree.Warnings)
		}
		if want := map[string]int{config.Allow: 3, config.Warn: 1}[mode]; tree.Hashed != want {
			t.Errorf("%s: %d files were read, want %d", mode, tree.Hashed, want)
		}
	}
}

// A manual may show a key. Another name of the same file is none.
func TestAPrivateKeyIsFoundAgainBesideALinkThatIsAManual(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	dir := plant(t, map[string]string{"data.txt": aKey, "x": "1"})
	if err := os.Link(filepath.Join(dir, "data.txt"), filepath.Join(dir, "data.md")); err != nil {
		t.Fatal(err)
	}
	c := openCache("b/s", dir)
	for range 2 {
		index := c.loadIndex()
		index.racy = -time.Hour
		_, err := scanPacked(dir, &config.Config{Secrets: config.Refuse}, index)
		c.saveIndex(index)
		if err == nil || !strings.Contains(err.Error(), `"data.txt" is a private key`) {
			t.Errorf("scan: %v", err)
		}
	}
}
