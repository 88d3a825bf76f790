package php_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"s3pulldeploy/internal/php"
	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

// apache serves a site's root, which it makes open to Apache's user.
func apache(t *testing.T, root string) testenv.PHPServer {
	t.Helper()
	if err := os.Chmod(filepath.Dir(root), 0o755); err != nil {
		t.Fatal(err)
	}
	return testenv.PHPWith(t, parts.WebOptions{Root: root, Apache: true})
}

func TestApacheShowsTheNewReleaseAtOnceAndWhole(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := apache(t, root)
	release := first
	for range 10 {
		want := fmt.Sprintf("%s %s %s", release, release, filepath.Join(root, release))
		for range 4 { // both workers, cached or not; the index, and what Apache falls back to
			for _, page := range []string{"/", "/index.php", "/pretty/address"} {
				if status, body, header := get(t, server.URL+page); status != 200 || body != want || header.Get("X-Deploy-Release") != release {
					t.Fatalf("%s after the flip to %s: %d %q from %q, want %q", page, release, status, body, header.Get("X-Deploy-Release"), want)
				}
			}
		}
		if seen, err := (php.Site{URL: server.URL}).Runs(t.Context(), release); err != nil || !seen.Resolved || seen.Release != release {
			t.Fatalf("%+v, %v", seen, err)
		}
		if release == first {
			release = second
		} else {
			release = first
		}
		flip(t, root, "active", release)
	}
}

func TestApacheMixesNothingWhileTheLinkFlips(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := apache(t, root)
	whole := map[string]bool{}
	for _, r := range []string{first, second} {
		whole[fmt.Sprintf("%s %s %s", r, r, filepath.Join(root, r))] = true
	}
	stop := make(chan struct{})
	var seen [2]int
	var wg sync.WaitGroup
	for i := range seen {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if status, body, _ := get(t, server.URL+"/"); status != 200 || !whole[body] {
					t.Errorf("during a flip: %d %q", status, body)
				}
				seen[i]++
			}
		})
	}
	for n := range 300 {
		flip(t, root, "active", []string{second, first}[n%2])
		if n%10 == 0 {
			get(t, server.URL+"/")
		}
	}
	close(stop)
	wg.Wait()
	if seen[0]+seen[1] < 20 {
		t.Errorf("only %d requests during the flips", seen[0]+seen[1])
	}
}

func TestApacheServesStaticFilesOfBothReleases(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := apache(t, root)
	flip(t, root, "previous", first)
	flip(t, root, "active", second)
	for path, want := range map[string]string{"/" + second + ".css": second, "/" + first + ".css": first} {
		if status, body, _ := get(t, server.URL+path); status != 200 || body != want {
			t.Errorf("%s: %d %q, want %q", path, status, body, want)
		}
	}
	if status, body, _ := get(t, server.URL+"/nowhere.css"); status != 200 || !strings.HasPrefix(body, second+" "+second) {
		t.Errorf("nowhere.css: %d %q, want the application's page", status, body)
	}
	if _, body, _ := get(t, server.URL+"/upload.jpg/x.php"); strings.Contains(body, "executed") {
		t.Errorf("upload.jpg/x.php: %q", body)
	}
}

func TestApachesLocalRouteWarmsProvesAndResets(t *testing.T) {
	root := site(t)
	server := apache(t, root)
	cache := php.New(php.Options{URLs: []string{server.LocalURL}, Timeout: 30 * time.Second})
	if got := one(t)(cache.Status(t.Context())); got.Root != "" || got.Base != root {
		t.Errorf("before a release: %+v", got)
	}
	dir := release(t, root, "2026-11-20_21-00-00", 20)
	if w := warm(t, cache, dir); w.Cold != "" || w.Cached != 21 {
		t.Errorf("warm-up: %+v", w)
	}
	flip(t, root, "active", "2026-11-20_21-00-00")
	before := one(t)(cache.Status(t.Context()))
	get(t, server.URL+"/")
	if after := one(t)(cache.Status(t.Context())); after.Scripts != before.Scripts || after.Release != "2026-11-20_21-00-00" {
		t.Errorf("the first request compiled: before %+v\nafter %+v", before, after)
	}
	found := php.Examine(t.Context(), php.Setup{
		Opcache: php.Options{Mode: "warm", URLs: []string{server.LocalURL}}, Site: php.Site{URL: server.URL + "/"},
		Root: root, Live: "2026-11-20_21-00-00", Addresses: []string{"127.0.0.2"},
	})
	if bad := worst(found); bad != "" {
		t.Errorf("examined:\n%s", bad)
	}
	one(t)(cache.Reset(t.Context()))
	var route *php.RouteError
	if _, err := php.New(php.Options{URLs: []string{server.LocalURL + "/x"}}).Status(t.Context()); !errors.As(err, &route) || route.Cause != "404 not found" {
		t.Errorf("beside the route: %v", err)
	}
}

func TestApachePreviewsAReleaseByItsName(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	write(t, root+"/"+second+"/health.php", "<?php echo 'fine';")
	server := apache(t, root)
	for _, page := range []string{"/health.php", "/", "/pretty"} {
		check := php.Health{URL: server.Preview + page, Release: second, Preview: true}
		if err := check.Check(t.Context()); err != nil {
			t.Error(err)
		}
		for _, other := range []string{"2026-11-20_23-59-59", "..", "a/b"} {
			check.Release = other
			if err := check.Check(t.Context()); err == nil {
				t.Errorf("%s of release %q passes", page, other)
			}
		}
	}
}
