package testenv_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// TestWebServesTheNewReleaseRightAfterAFlip is what every test of opcache and flips builds on: PHP runs
// from the release's real path, never through the link.
func TestWebServesTheNewReleaseRightAfterAFlip(t *testing.T) {
	dir, err := os.MkdirTemp("", "web-") // t.TempDir is closed to the web user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, release := range []string{"one", "two"} {
		if err := os.CopyFS(filepath.Join(dir, release), os.DirFS("../../examples/php")); err != nil {
			t.Fatal(err)
		}
	}
	probe := filepath.Join(dir, "probe.php")
	if err := os.WriteFile(probe, []byte("<?php echo basename($_SERVER['DOCUMENT_ROOT']);"), 0o644); err != nil {
		t.Fatal(err)
	}
	active := filepath.Join(dir, "active")
	if err := os.Symlink("one", active); err != nil {
		t.Fatal(err)
	}

	w, err := parts.StartWeb(t.Context(), parts.WebOptions{Dir: dir, Root: active, Probe: probe})
	testenv.Require(t, "web server tests", err)
	t.Cleanup(func() {
		if err := w.Stop(10 * time.Second); err != nil {
			t.Error(err)
		}
	})
	for _, release := range []string{"one", "two"} {
		link := filepath.Join(dir, "new")
		if err := os.Symlink(release, link); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link, active); err != nil {
			t.Fatal(err)
		}
		want := "release=" + release + " page=dev a=dev b=dev\n"
		if code, text := get(t, w.URL+"/?plain"); code != 200 || text != want {
			t.Errorf("page: %d %q, want %q", code, text, want)
		}
		if code, text := get(t, w.Local+"/_deploy/opcache"); code != 200 || text != release {
			t.Errorf("probe: %d %q, want %q", code, text, release)
		}
	}
	if code, _ := get(t, w.URL+"/assets/style.css"); code != 200 {
		t.Errorf("style sheet: %d", code)
	}
	if code, _ := get(t, w.URL+"/_deploy/opcache"); code != 404 {
		t.Errorf("the probe is open to the public: %d", code)
	}
}
