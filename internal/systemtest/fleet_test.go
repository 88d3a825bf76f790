//go:build system

package systemtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// lifetime is what the life may take, from the first boot on: before it, mirrors set the pace. Two minutes on two idle cores, four where six
// times as much wants to run.
const lifetime = 10 * time.Minute

// TestFleetKeepsServingThroughItsLife is one story; each part goes on from the one before. After each, every machine answers from the
// release that the fleet committed to.
func TestFleetKeepsServingThroughItsLife(t *testing.T) {
	root := require(t)
	var w *world
	part := func(name string, f func()) {
		t.Helper()
		began := time.Now()
		f()
		if w != nil && w.live != "" {
			w.serves(w.machines...)
		}
		t.Logf("--- %s: %.1f s", name, time.Since(began).Seconds())
	}
	part("Debian's base tree", func() { baseTree(t, root) })
	var newer string
	part("two packages, an image, servers", func() {
		newer = packageFile(t, "deb", newVersion)
		old := packageFile(t, "deb", oldVersion)
		w = newWorld(t, root, old, filepath.Join(filepath.Dir(old), "push"))
	})
	defer func() { // before the machines go
		if t.Failed() {
			for _, m := range w.machines {
				t.Logf("journal of %s:\n%s", m.name, lastLines(m.journal("--unit=s3-pull-deploy-*", "--unit=nginx", "--unit=php*"), 40))
			}
		}
	}()

	born := time.Now()
	var first, changed, killed, thawed, joined, upgraded outcome
	part("three machines wait for the first push", func() {
		for range 3 {
			w.boot()
		}
		w.inService(w.machines...)
		for _, m := range w.machines { // settings can have secrets in them
			if mode := m.sh("stat -c '%U %a' /etc/s3-pull-deploy/" + site + ".yml"); mode != "root 600" {
				t.Errorf("%s: the user data's settings are %s, want root 600", m.name, mode)
			}
		}
	})
	part("WordPress goes live on all", func() {
		first = w.rollout(0, "-deploy="+w.app("one"))
		if first.Members != 3 {
			t.Fatalf("%d members", first.Members)
		}
		w.install(w.machines[0])
		for _, m := range w.machines { // the image is set up as the agent wants it
			t.Log(m.sh("s3-pull-deploy-agent -config=/etc/s3-pull-deploy/" + site + ".yml -check"))
			for _, home := range []string{"README.md", "config.yml", ".deployignore"} { // the example's .deployignore
				m.sh("test ! -e /var/www/" + site + "/active/" + home)
			}
		}
	})
	part("an upload is on all, in every release", func() { w.uploaded(first.Release) })
	part("a change goes live", func() { changed = w.rollout(0, "-deploy="+w.app("two")) })
	part("it is rolled back", func() { w.rollout(0, "-rollback") })
	part("killed agents come back into the rollout", func() {
		w.machines[1].sh("systemctl kill --signal=KILL --kill-who=main s3-pull-deploy-agent@" + site)
		w.machines[2].sh("systemctl kill --signal=ABRT --kill-who=main s3-pull-deploy-agent@" + site) // as the watchdog does
		killed = w.rollout(0, "-deploy="+w.app("three"))
	})
	part("a frozen machine is left behind and catches up", func() {
		frozen := w.machines[2]
		frozen.signal(syscall.SIGSTOP)
		thawed = w.rollout(1, "-deploy="+w.app("four"))
		w.serves(w.machines[:2]...)
		frozen.signal(syscall.SIGCONT)
	})
	part("only the web user is kept from the metadata service", func() { w.keepFromMetadata(w.machines[0]) })
	part("an agent without root takes a push live", func() { w.servesWithoutRoot(w.machines[0]) })
	part("an agent without root restarts what polkit allows", func() { w.restartsWithoutRoot(w.machines[0]) })
	part("a reboot without AWS serves what is on the disk", func() { w.rebootWithoutAWS(w.machines[1]) })
	part("a fourth machine joins in the middle of a rollout", func() { joined = w.joinInTheMiddle() })
	part("the package is upgraded in the middle of a rollout", func() { upgraded = w.upgradeInTheMiddle(newer) })
	part("removing the package leaves what is served", func() { w.remove(w.machines[3]) })
	part("the journals tell the story", func() {
		w.story()
		const unit, stopped, starting = "--unit=s3-pull-deploy-agent@" + site, "Stopped s3-pull-deploy-agent@", "Starting s3-pull-deploy-agent@"
		for _, m := range w.machines[:3] {
			m.tells(unit, "serving "+first.Release, "serving "+changed.Release, "serving "+first.Release, "serving "+killed.Release)
		}
		upgrade, reboot, freeze := w.machines[0], w.machines[1], w.machines[2]
		reboot.tells(unit, "code=killed, status=9/KILL", "Scheduled restart job", "serving "+killed.Release)
		freeze.tells(unit, "SIGABRT", "Scheduled restart job", "serving "+killed.Release, "serving "+thawed.Release)
		w.tellsOfTheFrozen(thawed.Release)
		reboot.tells(unit, "serving "+thawed.Release, stopped, starting, "isolated: serving "+thawed.Release, "serving "+thawed.Release,
			"serving "+joined.Release)
		reboot.gates("serving "+thawed.Release, stopped)
		upgrade.tells(unit, "version="+oldVersion, "serving "+joined.Release, stopped, starting, "version="+newVersion)
		upgrade.tells(unit, "serving "+joined.Release, stopped, "serving "+upgraded.Release)
	})
	took := time.Since(born)
	t.Logf("--- from the first boot on: %.1f s of %.0f", took.Seconds(), lifetime.Seconds())
	if took > lifetime {
		t.Error("that is too long")
	}
}

// uploaded puts a file where one machine's PHP would, and wants it from all.
func (w *world) uploaded(release string) {
	w.machines[0].sh("echo from web-1 > /var/www/" + site + "/active/wp-content/uploads/note.txt")
	c := w.net.visitor()
	for _, m := range w.machines {
		p, err := w.net.get(c, m.ip, "/wp-content/uploads/note.txt")
		check(w.t, err)
		if p.status != 200 || p.body != "from web-1\n" || p.release != release {
			w.t.Errorf("%s: upload: %+v", m.name, p)
		}
	}
}

// rebootWithoutAWS reboots a machine that cannot reach S3 and the table, and gives them back afterwards.
func (w *world) rebootWithoutAWS(m *machine) {
	w.net.ip("-n", m.netns, "route", "add", "unreachable", awsIP+"/32")
	m.reboot()
	w.serves(w.machines...)
	eventually(w.t, time.Minute, m.name+" is isolated", func() error {
		status, err := m.property("s3-pull-deploy-agent@"+site, "StatusText")
		if err == nil && !strings.HasPrefix(status, "isolated: serving "+w.live) {
			err = errors.New(status)
		}
		return err
	})
	w.net.ip("-n", m.netns, "route", "delete", "unreachable", awsIP+"/32")
	eventually(w.t, time.Minute, m.name+" meets the fleet again", func() error {
		status, err := m.property("s3-pull-deploy-agent@"+site, "StatusText")
		if err == nil && !strings.HasPrefix(status, "serving "+w.live) {
			err = errors.New(status)
		}
		return err
	})
}

// slowly makes the rollouts that begin during f take 20 s, so that something can happen in the middle.
func (w *world) slowly(f func()) {
	w.t.Helper()
	flag := filepath.Join(w.uploads, "slow")
	check(w.t, os.WriteFile(flag, nil, 0o644))
	defer os.Remove(flag)
	f()
}

// preparing waits until the fleet prepares a release that is not the old one.
func (w *world) preparing(old string) {
	w.t.Helper()
	eventually(w.t, time.Minute, "an epoch is open", func() error {
		state, release, _, err := w.head()
		if err == nil && (state != "prepare" || release == old) {
			err = fmt.Errorf("%s of %s", state, release)
		}
		return err
	})
}

func (w *world) joinInTheMiddle() outcome {
	_, old, _, err := w.head()
	check(w.t, err)
	var wait func() outcome
	var m *machine
	w.slowly(func() {
		wait = w.start("-deploy=" + w.app("five"))
		w.preparing(old)
		m = w.boot()
		eventually(w.t, time.Minute, m.name+" has its agent", func() error {
			_, err := m.try("systemctl is-active s3-pull-deploy-agent@" + site + " | grep -q activ")
			return err
		})
	})
	out := wait()
	if out.Outcome != "done" || out.Excluded != 0 { // its web server starts with its first release, and is waited for
		w.t.Fatalf("%+v", out)
	}
	w.inService(m)
	m.tells("", `line="stage `, opens) // a new machine's web server waits for the first release
	m.gates()
	return out
}

// upgradeInTheMiddle upgrades one machine while a release is being prepared, with visitors there.
func (w *world) upgradeInTheMiddle(deb string) outcome {
	_, old, _, err := w.head()
	check(w.t, err)
	m := w.machines[0]
	run(w.t, "cp", deb, filepath.Join(w.uploads, "newer.deb")) // a way into the machine
	var wait func() outcome
	visits := w.visit(m)
	w.slowly(func() {
		wait = w.start("-deploy=" + w.app("six"))
		w.preparing(old)
		pid := m.sh("systemctl show --property=MainPID --value s3-pull-deploy-agent@" + site)
		m.sh("dpkg --install /srv/uploads/newer.deb")
		eventually(w.t, time.Minute, "the agent is another one", func() error {
			now, err := m.property("s3-pull-deploy-agent@"+site, "MainPID")
			if err == nil && (now == pid || now == "0") {
				err = errors.New("still " + now)
			}
			return err
		})
	})
	out := wait()
	if out.Outcome != "done" {
		w.t.Fatalf("%+v", out)
	}
	w.inService(m)
	w.serves(w.machines...)
	if n, bad := visits(); len(bad) > 0 || n == 0 {
		w.t.Errorf("%d of %d visits failed: %s", len(bad), n, strings.Join(bad, "; "))
	}
	if v := m.sh("s3-pull-deploy-agent -version"); !strings.Contains(v, newVersion) {
		w.t.Errorf("version after the upgrade: %s", v)
	}
	return out
}

// visit asks a machine for a page and for its health until the function that it returns is called.
func (w *world) visit(m *machine) (end func() (n int, bad []string)) {
	c := w.net.visitor()
	stop := make(chan struct{})
	var wait sync.WaitGroup
	var n int
	var bad []string
	wait.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, path := range []string{"/health.php", "/_deploy/health"} {
				n++
				if p, err := w.net.get(c, m.ip, path); err != nil || p.status != 200 {
					bad = append(bad, fmt.Sprintf("%s: %d %v %.100q", path, p.status, err, p.body))
				}
			}
		}
	})
	return func() (int, []string) { close(stop); wait.Wait(); return n, bad }
}

// remove removes the package of a machine, then purges it, and installs it again.
func (w *world) remove(m *machine) {
	out := m.sh("dpkg --remove s3-pull-deploy")
	m.retired = true
	if !strings.Contains(out, "/etc/nginx/conf.d/"+site+".conf") {
		w.t.Errorf("removing does not name the web server's files that still want the package: %s", out)
	}
	w.serves(m)
	agent := func(verb, want string) {
		w.t.Helper()
		if state, _ := m.try("systemctl " + verb + " s3-pull-deploy-agent@" + site); state != want {
			w.t.Errorf("%s: the agent is %s, want %s", verb, state, want)
		}
	}
	agent("is-active", "inactive")
	m.sh("test -d /var/lib/s3-pull-deploy/" + site)
	m.sh("dpkg --purge s3-pull-deploy")
	m.sh("test ! -e /var/lib/s3-pull-deploy")
	m.sh("test -e /var/www/" + site + "/" + w.live + "/index.php && test -e /etc/s3-pull-deploy/" + site + ".yml")

	m.sh("dpkg --install /srv/uploads/newer.deb") // on a machine that runs, with settings there
	agent("is-active", "inactive")
	agent("is-enabled", "disabled")
}

// story checks that somebody who has only the journals learns what happened, and nothing secret.
func (w *world) story() {
	for _, m := range w.machines {
		text := m.journal("--unit=s3-pull-deploy-agent@" + site)
		for _, want := range []string{"serving " + w.live, "level=INFO msg=ready"} {
			if !strings.Contains(text, want) {
				w.t.Errorf("the journal of %s does not say %q", m.name, want)
			}
		}
		for _, never := range []string{"panic", "level=ERROR", dbPassword, "Watchdog timeout"} {
			if strings.Contains(m.journal(), never) {
				w.t.Errorf("the journal of %s says %q", m.name, never)
			}
		}
		if logged := m.readFile("/var/log/s3-pull-deploy.log"); !strings.Contains(logged, "serving "+w.live) {
			w.t.Errorf("%s: the file for the CloudWatch agent does not tell of %s", m.name, w.live)
		}
	}
}

// tells checks that the machine's journal, or what a filter leaves of it, says all these, one after the other.
func (m *machine) tells(filter string, steps ...string) {
	m.t.Helper()
	var args []string
	if filter != "" {
		args = append(args, filter)
	}
	rest, ok := m.journal(args...), true
	for _, step := range steps {
		if _, rest, ok = strings.Cut(rest, step); !ok {
			m.t.Errorf("the journal of %s does not say %q in its place of %q", m.name, step, steps)
			return
		}
	}
}

// opens is what the journal says when the web server need not wait any more.
const opens = "Finished s3-pull-deploy-gate@"

// gates checks that the web server started, after the journal said these, when the gate had opened and not before.
func (m *machine) gates(since ...string) {
	m.t.Helper()
	text := m.journal()
	for _, step := range since {
		_, text, _ = strings.Cut(text, step)
	}
	const server = "Starting nginx.service"
	if before, after, ok := strings.Cut(text, opens); !ok || strings.Contains(before, server) || !strings.Contains(after, server) {
		m.t.Errorf("%s, since %q: the gate opened: %v; the web server started before: %v, after: %v", m.name, since, ok,
			strings.Contains(before, server), strings.Contains(after, server))
	}
}

// tellsOfTheFrozen checks that who decided on a release says that one machine was left out.
func (w *world) tellsOfTheFrozen(release string) {
	for _, m := range w.machines[:2] {
		_, epoch, _ := strings.Cut(m.journal("--unit=s3-pull-deploy-agent@"+site), " is open for "+release)
		epoch, _, _ = strings.Cut(epoch, "flip "+release)
		if strings.Contains(epoch, "msg=decided") && strings.Contains(epoch, "commit=true") && strings.Contains(epoch, "excluded=1") {
			return
		}
	}
	w.t.Errorf("no journal says that a machine was left out of %s", release)
}

func (m *machine) readFile(path string) string {
	m.t.Helper()
	text, err := os.ReadFile(filepath.Join(m.tree, path))
	check(m.t, err)
	return string(text)
}
