package e2e

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

// TestExamplesGoLiveWithTheirOwnSettings; the one with WordPress goes live in the system test.
func TestExamplesGoLiveWithTheirOwnSettings(t *testing.T) {
	w := newWorld(t)
	root, err := parts.ModuleRoot()
	check(t, err)
	for _, name := range []string{"html", "php", "wordpress"} {
		s := &site{t: t, world: w, dir: t.TempDir()}
		for _, command := range []string{w.push, w.agent} {
			if r := s.call(command, "-config="+filepath.Join(root, "examples", name, "config.yml"), "-show"); r.code != 0 {
				t.Errorf("%s takes other settings than those of %s: %s", filepath.Base(command), name, r)
			}
		}
	}
	for name, pages := range map[string]map[string]string{
		"html": {"/index.html": "one release at a time", "/health.html": "ok", "/assets/style.css": "main"},
		"php":  {"/": "One release, whole.", "/health.php": `"ok":true`, "/assets/style.css": "main"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, w)
			example := filepath.Join(root, "examples", name)
			text, err := os.ReadFile(filepath.Join(example, "config.yml"))
			check(t, err)
			// The example's lines for instances, but with this test's root, user and addresses.
			a := s.newAgent("i-1")
			web := testenv.PHP(t, a.root)
			_, lines, ok := strings.Cut(string(text), "# on the instances\n")
			if !ok {
				t.Fatal("no part for the instances")
			}
			for line := range strings.Lines(strings.ReplaceAll(lines, "http://127.0.0.1/", web.URL+"/")) {
				if key, _, _ := strings.Cut(line, ":"); key != "root" && key != "web_user" {
					a.extra = append(a.extra, strings.TrimSpace(line))
				}
			}
			a.configure()
			a.start()
			s.awaitPhase(30*time.Second, "serve", a)

			o, r := s.rollOut(0, "-deploy="+example)
			if o.Outcome != "done" || o.Members != 1 {
				t.Fatal(r)
			}
			for path, want := range pages {
				resp, err := http.Get(web.URL + path)
				check(t, err)
				body, err := io.ReadAll(resp.Body)
				check(t, err)
				check(t, resp.Body.Close())
				if resp.StatusCode != 200 || !strings.Contains(string(body), want) {
					t.Errorf("%s: %s, %q has no %q", path, resp.Status, body, want)
				}
			}
			for _, stays := range []string{"config.yml", ".deployignore"} {
				if _, err := os.Stat(filepath.Join(a.root, o.Release, stays)); err == nil {
					t.Errorf("%s was deployed", stays)
				}
			}
			if names := a.names(); !slices.Contains(names, o.Release) {
				t.Errorf("on the disk: %q", names)
			}
		})
	}
}
