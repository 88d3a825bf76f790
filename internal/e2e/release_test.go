package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

// The accounts of a Debian machine that the web and released files belong to here.
const (
	webUser = "www-data"
	owner   = "daemon"
)

// hooksAndTree: which hooks run where, as whom and with what, on a deploy, a join and a rollback; and what a
// release has besides its files.
func hooksAndTree(t *testing.T, w *world) {
	testenv.Root(t, "hooks of another user")
	s := newSite(t, w)
	out := filepath.Join(s.dir, "out")
	check(t, os.Mkdir(out, 0o755))
	check(t, os.Chmod(out, 0o777))
	uploads := filepath.Dir(s.write("uploads/photo", "a photo"))
	settings := []string{
		"group: web", "stamp: inc/_cache.php", "writable: [cache]", "owner: " + owner, "web_user: " + webUser,
		fmt.Sprintf("shared: {var/uploads: %q}", uploads), "hooks:",
	}
	for _, name := range []string{"after_sync", "before_flip", "after_flip"} {
		settings = append(settings, fmt.Sprintf(
			`  %[1]s: 'f=%[2]s/$DEPLOY_INSTANCE; echo %[1]s >> $f; { pwd; id -un; readlink %[3]s/$DEPLOY_INSTANCE/www/active; env | grep ^DEPLOY_ | sort; } > $f.%[1]s; touch cache/%[1]s'`,
			name, out, s.dir))
	}
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			return err.Error()
		}
		return string(text)
	}
	a := s.startAgent("i-0", settings...)
	s.awaitPhase(joinTime, "serve", a)
	first := s.live(1, files("one"))
	second := s.live(1, files("two"), "-commit=abc123")
	const all = "after_sync\nbefore_flip\nafter_flip\n"
	if got := read("i-0"); got != all+all {
		t.Errorf("hooks ran in the order %q", got)
	}
	told := func(o outcome, previous, commit, instance, kind string) string {
		return fmt.Sprintf("DEPLOY_COMMIT=%s\nDEPLOY_GROUP=web\nDEPLOY_INSTANCE=%s\nDEPLOY_KIND=%s\nDEPLOY_PREVIOUS=%s\nDEPLOY_RELEASE=%s\nDEPLOY_SEQUENCE=%d\nDEPLOY_SITE=%s\nDEPLOY_ZONE=\n",
			commit, instance, kind, previous, o.Release, o.Sequence, s.name)
	}
	for name, where := range map[string][2]string{ // the folder, and what is live
		"after_sync":  {".incoming-" + second.Release, first.Release},
		"before_flip": {second.Release, first.Release},
		"after_flip":  {second.Release, second.Release},
	} {
		want := fmt.Sprintf("%s\n%s\n%s\n%s", filepath.Join(a.root, where[0]), webUser, where[1], told(second, first.Release, "abc123", "i-0", "deploy"))
		if got := read("i-0." + name); got != want {
			t.Errorf("%s saw\n%s\nwant\n%s", name, got, want)
		}
	}
	tree(t, a, uploads, second.Release)

	b := s.startAgent("i-1", settings...)
	s.awaitLive(joinTime, second.Release, b)
	// When it serves, it brings up the release that a rollback would go to.
	s.await(joinTime, "the newcomer's hooks", func() string {
		if got := read("i-1"); got != all+"after_sync\nbefore_flip\n" {
			return fmt.Sprintf("they ran in the order %q", got)
		}
		return ""
	})

	back, _ := s.rollOut(0, "-rollback")
	if back.Release != first.Release || back.Members != 2 {
		t.Fatalf("rolled back to %+v", back)
	}
	if got := read("i-0"); got != all+all+"after_flip\n" {
		t.Errorf("with the rollback, hooks ran in the order %q", got)
	}
	want := fmt.Sprintf("%s\n%s\n%s\n%s", filepath.Join(a.root, first.Release), webUser, first.Release, told(back, second.Release, "", "i-0", "rollback"))
	if got := read("i-0.after_flip"); got != want {
		t.Errorf("after_flip of the rollback saw\n%s\nwant\n%s", got, want)
	}
}

// tree checks owners, the writable folder, the shared link and the stamp of what is live.
func tree(t *testing.T, a *agent, uploads, release string) {
	t.Helper()
	account := func(name string) uint32 {
		info, err := os.Lstat(filepath.Join(a.root, release, name))
		check(t, err)
		return info.Sys().(*syscall.Stat_t).Uid
	}
	for _, name := range []string{".", "index.php", "lib", "lib/deep/b.txt", "inc/_cache.php", "var"} {
		if got := account(name); got != uid(t, owner) {
			t.Errorf("%s belongs to %d, want %s", name, got, owner)
		}
	}
	for _, name := range []string{"cache", "cache/after_sync", "cache/before_flip", "cache/after_flip"} {
		if got := account(name); got != uid(t, webUser) {
			t.Errorf("%s belongs to %d, want %s", name, got, webUser)
		}
	}
	if target, err := os.Readlink(filepath.Join(a.root, release, "var/uploads")); target != uploads || a.file("var/uploads/photo") != "a photo" {
		t.Errorf("var/uploads is a link to %q (%v), want %q", target, err, uploads)
	}
	when, err := time.Parse("2006-01-02_15-04-05", release)
	check(t, err)
	if got, want := a.file("inc/_cache.php"), fmt.Sprintf("<?php return '%d';\n", when.Unix()); got != want {
		t.Errorf("the stamp is %q, want %q", got, want)
	}
	info, err := os.Stat(filepath.Join(a.root, release, "index.php"))
	check(t, err)
	if info.Mode() != fs.FileMode(0o644) {
		t.Errorf("index.php has mode %v", info.Mode())
	}
}

// uid is an account's number in /etc/passwd.
func uid(t *testing.T, name string) (id uint32) {
	t.Helper()
	text, err := os.ReadFile("/etc/passwd")
	check(t, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name+":x:"); ok {
			_, err := fmt.Sscanf(rest, "%d", &id)
			check(t, err)
			return id
		}
	}
	t.Fatalf("no account %s", name)
	return 0
}

// opcache: a PHP that never looks at files again serves the new release as soon as push has ended, and its
// opcache had it before, and was not emptied for that.
func opcache(t *testing.T, w *world) {
	s := newSite(t, w)
	a := s.newAgent("i-0")
	web, err := parts.StartWeb(context.Background(), parts.WebOptions{
		Dir: a.dir, Root: a.root, User: webUser, Ini: []string{"opcache.validate_timestamps=0"},
	})
	testenv.Require(t, "the test with PHP", err)
	t.Cleanup(func() { check(t, web.Stop(10*time.Second)) })
	a.extra = []string{fmt.Sprintf("opcache: {url: %q}", web.LocalURL), fmt.Sprintf("health_check: {url: %q}", web.URL+"/index.php")}
	a.configure()
	a.start()
	s.awaitPhase(joinTime, "serve", a)
	for n := range 3 {
		page := fmt.Sprintf("<?php echo basename(__DIR__), ' %d ', require __DIR__ . '/lib/part.php';", n)
		part := fmt.Sprintf("<?php return 'part %d';", n)
		o := s.live(1, map[string]string{"index.php": page, "lib/part.php": part})
		if strings.Contains(o.Reason, "PHP") {
			t.Errorf("reason %q", o.Reason)
		}
		want := fmt.Sprintf("%s %d part %d", o.Release, n, n)
		for range 5 {
			if got := body(t, http.MethodGet, web.URL+"/index.php"); got != want {
				t.Fatalf("the page says %q, want %q", got, want)
			}
		}
		probe(t, web.LocalURL, o.Release)
	}
	measured(t, a, web.LocalURL)
	if n := a.logged("msg=opcache"); n < 3 || a.logged("cold=\"\"") != n {
		t.Errorf("%d warm-ups in the log, and not all of them warm", n)
	}
}

// measured looks at each family of metrics of an agent after three rollouts, the last of which is live now.
func measured(t *testing.T, a *agent, pool string) {
	t.Helper()
	var text string
	up := fmt.Sprintf("s3_pull_deploy_opcache_up{pool=%q} 1\n", pool)
	a.site.await(joinTime, "metrics that tell of no problem", func() (wrong string) {
		var err error
		if _, text, err = a.ask("/metrics"); err != nil {
			return err.Error()
		}
		if strings.Contains(text, "s3_pull_deploy_problem{") || !strings.Contains(text, up) {
			return text
		}
		return ""
	})
	got := map[string]float64{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			got[strings.TrimPrefix(name, "s3_pull_deploy_")] = v
		}
	}
	now, pool := float64(time.Now().Unix()), fmt.Sprintf("pool=%q", pool)
	const most = 1e12
	for name, within := range map[string][2]float64{
		`step_duration_seconds_count{result="ok",step="inspect"}`: {3, most}, `step_duration_seconds_count{result="ok",step="stage"}`: {3, most},
		`step_duration_seconds_count{result="ok",step="flip"}`: {3, 3}, `step_duration_seconds_count{result="ok",step="settle"}`: {3, most},
		`votes_total{vote="yes"}`: {3, 3}, `votes_total{vote="no"}`: {0, 0}, `flips_total{result="ok"}`: {3, 3}, `flips_total{result="failed"}`: {0, 0},
		`settle_total{result="ok"}`: {3, most}, "healthy": {1, 1}, "frozen": {0, 0},
		"s3_requests_total": {3, most}, "s3_received_bytes_total": {100, most}, "s3_sent_bytes_total": {0, 0},
		`table_requests_total{kind="read"}`: {10, most}, `table_requests_total{kind="write"}`: {10, most},
		"opcache_up{" + pool + "}": {1, 1}, `opcache_memory_bytes{kind="used",` + pool + "}": {1e6, most}, `opcache_memory_bytes{kind="free",` + pool + "}": {1e6, most},
		"opcache_keys{" + pool + "}": {3, most}, "opcache_max_keys{" + pool + "}": {100, most},
		"pointer_read_timestamp_seconds": {now - 60, now + 2}, "table_answer_timestamp_seconds": {now - 60, now + 2},
	} {
		if v, ok := got[name]; !ok || v < within[0] || v > within[1] {
			t.Errorf("metric %s is %v (there: %v), want %v", name, v, ok, within)
		}
	}
}

// probe wants the pool to be on a release, with an opcache that was never emptied.
func probe(t *testing.T, address, release string) {
	t.Helper()
	var answer struct {
		Release     string `json:"release"`
		Enabled     bool   `json:"enabled"`
		LastRestart int64  `json:"last_restart"`
	}
	text := body(t, http.MethodPost, address)
	check(t, json.Unmarshal([]byte(text), &answer))
	if answer.Release != release || !answer.Enabled || answer.LastRestart != 0 {
		t.Errorf("PHP says %s, want release %s and an opcache that was never emptied", text, release)
	}
}

// body is what a page answers; a POST is the probe's question for its status.
func body(t *testing.T, method, address string) string {
	t.Helper()
	form := ""
	if method == http.MethodPost {
		form = url.Values{"action": {"status"}}.Encode()
	}
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(form))
	check(t, err)
	if form != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("X-Deploy-Opcache", "1")
	}
	resp, err := http.DefaultClient.Do(req)
	check(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	check(t, err)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s: %s", method, address, resp.Status, text)
	}
	return string(text)
}
