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
	// Scrub is the last look at every byte of the releases on this disk.
	Scrub Scrub
	// PointerRead and TableAnswered are when S3 and the table last answered; zero: they have not.
	PointerRead, TableAnswered time.Time
	// Line is one line for people: what is going on, or what is wrong.
	Line string
	// Healthy is what the load balancer is told: false when the instance knows of a commit that it is not on, is unfit, or
	// never had anything to serve yet. That the table does not answer is no reason, nor that another agent has this
	// instance's id, nor that a flip is under way: each could take the whole fleet out at once.
	Healthy bool
}

// look is how it goes.
func (a *Agent) look() Status {
	v := a.node.View()
	if text := a.pointer.err; text != "" {
		v.Problems["pointer"] = cmp.Or(v.Problems["pointer"], text)
	}
	if a.scrub.err != "" {
		v.Problems["disk"] = a.scrub.err
	}
	if text := a.machine.coldness(); text != "" {
		v.Problems["opcache"] = text
	}
	if text := a.machine.undone.text(); text != "" {
		v.Problems["warning"] = text
	}
	if a.reloadErr != "" {
		v.Problems["settings"] = a.reloadErr
	}
	v.Ready = v.Ready && !a.firstPending(v)
	var answered time.Time
	if v.HaveHead || v.Waiting {
		answered = a.p.Clock.Now().Add(-v.Silent)
	}
	return Status{
		PointerRead: a.pointer.read, TableAnswered: answered,
		View: v, Site: a.p.Config.Site, Scope: a.p.Config.Scope(), Version: a.p.Version, Scrub: a.scrub.last,
		Line: line(v, a.job), Healthy: healthy(v),
	}
}

// report tells systemd, the status socket and the verdict's file how it goes, on change.
func (a *Agent) report() {
	s := a.look()
	a.mu.Lock()
	a.view = s
	a.mu.Unlock()
	if s.Line != a.status {
		a.status = s.Line
		a.p.Service.Status(s.Line)
		a.log.Info("status", "line", s.Line)
	}
	a.judge(s.Healthy)
	if s.Ready && !s.Behind && !a.ready {
		a.ready = true
		a.p.Service.Ready()
		a.log.Info("ready", "release", string(s.Flipped.Release), "isolated", s.Isolated, "version", s.Version)
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
	return (v.Ready || v.Flipped.Epoch > 0) && (!v.Behind || v.Pending) && v.Phase != fleet.Out
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
		s = fmt.Sprintf("isolated: serving %s, the table does not answer", cmp.Or(string(v.Flipped.Release), "nothing yet"))
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
	if f := v.Head.Frozen; f != nil {
		s += "; frozen " + f.String()
	}
	for _, part := range slices.Sorted(maps.Keys(v.Problems)) {
		s += fmt.Sprintf("; %s: %s", part, v.Problems[part])
	}
	return strings.ReplaceAll(s, "\n", "; ") // systemd takes a second line for another variable
}

// judge keeps the verdict's file, on change.
func (a *Agent) judge(healthy bool) {
	if a.p.Verdict == "" || a.judged && healthy == a.verdict {
		return
	}
	a.judged, a.verdict = true, healthy
	var err error
	if healthy {
		err = leaveWord(a.p.Verdict)
	} else if err = os.Remove(a.p.Verdict); errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		a.log.Warn("the web server will not know what to say without an agent", "healthy", healthy, "error", err)
	}
}

// leaveWord puts the verdict's file in its place. Agents with users of their own may write to the directory, and this one may be
// root: so nothing that lies there is followed, written to or believed to be ours; what has the name is replaced.
func leaveWord(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(word(true) + "\n")
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}

// word is all that is said to who only asks how an instance is: it is passed on to the whole world.
func word(healthy bool) string {
	if healthy {
		return "healthy"
	}
	return "unhealthy"
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

// verdictPath is where a site's verdict lies: beside its socket, where it ends with the machine's run, not with the agent's.
func verdictPath(socket string) string { return strings.TrimSuffix(socket, ".sock") + ".healthy" }

// statusServer serves [statusHandler] on a unix socket. Whoever may reach the directory may ask, as the web server does for
// the load balancer.
func statusServer(path string, current func() *Agent, metrics http.Handler) (stop func() error, err error) {
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("status socket: %w", err)
	}
	return serveHTTP(l, statusHandler(current, metrics, verdictPath(path))), nil
}

// listenTCP opens the address of the setting `listen`; without a host it is this machine's only.
func listenTCP(address string) (net.Listener, error) {
	if strings.HasPrefix(address, ":") {
		address = "127.0.0.1" + address
	}
	return net.Listen("tcp", address)
}

// serveHTTP serves until stop is called, which waits for the end of it.
func serveHTTP(l net.Listener, h http.Handler) (stop func() error) {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	return func() error {
		err := server.Close()
		<-done
		return err
	}
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
	if err := openToAll(path); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// openToAll lets every user connect to a socket, which is to write. Whatever else has come into its place since it was made is
// left as it is: in the root of its own directory nothing leads out.
func openToAll(path string) error {
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Chmod(filepath.Base(path), 0o666)
}

// statusHandler answers /status (JSON), /health (200 or 503, and a word) and /metrics for whichever agent current returns. While
// there is none yet, the verdict's file says what the last one said.
func statusHandler(current func() *Agent, metrics http.Handler, verdict string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(statusOf(current(), verdict))
	})
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		healthy := statusOf(current(), verdict).Healthy
		if !healthy {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintln(w, word(healthy)) // why is for those who may ask /status
	})
	return mux
}

func statusOf(a *Agent, verdict string) Status {
	if a == nil {
		_, err := os.Stat(verdict)
		return Status{Line: "starting", Healthy: err == nil}
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
