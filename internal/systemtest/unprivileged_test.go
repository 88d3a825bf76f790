//go:build system

package systemtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"s3pulldeploy/internal/testenv/parts"
)

// exposed is the most that systemd-analyze may find of each unit, of 10: what is required, and a little above what was measured.
var exposed = map[string]float64{site: 3.0, "plain": 1.5}

// servesWithoutRoot gives a machine a second site, whose agent runs as systemd/unprivileged.conf has it, and pushes to it twice: by
// hand as the file says, from its installed copy.
func (w *world) servesWithoutRoot(m *machine) {
	const name, root, user = "plain", "/var/www/plain", "s3-pull-deploy"
	named := func(settings string) string { return strings.Replace(settings, "site: "+site, "site: "+name, 1) }
	config := filepath.Join(w.dir, name+".yml")
	check(w.t, os.WriteFile(config, []byte(named(w.settings(w.s3.Endpoint, w.dynamodb))), 0o644))
	m.write("/etc/s3-pull-deploy/"+name+".yml", named(w.settings("http://"+awsIP+":9000", "http://"+awsIP+":8000"))+
		"root: "+root+"\npoll_interval: 1s\npointer_interval: 5s\n")
	var env strings.Builder
	for k, v := range parts.Credentials() {
		fmt.Fprintf(&env, "%s=%s\n", k, v)
	}
	m.write("/etc/s3-pull-deploy/"+name+".env", env.String())
	unit := "s3-pull-deploy-agent@" + name
	m.sh("install -d -o " + user + " -g " + user + " " + root + " && cd /etc/s3-pull-deploy && chgrp " + user + " plain.yml && chmod 640 plain.yml" +
		" && d=/etc/systemd/system/" + unit + ".service.d && mkdir -p $d && cp /usr/share/s3-pull-deploy/systemd/unprivileged.conf $d" +
		" && systemctl daemon-reload && systemctl start " + unit)
	defer m.sh("systemctl stop " + unit)
	for of, most := range exposed {
		said := m.sh("systemd-analyze security --no-pager s3-pull-deploy-agent@" + of + ".service | tail -n 1")
		found := regexp.MustCompile(`: ([0-9.]+) `).FindStringSubmatch(said)
		if found == nil {
			w.t.Fatalf("systemd-analyze says %q", said)
		}
		if got, err := strconv.ParseFloat(found[1], 64); err != nil || got > most {
			w.t.Errorf("%s, want at most %.1f", said, most)
		}
		w.t.Log(said)
	}

	app := filepath.Join(w.dir, name)
	check(w.t, os.MkdirAll(filepath.Join(app, "bin"), 0o755))
	check(w.t, os.WriteFile(filepath.Join(app, "bin/run"), []byte("#!/bin/sh\n"), 0o755))
	eventually(w.t, time.Minute, "it waits for the first push", func() error {
		state, err := m.property(unit, "ActiveState")
		if err == nil && state != "active" {
			err = errors.New(state)
		}
		return err
	})
	for _, text := range []string{"one", "two"} {
		check(w.t, os.WriteFile(filepath.Join(app, "index.html"), []byte(text), 0o644))
		cmd := exec.Command(w.push, "-config="+config, "-deploy="+app, "-json")
		cmd.Env = append(parts.Environ(), "XDG_CACHE_HOME="+filepath.Join(w.dir, "cache"))
		said, err := cmd.Output()
		var out outcome
		if check(w.t, errors.Join(err, json.Unmarshal(said, &out))); out.Outcome != "done" || out.Members != 1 {
			w.t.Fatalf("push to an agent without root: %s", said)
		}
		if got := m.sh("cat " + root + "/active/index.html"); got != text {
			w.t.Errorf("it serves %q, want %q", got, text)
		}
	}

	pid := m.sh("systemctl show --property=MainPID --value " + unit)
	uid := m.sh("id -u " + user)
	status := strings.Join(strings.Fields(m.sh("cat /proc/"+pid+"/status")), " ")
	for _, want := range []string{"Uid: " + uid + " " + uid, "CapEff: 0000000000000000", "CapBnd: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2"} {
		if !strings.Contains(status, want) {
			w.t.Errorf("its process has not %q: %s", want, status)
		}
	}
	if got := m.sh("cd " + root + "/active && stat -c '%U %a' index.html bin/run"); got != user+" 644\n"+user+" 755" {
		w.t.Errorf("released files are %q", got)
	}
	as := func(user, line string) error {
		_, err := m.try("setpriv --reuid=" + user + " --regid=" + user + " --clear-groups sh -c '" + line + "'")
		return err
	}
	check(w.t, as("www-data", "cat "+root+"/active/index.html"))
	for user, lines := range map[string][]string{
		"www-data": {"echo x > " + root + "/active/index.html", "ln -sfn /tmp " + root + "/active", "ls /var/lib/s3-pull-deploy/" + name},
		// The user of this agent against the other site, whose agent is root.
		user: {
			"rm /run/s3-pull-deploy/" + site + ".sock", "mv /run/s3-pull-deploy/" + site + ".healthy /run/s3-pull-deploy/x",
			"touch /var/www/" + site + "/active/x", "ls /var/lib/s3-pull-deploy/" + site, "cat /etc/s3-pull-deploy/" + site + ".yml",
		},
	} {
		for _, line := range lines {
			if as(user, line) == nil {
				w.t.Errorf("%s may %s", user, line)
			}
		}
	}
	if text := m.journal("--unit=" + unit); !strings.Contains(text, "level=INFO msg=ready") || strings.Contains(text, "not permitted") {
		w.t.Errorf("its journal: %s", text)
	}
}
