package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// checked is a setting: a health check that asks a web server which serves what is live, and answers with the text of the
// release's file "broken", where there is one, and 500.
func (a *agent) checked() string {
	site := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		if why, err := os.ReadFile(filepath.Join(a.root, "active", "broken")); err == nil {
			http.Error(rw, string(why), http.StatusInternalServerError)
		}
	}))
	a.site.t.Cleanup(site.Close)
	return fmt.Sprintf("health_check: {url: %q, attempts: 2, timeout: 1s}", site.URL)
}

// startChecked starts an agent with a health check of what it serves.
func (s *site) startChecked(id string, extra ...string) *agent {
	s.t.Helper()
	a := s.newAgent(id, extra...)
	a.extra = append(a.extra, a.checked())
	a.configure()
	a.start()
	return a
}

// bad are the files of a release whose check fails.
func bad(version string) map[string]string {
	f := files(version)
	f["broken"] = "no such table: orders"
	return f
}

// rollsItselfBack: a release that fails its check on all instances is left by the fleet itself, and never tried again.
func rollsItselfBack(t *testing.T, w *world) {
	s := newSite(t, w)
	var fleet []*agent
	for n := range 3 {
		fleet = append(fleet, s.startChecked(fmt.Sprintf("i-%d", n)))
	}
	s.awaitPhase(joinTime, "serve", fleet...)
	good := s.live(3, files("one"))
	o, r := s.deploy(3, bad("two"))
	if o.Outcome != "rolled_back" || !strings.Contains(o.Reason, "health check") || !strings.Contains(o.Reason, "500") {
		t.Errorf("want rolled_back with the check's answer: %s", r)
	}
	s.awaitLive(joinTime, good.Release, fleet...)
	for _, a := range fleet {
		serving(t, a, "one")
	}
	if line := s.push("-status").stdout; !strings.HasPrefix(line, o.Release+" was rolled back: 3 of 3 failed") {
		t.Errorf("push -status begins with %.300q", line)
	}
	if list := s.push("-releases").stdout; !strings.Contains(list, o.Release+"  bad, pushed last ") {
		t.Errorf("push -releases: %s", list)
	}
	epoch := s.status().epoch()
	fleet[0].end()
	fleet[0].start() // it remembers
	s.awaitPhase(joinTime, "serve", fleet...)
	s.awaitLive(joinTime, good.Release, fleet...)
	if now := s.status().epoch(); now != epoch {
		t.Errorf("epoch %d became %d without a push", epoch, now)
	}
	s.live(3, files("three"))
}
