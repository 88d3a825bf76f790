package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"s3pulldeploy/internal/testenv/parts"
)

// agent is one instance of a site: a folder, settings, and a process that may be started again.
type agent struct {
	*parts.Process
	site       *site
	id         string
	dir, root  string
	config     string // the settings file
	systemd    *systemd
	env, extra []string
	under      []string // the command is an argument of this one, such as one that enters a network
}

// newAgent prepares an instance; extra are lines of its settings.
func (s *site) newAgent(id string, extra ...string) *agent {
	s.t.Helper()
	a := &agent{site: s, id: id, dir: filepath.Join(s.dir, id), extra: extra}
	a.root = filepath.Join(a.dir, "www")
	a.config = filepath.Join(a.dir, "config.yml")
	check(s.t, os.MkdirAll(a.root, 0o755))
	s.agents = append(s.agents, a)
	return a
}

// startAgent prepares an instance and starts its agent, without waiting.
func (s *site) startAgent(id string, extra ...string) *agent {
	s.t.Helper()
	a := s.newAgent(id, extra...)
	a.configure()
	a.start()
	return a
}

// settings are the file's text, with these lines at the end.
func (a *agent) settings(extra ...string) string {
	return a.site.settings(a.site.s3, a.site.table) + fmt.Sprintf(
		"root: %s\ninstance_id: %s\nstate_dir: %s\npoll_interval: 1s\npointer_interval: 1s\n%s\n",
		a.root, a.id, filepath.Join(a.dir, "state"), strings.Join(extra, "\n"))
}

func (a *agent) configure() {
	a.site.t.Helper()
	check(a.site.t, os.WriteFile(a.config, []byte(a.settings(a.extra...)), 0o644))
}

// environ is the agent's environment: its runtime directory, as systemd gives it, and what the test adds.
func (a *agent) environ() []string {
	return append(append(parts.Environ(), "RUNTIME_DIRECTORY="+a.dir), a.env...)
}

func (a *agent) start() {
	t := a.site.t
	t.Helper()
	line := append(slices.Clone(a.under), a.site.world.agent, "-config="+a.config)
	p, err := parts.Start(parts.Command{
		Name: "agent " + a.id, Path: line[0], Args: line[1:],
		Env: a.environ(), Log: filepath.Join(a.dir, "log"),
	})
	check(t, err)
	a.Process = p
	t.Cleanup(func() { a.last(p) })
}

// last ends a process that the scenario has left running, and looks at what it left: it must end in good order, and
// never have panicked or, in a build that looks for them, raced.
func (a *agent) last(p *parts.Process) {
	select {
	case <-p.Done():
	default:
		if err := errors.Join(p.Stop(10*time.Second), p.Err()); err != nil {
			a.site.t.Errorf("end %s: %v", a.id, err)
		}
	}
	for _, crash := range []string{"panic: ", "fatal error: ", "WARNING: DATA RACE"} {
		if n := a.logged(crash); n > 0 {
			a.site.t.Errorf("%s: %d times %q in its log", a.id, n, crash)
		}
	}
}

// end sends SIGTERM and wants exit code 0.
func (a *agent) end() {
	a.site.t.Helper()
	check(a.site.t, errors.Join(a.Stop(10*time.Second), a.Err()))
}

func (a *agent) logText() string {
	text, _ := os.ReadFile(filepath.Join(a.dir, "log"))
	return string(text)
}

// logged counts the lines of the log that have all these texts.
func (a *agent) logged(texts ...string) int {
	n := 0
	for line := range strings.Lines(a.logText()) {
		if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
			n++
		}
	}
	return n
}

// active is the release that the link names, "" without a link.
func (a *agent) active() string {
	target, _ := os.Readlink(filepath.Join(a.root, "active"))
	return target
}

// file is a file of what is live.
func (a *agent) file(name string) string {
	text, err := os.ReadFile(filepath.Join(a.root, "active", name))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// names lists the root but for links.
func (a *agent) names() []string {
	a.site.t.Helper()
	entries, err := os.ReadDir(a.root)
	check(a.site.t, err)
	var names []string
	for _, e := range entries {
		if e.Type() != fs.ModeSymlink {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names
}

// trace is "" when nothing of a release is on the disk, under any name.
func (a *agent) trace(release string) string {
	for _, n := range a.names() {
		if strings.Contains(n, release) {
			return n
		}
	}
	return ""
}

// said is what `agent -status` prints.
func (a *agent) said() string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.site.world.agent, "-config="+a.config, "-status")
	cmd.Env = a.environ()
	text, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%v: %s", err, text)
	}
	return string(text)
}

// saying is "" when `agent -status` mentions all these texts.
func (a *agent) saying(texts ...string) string {
	said := a.said()
	for _, text := range texts {
		if !strings.Contains(said, text) {
			return fmt.Sprintf("no %q in %s", text, said)
		}
	}
	return ""
}

// view is what the status socket answers, as far as tests look at it.
type view struct {
	Line                              string
	Phase                             string
	Ready, Healthy, Isolated, Waiting bool
	Problems                          map[string]string
}

// view asks the agent's socket; nobody there is an empty view with the error as its line.
func (a *agent) view() view {
	var v view
	if _, err := a.get("/status", &v); err != nil {
		return view{Line: err.Error()}
	}
	return v
}

// get asks the status socket, and decodes the answer into out unless that is nil.
func (a *agent) get(path string, out any) (code int, err error) {
	code, text, err := a.ask(path)
	if err == nil && out != nil {
		err = json.Unmarshal([]byte(text), out)
	}
	return code, err
}

// ask asks the status socket.
func (a *agent) ask(path string) (code int, text string, err error) {
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(a.dir, a.site.name+".sock"))
		},
	}}
	resp, err := client.Get("http://agent" + path)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// systemd is the service manager's end of sd_notify.
type systemd struct {
	conn *net.UnixConn
	wait sync.WaitGroup

	mu       sync.Mutex
	messages []message
}

// message is one notification, with what was live when it came.
type message struct {
	text, active string
	at           time.Time
}

// notified gives the agent a service manager, before it is started. watchdog is its WatchdogSec, 0 for none.
func (a *agent) notified(watchdog time.Duration) *agent {
	t := a.site.t
	t.Helper()
	path := filepath.Join(a.dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	check(t, err)
	a.systemd = &systemd{conn: conn}
	a.systemd.wait.Go(func() { a.systemd.listen(a) })
	t.Cleanup(func() {
		conn.Close()
		a.systemd.wait.Wait()
	})
	a.env = append(a.env, "NOTIFY_SOCKET="+path)
	if watchdog > 0 {
		a.env = append(a.env, fmt.Sprintf("WATCHDOG_USEC=%d", watchdog.Microseconds()))
	}
	return a
}

func (s *systemd) listen(a *agent) {
	buf := make([]byte, 64<<10)
	for {
		n, err := s.conn.Read(buf)
		if err != nil {
			return
		}
		m := message{string(buf[:n]), a.active(), time.Now()}
		s.mu.Lock()
		s.messages = append(s.messages, m)
		s.mu.Unlock()
	}
}

// heard returns the messages that begin with a text.
func (s *systemd) heard(prefix string) []message {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []message
	for _, m := range s.messages {
		if strings.HasPrefix(m.text, prefix) {
			found = append(found, m)
		}
	}
	return found
}

// forget drops what was heard so far.
func (s *systemd) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages = nil
}

// hearing is "" when a message contains a text.
func (s *systemd) hearing(text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.messages {
		if strings.Contains(m.text, text) {
			return ""
		}
	}
	return fmt.Sprintf("%q not among %d messages", text, len(s.messages))
}
