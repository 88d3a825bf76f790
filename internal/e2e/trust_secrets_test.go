package e2e

import (
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"s3pulldeploy/internal/testenv/parts"
)

// secretsStay plants secrets wherever settings and environment can hold one, lets a fleet live and fail, and looks for them
// wherever anybody can read.
func secretsStay(t *testing.T, w *world) {
	s := newSite(t, w)
	file, public := s.keygen("promo-ci")
	key, err := os.ReadFile(file)
	check(t, err)
	var called atomic.Int64
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		called.Add(1)
		http.Error(w, "no", http.StatusTeapot)
	}))
	t.Cleanup(hook.Close)
	planted := map[string]string{
		"the signing key":       strings.TrimSpace(strings.SplitN(string(key), "+", 5)[4]),
		"the webhook's token":   "T0KENofTHEwebhook",
		"the AWS secret key":    parts.SecretKey,
		"the hook's own secret": "T0KENofTHEhook",
	}
	notify := "notify: {webhook: \"" + hook.URL + "/T0KENofTHEwebhook\"}"
	s.env = append(s.env, "PROMO_KEY="+strings.TrimSpace(string(key)))
	s.write("push.yml", s.settings(w.s3.Endpoint, w.dynamodb)+"signing_key: ${PROMO_KEY}\n"+notify+"\n"+verifies(public))
	// The hook shows the environment that it has: the agent's must not be in it.
	a := s.newAgent("i-0", verifies(public), notify, "hooks: {before_flip: 'env; echo ${S3PULLDEPLOY_TEST_SECRET-none} | tee hooked.txt; [ ! -e refuse ]'}", "owner: root", "web_user: root")
	a.env = append(a.env, "S3PULLDEPLOY_TEST_SECRET=T0KENofTHEhook")
	a.configure()
	a.start()
	s.awaitPhase(joinTime, "serve", a)
	seen := map[string]string{}
	look := func(name string, r result) { seen["push "+name] += r.stdout + r.stderr }
	deploy := func(code int, tree map[string]string) {
		_, r := s.deploy(code, tree)
		look("-deploy", r)
	}
	deploy(0, files("one"))
	bad := files("two")
	bad["refuse"] = ""
	deploy(3, bad)
	deploy(0, files("three"))
	for _, verb := range []string{"-status", "-releases", "-show", "-manifest", "-rollback", "-gc", "-policy=ci", "-policy=instance", "-init", "-version"} {
		look(verb, s.push(verb))
	}
	s.write("broken.yml", s.settings(w.s3.Endpoint, w.dynamodb)+"signing_key: ${PROMO_KEY}X\nnotify: {webhook: \"ftp://x/T0KENofTHEwebhook\"}\n")
	look("with broken settings", s.call(w.push, "-config="+filepath.Join(s.dir, "broken.yml"), "-deploy="+s.app))
	s.write("broken.yml", s.settings(w.s3.Endpoint, w.dynamodb)+"signing_key: ${PROMO_KEY}X\n")
	look("with a broken key", s.call(w.push, "-config="+filepath.Join(s.dir, "broken.yml"), "-deploy="+s.app))
	line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(a.Pid()), "cmdline"))
	check(t, err)
	seen["the agent's command line"] = string(line)
	seen["agent -status"] = a.said()
	seen["agent -show"] = s.call(w.agent, "-config="+a.config, "-show").stdout
	seen["the agent's log"] = a.logText()
	for _, path := range []string{"/status", "/health", "/metrics"} {
		_, text, err := a.ask(path)
		check(t, err)
		seen["GET "+path] = text
	}
	check(t, filepath.WalkDir(filepath.Join(w.s3.Dir, s.bucket), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			text, err := os.ReadFile(path)
			seen["the bucket's "+d.Name()] = string(text)
			return err
		}
		return err
	}))
	check(t, filepath.WalkDir(a.dir, func(path string, d os.DirEntry, err error) error { // state, releases
		if err == nil && d.Type().IsRegular() && path != a.config {
			text, err := os.ReadFile(path)
			seen["the instance's "+path] = string(text)
			return unlessGone(err)
		}
		return unlessGone(err)
	}))
	if called.Load() == 0 {
		t.Error("the webhook was never called: what it would have failed with was not looked at")
	}
	if got := a.file("hooked.txt"); got != "none\n" {
		t.Errorf("a hook has the agent's environment: %q", got)
	}
	for where, text := range seen {
		for what, secret := range planted {
			if strings.Contains(text, secret) {
				t.Errorf("%s is in %s", what, where)
			}
		}
	}
	if !strings.Contains(seen["push -show"], "signing_key: <secret>") {
		t.Errorf("push -show: %s", seen["push -show"])
	}
}

// unlessGone forgives a file that a running agent has removed or renamed since it was listed.
func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
