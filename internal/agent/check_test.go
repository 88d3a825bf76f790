package agent

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

func TestCheckSaysALineEachAndHowToMendIt(t *testing.T) {
	broken := func(_, text string) string {
		return strings.Replace(text, "set $deploy_root $realpath_root;", "set $deploy_root $document_root;", 1)
	}
	for name, c := range map[string]struct {
		edit func(name, text string) string
		code int
		want []string
	}{
		"as packaged": {nil, exitDone, []string{"ok    opcache route http://127.0.0.1:", "ok    web server: PHP gets the release", "ok    probe: it answers at none"}},
		"a link is passed on": {broken, exitFailed, []string{
			"fail  web server: it hands PHP ", "\n      hint: the web server must pass $realpath_root", "ok    opcache route",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			page := filepath.Join(root, string(r1), "index.php")
			if err := os.MkdirAll(filepath.Dir(page), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(page, []byte("<?php echo 1;"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(string(r1), filepath.Join(root, "active")); err != nil {
				t.Fatal(err)
			}
			web := testenv.PHPWith(t, parts.WebOptions{Root: root, Edit: c.edit})
			file := filepath.Join(t.TempDir(), "agent.yml")
			text := fmt.Sprintf("site: promo\nbucket: bucket\nroot: %s\nopcache: {url: %q}\nhealth_check: {url: %q}\n", root, web.LocalURL, web.URL+"/index.php")
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			var stdout, stderr bytes.Buffer
			code := Main(t.Context(), []string{"-config=" + file, "-check"}, nil, &stdout, &stderr)
			if code != c.code {
				t.Errorf("exit code %d, want %d: %s", code, c.code, stderr.String())
			}
			for _, want := range c.want {
				if !strings.Contains(stdout.String(), want) {
					t.Errorf("no %q in\n%s", want, stdout.String())
				}
			}
		})
	}
}
