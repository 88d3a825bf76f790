//go:build system

package systemtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The hub's addresses; machines have .11 and up.
const (
	awsIP     = "10.87.0.1"
	dbIP      = "10.87.0.2"
	visitorIP = "10.87.0.3"
)

// network is the hub: a namespace with a bridge to which the machines are linked.
type network struct {
	t    *testing.T
	name string // of the namespace
	ns   *os.File
	wait sync.WaitGroup
}

func newNetwork(t *testing.T) *network {
	n := &network{t: t, name: fmt.Sprintf("s3pd%d-hub", os.Getpid())}
	n.addNamespace(n.name)
	var err error
	n.ns, err = os.Open(filepath.Join("/run/netns", n.name))
	check(t, err)
	t.Cleanup(func() { n.wait.Wait(); n.ns.Close() })
	n.ip("-n", n.name, "link", "add", "br0", "type", "bridge")
	for _, ip := range []string{awsIP, dbIP, visitorIP} {
		n.ip("-n", n.name, "address", "add", ip+"/24", "dev", "br0")
	}
	n.ip("-n", n.name, "link", "set", "br0", "up")
	return n
}

func (n *network) ip(args ...string) { n.t.Helper(); run(n.t, "ip", args...) }

// addNamespace makes a network namespace that ends with the test.
func (n *network) addNamespace(name string) {
	n.t.Helper()
	n.ip("netns", "add", name)
	n.t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "delete", name).CombinedOutput(); err != nil {
			n.t.Errorf("delete namespace %s: %v: %s", name, err, out)
		}
	})
	n.ip("-n", name, "link", "set", "lo", "up")
}

// plug makes the namespace of a machine, linked to the bridge, and returns its name.
func (n *network) plug(machine, ip string) string {
	n.t.Helper()
	name := fmt.Sprintf("s3pd%d-%s", os.Getpid(), machine)
	n.addNamespace(name)
	n.ip("-n", n.name, "link", "add", machine, "type", "veth", "peer", "name", "host0", "netns", name)
	n.ip("-n", n.name, "link", "set", machine, "master", "br0", "up")
	n.ip("-n", name, "address", "add", ip+"/24", "dev", "host0")
	n.ip("-n", name, "link", "set", "host0", "up")
	return name
}

// inside runs f in the hub: sockets that f opens are there, whoever uses them later.
func (n *network) inside(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine, since it is elsewhere
		if err := unix.Setns(int(n.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter namespace: %w", err)
			return
		}
		result <- f()
	}()
	return <-result
}

// pass offers a server of the outside in the hub.
func (n *network) pass(address, network, target string) {
	n.t.Helper()
	var l net.Listener
	check(n.t, n.inside(func() (err error) { l, err = net.Listen("tcp4", address); return err }))
	n.t.Cleanup(func() { l.Close() })
	n.wait.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go relay(c, network, target)
		}
	})
}

func relay(c net.Conn, network, target string) {
	defer c.Close()
	s, err := net.Dial(network, target)
	if err != nil {
		return
	}
	defer s.Close()
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{c, s}, {s, c}} {
		go func() { _, _ = io.Copy(way[0], way[1]); done <- struct{}{} }()
	}
	<-done // either end closes both
}

// visitor is a client as the load balancer is one: from outside, by a machine's address.
func (n *network) visitor() *http.Client {
	return &http.Client{
		Timeout:       20 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DisableKeepAlives: true, // a new connection each time meets what runs now
			DialContext: func(ctx context.Context, _, address string) (c net.Conn, err error) {
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(visitorIP)}}
				err = n.inside(func() (err error) { c, err = d.DialContext(ctx, "tcp4", address); return err })
				return c, err
			},
		},
	}
}

// page is an answer of the site.
type page struct {
	status  int
	release string // as nginx says
	body    string
}

// get asks a machine for a path of the site.
func (n *network) get(c *http.Client, ip, path string) (page, error) {
	req, err := http.NewRequest(http.MethodGet, "http://"+ip+path, nil)
	if err != nil {
		return page{}, err
	}
	req.Host = siteHost
	resp, err := c.Do(req)
	if err != nil {
		return page{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return page{resp.StatusCode, resp.Header.Get("X-Deploy-Release"), string(body)}, err
}

// run runs a command that must work, and returns what it printed.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually asks until the answer is no error, for as long as limit. Limits are for machines that do much else.
func eventually(t testing.TB, limit time.Duration, what string, ask func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(context.Background(), limit, errors.New("not within "+limit.String()))
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v: %v", what, context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}
