package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"s3pulldeploy/internal/testenv/parts"
)

// TestJobsOfCIPush runs the lines of examples/ci that push, by the shell that runs them there, with the variables that they have there. Both
// jobs may ask for a token of OpenID Connect, and have no key.
func TestJobsOfCIPush(t *testing.T) {
	w := newWorld(t)
	root, err := parts.ModuleRoot()
	check(t, err)
	type job struct {
		Steps []struct { // GitHub's
			Run  string
			With map[string]string
		}
		Script    []string                     // GitLab's
		Before    []string                     `yaml:"before_script"`
		Tokens    map[string]map[string]string `yaml:"id_tokens"`
		Variables map[string]string
	}
	for file, c := range map[string]struct {
		jobs func(text []byte) (job, error)
		env  []string
	}{
		"github.yml": {func(text []byte) (job, error) {
			var all struct {
				Permissions map[string]string
				Jobs        map[string]job
			}
			err := yaml.Unmarshal(text, &all)
			j := all.Jobs["deploy"]
			if may := all.Permissions["id-token"]; may != "write" || len(j.Steps) < 2 || !strings.HasPrefix(j.Steps[1].With["role-to-assume"], "arn:aws:iam::") {
				err = errors.Join(err, fmt.Errorf("id-token: %q; no role is assumed", may))
			}
			return j, err
		}, []string{"GITHUB_SHA=0badcafe", "MESSAGE=a new page\n\nand why"}},
		"gitlab.yml": {func(text []byte) (job, error) {
			var all map[string]job
			err := yaml.Unmarshal(text, &all)
			j := all["deploy"]
			want := `echo "$AWS_TOKEN" > ` + j.Variables["AWS_WEB_IDENTITY_TOKEN_FILE"]
			if j.Tokens["AWS_TOKEN"]["aud"] == "" || !strings.HasPrefix(j.Variables["AWS_ROLE_ARN"], "arn:aws:iam::") || !slices.Contains(j.Before, want) {
				err = errors.Join(err, errors.New("no role is assumed by a token"))
			}
			return j, err
		}, []string{"CI_COMMIT_SHA=0badcafe", "CI_COMMIT_TITLE=a new page"}},
	} {
		t.Run(file, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join(root, "examples/ci", file))
			check(t, err)
			j, err := c.jobs(text)
			check(t, err)
			if strings.Contains(string(text), "SECRET_ACCESS_KEY") {
				t.Error("the job has a key")
			}
			lines := j.Script
			for _, step := range j.Steps {
				if strings.HasPrefix(step.Run, "s3-pull-deploy-push ") {
					lines = append(lines, step.Run)
				}
			}
			if len(lines) != 1 {
				t.Fatalf("these lines push: %q, want one", lines)
			}

			s := newSite(t, w)
			s.write("app/index.html", "hello")
			s.write("app/deploy/production.yml", s.settings(w.s3.Endpoint, w.dynamodb))
			bin := filepath.Join(s.dir, "bin")
			check(t, os.Mkdir(bin, 0o755))
			check(t, os.Symlink(w.push, filepath.Join(bin, "s3-pull-deploy-push")))
			cmd := exec.Command("bash", "-e", "-c", lines[0])
			cmd.Dir = s.app
			cmd.Env = append(parts.Environ(), append(c.env, "PATH="+bin+":"+os.Getenv("PATH"), "XDG_CACHE_HOME="+filepath.Join(s.dir, "cache"))...)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", lines[0], err, out)
			}
			r := s.push("-releases")
			if r.code != 0 || !strings.Contains(r.stdout, "a new page") || strings.Contains(r.stdout, "and why") {
				t.Errorf("the release does not say its message: %s", r)
			}
			if r := s.push("-releases", "-json"); !strings.Contains(r.stdout, "0badcafe") {
				t.Errorf("the release does not say its commit: %s", r)
			}
		})
	}
}
