package push

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// complete asks bash for what follows on a line; the last word is the one being typed.
func complete(t *testing.T, dir string, words ...string) []string {
	t.Helper()
	var script, stderr bytes.Buffer
	if code := Main(t.Context(), []string{"-completion=bash"}, strings.NewReader(""), &script, &stderr); code != exitDone {
		t.Fatalf("exit code %d: %s", code, stderr.String())
	}
	file := filepath.Join(t.TempDir(), "completion")
	if err := os.WriteFile(file, script.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", append([]string{"-c", `source "$0"; COMP_WORDS=(push "$@"); COMP_CWORD=$#; _s3_pull_deploy_push; printf '%s\n' "${COMPREPLY[@]}"`, file}, words...)...)
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

func TestBashCompletesVerbsTheirOptionsAndPaths(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "application"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		words, want, not []string
	}{
		{[]string{"-re"}, []string{"-releases", "-retry"}, []string{"-status"}},
		{[]string{"-de"}, []string{"-deploy="}, nil},
		{[]string{"-deploy", "=", "app"}, []string{"application"}, nil},
		{[]string{"-deploy", "=", "app", "-m"}, []string{"-message=", "-max-excluded="}, []string{"-manifest"}},
		{[]string{"-freeze", "=", "sale", "-"}, []string{"-for=", "-json", "-config="}, []string{"-message=", "-deploy="}},
		{[]string{"-deploy", "=", "app", "-layout", "="}, []string{"plain", "packed"}, nil},
	} {
		got := complete(t, dir, c.words...)
		for _, w := range c.want {
			if !slices.Contains(got, w) {
				t.Errorf("%q: no %s in %q", c.words, w, got)
			}
		}
		for _, w := range c.not {
			if slices.Contains(got, w) {
				t.Errorf("%q: %s does not belong to %q", c.words, w, got)
			}
		}
	}
}

func TestCompletionIsThereForTwoShells(t *testing.T) {
	for shell, code := range map[string]int{"zsh": exitDone, "fish": exitUsage} {
		var stdout, stderr bytes.Buffer
		if got := Main(t.Context(), []string{"-completion=" + shell}, strings.NewReader(""), &stdout, &stderr); got != code {
			t.Errorf("%s: exit code %d, want %d: %s", shell, got, code, stderr.String())
		}
	}
}

func TestHelpFitsOnAPageAndNamesEveryVerb(t *testing.T) {
	var help bytes.Buffer
	usage(&help)
	for name := range verbs {
		if !strings.Contains(help.String(), "  push -"+name) {
			t.Errorf("-help has no -%s", name)
		}
	}
	if n := strings.Count(help.String(), "\n"); n > 70 {
		t.Errorf("%d lines are more than a minute's reading", n)
	}
}
