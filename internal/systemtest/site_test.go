//go:build system

package systemtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

const (
	site       = "wordpress"
	siteHost   = "wp.example.test"
	wordpress  = "/usr/share/wordpress" // Debian's package
	dbPassword = "a password that no log may show"
)

// world is the fleet and what it works with.
type world struct {
	t        *testing.T
	root     string // of the module
	dir      string // of the test: the developer's settings, uploads, machines
	net      *network
	s3       testenv.S3Server
	dynamodb string
	push     string   // the command
	image    []string // lower trees of the machines
	machines []*machine
	uploads  string            // what EFS would be
	version  string            // what the pages of the tree to push say
	live     string            // the release that was rolled out last
	pages    map[string]string // the versions, by release
}

// outcome is what `push -json` prints of a rollout.
type outcome struct {
	Release  string `json:"release"`
	Outcome  string `json:"outcome"`
	Reason   string `json:"reason"`
	Members  int    `json:"members"`
	Excluded int    `json:"excluded"`
	LiveMS   int64  `json:"live_ms"`
}

func newWorld(t *testing.T, root, deb, push string) *world {
	dir, err := os.MkdirTemp("", "systemtest-") // open for the web user of the machines, unlike the test's own
	check(t, err)
	check(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{
		t: t, root: root, dir: dir, push: push, pages: map[string]string{}, uploads: filepath.Join(dir, "uploads"),
		s3: testenv.S3(t), dynamodb: testenv.DynamoDB(t), image: image(t, root, deb), net: newNetwork(t),
	}
	check(t, os.Mkdir(w.uploads, 0o777))
	check(t, os.Chmod(w.uploads, 0o777)) // www-data is another number in Debian's every version
	w.net.pass(awsIP+":9000", "tcp", strings.TrimPrefix(w.s3.Endpoint, "http://"))
	w.net.pass(awsIP+":8000", "tcp", strings.TrimPrefix(w.dynamodb, "http://"))
	w.net.pass(dbIP+":3306", "unix", w.database())
	check(t, os.WriteFile(w.config(), []byte(w.settings(w.s3.Endpoint, w.dynamodb)), 0o644))
	testenv.Patiently(t, func() error {
		_, err := w.tryRun("-init")
		return err
	})
	return w
}

// database starts MariaDB with an empty database for WordPress, and returns its socket.
func (w *world) database() string {
	w.t.Helper()
	data, socket := filepath.Join(w.dir, "db"), filepath.Join(w.dir, "db.sock")
	run(w.t, "mariadb-install-db", "--no-defaults", "--user=root", "--datadir="+data, "--skip-test-db")
	sql := filepath.Join(w.dir, "db.sql")
	// One statement a line, or the server takes none.
	check(w.t, os.WriteFile(sql, []byte("CREATE DATABASE wordpress;\nCREATE USER wordpress@localhost IDENTIFIED BY '"+dbPassword+
		"';\nGRANT ALL ON wordpress.* TO wordpress@localhost;\n"), 0o600))
	p, err := parts.Start(parts.Command{
		Name: "mariadbd", Path: "/usr/sbin/mariadbd", Log: filepath.Join(w.dir, "db.log"),
		Args: []string{"--no-defaults", "--user=root", "--skip-networking", "--datadir=" + data, "--socket=" + socket, "--init-file=" + sql},
	})
	check(w.t, err)
	w.t.Cleanup(func() { _ = p.Stop(30 * time.Second) })
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	check(w.t, p.Await(ctx, func(context.Context) error { _, err := os.Stat(socket); return err }))
	return socket
}

func (w *world) config() string { return filepath.Join(w.dir, "push.yml") }

// settings are the lines that the developer and the machines share; they reach the services by different addresses.
func (w *world) settings(s3, dynamodb string) string {
	return fmt.Sprintf("site: %s\nbucket: system-test\nregion: %s\nlayout: packed\nendpoints: {s3: %q, dynamodb: %q}\n",
		site, parts.Region, s3, dynamodb)
}

// machineSettings are those of examples/wordpress but for where the services are, and the pace.
func (w *world) machineSettings() string {
	text, err := os.ReadFile(filepath.Join(w.root, "examples/wordpress/config.yml"))
	check(w.t, err)
	_, agent, ok := strings.Cut(string(text), "# on the instances\n")
	if !ok {
		w.t.Fatal("examples/wordpress/config.yml has no part for the instances")
	}
	agent = strings.ReplaceAll(agent, "promo.example.com", siteHost)
	// Uploads are seen by all machines at once: a file there makes the next rollout slow.
	return w.settings("http://"+awsIP+":9000", "http://"+awsIP+":8000") + agent +
		"poll_interval: 1s\npointer_interval: 5s\nhooks: {before_flip: \"test ! -e /srv/uploads/slow || sleep 20\"}\n"
}

// boot makes a machine of the image, and boots it. Its settings and its start are the user data's.
func (w *world) boot() *machine {
	w.t.Helper()
	n := len(w.machines) + 1
	name := fmt.Sprintf("web-%d", n)
	dir := filepath.Join(w.dir, name)
	m := &machine{
		t: w.t, name: name, ip: fmt.Sprintf("10.87.0.%d", 10+n), uploads: w.uploads, log: filepath.Join(w.dir, name+".log"),
	}
	m.netns = w.net.plug(name, m.ip)
	m.tree = overlay(w.t, dir, w.image...)
	w.t.Cleanup(m.stop)
	m.write("/etc/hostname", name+"\n")
	m.write("/root/settings.yml", w.machineSettings())
	var env strings.Builder
	for k, v := range parts.Credentials() {
		fmt.Fprintf(&env, "%s=%s\n", k, v)
	}
	m.write("/etc/s3-pull-deploy/"+site+".env", env.String())
	m.write("/etc/php/8.2/fpm/pool.d/site.conf", fmt.Sprintf("[www]\nenv[DB_HOST] = %s\nenv[DB_NAME] = wordpress\n"+
		"env[DB_USER] = wordpress\nenv[DB_PASSWORD] = \"%s\"\nenv[WP_HOME] = http://%s\nenv[WP_SECRET] = \"the same on every instance\"\n",
		dbIP, dbPassword, siteHost))
	check(w.t, os.MkdirAll(filepath.Join(m.tree, "var/log/journal"), 0o755)) // kept, to be read from here
	m.userData(w.root)
	m.start()
	w.machines = append(w.machines, m)
	return m
}

// userData has the machine run packer/boot/user-data.sh at its first boot, and only then, as cloud-init does. The AWS command line
// that the script asks for the settings is one that has them.
func (m *machine) userData(root string) {
	m.t.Helper()
	script, err := os.ReadFile(filepath.Join(root, "packer/boot/user-data.sh"))
	check(m.t, err)
	m.write("/usr/local/sbin/user-data", string(script))
	m.write("/usr/local/bin/aws", "#!/bin/sh\ncase \"$*\" in *'ssm get-parameter --name /s3-pull-deploy/"+site+"/settings '*) cat /root/settings.yml ;; *) exit 2 ;; esac\n")
	m.write("/etc/systemd/system/user-data.service", `[Unit]
ConditionPathExists=!/var/lib/user-data.done
After=network.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c '/usr/local/sbin/user-data && touch /var/lib/user-data.done'
[Install]
WantedBy=multi-user.target
`)
	for file, mode := range map[string]fs.FileMode{
		"usr/local/sbin/user-data": 0o755, "usr/local/bin/aws": 0o755, "etc/systemd/system/user-data.service": 0o644,
	} {
		check(m.t, os.Chmod(filepath.Join(m.tree, file), mode))
	}
	run(m.t, "systemctl", "--root="+m.tree, "enable", "user-data")
}

func (m *machine) write(path, text string) {
	m.t.Helper()
	check(m.t, os.WriteFile(filepath.Join(m.tree, path), []byte(text), 0o600))
}

// app is WordPress with the example's files on it, as a developer has it, whose pages say a version, and whether the dashboard may
// change code.
func (w *world) app(version string) string {
	w.t.Helper()
	w.version = version
	dir := filepath.Join(w.dir, "app")
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(wordpress); err != nil {
			testenv.LeaveOut(w.t, fmt.Sprintf("WordPress: %v", err))
		}
		run(w.t, "cp", "--recursive", "--dereference", wordpress, dir) // Debian's links lead out of the tree
		run(w.t, "cp", "--recursive", filepath.Join(w.root, "examples/wordpress")+"/.", dir)
	}
	page := filepath.Join(dir, "wp-content/mu-plugins/version.php")
	check(w.t, os.WriteFile(page, []byte("<?php add_action('wp_head', fn () => print('<meta name=\"version\" content=\""+version+
		"\"><meta name=\"file-mods\" content=\"' . (wp_is_file_mod_allowed('test') ? 'yes' : 'no') . '\">'));\n"), 0o644))
	return dir
}

// command is push with arguments, as a developer calls it.
func (w *world) command(args ...string) *exec.Cmd {
	cmd := exec.Command(w.push, append([]string{"-config=" + w.config()}, args...)...)
	cmd.Env = append(parts.Environ(), "XDG_CACHE_HOME="+filepath.Join(w.dir, "cache"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// run runs push, shows what it tells people and returns what it tells programs.
func (w *world) run(args ...string) []byte {
	w.t.Helper()
	out, err := w.tryRun(args...)
	check(w.t, err)
	return out
}

func (w *world) tryRun(args ...string) ([]byte, error) {
	cmd := w.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := parts.StartOnLastingThread(cmd) // a thread that was in another network ends
	if err == nil {
		err = cmd.Wait()
	}
	w.t.Logf("push %s\n%s", strings.Join(args, " "), strings.TrimSpace(stderr.String()))
	if err != nil {
		err = fmt.Errorf("push %s: %w\n%s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.Bytes(), err
}

// rollout runs a verb that must end with the release live everywhere, but for so many machines.
func (w *world) rollout(excluded int, verb ...string) outcome {
	w.t.Helper()
	out := w.ended(w.run(append(verb, "-json")...))
	if out.Outcome != "done" || out.Excluded != excluded {
		w.t.Fatalf("push %s: %+v, want done with %d excluded", verb[0], out, excluded)
	}
	return out
}

// start is rollout in the background; its end comes through the function that it returns.
func (w *world) start(verb ...string) (wait func() outcome) {
	type result struct {
		text []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		text, err := w.tryRun(append(verb, "-json")...)
		done <- result{text, err}
	}()
	return func() outcome {
		w.t.Helper()
		r := <-done
		check(w.t, r.err)
		return w.ended(r.text)
	}
}

// ended reads how a rollout ended, and keeps what every machine must answer from now on.
func (w *world) ended(text []byte) (out outcome) {
	w.t.Helper()
	check(w.t, json.Unmarshal(text, &out))
	w.live = out.Release
	if w.pages[w.live] == "" { // else it is gone back to
		w.pages[w.live] = w.version
	}
	return out
}

// head is the table's head as `push -status` shows it, and the release that the fleet is committed to.
func (w *world) head() (state, release, committed string, err error) {
	text, err := w.command("-status", "-json").Output()
	if err != nil {
		return "", "", "", fmt.Errorf("push -status: %w", err)
	}
	var s struct {
		Head      struct{ State, Release string }
		Committed struct{ Release string }
	}
	err = json.Unmarshal(text, &s)
	return s.Head.State, s.Head.Release, s.Committed.Release, err
}

// inService waits until the agents of machines are ready.
func (w *world) inService(machines ...*machine) {
	w.t.Helper()
	for _, m := range machines {
		eventually(w.t, 2*time.Minute, m.name+" in service", func() error {
			state, err := m.property("s3-pull-deploy-agent@"+site, "ActiveState")
			if err == nil && state != "active" {
				status, _ := m.property("s3-pull-deploy-agent@"+site, "StatusText")
				err = fmt.Errorf("%s: %s", state, status)
			}
			return err
		})
	}
}

// serves waits until every one of machines answers from the release that the fleet is committed to, over the way that users take.
func (w *world) serves(machines ...*machine) {
	w.t.Helper()
	_, _, committed, err := w.head()
	check(w.t, err)
	if committed != w.live {
		w.t.Fatalf("the fleet is committed to %q, want %s", committed, w.live)
	}
	c := w.net.visitor()
	for _, m := range machines {
		eventually(w.t, time.Minute, m.name+" serves "+w.live, func() error {
			p, err := w.net.get(c, m.ip, "/")
			if err != nil {
				return err
			}
			for _, want := range []string{`content="release ` + w.live + `"`, `name="version" content="` + w.pages[w.live] + `"`, `name="file-mods" content="no"`} {
				if p.status != http.StatusOK || p.release != w.live || !strings.Contains(p.body, want) {
					return fmt.Errorf("status %d, release %q, want %s: %.300s", p.status, p.release, want, p.body)
				}
			}
			if m.retired {
				return nil
			}
			if p, err = w.net.get(c, m.ip, "/_deploy/health"); err == nil && (p.status != http.StatusOK || p.body != "healthy\n") {
				err = fmt.Errorf("health %d: %s", p.status, p.body)
			}
			return err
		})
	}
}

// install is what WordPress asks a new owner for in the browser, on one machine.
func (w *world) install(m *machine) {
	w.t.Helper()
	form := url.Values{
		"weblog_title": {"A fleet"}, "user_name": {"maria"}, "admin_password": {"longer-than-long"}, "admin_password2": {"longer-than-long"},
		"pw_weak": {"1"}, "admin_email": {"maria@example.test"}, "blog_public": {"0"}, "language": {""},
	}
	req, err := http.NewRequest(http.MethodPost, "http://"+m.ip+"/wp-admin/install.php?step=2", strings.NewReader(form.Encode()))
	check(w.t, err)
	req.Host = siteHost
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := w.net.visitor().Do(req)
	check(w.t, err)
	defer resp.Body.Close()
	var body bytes.Buffer
	_, err = body.ReadFrom(resp.Body)
	check(w.t, err)
	if !strings.Contains(body.String(), "WordPress has been installed") {
		w.t.Fatalf("install WordPress: %s: %s", resp.Status, body.String())
	}
}
