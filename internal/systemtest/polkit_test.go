//go:build system

package systemtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// restartsWithoutRoot has the agent's own user restart units as an agent does: nothing before the rule of share/polkit is there, and
// then what the rule names, by nobody else.
func (w *world) restartsWithoutRoot(m *machine) {
	tool := filepath.Join(w.uploads, "restart") // a way into the machine
	cmd := exec.Command("go", "build", "-o", tool, "./internal/systemtest/testdata/restart")
	cmd.Dir, cmd.Env = w.root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("%v\n%s", err, out)
	}
	defer os.Remove(tool)
	const unit = "[Service]\nExecStart=/bin/sleep infinity\n"
	m.write("/etc/systemd/system/promo-queue@.service", unit)
	m.write("/etc/systemd/system/other.service", unit)
	m.sh("systemctl daemon-reload && systemctl start promo-queue@1 other")
	defer m.sh("systemctl stop promo-queue@1 other")

	may := func(user, what string, want bool) {
		w.t.Helper()
		_, err := m.try("setpriv --reuid=" + user + " --regid=" + user + " --clear-groups /srv/uploads/restart " + what)
		forbidden := err != nil && strings.Contains(err.Error(), "authentication required") && strings.Contains(err.Error(), "share/polkit/50-s3-pull-deploy.rules")
		if (err == nil) != want || err != nil && !forbidden {
			w.t.Errorf("%s, %s: %v, want it allowed: %v", user, what, err, want)
		}
	}
	may("s3-pull-deploy", "reload php8.2-fpm.service", false)
	m.sh("cp /usr/share/s3-pull-deploy/polkit/50-s3-pull-deploy.rules /etc/polkit-1/rules.d/ && systemctl restart polkit")
	may("s3-pull-deploy", "reload php8.2-fpm.service", true)
	may("s3-pull-deploy", "restart 'promo-queue@*.service'", true)
	may("s3-pull-deploy", "restart other.service", false)
	may("s3-pull-deploy", "reload other.service", false)
	may("www-data", "reload php8.2-fpm.service", false)
}
