package php_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"s3pulldeploy/internal/php"
	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

// small is a php.ini in which opcache is full after some releases of [release].
var small = []string{"opcache.memory_consumption=8", "opcache.interned_strings_buffer=1", "opcache.max_accelerated_files=1000"}

// release makes a release of n files of about 8 KB beside a page that uses the first of them. Its files are old enough for
// any setting of opcache.
func release(t *testing.T, root, id string, n int) string {
	t.Helper()
	dir := filepath.Join(root, id)
	write(t, dir+"/index.php", "<?php require __DIR__ . '/lib/f0.php'; echo '"+id+" ', f0(1);")
	for i := range n {
		var text strings.Builder
		fmt.Fprintf(&text, "<?php\nfunction f%d($x) {\n", i)
		for line := range 150 {
			fmt.Fprintf(&text, "    $x = $x * %d + strlen('%s %d');\n", line, id, line)
		}
		text.WriteString("    return '" + id + "';\n}\n")
		write(t, fmt.Sprintf("%s/lib/f%d.php", dir, i), text.String())
	}
	old := time.Now().Add(-2 * time.Hour)
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chtimes(path, old, old))
	})
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func quiet(string) {}

// warm wants the only pool's warmth.
func warm(t *testing.T, o *php.Opcache, dir string) php.Warmth {
	t.Helper()
	all, err := o.Warm(t.Context(), dir, quiet)
	if err != nil || len(all) != 1 {
		t.Fatalf("warm-up: %v, %v", all, err)
	}
	return all[0]
}

func TestWarmReleaseIsInOpcacheBeforeItsFirstRequest(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	dir := release(t, root, "2026-11-20_21-00-00", 60)
	write(t, dir+"/style.css", "<?php not PHP's")
	write(t, dir+"/theme.inc", "<?php return 1;")
	server := testenv.PHP(t, root, "opcache.file_update_protection=2")
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(dir+"/theme.inc", old, old); err != nil {
		t.Fatal(err)
	}
	cache := php.New(php.Options{Mode: "warm", URLs: []string{server.SocketURL}, Timeout: 30 * time.Second})
	var said atomic.Value
	all, err := cache.Warm(t.Context(), dir, func(text string) { said.Store(text) })
	if err != nil || len(all) != 1 || all[0].Cold != "" || all[0].Files != 62 || all[0].Cached != 62 {
		t.Fatalf("got %+v, %v; want 62 files, all of them cached", all, err)
	}
	if text := said.Load(); text != "62 of 62 files compiled" {
		t.Errorf("the last word of progress is %q", text)
	}
	before := one(t)(cache.Status(t.Context()))
	flip(t, root, "active", "2026-11-20_21-00-00")
	if _, body, _ := get(t, server.URL+"/"); !strings.HasPrefix(body, "2026-11-20_21-00-00 ") {
		t.Errorf("the page says %q", body)
	}
	if after := one(t)(cache.Status(t.Context())); after.Scripts != before.Scripts {
		t.Errorf("the first request compiled: %d scripts, %d before it", after.Scripts, before.Scripts)
	}
	if again := warm(t, cache, dir); again.Cached != 62 {
		t.Errorf("again: %+v", again)
	}
}

// What opcache holds counts, not what the compile says.
func TestWarmthIsWhatOpcacheHolds(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	secret := filepath.Join(t.TempDir(), "outside.php")
	write(t, secret, "<?php return 1;")
	server := testenv.PHP(t, root, "opcache.file_update_protection=3600")
	cache := php.New(php.Options{URLs: []string{server.LocalURL}})

	young := filepath.Join(root, second)
	if w := warm(t, cache, young); w.Cached != 0 || !strings.Contains(w.Cold, "opcache does not keep 2 of 2 files") {
		t.Errorf("files that are too young: %+v", w)
	}
	dir := release(t, root, "2026-11-20_21-00-00", 3)
	two := func(name string) { // the same function in two files: PHP cannot compile both in one request
		write(t, dir+"/"+name, "<?php function twice() {} class Twice {}")
	}
	two("a.php")
	two("b.php")
	write(t, dir+"/broken.php", "<?php function (")
	if err := os.Symlink(secret, dir+"/link.php"); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-2 * time.Hour)
	for _, name := range []string{"a.php", "b.php", "broken.php"} {
		if err := os.Chtimes(dir+"/"+name, old, old); err != nil {
			t.Fatal(err)
		}
	}
	if w := warm(t, cache, dir); w.Cold != "" || w.Files != 7 || w.Cached != 6 || w.Broken != 1 {
		t.Errorf("got %+v, want 6 of 7 cached, one broken", w)
	}
}

func TestReleaseThatDoesNotFitIsColdAndHarmsNobody(t *testing.T) {
	for name, c := range map[string]struct {
		ini   []string
		files int
		why   string
	}{
		"memory": {small, 500, "free memory (opcache.memory_consumption)"},
		"keys":   {append(small[:2:2], "opcache.max_accelerated_files=200"), 230, "free keys (opcache.max_accelerated_files)"},
	} {
		t.Run(name, func(t *testing.T) {
			root := site(t)
			flip(t, root, "active", first)
			server := testenv.PHP(t, root, c.ini...)
			cache := php.New(php.Options{URLs: []string{server.LocalURL}})
			get(t, server.URL+"/")
			before := one(t)(cache.Status(t.Context()))
			w := warm(t, cache, release(t, root, "2026-11-20_21-00-00", c.files))
			if !strings.Contains(w.Cold, "it does not fit: it needs ") || !strings.Contains(w.Cold, c.why) {
				t.Errorf("got %+v, want the reason %q", w, c.why)
			}
			after := one(t)(cache.Status(t.Context()))
			if after.Full || after.OwnRestarts > 0 || after.Scripts != before.Scripts || after.LastRestart != 0 {
				t.Errorf("before %+v\nafter %+v", before, after)
			}
		})
	}
}

// texts makes a release of n files with 400 strings each, 80 bytes or so, that are in no other file.
func texts(t *testing.T, root, id string, n int) string {
	t.Helper()
	dir := release(t, root, id, 0)
	for i := range n {
		var text strings.Builder
		text.WriteString("<?php return [")
		for line := range 400 {
			fmt.Fprintf(&text, "'a text of release %s, which is in no other file of it: %d, %d', ", id, i, line)
		}
		write(t, fmt.Sprintf("%s/texts%d.php", dir, i), text.String()+"];")
	}
	return dir
}

// What has no place among the interned strings is compiled all the same: no reason to leave it cold, nor to empty what would only fill again.
func TestInternedStringsThatRunShortAreSaidBeforeTheFlip(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := testenv.PHP(t, root, "opcache.interned_strings_buffer=1")
	cache := php.New(php.Options{Mode: "warm", URLs: []string{server.LocalURL}, Timeout: 30 * time.Second})
	if w := warm(t, cache, texts(t, root, "2026-11-20_21-00-00", 40)); w.Cold != "" || w.Short != "" || w.Cached != 41 {
		t.Errorf("of an empty buffer: %+v", w)
	}
	dir := texts(t, root, "2026-11-20_21-00-01", 40)
	if w := warm(t, cache, dir); w.Cold != "" || w.Cached != 41 || !strings.Contains(w.String(), "41 of 41 files in opcache, but it needs ") ||
		!strings.Contains(w.Short, "free interned strings (opcache.interned_strings_buffer)") {
		t.Errorf("of a buffer that is full: %+v", w)
	}
	if w := warm(t, cache, dir); w.Cold != "" || w.Cached != 41 || !strings.Contains(w.Short, "for interned strings are free (opcache.interned_strings_buffer)") {
		t.Errorf("asked again, when nothing is left to compile: %+v", w)
	}
	if tight, err := cache.Tight(t.Context(), dir); err != nil || len(tight) != 0 {
		t.Errorf("tight %q, %v", tight, err)
	}
	found := worst(php.Examine(t.Context(), php.Setup{
		Opcache: php.Options{Mode: "warm", URLs: []string{server.LocalURL}}, Site: php.Site{URL: server.URL + "/"}, Root: root, Live: first,
	}))
	if !strings.HasPrefix(found, "warn opcache of ") || !strings.Contains(found, "for interned strings are free") || strings.Contains(found, "\n") {
		t.Errorf("examined:\n%s", found)
	}
}

// Memory and keys would hold many more.
func TestRoomIsMadeForInternedStrings(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := testenv.PHP(t, root, "opcache.interned_strings_buffer=2")
	cache := php.New(php.Options{Mode: "warm", URLs: []string{server.LocalURL}, Timeout: 30 * time.Second})
	rooms := 0
	for n := range 10 {
		dir := texts(t, root, fmt.Sprintf("2026-11-20_21-00-%02d", n), 8)
		if w := warm(t, cache, dir); w.Cold != "" || w.Short != "" {
			t.Errorf("release %d: %+v", n, w)
		}
		why, err := cache.Tight(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(why) == 0 {
			continue
		}
		rooms++
		made, err := cache.MakeRoom(t.Context(), dir, quiet)
		if err != nil || len(made) != 1 || made[0].Short != "" || !strings.Contains(why[0], "opcache.interned_strings_buffer") {
			t.Errorf("release %d: room made for %q: %+v, %v", n, why, made, err)
		}
	}
	if rooms < 1 || rooms > 5 {
		t.Errorf("room was made %d times", rooms)
	}
}

func TestPoolThatCannotBeWarmedSaysWhy(t *testing.T) {
	for ini, why := range map[string]string{
		"opcache.enable=0":                           "opcache is off",
		"opcache.restrict_api=/nowhere":              "opcache is closed to the probe",
		"disable_functions=opcache_reset":            "opcache is closed to the probe",
		"disable_functions=opcache_is_script_cached": "opcache is closed to the probe",
		"disable_functions=opcache_compile_file":     "opcache is closed to the probe",
		"disable_functions=opcache_get_status":       "opcache is closed to the probe",
		"opcache.preferred_memory_model=0":           "the pool sees no release",
	} {
		root := site(t)
		flip(t, root, "active", first)
		server := testenv.PHP(t, root, ini)
		cache := php.New(php.Options{URLs: []string{server.LocalURL}})
		dir := filepath.Join(root, second)
		if strings.Contains(why, "sees no release") {
			dir = release(t, t.TempDir(), "2026-11-20_21-00-00", 1)
		}
		if w := warm(t, cache, dir); !strings.Contains(w.Cold, why) {
			t.Errorf("%s: %+v", ini, w)
		}
		if why != "opcache is off" {
			continue
		}
		if tight, err := cache.Tight(t.Context(), dir); err != nil || len(tight) > 0 {
			t.Errorf("%s: tight %q, %v: a reset does not help", ini, tight, err)
		}
	}
	if all, err := php.New(php.Options{Mode: php.ModeOff, URLs: []string{"http://127.0.0.1:1/"}}).Warm(t.Context(), t.TempDir(), quiet); all != nil || err != nil {
		t.Errorf("off: %v, %v", all, err)
	}
}

// As the agent does it: warm, flip, and make room when one more would not fit. The pool has room for three or so.
func TestThirtyReleasesNeverLeaveAFullCache(t *testing.T) {
	t.Run("in memory", func(t *testing.T) { thirtyReleases(t, "") })
	disk := t.TempDir()
	t.Run("and on the disk", func(t *testing.T) {
		root := thirtyReleases(t, disk)
		if got := kept(t, disk, root); len(got) > 2 { // the last release, and the one that went when it had been compiled
			t.Errorf("on the disk are %q", got)
		}
	})
}

func thirtyReleases(t *testing.T, disk string) (root string) {
	root = site(t)
	flip(t, root, "active", first)
	server := testenv.PHPWith(t, parts.WebOptions{Root: root, Ini: small, FileCache: disk})
	cache := php.New(php.Options{URLs: []string{server.LocalURL}, Timeout: 30 * time.Second})
	rooms, cold := 0, 0
	for n := range 30 {
		id := fmt.Sprintf("2026-11-20_21-00-%02d", n)
		dir := release(t, root, id, 40)
		w := warm(t, cache, dir)
		if w.Cold != "" {
			cold++
		}
		flip(t, root, "active", id)
		for range 3 {
			if code, body, _ := get(t, server.URL+"/"); code != http.StatusOK || body != id+" "+id {
				t.Fatalf("release %d: %d %q", n, code, body)
			}
		}
		why, err := cache.Tight(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(why) > 0 {
			rooms++
			made, err := cache.MakeRoom(t.Context(), dir, quiet)
			if err != nil || len(made) != 1 || made[0].Cold != "" || made[0].Cached != 41 {
				t.Fatalf("release %d: room made for %q: %+v, %v", n, why, made, err)
			}
		}
		s := one(t)(cache.Status(t.Context()))
		if why, err := cache.Tight(t.Context(), dir); err != nil || len(why) > 0 || s.Full || s.OwnRestarts > 0 {
			t.Fatalf("after release %d: %q, %v, %+v", n, why, err, s)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	if cold > 0 || rooms < 3 || rooms > 20 {
		t.Errorf("%d of 30 releases were cold, room was made %d times", cold, rooms)
	}
	return root
}

func TestWarmingThatTakesTooLongLeavesTheRestCold(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := testenv.PHP(t, root)
	cache := php.New(php.Options{URLs: []string{server.LocalURL}, Warming: time.Millisecond})
	dir := release(t, root, "2026-11-20_21-00-00", 300)
	if w := warm(t, cache, dir); !strings.Contains(w.Cold, "of 301 files were compiled in 1ms") {
		t.Errorf("got %+v", w)
	}
}

func TestWarmingEndsWithItsContext(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := testenv.PHP(t, root)
	dir := release(t, root, "2026-11-20_21-00-00", 300)
	ctx, cancel := context.WithCancel(t.Context())
	cache := php.New(php.Options{URLs: []string{server.LocalURL}})
	_, err := cache.Warm(ctx, dir, func(string) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}
