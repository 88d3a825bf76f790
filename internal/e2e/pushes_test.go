package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv/parts"
)

// twoPushes: both have read the same pointer when the first writes it. One wins, and the other names the winner.
func twoPushes(t *testing.T, w *world) {
	s := newSite(t, w)
	a := s.startAgent("i-0")
	s.awaitPhase(joinTime, "serve", a)
	s.live(1, files("one"))

	m := s.between()
	uploading := make(chan struct{})
	var first sync.Once
	both, came := make(chan struct{}), atomic.Int64{} // as far as the pointer
	hold := func(key string) {
		if key != "latest-deploy" {
			first.Do(func() { close(uploading) })
			return
		}
		if came.Add(1) == 2 {
			close(both)
		}
		select {
		case <-both:
		case <-time.After(joinTime): // the other has ended: its exit code tells why
		}
	}
	m.writing.Store(&hold)
	push := func(version string) func() result {
		config := s.write(version+".yml", s.settings(m.URL, w.dynamodb))
		for name, text := range files(version) {
			s.write(filepath.Join(version, name), text)
		}
		return in(func() result {
			return s.call(w.push, "-config="+config, "-deploy="+filepath.Join(s.dir, version), "-timeout=60s")
		})
	}
	red := push("red")
	select {
	case <-uploading: // so the other sees this one's release, and takes another id
	case <-time.After(joinTime):
		t.Fatal("nothing was uploaded")
	}
	green := push("green")

	won, lost, version := red(), green(), "red"
	if won.code != 0 {
		won, lost, version = lost, won, "green"
	}
	if won.code != 0 || lost.code != 5 {
		t.Fatalf("want exit codes 0 and 5:\n%s\n%s", won, lost)
	}
	serving(t, a, version)
	release := a.active()
	if !strings.Contains(won.stdout, release+" is live") || !strings.Contains(lost.stderr, release) {
		t.Errorf("%s is live; the winner said %s\nthe other %s", release, won, lost)
	}
	if pointer := s.object("latest-deploy"); !strings.HasPrefix(pointer, release+"\n") {
		t.Errorf("the pointer is %q, %s is live", pointer, release)
	}
}

// sameID: in the plain layout another push had the same id, of the same second, and was faster with a file. Nothing goes live.
func sameID(t *testing.T, w *world) {
	s := newSite(t, w)
	m := s.between()
	theirs := func(key string) {
		if strings.HasSuffix(key, "/index.php") {
			s.put(key, "theirs")
		}
	}
	m.writing.Store(&theirs)
	s.tree(files("ours"))
	config := s.write("slow.yml", s.settings(m.URL, w.dynamodb))
	r := s.call(w.push, "-config="+config, "-deploy="+s.app, "-layout=plain")
	if r.code != 5 || !strings.Contains(r.stderr, "push again") {
		t.Errorf("want exit code 5 and what to do: %s", r)
	}
	if code, text := s.request(http.MethodGet, s.name+"/latest-deploy", "", ""); code != http.StatusNotFound {
		t.Errorf("there is a pointer: %d %s", code, text)
	}
}

// versions: push and agent were built from one tree, and say which, with the commit of a checkout, which is not "dev", and with every
// module that go.mod requires and they link.
func versions(t *testing.T, w *world) {
	s := newSite(t, w)
	push, agent := strings.Fields(s.push("-version").stdout), strings.Fields(s.call(w.agent, "-version").stdout)
	if len(push) < 3 || len(agent) < 2 || push[1] != agent[1] || !strings.HasPrefix(push[2], "go1.") {
		t.Fatalf("push says %q, agent %q", push, agent)
	}
	root, err := parts.ModuleRoot()
	check(t, err)
	if _, err := os.Stat(filepath.Join(root, ".git")); err == nil && push[1] == "dev" {
		t.Errorf("the version is %q", push[1])
	}
	var built struct {
		Version, Revision string
		Modules           []struct{ Path, Version, Sum string }
	}
	check(t, json.Unmarshal([]byte(s.push("-version", "-json").stdout), &built))
	// git fails where this is no checkout, or one of somebody else. In a linked worktree Go notes no revision: there the version has it.
	if head, err := exec.Command("git", "-C", root, "rev-parse", "HEAD").Output(); err == nil &&
		!strings.Contains(built.Version, string(head[:7])) && !strings.HasPrefix(built.Revision, strings.TrimSpace(string(head))) {
		t.Errorf("push is of %q, revision %q, where the checkout is at %s", built.Version, built.Revision, head)
	}
	if built.Revision != "" && !slices.Contains(agent, built.Revision) {
		t.Errorf("push is of revision %q, the agent of another: %q", built.Revision, agent[:min(5, len(agent))])
	}
	mod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	check(t, err)
	sums, err := os.ReadFile(filepath.Join(root, "go.sum"))
	check(t, err)
	for _, m := range built.Modules {
		if !strings.Contains(string(mod), m.Path+" "+m.Version) || m.Sum == "" || !strings.Contains(string(sums), m.Path+" "+m.Version+" "+m.Sum+"\n") {
			t.Errorf("push says that it links %+v, which go.mod and go.sum do not have", m)
		}
	}
	for command, linked := range map[string][]string{
		"push":  {"github.com/aws/aws-sdk-go-v2/service/s3", "golang.org/x/mod", "github.com/schollz/progressbar/v3"},
		"agent": {"github.com/aws/aws-sdk-go-v2/service/s3", "golang.org/x/mod", "github.com/coreos/go-systemd/v22"},
	} {
		words := map[string][]string{"push": push, "agent": agent}[command]
		for _, path := range linked {
			i := slices.Index(words, path)
			if i < 0 || !strings.Contains(string(mod), path+" "+words[i+1]+"\n") {
				t.Errorf("%s -version does not say that it links %s, and in which version: %q", command, path, words)
			}
		}
	}
}
