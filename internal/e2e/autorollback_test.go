package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
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
	return fmt.Sprintf("health_check: {url: %q, attempts: 2, timeout: 30s}", site.URL)
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

// inbox is a webhook that keeps what it is told.
type inbox struct {
	mu    sync.Mutex
	texts []string
}

func (i *inbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var message struct {
		Text string `json:"text"`
	}
	if err := json.NewDecoder(r.Body).Decode(&message); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.texts = append(i.texts, message.Text)
}

// text is the first message that begins so, or "".
func (i *inbox) text(headline string) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, text := range i.texts {
		if strings.HasPrefix(text, headline) {
			return text
		}
	}
	return ""
}

// bad are the files of a release whose check fails.
func bad(version string) map[string]string {
	f := files(version)
	f["broken"] = "no such table: orders"
	return f
}

// rollsItselfBack: a release that fails its check on all instances is left by the fleet itself, and never tried again. What the
// check was answered is in push's last words, in push -status and in the notification.
func rollsItselfBack(t *testing.T, w *world) {
	const answer = `status 500 instead of 200: "no such table: orders"`
	s := newSite(t, w)
	var told inbox
	webhook := httptest.NewServer(&told)
	t.Cleanup(webhook.Close)
	var fleet []*agent
	for n := range 3 {
		fleet = append(fleet, s.startChecked(fmt.Sprintf("i-%d", n), fmt.Sprintf("notify: {webhook: %q}", webhook.URL)))
	}
	s.awaitPhase(joinTime, "serve", fleet...)
	good := s.live(3, files("one"))
	o, r := s.deploy(3, bad("two"))
	if o.Outcome != "rolled_back" || !strings.Contains(o.Reason, "health check") || !strings.Contains(o.Reason, answer) || !strings.Contains(r.stderr, answer) {
		t.Errorf("want rolled_back with the check's answer: %s", r)
	}
	s.awaitLive(joinTime, good.Release, fleet...)
	for _, a := range fleet {
		serving(t, a, "one")
	}
	line, _, _ := strings.Cut(s.push("-status").stdout, "\n")
	// The second failure is above the guard: the coordinator need not see the third.
	if !regexp.MustCompile("^"+o.Release+" was rolled back: [23] of 3 failed ").MatchString(line) || !strings.Contains(line, answer) {
		t.Errorf("push -status begins with %q", line)
	}
	headline := s.name + ": deploy of " + o.Release + " failed and was taken back"
	s.await(joinTime, "the notification", func() string {
		if told.text(headline) == "" {
			return "nobody was told"
		}
		return ""
	})
	if text := told.text(headline); !strings.Contains(text, answer) {
		t.Errorf("the notification says %q", text)
	}
	if list := s.push("-releases").stdout; !regexp.MustCompile(`(?m)^` + o.Release + ` .* bad, pushed last `).MatchString(list) {
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
