package php_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv"
)

func TestLoadBalancerHearsTheAgentOrItsLastWord(t *testing.T) {
	t.Run("nginx", func(t *testing.T) {
		root := site(t)
		flip(t, root, "active", first)
		hearTheAgent(t, testenv.PHP(t, root), "nginx", "set $deploy_php", "set $deploy_agent %s;\n")
	})
	t.Run("apache", func(t *testing.T) {
		root := site(t)
		flip(t, root, "active", first)
		hearTheAgent(t, apache(t, root), "apache", "Define deploy_php", "Define deploy_agent %s\n")
	})
}

// hearTheAgent asks a site's page for the load balancer. In the settings of the web server, line names the agent before a line that
// is there.
func hearTheAgent(t *testing.T, server testenv.PHPServer, name, before, line string) {
	health := func() string { // or the error: a web server that begins anew may break a connection
		resp, err := http.Get(server.URL + "/_deploy/health")
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(resp.StatusCode, " ", strings.TrimSpace(string(body)))
	}
	expect := func(when, want string) { // the web server waits 2 s for the agent, and then says something else
		t.Helper()
		got := health()
		for end := time.Now().Add(30 * time.Second); got != want && time.Now().Before(end); got = health() {
		}
		if got != want {
			t.Errorf("%s: %q, want %q", when, got, want)
		}
	}
	if got := health(); !strings.HasPrefix(got, "404 ") {
		t.Errorf("the site has no agent: %q", got)
	}

	agent := filepath.Join(server.Log, "promo")
	reconfigure(t, filepath.Join(server.Log, name), before, fmt.Sprintf(line, agent)+before, func() bool { return strings.HasPrefix(health(), "503 ") })
	expect("never an agent since the boot", "503 unhealthy")

	l, err := net.Listen("unix", agent+".sock")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(agent+".sock", 0o666); err != nil {
		t.Fatal(err)
	}
	var status atomic.Int64
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(int(status.Load()))
		fmt.Fprintln(w, r.URL.Path, "the agent's word")
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	for _, code := range []int64{200, 503} {
		status.Store(code)
		expect("the agent says so", fmt.Sprint(code, " /health the agent's word"))
	}
	write(t, agent+".healthy", "")
	expect("the file does not overrule the agent", "503 /health the agent's word")
	s.Close()
	expect("no agent, whose last word was good", "200 healthy")
	if err := os.Remove(agent + ".healthy"); err != nil {
		t.Fatal(err)
	}
	expect("no agent, whose last word was bad", "503 unhealthy")
	if status, body, _ := get(t, server.URL+"/"); status != 200 {
		t.Errorf("the site itself: %d %q", status, body)
	}
}

// reconfigure changes the web server's settings, in server.conf, as an operator does, and waits until that shows.
func reconfigure(t *testing.T, server, old, replacement string, shows func() bool) {
	t.Helper()
	file := server + ".conf"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, strings.Replace(string(text), old, replacement, 1))
	pid, err := os.ReadFile(server + ".pid")
	if err != nil {
		t.Fatal(err)
	}
	master, err := strconv.Atoi(strings.TrimSpace(string(pid)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(master, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); !shows(); {
		if time.Now().After(end) {
			log, _ := os.ReadFile(server + ".log")
			t.Fatalf("the new settings do not show: %s", log)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
