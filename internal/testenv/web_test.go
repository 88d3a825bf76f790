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

// The example application says which release each of its files is from; all tests of flips and the demo
// build on it.
func TestExampleServesTheNewReleaseRightAfterAFlip(t *testing.T) {
	dir, err := os.MkdirTemp("", "web-") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	releases := []string{"2026-11-20_20-15-02", "2026-11-20_20-15-03"}
	for _, release := range releases {
		if err := os.CopyFS(filepath.Join(dir, release), os.DirFS("../../examples/php")); err != nil {
			t.Fatal(err)
		}
	}
	w, err := parts.StartWeb(t.Context(), parts.WebOptions{Dir: dir, Root: dir})
	testenv.Require(t, "web server tests", err)
	t.Cleanup(func() {
		if err := w.Stop(10 * time.Second); err != nil {
			t.Error(err)
		}
	})
	for _, release := range releases {
		link := filepath.Join(dir, "new")
		if err := os.Symlink(release, link); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link, filepath.Join(dir, "active")); err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]string{
			"/?plain":     "release=" + release + " page=dev a=dev b=dev\n",
			"/health.php": `{"ok":true,"release":"` + release + "\"}\n",
		} {
			if code, text := get(t, w.URL+path); code != 200 || text != want {
				t.Errorf("%s: %d %q, want %q", path, code, text, want)
			}
		}
	}
	if code, _ := get(t, w.URL+"/assets/style.css"); code != 200 {
		t.Errorf("style sheet: %d", code)
	}
	if code, _ := get(t, w.LocalURL); code != 404 {
		t.Errorf("the probe answers a GET: %d", code)
	}
}
