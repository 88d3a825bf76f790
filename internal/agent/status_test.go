package agent

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

func TestLineSaysTheMostImportantFirst(t *testing.T) {
	on := func(id release.ID) fleet.Commitment { return fleet.Commitment{Epoch: 4, Release: id} }
	stage := &job{want: fleet.Want{Task: fleet.Stage, Note: fleet.Note{}, Commit: on(r2)}}
	clean := &job{}
	for _, c := range []struct {
		name string
		view fleet.View
		job  *job
		want string
	}{
		{"nothing known", fleet.View{}, nil, "joining"},
		{"first push awaited", fleet.View{Ready: true, Waiting: true}, nil, "waiting for the first push"},
		{"serving", fleet.View{Ready: true, Flipped: on(r1)}, nil, "serving " + string(r1)},
		{"cleaning up is nobody's business", fleet.View{Ready: true, Flipped: on(r1)}, clean, "serving " + string(r1)},
		{"a job", fleet.View{Ready: true, Flipped: on(r1)}, stage, "stage " + string(r2)},
		{"behind", fleet.View{Behind: true, Ready: true, Flipped: on(r1), Target: on(r2)}, nil, "behind: the fleet is on " + string(r2)},
		{"unfit", fleet.View{Phase: fleet.Out, Behind: true}, nil, "unfit: out of service"},
		{"isolated", fleet.View{Ready: true, Isolated: true, Flipped: on(r1)}, nil, "isolated: serving " + string(r1) + ", the table does not answer"},
		{"duplicate", fleet.View{Duplicate: true, Ready: true}, stage, "duplicate id: stopped acting"},
		{
			"open epoch",
			fleet.View{Ready: true, Flipped: on(r1), HaveHead: true, Head: fleet.Head{Epoch: 5, State: fleet.Prepare, Release: r2}},
			nil,
			"serving " + string(r1) + "; epoch 5 is open for " + string(r2),
		},
		{
			"problems in order, on one line",
			fleet.View{Ready: true, Flipped: on(r1), Problems: map[string]string{"table": "throttled", "pointer": "bad\nWATCHDOG=trigger"}},
			nil,
			"serving " + string(r1) + "; pointer: bad; WATCHDOG=trigger; table: throttled",
		},
	} {
		if got := line(c.view, c.job); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

func TestHealth(t *testing.T) {
	live := fleet.Commitment{Epoch: 1, Release: r1}
	for _, c := range []struct {
		name string
		view fleet.View
		want int
	}{
		{"in service", fleet.View{Ready: true, Flipped: live}, http.StatusOK},
		{"restarted, the table not read yet", fleet.View{Flipped: live}, http.StatusOK},
		{"isolated", fleet.View{Ready: true, Isolated: true, Flipped: live}, http.StatusOK},
		{"waiting for the first push", fleet.View{Ready: true, Waiting: true}, http.StatusOK},
		{"nothing to serve yet", fleet.View{}, http.StatusServiceUnavailable},
		{"behind", fleet.View{Ready: true, Flipped: live, Behind: true}, http.StatusServiceUnavailable},
		{"about to flip", fleet.View{Ready: true, Flipped: live, Behind: true, Pending: true}, http.StatusOK},
		{"unfit", fleet.View{Flipped: live, Phase: fleet.Out}, http.StatusServiceUnavailable},
		{"duplicate", fleet.View{Flipped: live, Duplicate: true}, http.StatusOK},
		{"duplicate, behind", fleet.View{Flipped: live, Duplicate: true, Behind: true}, http.StatusServiceUnavailable},
		{"duplicate with nothing to serve", fleet.View{Duplicate: true}, http.StatusServiceUnavailable},
	} {
		a := &Agent{view: Status{View: c.view, Line: "table: access denied to arn:aws:iam::123456789012:role/promo", Healthy: healthy(c.view)}}
		w := httptest.NewRecorder()
		statusHandler(func() *Agent { return a }, http.NotFoundHandler(), "").ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/health", nil))
		said := map[int]string{http.StatusOK: "healthy\n", http.StatusServiceUnavailable: "unhealthy\n"}[c.want]
		if w.Code != c.want || w.Body.String() != said { // the web server passes it on to whoever asks
			t.Errorf("%s: %d %q, want %d %q", c.name, w.Code, w.Body, c.want, said)
		}
	}
}

func TestStatusIsTheAgentsReport(t *testing.T) {
	a := &Agent{view: Status{Site: "promo", Line: "serving", View: fleet.View{Flipped: fleet.Commitment{Release: r1}, Problems: map[string]string{"table": "away"}}}}
	handler := statusHandler(func() *Agent { return a }, http.NotFoundHandler(), "")
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/status", nil))
	var got Status
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Site != "promo" || got.Flipped.Release != r1 || got.Problems["table"] != "away" {
		t.Errorf("%v: %+v", err, got)
	}
	for path, want := range map[string]int{"/": http.StatusNotFound, "/metrics": http.StatusNotFound} {
		w := httptest.NewRecorder()
		if handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil)); w.Code != want {
			t.Errorf("%s: %d, want %d", path, w.Code, want)
		}
	}
	w = httptest.NewRecorder()
	statusHandler(func() *Agent { return nil }, http.NotFoundHandler(), "").ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/health", nil))
	if w.Code != http.StatusServiceUnavailable || w.Body.String() != "unhealthy\n" {
		t.Errorf("before the first agent: %d %q", w.Code, w.Body)
	}
}

func TestStatusSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "promo.sock")
	if _, err := askStatus(t.Context(), path); !errors.Is(err, errNotRunning) {
		t.Errorf("without an agent: %v", err)
	}
	a := &Agent{view: Status{Site: "promo", Line: "serving"}}
	stop, err := statusServer(path, func() *Agent { return a }, http.NotFoundHandler())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(when string) {
		t.Helper()
		if s, err := askStatus(t.Context(), path); err != nil || s.Line != "serving" {
			t.Errorf("%s: %+v, %v", when, s, err)
		}
	}
	ask("running")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("%v, %v: the web server may not ask", info.Mode(), err)
	}
	if _, err := statusServer(path, func() *Agent { return nil }, http.NotFoundHandler()); !errors.Is(err, disk.ErrLocked) {
		t.Errorf("a second agent of the site: %v", err)
	}
	ask("after a second one was refused")
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := askStatus(t.Context(), path); !errors.Is(err, errNotRunning) {
		t.Errorf("after the end: %v", err)
	}
}

func TestSocketOfAKilledAgentIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "promo.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if _, err := askStatus(t.Context(), path); !errors.Is(err, errNotRunning) {
		t.Errorf("asking it: %v", err)
	}
	stop, err := statusServer(path, func() *Agent { return &Agent{} }, http.NotFoundHandler())
	if err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestSocketThatCannotBeMadeSaysWhere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("RUNTIME_DIRECTORY", dir+":/second")
	_, err := statusServer(SocketPath("promo"), func() *Agent { return nil }, http.NotFoundHandler())
	if err == nil || !strings.HasPrefix(err.Error(), "status socket: mkdir "+dir) {
		t.Errorf("got %v", err)
	}
}

func TestPrintedStatus(t *testing.T) {
	var out strings.Builder
	s := Status{Site: "promo", Line: "serving", Healthy: true, Version: "1.2"}
	s.Instance, s.Group, s.Phase, s.Head = "i-1", "web", fleet.Serve, fleet.Head{Epoch: 7, State: fleet.Done, Release: r1}
	if err := printStatus(&out, s); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"site      promo\n", "instance  i-1 (group web)\n", "epoch     7 done " + string(r1) + "\n", "healthy   true\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}

func TestMainRefusesWhatItCannotDo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yml")
	if err := os.WriteFile(file, []byte("site: promo\nbucket: my-bucket\nroot: /srv/promo\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("RUNTIME_DIRECTORY", t.TempDir())
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"-version", exitDone, "agent dev", ""},
		{"-help", exitDone, "", "Exit codes: 0 done, 1 failed, 2 wrong usage"},
		{"-nonsense", exitUsage, "", "not defined: -nonsense"},
		{"-version extra", exitUsage, "", `unexpected argument "extra"`},
		{"-config=/nowhere/x.yml", exitUsage, "", "does not exist"},
		{"-show -config=" + file, exitDone, "site: promo", ""},
		{"-status -config=" + file, exitFailed, "", "no agent is running for this site"},
	} {
		var stdout, stderr strings.Builder
		code := Main(t.Context(), strings.Fields(c.args), nil, &stdout, &stderr)
		if code != c.code || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
			t.Errorf("%s: code %d, want %d\nstdout %s\nstderr %s", c.args, code, c.code, stdout.String(), stderr.String())
		}
	}
	if code := Main(t.Context(), []string{"-version"}, nil, io.Discard, io.Discard); code != exitDone {
		t.Error(code)
	}
}

func TestVerdictOutlivesTheAgent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "promo.sock")
	verdict := verdictPath(path)
	exists := func() bool { _, err := os.Stat(verdict); return err == nil }
	starting := func() int {
		w := httptest.NewRecorder()
		statusHandler(func() *Agent { return nil }, http.NotFoundHandler(), verdict).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/health", nil))
		return w.Code
	}
	if verdict != strings.TrimSuffix(path, ".sock")+".healthy" || starting() != http.StatusServiceUnavailable {
		t.Errorf("%s, and before the first agent %d", verdict, starting())
	}
	for _, healthy := range []bool{false, true, true, false, true} {
		a := &Agent{p: Parts{Verdict: verdict}, log: logger()}
		a.judge(healthy)
		if exists() != healthy || (starting() == http.StatusOK) != healthy {
			t.Errorf("the file is there: %v, the next agent starts with %d; want healthy %v", exists(), starting(), healthy)
		}
		a.judge(!healthy)
		a.judge(healthy)
		if exists() != healthy {
			t.Errorf("after a change to and fro it is there: %v, want %v", exists(), healthy)
		}
	}
	if err := os.Remove(verdict); err != nil {
		t.Fatal(err)
	}
}

// Agents with users of their own write to the directory of sockets and last words, beside one that may be root.
func TestWhatLiesInTheSharedDirectoryIsNeitherFollowedNorWrittenTo(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "shadow")
	if err := os.WriteFile(victim, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	untouched := func(when string) {
		t.Helper()
		text, err := os.ReadFile(victim)
		info, serr := os.Stat(victim)
		if err = errors.Join(err, serr); err != nil || string(text) != "kept" || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %q with mode %v, %v", when, text, info.Mode(), err)
		}
	}
	for how, plant := range map[string]func(victim, name string) error{"symbolic link": os.Symlink, "hard link": os.Link} {
		path := filepath.Join(t.TempDir(), "promo.sock")
		for _, name := range []string{path, verdictPath(path)} {
			if err := plant(victim, name); err != nil {
				t.Fatal(err)
			}
		}
		a := &Agent{p: Parts{Verdict: verdictPath(path)}, log: logger()}
		a.judge(true)
		untouched("the last word over a " + how)
		info, err := os.Lstat(a.p.Verdict)
		if err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != 0o644 {
			t.Errorf("over a %s the last word is %v, %v", how, info.Mode(), err)
		}
		stop, err := statusServer(path, func() *Agent { return a }, http.NotFoundHandler())
		if err != nil {
			t.Fatal(err)
		}
		untouched("the socket over a " + how)
		// Somebody puts a link into its place between bind and chmod.
		if err := errors.Join(os.Remove(path), os.Symlink(victim, path)); err != nil {
			t.Fatal(err)
		}
		if err := openToAll(path); err == nil {
			t.Error("the mode of what a link leads to is changed")
		}
		untouched("a link in the socket's place")
		if err := stop(); err != nil {
			t.Error(err)
		}
		names, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".new-*"))
		if err != nil || len(names) > 0 {
			t.Errorf("left behind: %q, %v", names, err)
		}
	}
}

func TestRestartedAgentIsHealthyBeforeTheTableAnswers(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.boot("i-1")[0]
		r.push(r1)
		r.live(r1, 15*time.Second, b)
		b.stop()
		if err := b.prepare(); err != nil {
			t.Fatal(err)
		}
		defer b.disk.Close()
		if s := b.agent.Status(); !s.Healthy || s.Ready || s.Flipped.Release != r1 {
			t.Errorf("before its first step: %+v", s)
		}
	})
}
