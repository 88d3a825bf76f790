//go:build system

package systemtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv/parts"
)

// machine is a booted container.
type machine struct {
	t        *testing.T
	name, ip string
	netns    string
	tree     string
	uploads  string // this machine's directory that all containers see as /srv/uploads
	retired  bool   // its package was removed: nobody says how healthy it is
	process  *parts.Process
	log      string
}

// start boots the machine, now or again, and does not wait for it.
func (m *machine) start() {
	m.t.Helper()
	var err error
	m.process, err = parts.Start(parts.Command{
		Name: m.name, Path: "/usr/bin/systemd-nspawn", Log: m.log,
		Args: []string{
			"--quiet", "--boot", "--register=no", "--keep-unit", "--link-journal=no", "--resolv-conf=off",
			"--machine=" + m.name, "--directory=" + m.tree,
			"--network-namespace-path=/run/netns/" + m.netns,
			"--bind=" + m.uploads + ":/srv/uploads",
			"--console=pipe",
		},
		// nspawn shuts the machine down when it is asked to end; should this test die, the kernel ends it.
		Death: syscall.SIGKILL,
	})
	check(m.t, err)
}

// stop shuts the machine down.
func (m *machine) stop() {
	m.t.Helper()
	if m.process == nil {
		return
	}
	if err := m.process.Stop(90 * time.Second); err != nil {
		m.t.Errorf("shut down %s: %v", m.name, err)
	}
	m.process = nil
}

// reboot has the machine reboot itself. nspawn then ends with 133, which asks whoever started it to do so again.
func (m *machine) reboot() {
	m.t.Helper()
	_, _ = m.try("systemctl reboot") // what asks ends with the machine
	select {
	case <-m.process.Done():
	case <-time.After(2 * time.Minute):
		m.t.Fatalf("%s does not go down: %s", m.name, m.process.Tail())
	}
	var exit *exec.ExitError
	if err := m.process.Err(); !errors.As(err, &exit) || exit.ExitCode() != 133 {
		m.t.Fatalf("%s went down by %v instead of a reboot: %s", m.name, err, m.process.Tail())
	}
	m.start()
}

// leader is the id, out here, of the machine's first process: nspawn's child that is 1 inside.
func (m *machine) leader() (int, error) {
	for _, pid := range children(m.process.Pid()) {
		for _, pid := range append([]int{pid}, children(pid)...) {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(text)) {
				if f := strings.Fields(line); len(f) == 3 && f[0] == "NSpid:" && f[2] == "1" {
					return pid, nil
				}
			}
		}
	}
	return 0, fmt.Errorf("%s has no first process: %s", m.name, m.process.Tail())
}

func children(pid int) []int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	var ids []int
	for _, f := range strings.Fields(string(text)) {
		if id, err := strconv.Atoi(f); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// try runs a shell line in the machine, with a bound, and returns what it printed.
func (m *machine) try(line string) (string, error) {
	pid, err := m.leader()
	if err != nil {
		return "", err
	}
	out, err := exec.Command("timeout", "60", "nsenter", "--target", strconv.Itoa(pid), "--all", "--", "/bin/sh", "-c", line).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %s: %w: %s", m.name, line, err, out)
	}
	return strings.TrimSpace(string(out)), err
}

// sh runs a shell line in the machine that must work.
func (m *machine) sh(line string) string {
	m.t.Helper()
	out, err := m.try(line)
	check(m.t, err)
	return out
}

// property asks systemd in the machine about a unit.
func (m *machine) property(unit, name string) (string, error) {
	return m.try(fmt.Sprintf("systemctl show --property=%s --value '%s'", name, unit))
}

// signal sends sig to everything that runs in the machine, from outside: SIGSTOP freezes it, clocks go on.
func (m *machine) signal(sig syscall.Signal) {
	m.t.Helper()
	pid, err := m.leader()
	check(m.t, err)
	space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	check(m.t, err)
	procs, err := filepath.Glob("/proc/[0-9]*")
	check(m.t, err)
	for _, p := range procs {
		if other, err := os.Readlink(filepath.Join(p, "ns/pid")); err == nil && other == space {
			id, _ := strconv.Atoi(filepath.Base(p))
			if err := syscall.Kill(id, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
				m.t.Errorf("signal %s: %v", m.name, err)
			}
		}
	}
}

// journal is what the machine's journal says of units, without what a shell would not print.
func (m *machine) journal(args ...string) string {
	m.t.Helper()
	return run(m.t, "journalctl", append([]string{
		"--directory=" + filepath.Join(m.tree, "var/log/journal"), "--no-pager", "--quiet",
	}, args...)...)
}
