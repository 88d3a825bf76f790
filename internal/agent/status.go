package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/fleet"
)

// Status is what an agent says about itself, on its socket and to `agent -status`.
type Status struct {
	fleet.View
	Site, Scope, Version string
	// Line is one line for people: what is going on, or what is wrong.
	Line string
	// Healthy is what the load balancer is told: false when the instance knows of a commit that it is not on, is unfit, or
	// never had anything to serve yet. That the table does not answer is no reason, nor that a flip is under way: that would
	// take the whole fleet out at once.
	Healthy bool
}

// report tells systemd and the status socket how it goes, on change.
func (a *Agent) report() {
	v := a.node.View()
	if text := a.pointer.err; text != "" {
		v.Problems["pointer"] = cmp.Or(v.Problems["pointer"], text)
	}
	if a.reloadErr != "" {
		v.Problems["settings"] = a.reloadErr
	}
	v.Ready = v.Ready && !a.firstPending(v)
	s := Status{View: v, Site: a.p.Config.Site, Scope: a.p.Config.Scope(), Version: a.p.Version, Line: line(v, a.job)}
	s.Healthy = healthy(v)
	a.mu.Lock()
	a.view = s
	a.mu.Unlock()
	if s.Line != a.status {
		a.status = s.Line
		a.p.Service.Status(s.Line)
		a.log.Info("status", "line", s.Line)
	}
	if v.Ready && !v.Behind && !a.ready {
		a.ready = true
		a.p.Service.Ready()
		a.log.Info("ready", "release", string(v.Flipped.Release), "isolated", v.Isolated)
	}
	if every := a.p.Service.WatchdogEvery(); every > 0 && time.Since(a.watchdog) >= every/4 {
		a.watchdog = time.Now()
		a.p.Service.Watchdog()
	}
}

// firstPending says that the fleet never committed to anything, and that there is a first release to wait for, or nobody knows
// yet whether there is one.
func (a *Agent) firstPending(v fleet.View) bool {
	return v.Waiting && (!a.pointer.seen || a.node.Opening() || v.Head.State.Open())
}

func healthy(v fleet.View) bool {
	return (v.Ready || v.Flipped.Epoch > 0) && (!v.Behind || v.Pending) && v.Phase != fleet.Out && !v.Duplicate
}

// line says in one line what an instance is doing, and what is wrong with it.
func line(v fleet.View, j *job) string {
	var s string
	switch {
	case v.Duplicate:
		s = "duplicate id: stopped acting"
	case j != nil && j.want.Task != fleet.Idle:
		s = fmt.Sprintf("%s %s", j.want.Task, cmp.Or(j.want.Commit.Release, j.want.Note.Pointer.Release))
	case v.Phase == fleet.Out:
		s = "unfit: out of service"
	case v.Behind:
		s = fmt.Sprintf("behind: the fleet is on %s", v.Target.Release)
	case v.Isolated:
		s = fmt.Sprintf("isolated: serving %s, the table does not answer", v.Flipped.Release)
	case v.Waiting:
		s = "waiting for the first push"
	case v.Ready:
		s = fmt.Sprintf("serving %s", v.Flipped.Release)
	default:
		s = "joining"
	}
	if v.HaveHead && v.Head.State.Open() {
		s += fmt.Sprintf("; epoch %d is open for %s", v.Head.Epoch, v.Head.Release)
	}
	for _, part := range slices.Sorted(maps.Keys(v.Problems)) {
		s += fmt.Sprintf("; %s: %s", part, v.Problems[part])
	}
	return strings.ReplaceAll(s, "\n", "; ") // systemd takes a second line for another variable
}

// Status returns the agent's last report; safe for concurrent use.
func (a *Agent) Status() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.view
}

// SocketPath is where a site's status socket lies: in systemd's RUNTIME_DIRECTORY, else in /run/s3-pull-deploy.
func SocketPath(site string) string {
	dir, _, _ := strings.Cut(os.Getenv("RUNTIME_DIRECTORY"), ":")
	return filepath.Join(cmp.Or(dir, "/run/s3-pull-deploy"), site+".sock")
}

// statusServer serves [statusHandler] on a unix socket. Whoever may reach the directory may ask, as the web server does for
// the load balancer.
func statusServer(path string, current func() *Agent) (stop func() error, err error) {
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("status socket: %w", err)
	}
	server := &http.Server{Handler: statusHandler(current), ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	return func() error {
		err := server.Close()
		<-done
		return err
	}, nil
}

// listen takes a socket's place where a killed agent left it, and leaves a living one's alone.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("%s: %w", path, disk.ErrLocked)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o666); err != nil { // to connect is to write
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// statusHandler answers /status (JSON) and /health (200 or 503, and the status line) for whichever agent current returns.
func statusHandler(current func() *Agent) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(statusOf(current()))
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		s := statusOf(current())
		if !s.Healthy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintln(w, s.Line)
	})
	return mux
}

func statusOf(a *Agent) Status {
	if a == nil {
		return Status{Line: "starting"}
	}
	return a.Status()
}

// errNotRunning: nobody serves the status socket.
var errNotRunning = errors.New("no agent is running for this site")

// askStatus reads a running agent's status from its socket.
func askStatus(ctx context.Context, path string) (Status, error) {
	client := &http.Client{
		Timeout: 3 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/status", nil)
	if err != nil {
		return Status{}, fmt.Errorf("read status: %w", err)
	}
	resp, err := client.Do(req)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return Status{}, fmt.Errorf("read status from %s: %w", path, errNotRunning)
	}
	if err != nil {
		return Status{}, fmt.Errorf("read status from %s: %w", path, errors.Unwrap(err))
	}
	defer resp.Body.Close()
	var s Status
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return Status{}, fmt.Errorf("read status from %s: %w", path, err)
	}
	return s, nil
}
