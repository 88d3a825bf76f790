package php_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
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

// Two releases, whose page is made from two files, so that a mixed one would show.
const (
	first  = "2026-11-20_20-15-02"
	second = "2026-11-20_20-16-40"
)

func site(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, release := range []string{first, second} {
		dir := filepath.Join(root, release)
		write(t, dir+"/index.php", "<?php echo '"+release+" '; require 'part.php'; echo ' ', $_SERVER['DOCUMENT_ROOT'], isset($_SERVER['PATH_INFO']) ? $_SERVER['PATH_INFO'] : '';")
		write(t, dir+"/part.php", "<?php echo '"+release+"';")
		write(t, dir+"/upload.jpg", "<?php echo 'executed';")
		write(t, dir+"/"+release+".css", release)
	}
	return root
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// flip points a link of the site at a release, as the agent does.
func flip(t *testing.T, root, link, release string) {
	t.Helper()
	if err := errors.Join(
		os.Symlink(release, filepath.Join(root, ".link")), os.Rename(filepath.Join(root, ".link"), filepath.Join(root, link)),
	); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, url string) (int, string, http.Header) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

func TestFlipShowsTheNewReleaseAtOnceAndWhole(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := testenv.PHP(t, root)
	release := first
	for range 20 {
		want := fmt.Sprintf("%s %s %s", release, release, filepath.Join(root, release))
		for range 4 { // both workers, cached or not
			if status, body, header := get(t, server.URL+"/"); status != 200 || body != want || header.Get("X-Deploy-Release") != release {
				t.Fatalf("after the flip to %s: %d %q from %q, want %q", release, status, body, header.Get("X-Deploy-Release"), want)
			}
		}
		if release == first {
			release = second
		} else {
			release = first
		}
		flip(t, root, "active", release)
	}
	health := php.Health{URL: server.URL + "/", Release: release, Timeout: 10 * time.Second}
	if err := health.Check(t.Context()); err != nil {
		t.Error(err)
	}
	health.Release = "another"
	if err := health.Check(t.Context()); !errors.Is(err, php.ErrStale) {
		t.Errorf("error is %v, want ErrStale", err)
	}
}

func TestNoRequestIsMixedOrFailsWhileTheLinkFlips(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := testenv.PHP(t, root)
	whole := map[string]bool{}
	for _, r := range []string{first, second} {
		whole[fmt.Sprintf("200 %s %s %s", r, r, filepath.Join(root, r))] = true
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
				resp, err := http.Get(server.URL + "/")
				if err != nil {
					t.Error(err)
					return
				}
				body, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if got := fmt.Sprintf("%d %s", resp.StatusCode, body); err != nil || !whole[got] {
					t.Errorf("during a flip: %q, %v", got, err)
				}
				seen[i]++
			}
		})
	}
	for n := range 500 {
		flip(t, root, "active", []string{second, first}[n%2])
		if n%10 == 0 {
			get(t, server.URL+"/") // keeps the flips among requests
		}
	}
	close(stop)
	wg.Wait()
	if seen[0]+seen[1] < 20 {
		t.Errorf("only %d requests during the flips", seen[0]+seen[1])
	}
	log, err := os.ReadFile(filepath.Join(server.Log, "nginx.log"))
	if err != nil || len(log) > 0 {
		t.Errorf("nginx complains: %s%v", log, err)
	}
}

func TestStaticFilesOfThePreviousReleaseAreStillServed(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := testenv.PHP(t, root)
	flip(t, root, "previous", first)
	flip(t, root, "active", second)
	for path, want := range map[string]string{
		"/" + second + ".css": second,
		"/" + first + ".css":  first,
	} {
		if status, body, _ := get(t, server.URL+path); status != 200 || body != want {
			t.Errorf("%s: %d %q, want %q", path, status, body, want)
		}
	}
	// Neither has it: the application answers, and a path behind a picture is not PHP.
	for _, path := range []string{"/nowhere.css", "/pretty/address"} {
		if status, body, _ := get(t, server.URL+path); status != 200 || !strings.HasPrefix(body, second+" "+second) {
			t.Errorf("%s: %d %q, want the application's page", path, status, body)
		}
	}
	if status, body, _ := get(t, server.URL+"/upload.jpg/x.php"); status != 404 {
		t.Errorf("upload.jpg/x.php: %d %q, want 404", status, body)
	}
	if _, body, _ := get(t, server.URL+"/index.php/more"); !strings.HasSuffix(body, "/more") {
		t.Errorf("no PATH_INFO in %q", body)
	}
}

// A front controller in public/, as frameworks have it: web root, probe, header, preview, health check and the previous release's files.
func TestSiteMayLieInAFolderOfTheRelease(t *testing.T) {
	for name, apache := range map[string]bool{"nginx": false, "apache": true} {
		t.Run(name, func(t *testing.T) {
			root := site(t)
			if err := os.Chmod(filepath.Dir(root), 0o755); err != nil { // Apache's user must get through
				t.Fatal(err)
			}
			for _, id := range []string{first, second} {
				dir := filepath.Join(root, id)
				write(t, dir+"/app.php", "<?php return '"+id+"';")
				write(t, dir+"/public/index.php", "<?php echo '"+id+" ', require __DIR__ . '/../app.php', ' ', $_SERVER['DOCUMENT_ROOT'];")
				write(t, dir+"/public/"+id+".css", "public "+id)
			}
			flip(t, root, "active", first)
			server := testenv.PHPWith(t, parts.WebOptions{Root: root, Public: "/public", Apache: apache})
			cache := php.New(php.Options{Mode: "warm", URLs: []string{server.LocalURL}, Timeout: 30 * time.Second})
			if w := warm(t, cache, filepath.Join(root, second)); w.Cold != "" || w.Cached != 4 {
				t.Errorf("warm-up: %+v", w)
			}
			preview := php.Health{URL: server.Preview + "/index.php", Release: second, Preview: true}
			if err := preview.Check(t.Context()); err != nil {
				t.Error(err)
			}
			get(t, server.URL+"/")
			flip(t, root, "previous", first)
			flip(t, root, "active", second)
			before := one(t)(cache.Status(t.Context()))
			if _, err := php.Prove([]php.Status{before}, second); err != nil || before.Release != second {
				t.Errorf("the pool: %+v, %v", before, err)
			}
			for page, want := range map[string]string{
				"/": second + " " + second + " " + filepath.Join(root, second, "public"), "/pretty/address": second + " " + second + " " + filepath.Join(root, second, "public"),
				"/" + second + ".css": "public " + second, "/" + first + ".css": "public " + first,
			} {
				if status, body, header := get(t, server.URL+page); status != 200 || body != want || header.Get("X-Deploy-Release") != second {
					t.Errorf("%s: %d %q from %q, want %q", page, status, body, header.Get("X-Deploy-Release"), want)
				}
			}
			if after := one(t)(cache.Status(t.Context())); after.Scripts != before.Scripts {
				t.Errorf("the first request compiled: %d scripts, %d before it", after.Scripts, before.Scripts)
			}
			if _, body, _ := get(t, server.URL+"/part.php"); strings.HasPrefix(body, second) && !strings.Contains(body, "/public") {
				t.Errorf("what lies outside of public/ is served: %q", body)
			}
			if err := (php.Health{URL: server.URL + "/", Release: second}).Check(t.Context()); err != nil {
				t.Error(err)
			}
			if seen, err := (php.Site{URL: server.URL}).Runs(t.Context(), second); err != nil || !seen.Resolved || seen.Release != second {
				t.Errorf("visitors: %+v, %v", seen, err)
			}
			found := php.Examine(t.Context(), php.Setup{
				Opcache: php.Options{Mode: "warm", URLs: []string{server.LocalURL}}, Site: php.Site{URL: server.URL + "/"}, Root: root, Live: second,
			})
			if bad := worst(found); bad != "" {
				t.Errorf("examined:\n%s", bad)
			}
		})
	}
}

func TestProbeCompilesNothingOutsideOfARelease(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	write(t, filepath.Join(root, "other.php"), "<?php return 1;")
	write(t, filepath.Join(root, first, "lib.php"), "<?php return 1;")
	if err := os.Symlink("../other.php", filepath.Join(root, first, "link.php")); err != nil {
		t.Fatal(err)
	}
	server := testenv.PHP(t, root)
	for _, c := range []struct {
		release, files string
		want           int // scripts more in opcache
	}{
		{first, "lib.php", 1}, // the way it is meant
		{first, "../other.php\nlink.php\n/etc/hostname\n" + root + "/other.php\n../" + second + "/part.php", 0},
		{"..", filepath.Base(root) + "/other.php", 0},
		{".", "other.php", 0},
		{"active", "index.php", 0},
		{second + "/../" + second, "index.php", 0},
	} {
		scripts := func(form url.Values) (got php.Status) {
			t.Helper()
			req, err := http.NewRequest(http.MethodPost, server.LocalURL, strings.NewReader(form.Encode()))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			req.Header.Set("X-Deploy-Opcache", "1")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
				t.Fatal(err)
			}
			return got
		}
		before := scripts(url.Values{"action": {"status"}})
		after := scripts(url.Values{"action": {"compile"}, "release": {c.release}, "files": {c.files}, "ms": {"1000"}})
		if n := after.Scripts - before.Scripts; n != c.want {
			t.Errorf("release %q, files %q: %d were compiled, want %d", c.release, c.files, n, c.want)
		}
	}
}

func TestResetThroughTheRouteEmptiesTheCache(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := testenv.PHP(t, root)
	for name, address := range map[string]string{"tcp": server.LocalURL, "unix": server.SocketURL} {
		t.Run(name, func(t *testing.T) {
			cache := php.New(php.Options{Mode: "reset", URLs: []string{address}, Timeout: 30 * time.Second})
			get(t, server.URL+"/")
			before := one(t)(cache.Status(t.Context()))
			if before.Scripts < 3 || !before.Enabled || before.MaxKeys != 65407 || before.Release != first || before.Root != filepath.Join(root, first) {
				t.Fatalf("before: %+v, want index.php, part.php and the probe", before)
			}
			one(t)(cache.Reset(t.Context()))
			after := one(t)(cache.Status(t.Context()))
			if after.Scripts >= before.Scripts || after.LastRestart == 0 {
				t.Errorf("after: %+v, want fewer scripts than %d", after, before.Scripts)
			}
		})
	}
	flip(t, root, "active", second)
	got := one(t)(php.New(php.Options{URLs: []string{server.LocalURL}}).Status(t.Context()))
	if got.Release != second {
		t.Errorf("the probe says %q after the flip to %q", got.Release, second)
	}
}

func TestRouteWorksBeforeTheFirstRelease(t *testing.T) {
	server := testenv.PHP(t, site(t))
	got := one(t)(php.New(php.Options{URLs: []string{server.LocalURL}}).Status(t.Context()))
	if got.Root != "" || got.Release != "" || !got.Enabled {
		t.Errorf("got %+v", got)
	}
}

func TestProbeSurvivesOpcacheThatIsOffOrRestricted(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	for ini, allowed := range map[string]bool{
		"opcache.enable=0":                                true,
		"opcache.restrict_api=/nowhere":                   false,
		"disable_functions=opcache_reset":                 false,
		"display_errors=1\nopcache.restrict_api=/nowhere": false,
	} {
		t.Run(ini, func(t *testing.T) {
			server := testenv.PHP(t, root, ini)
			cache := php.New(php.Options{URLs: []string{server.LocalURL}})
			got := one(t)(cache.Status(t.Context()))
			if got.Release != first || got.Restricted == allowed {
				t.Errorf("got %+v, want restricted %t", got, !allowed)
			}
			if _, err := cache.Reset(t.Context()); (err == nil) != allowed {
				t.Errorf("reset: %v", err)
			}
		})
	}
}

func TestProbeIsHiddenFromEverybodyElse(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := testenv.PHP(t, root)
	form := "application/x-www-form-urlencoded"
	for _, c := range []struct{ method, url, header, form string }{
		{"GET", server.LocalURL + "?action=reset", "1", ""},
		{"POST", server.LocalURL, "", "action=reset"},
		{"POST", server.LocalURL, "0", "action=reset"},
		{"POST", server.LocalURL, "1", "action=phpinfo"},
		{"POST", server.LocalURL, "1", ""},
		{"POST", server.LocalURL, "1", "action[]=reset"},
		{"POST", strings.TrimSuffix(server.LocalURL, "opcache") + "other", "1", "action=reset"},
	} {
		req, err := http.NewRequest(c.method, c.url, strings.NewReader(c.form))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", form)
		if c.header != "" {
			req.Header.Set("X-Deploy-Opcache", c.header)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 404 || strings.Contains(string(body), "s3-pull-deploy") {
			t.Errorf("%+v: %d %q, want 404", c, resp.StatusCode, body)
		}
	}
	// On the public server block there is no route at all: the application gets the request.
	all, err := php.New(php.Options{URLs: []string{server.URL + "/_deploy/opcache"}}).Reset(t.Context())
	if err == nil {
		t.Errorf("the public server block resets: %+v", all)
	}
}

func TestStoppedPHPIsNamed(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := testenv.PHP(t, root)
	server.Stop()
	_, err := php.New(php.Options{URLs: []string{server.LocalURL}}).Status(t.Context())
	var route *php.RouteError
	if !errors.As(err, &route) || route.Cause != "connection refused" {
		t.Errorf("error is %v", err)
	}
}

// one is the only answer of one pool.
func one(t *testing.T) func([]php.Status, error) php.Status {
	return func(all []php.Status, err error) php.Status {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != 1 {
			t.Fatalf("%d answers, want one", len(all))
		}
		return all[0]
	}
}

func TestPoolThatRunsFromElsewhereIsStale(t *testing.T) {
	root, elsewhere := site(t), site(t)
	flip(t, root, "active", second)
	flip(t, elsewhere, "active", first)
	server := testenv.PHP(t, elsewhere) // its root is not that of the agent
	cache := php.New(php.Options{URLs: []string{server.LocalURL}})
	pools, err := cache.Reset(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var stale *php.StaleError
	if _, err := php.Prove(pools, second); !errors.As(err, &stale) || stale.Root != filepath.Join(elsewhere, first) || stale.URL != server.LocalURL {
		t.Errorf("error is %v", err)
	}
	for n := range 20 { // no worker remembers where the link led before
		release := []string{second, first}[n%2]
		flip(t, elsewhere, "active", release)
		for range 4 {
			pools := []php.Status{one(t)(cache.Status(t.Context()))}
			if silent, err := php.Prove(pools, release); err != nil || len(silent) > 0 {
				t.Fatalf("right after the flip to %s: %q, %v", release, silent, err)
			}
		}
	}
}
