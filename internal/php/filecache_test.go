package php_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/php"
	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

// kept are the releases that a cache on the disk has files of.
func kept(t *testing.T, cache, root string) (ids []string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(cache, "*", root, "*", "index.php.bin"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		ids = append(ids, filepath.Base(filepath.Dir(f)))
	}
	return ids
}

// A cache on the disk fills itself and is never emptied by PHP: the releases in it are those that the site has.
func TestCacheOnTheDiskKeepsOnlyReleasesThatAreThere(t *testing.T) {
	root, dir := site(t), t.TempDir()
	flip(t, root, "active", first)
	server := testenv.PHPWith(t, parts.WebOptions{Root: root, FileCache: dir})
	cache := php.New(php.Options{URLs: []string{server.LocalURL}, Timeout: 30 * time.Second})
	for _, id := range []string{first, second} {
		if w := warm(t, cache, filepath.Join(root, id)); w.Cold != "" || w.Cached != 2 {
			t.Fatalf("%s: %+v", id, w)
		}
	}
	if got := kept(t, dir, root); len(got) != 2 {
		t.Fatalf("kept are %q", got)
	}
	outside := filepath.Join(t.TempDir(), "outside")
	write(t, outside+"/file", "stays")
	backup := filepath.Join(dir, "backup", root, first, "file") // whoever puts such a thing there
	write(t, backup, "stays")
	build := filepath.Dir(filepath.Dir(filepath.Dir(only(t, filepath.Join(dir, "*", root, first, "index.php.bin")))))
	write(t, filepath.Join(build, filepath.Base(root), "not-a-release/file.bin"), "stays")
	for _, link := range []string{first + "/link", "2020-01-01_00-00-00"} {
		if err := os.Symlink(outside, filepath.Join(build, filepath.Base(root), link)); err != nil {
			t.Fatal(err)
		}
	}
	flip(t, root, "active", second)
	if err := os.RemoveAll(filepath.Join(root, first)); err != nil {
		t.Fatal(err)
	}
	third := release(t, root, "2026-11-20_21-00-00", 3)
	if w := warm(t, cache, third); w.Cold != "" || w.Cached != 4 {
		t.Fatalf("third: %+v", w)
	}
	if got := kept(t, dir, root); len(got) != 2 || got[0] != second || got[1] != "2026-11-20_21-00-00" {
		t.Errorf("kept are %q, and %s is gone from the site", got, first)
	}
	if _, err := os.Lstat(filepath.Join(build, filepath.Base(root), "2020-01-01_00-00-00")); !os.IsNotExist(err) {
		t.Errorf("what has a release's name and is none stays: %v", err)
	}
	for _, path := range []string{backup, outside + "/file", filepath.Join(build, filepath.Base(root), "not-a-release/file.bin")} {
		if text, err := os.ReadFile(path); err != nil || string(text) != "stays" {
			t.Errorf("%s: %q, %v", path, text, err)
		}
	}
}

func only(t *testing.T, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %q, %v", pattern, found, err)
	}
	return found[0]
}

// What opcache.ini proposes for it: php-fpm that starts anew sees what was edited, and what was not comes from the disk.
func TestCacheOnTheDiskDoesNotOutliveAnEdit(t *testing.T) {
	root, dir := site(t), t.TempDir()
	flip(t, root, "active", first)
	shared := filepath.Join(t.TempDir(), "settings.php")
	set := func(value string, age time.Duration) {
		write(t, shared, "<?php return '"+value+"';")
		if err := os.Chtimes(shared, time.Now(), time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(root, first, "index.php"), "<?php echo require '"+shared+"';")
	set("old", time.Hour)
	for _, c := range []struct{ ini, want string }{{"", "new"}, {"opcache.validate_timestamps=0", "old"}} {
		set("old", time.Hour)
		for _, want := range []string{"old", c.want} {
			server := testenv.PHPWith(t, parts.WebOptions{Root: root, FileCache: dir, Ini: []string{c.ini}})
			if status, body, _ := get(t, server.URL+"/"); status != http.StatusOK || !strings.HasPrefix(body, want) {
				t.Errorf("%q: %d %q, want %q", c.ini, status, body, want)
			}
			server.Stop()
			set("new", time.Minute)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
}
