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

// TestFleetKeepsServingThroughItsLife is one story; each part goes on from the one before.
func TestFleetKeepsServingThroughItsLife(t *testing.T) {
	root := require(t)
	began := time.Now()
	part := func(name string, f func()) {
		f()
		t.Logf("--- %s: %.1f s", name, time.Since(began).Seconds())
		began = time.Now()
	}
	var w *world
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

	var first, changed, killed, thawed, live outcome
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
		w.serves(first.Release, "one", w.machines...)
		for _, m := range w.machines { // the image is set up as the agent wants it
			t.Log(m.sh("s3-pull-deploy-agent -config=/etc/s3-pull-deploy/" + site + ".yml -check"))
		}
	})
	part("an upload is on all, in every release", func() { w.uploaded(first.Release) })
	part("a change goes live and is rolled back", func() {
		changed = w.rollout(0, "-deploy="+w.app("two"))
		w.serves(changed.Release, "two", w.machines...)
		w.rollout(0, "-rollback")
		w.serves(first.Release, "one", w.machines...)
	})
	part("killed agents come back into the rollout", func() {
		w.machines[1].sh("systemctl kill --signal=KILL --kill-who=main s3-pull-deploy-agent@" + site)
		w.machines[2].sh("systemctl kill --signal=ABRT --kill-who=main s3-pull-deploy-agent@" + site) // as the watchdog does
		killed = w.rollout(0, "-deploy="+w.app("three"))
		w.serves(killed.Release, "three", w.machines...)
	})
	part("a frozen machine is left behind and catches up", func() {
		frozen := w.machines[2]
		frozen.signal(syscall.SIGSTOP)
		thawed = w.rollout(1, "-deploy="+w.app("four"))
		w.serves(thawed.Release, "four", w.machines[:2]...)
		frozen.signal(syscall.SIGCONT)
		w.serves(thawed.Release, "four", w.machines...)
	})
	part("only the web user is kept from the metadata service", func() { w.keepFromMetadata(w.machines[0]) })
	part("an agent without root takes a push live", func() { w.servesWithoutRoot(w.machines[0]) })
	part("an agent without root restarts what polkit allows", func() { w.restartsWithoutRoot(w.machines[0]) })
	part("a reboot without AWS serves what is on the disk", func() { w.rebootWithoutAWS(w.machines[1], thawed.Release) })
	part("a fourth machine joins in the middle of a rollout", func() { live = w.joinInTheMiddle() })
	part("the package is upgraded in the middle of a rollout", func() { live = w.upgradeInTheMiddle(newer) })
	part("removing the package leaves what is served", func() { w.remove(w.machines[3], live.Release) })
	part("the journals tell the story", func() {
		w.story(live.Release)
		w.tells([]string{"serving " + first.Release, "serving " + changed.Release, "serving " + first.Release, "serving " + killed.Release}, w.machines[:3]...)
		w.tells([]string{"code=killed, status=9/KILL", "Scheduled restart job", "serving " + killed.Release}, w.machines[1])
		w.tells([]string{"SIGABRT", "Scheduled restart job", "serving " + killed.Release, "serving " + thawed.Release}, w.machines[2])
		w.tellsOfTheFrozen(thawed.Release)
	})
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
func (w *world) rebootWithoutAWS(m *machine, release string) {
	w.net.ip("-n", m.netns, "route", "add", "unreachable", awsIP+"/32")
	m.reboot()
	w.serves(release, "four", m)
	eventually(w.t, time.Minute, m.name+" is isolated", func() error {
		status, err := m.property("s3-pull-deploy-agent@"+site, "StatusText")
		if err == nil && !strings.HasPrefix(status, "isolated: serving "+release) {
			err = errors.New(status)
		}
		return err
	})
	w.net.ip("-n", m.netns, "route", "delete", "unreachable", awsIP+"/32")
	eventually(w.t, time.Minute, m.name+" meets the fleet again", func() error {
		status, err := m.property("s3-pull-deploy-agent@"+site, "StatusText")
		if err == nil && !strings.HasPrefix(status, "serving "+release) {
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
		state, release, err := w.head()
		if err == nil && (state != "prepare" || release == old) {
			err = fmt.Errorf("%s of %s", state, release)
		}
		return err
	})
}

func (w *world) joinInTheMiddle() outcome {
	_, old, err := w.head()
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
	w.serves(out.Release, "five", w.machines...)

	// The gate: a new machine's web server waits for the first release, which is brought to the disk before.
	text, last := m.journal(), -1
	for _, step := range []string{`line="stage `, "Finished s3-pull-deploy-gate@", "Starting nginx.service"} {
		at := strings.Index(text, step)
		if at <= last {
			w.t.Errorf("the journal of %s: %q is not there, or too early", m.name, step)
		}
		last = at
	}
	return out
}

// upgradeInTheMiddle upgrades one machine while a release is being prepared, with visitors there.
func (w *world) upgradeInTheMiddle(deb string) outcome {
	_, old, err := w.head()
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
	w.serves(out.Release, "six", w.machines...)
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

// remove removes the package of a machine, then purges it.
func (w *world) remove(m *machine, release string) {
	out := m.sh("dpkg --remove s3-pull-deploy")
	if !strings.Contains(out, "/etc/nginx/conf.d/"+site+".conf") {
		w.t.Errorf("removing does not name the web server's files that still want the package: %s", out)
	}
	c := w.net.visitor()
	p, err := w.net.get(c, m.ip, "/")
	check(w.t, err)
	if p.status != 200 || p.release != release {
		w.t.Errorf("after removing: %d, release %q", p.status, p.release)
	}
	if state, _ := m.try("systemctl is-active s3-pull-deploy-agent@" + site); state == "active" {
		w.t.Error("the agent runs without its package")
	}
	m.sh("test -d /var/lib/s3-pull-deploy/" + site)
	m.sh("dpkg --purge s3-pull-deploy")
	m.sh("test ! -e /var/lib/s3-pull-deploy")
	m.sh("test -e /var/www/" + site + "/" + release + "/index.php && test -e /etc/s3-pull-deploy/" + site + ".yml")
}

// story checks that somebody who has only the journals learns what happened, and nothing secret.
func (w *world) story(live string) {
	for _, m := range w.machines {
		text := m.journal("--unit=s3-pull-deploy-agent@" + site)
		for _, want := range []string{"serving " + live, "level=INFO msg=ready"} {
			if !strings.Contains(text, want) {
				w.t.Errorf("the journal of %s does not say %q", m.name, want)
			}
		}
		for _, never := range []string{"panic", "level=ERROR", dbPassword, "Watchdog timeout"} {
			if strings.Contains(m.journal(), never) {
				w.t.Errorf("the journal of %s says %q", m.name, never)
			}
		}
		if logged := m.readFile("/var/log/s3-pull-deploy.log"); !strings.Contains(logged, "serving "+live) {
			w.t.Errorf("%s: the file for the CloudWatch agent does not tell of %s", m.name, live)
		}
	}
}

// tells checks that the journals of machines say of the agent's unit all these, one after the other.
func (w *world) tells(steps []string, machines ...*machine) {
	for _, m := range machines {
		rest, ok := m.journal("--unit=s3-pull-deploy-agent@"+site), true
		for _, step := range steps {
			if _, rest, ok = strings.Cut(rest, step); !ok {
				w.t.Errorf("the journal of %s does not say %q in its place of %q", m.name, step, steps)
				break
			}
		}
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
