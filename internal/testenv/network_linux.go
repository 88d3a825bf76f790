package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/testenv/parts"
)

// Network is a test's own Ethernet: hosts, each in a network namespace of its own, joined by a bridge in one more, in which
// services are reached. The namespaces have no names and nothing of them shows on this machine; the kernel removes
// them when the test binary, or what runs in them, has ended, however it ended. Needs root.
type Network struct {
	t        testing.TB
	hub      *os.File // the namespace
	services int
	hosts    int
}

// Host is a machine of a [Network]: a place to run commands, whose cable can be cut.
type Host struct {
	net   *Network
	space *os.File
	addr  string
	port  string // its end of the cable at the bridge
}

// ipTime bounds one call of ip.
const ipTime = 10 * time.Second

// NewNetwork makes a network without hosts, until the end of the test.
func NewNetwork(t testing.TB) *Network {
	t.Helper()
	Root(t, "tests with networks of their own")
	if _, err := exec.LookPath("ip"); err != nil {
		Require(t, "tests with networks of their own", fmt.Errorf("ip: %w", parts.ErrMissing))
	}
	n := &Network{t: t, hub: newNamespace(t)}
	ip(t, n.hub, "link", "add", "bridge", "type", "bridge")
	ip(t, n.hub, "link", "set", "bridge", "up")
	return n
}

// Service lets the hosts reach a server (host:port, or a URL) of this machine, at an address of its own on the network. What
// stands in between is a [Proxy].
func (n *Network) Service(target string) *Proxy {
	n.t.Helper()
	n.services++
	address := fmt.Sprintf("10.99.0.%d", n.services)
	ip(n.t, n.hub, "addr", "add", address+"/24", "dev", "bridge")
	l, err := within(n.hub, func() (net.Listener, error) { return net.Listen("tcp", address+":0") })
	if err != nil {
		n.t.Fatal("serve on the test's network:", err)
	}
	return serveProxy(n.t, l, target)
}

// Host plugs in one more machine.
func (n *Network) Host() *Host {
	n.t.Helper()
	n.hosts++
	h := &Host{net: n, space: newNamespace(n.t), addr: fmt.Sprintf("10.99.0.%d", 100+n.hosts), port: fmt.Sprintf("port%d", n.hosts)}
	ip(n.t, n.hub, "link", "add", h.port, "type", "veth", "peer", "name", "eth0", "netns", path(h.space))
	ip(n.t, n.hub, "link", "set", h.port, "master", "bridge", "up")
	ip(n.t, h.space, "addr", "add", h.addr+"/24", "dev", "eth0")
	ip(n.t, h.space, "link", "set", "lo", "up")
	ip(n.t, h.space, "link", "set", "eth0", "up")
	return h
}

// Command is how a command is started on the host: it begins with these words.
func (h *Host) Command() []string { return enter(h.space) }

// Cut makes a service unreachable for the host: new connections fail at once, those that stand hang.
func (h *Host) Cut(service *Proxy) {
	h.net.t.Helper()
	ip(h.net.t, h.space, "route", "add", "blackhole", service.host())
}

// Mend ends a Cut.
func (h *Host) Mend(service *Proxy) {
	h.net.t.Helper()
	ip(h.net.t, h.space, "route", "del", "blackhole", service.host())
}

// Unplug takes the cable out: everything vanishes, and nobody is told. Plug puts it back.
func (h *Host) Unplug() { ip(h.net.t, h.net.hub, "link", "set", h.port, "down") }

// Plug puts the cable back.
func (h *Host) Plug() { ip(h.net.t, h.net.hub, "link", "set", h.port, "up") }

// host is the address of a proxy without its port.
func (p *Proxy) host() string {
	host, _, _ := net.SplitHostPort(p.Addr())
	return host
}

// newNamespace makes a network namespace that lives until the end of the test, or as long as something runs in it.
func newNamespace(t testing.TB) *os.File {
	t.Helper()
	type made struct {
		space *os.File
		err   error
	}
	result := make(chan made)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this function
		err := unix.Unshare(unix.CLONE_NEWNET)
		var space *os.File
		if err == nil {
			space, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		}
		result <- made{space, err}
	}()
	m := <-result
	if m.err != nil {
		t.Fatal("make a network namespace:", m.err)
	}
	t.Cleanup(func() { m.space.Close() })
	return m.space
}

// within runs f on a thread that is in the namespace.
func within[T any](space *os.File, f func() (T, error)) (out T, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Setns(int(space.Fd()), unix.CLONE_NEWNET); err == nil {
			out, err = f()
		}
	}()
	<-done
	return out, err
}

// path names a namespace for other processes.
func path(space *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), space.Fd()) }

func enter(space *os.File) []string { return []string{"/usr/bin/nsenter", "--net=" + path(space)} }

// ip runs iproute2's ip in a namespace.
func ip(t testing.TB, space *os.File, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), ipTime)
	defer cancel()
	line := append(append(enter(space), "ip"), args...)
	out, err := exec.CommandContext(ctx, line[0], line[1:]...).CombinedOutput()
	if err = errors.Join(err, ctx.Err()); err != nil {
		t.Fatalf("ip %v: %v: %s", args, err, out)
	}
}
