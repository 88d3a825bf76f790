package php_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/php"
	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

func TestPHPSaysOverTheVisitorsPathWhichReleaseItServes(t *testing.T) {
	root := site(t)
	server := testenv.PHP(t, root)
	visitors := php.Site{URL: server.URL + "/some/page?x=1", Host: "promo.example.com", Timeout: 10 * time.Second}
	for n := range 6 {
		live, other := first, second
		if n%2 == 1 {
			live, other = second, first
		}
		flip(t, root, "active", live)
		for range 4 {
			if seen, err := visitors.Runs(t.Context(), live); err != nil || seen.Release != live || !seen.Resolved {
				t.Fatalf("right after the flip to %s: %+v, %v", live, seen, err)
			}
		}
		var stale *php.StaleError
		if _, err := visitors.Runs(t.Context(), other); !errors.As(err, &stale) || stale.Root != live || !errors.Is(err, php.ErrStale) ||
			!strings.Contains(err.Error(), "flipped but stale") || !strings.Contains(err.Error(), "$realpath_root") {
			t.Errorf("asked for the other one: %v", err)
		}
	}
	if _, err := (php.Site{URL: "unix:/no/such.sock:/"}).Runs(t.Context(), first); err == nil || errors.Is(err, php.ErrNoPage) {
		t.Errorf("no socket: %v", err)
	}
}

// unresolved makes nginx hand over the link.
func unresolved(_, text string) string {
	return strings.Replace(text, "set $deploy_root $realpath_root;", "set $deploy_root $document_root;", 1)
}

// withoutPage is a site that does not have the whole snippet.
func withoutPage(_, text string) string {
	return strings.Replace(text, "location = /_deploy/release {", "location = /elsewhere {", 1)
}

// nginx with $document_root, and PHP that remembers where links led: what many tutorials show.
func TestWebServerThatDoesNotResolveTheRootIsSeen(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := testenv.PHPWith(t, parts.WebOptions{Root: root, Edit: unresolved})
	visitors := php.Site{URL: server.URL}
	seen, err := visitors.Runs(t.Context(), first)
	if err != nil || seen.Resolved {
		t.Fatalf("%+v, %v", seen, err)
	}
	get(t, server.URL+"/")
	flip(t, root, "active", second)
	if _, body, _ := get(t, server.URL+"/"); !strings.HasPrefix(body, first) {
		t.Fatalf("the page says %q: the set-up is not stale", body)
	}
}

func TestSiteWithoutThePageCannotBeAsked(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	server := testenv.PHPWith(t, parts.WebOptions{Root: root, Edit: withoutPage})
	if _, err := (php.Site{URL: server.URL}).Runs(t.Context(), first); !errors.Is(err, php.ErrNoPage) {
		t.Errorf("the application answers: %v", err)
	}
}

func TestPreviewServesAReleaseByItsNameBeforeItIsLive(t *testing.T) {
	root := site(t)
	flip(t, root, "active", first)
	write(t, root+"/"+second+"/health.php", "<?php http_response_code(is_file(__DIR__ . '/ok') ? 200 : 500); echo 'no database';")
	server := testenv.PHP(t, root)
	check := php.Health{URL: server.Preview + "/health.php", Host: "promo.example.com", Release: second, Preview: true, Attempts: 1}
	err := check.Check(t.Context())
	if err == nil || !strings.Contains(err.Error(), `status 500 instead of 200: "no database"`) {
		t.Fatalf("error is %v", err)
	}
	write(t, root+"/"+second+"/ok", "")
	if err := check.Check(t.Context()); err != nil {
		t.Error(err)
	}
	check.Release = "2026-11-20_23-59-59"
	if err := check.Check(t.Context()); err == nil {
		t.Error("a release that is not there passes")
	}
	check.URL, check.Release = server.URL+"/", second // the public block knows no names
	if err := check.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "preview.conf") {
		t.Errorf("error is %v", err)
	}
	for _, name := range []string{"", "..", "../" + second, "a/b", "active/../" + second, "-x"} {
		req, err := http.NewRequest(http.MethodGet, server.Preview+"/index.php", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Deploy-Release", name)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("release %q: %d, want 404", name, resp.StatusCode)
		}
	}
}
