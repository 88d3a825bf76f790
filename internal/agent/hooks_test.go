package agent

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/hook"
	"s3pulldeploy/internal/testenv"
)

func TestWorkersAreRestartedAfterEachFlipAndPHPIsNot(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.box("i-1", "restart: [promo-queue@*.service, php8.2-fpm.service]")
		b.boot()
		b.says("waiting for the first push", 5*time.Second, true)
		r.push(r1)
		r.live(r1, time.Minute, b)
		if want := []string{"promo-queue@*.service"}; !slices.Equal(b.service.restarted, want) || len(b.service.reloaded) > 0 {
			t.Errorf("restarted %q, reloaded %q", b.service.restarted, b.service.reloaded)
		}
		b.service.mu.Lock()
		b.service.stuck = errors.New("promo-queue@1.service: failed")
		b.service.mu.Unlock()
		r.push(r2)
		r.until("back on the good release", 2*time.Minute, func() bool {
			h := r.head()
			return h.Automatic() && h.State == fleet.Done || strings.Contains(h.Why, "restart: promo-queue@1.service: failed")
		})
	})
}

func TestWhatAFailedHookPrintedIsAtHandForPush(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.box("i-1", `hooks: {before_flip: 'seq 5000; echo "no such table: users"; exit 3'}`)
		b.boot()
		b.says("waiting for the first push", 5*time.Second, true)
		r.push(r1)
		r.until("abort", time.Minute, func() bool { return r.head().State == fleet.Abort })
		o, err := r.ledger().Output(t.Context(), "i-1")
		if err != nil || o == nil {
			t.Fatalf("%+v, %v", o, err)
		}
		if o.Hook != "before_flip" || o.Release != r1 || len(o.Text) > 4096 || !strings.HasSuffix(o.Text, "4999\n5000\nno such table: users\n") {
			t.Errorf("%s of %s, %d bytes: …%s", o.Hook, o.Release, len(o.Text), o.Text[max(0, len(o.Text)-100):])
		}
		if m, _ := r.row("i-1"); !strings.Contains(m.Error, "no such table: users") || len(m.Error) > 200 {
			t.Errorf("the row says %q", m.Error)
		}
	})
}

func TestEachFailingHookStopsItsReleaseAsTheTableSays(t *testing.T) {
	for name, back := range map[string]bool{"after_sync": false, "before_flip": false, "fleet_once": false, "after_flip": true} {
		bubble(t, func(r *rig) {
			b := r.box("i-1", fmt.Sprintf(`hooks: {%s: 'test "$DEPLOY_RELEASE" = %s || { echo the table is locked; exit 3; }'}`, name, r1))
			b.boot()
			r.push(r1)
			r.live(r1, time.Minute, b)
			r.push(r2)
			why := "i-1: hook " + name + ": exit code 3: the table is locked"
			r.until(name+" to stop it", 2*time.Minute, func() bool {
				h := r.head()
				if back {
					return h.Automatic() && h.State == fleet.Done && h.IsBad(r.seq) && strings.Contains(h.Why, why)
				}
				return h.State == fleet.Abort && h.Held(r.seq) && strings.Contains(h.Reason, why)
			})
			m, _ := r.row("i-1")
			if no := name == "after_sync" || name == "before_flip"; no != (m.Vote.Kind == fleet.AboutRelease) || b.active() != r1 {
				t.Errorf("%s: %s is live, and the vote is %+v", name, b.active(), m.Vote)
			}
			if at, _ := r.ledger().Output(t.Context(), "i-1"); at == nil || at.Hook != name || at.Text != "the table is locked\n" {
				t.Errorf("%s: at hand for push is %+v", name, at)
			}
		})
	}
}

// example reads one of the examples' settings.
func example(t *testing.T, name string) *config.Config {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../examples/hooks", name))
	if err != nil {
		t.Fatal(err)
	}
	settings := "site: promo\nbucket: bucket\nroot: /var/www/promo.example.com\n" + string(text)
	c, err := config.Parse([]byte(settings), "/etc/agent.yml", config.ForAgent, func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// tools is a folder of commands for a hook's PATH: each notes how it was called, and in which folder.
func tools(t *testing.T, names ...string) (path string, calls func() string) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	for _, name := range names {
		script := "#!/bin/sh\necho \"" + name + " $* in $(basename \"$PWD\")\" >> " + log + "\n[ \"$*\" != \"artisan route:cache\" ] || [ ! -e broken ] || { echo 'Unable to prepare route'; exit 1; }\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return "PATH=" + dir + ":/usr/bin:/bin", func() string { text, _ := os.ReadFile(log); _ = os.Remove(log); return string(text) }
}

func TestExamplesOfHooksDoWhatTheySay(t *testing.T) {
	release := filepath.Join(t.TempDir(), string(r1))
	if err := os.MkdirAll(filepath.Join(release, "config"), 0o755); err != nil {
		t.Fatal(err)
	}
	path, calls := tools(t, "php", "crontab")
	run := func(command string) error {
		_, err := hook.Run(t.Context(), hook.Spec{Name: "hook", Command: command, Dir: release, Env: []string{path}, Timeout: time.Minute})
		return err
	}
	cron, laravel := example(t, "crontab.yml"), example(t, "laravel.yml")
	for _, c := range []struct{ command, want string }{
		{cron.Hooks.AfterFlip, "crontab config/crontab in R\n"},
		{laravel.Hooks.BeforeFlip, "php artisan config:cache in R\nphp artisan route:cache in R\nphp artisan view:cache in R\n"},
		{laravel.Hooks.FleetOnce, "php artisan migrate --force in R\n"},
	} {
		if err := run(c.command); err != nil {
			t.Errorf("%s: %v", c.command, err)
		}
		if got, want := calls(), strings.ReplaceAll(c.want, "R", string(r1)); got != want {
			t.Errorf("ran\n%swant\n%s", got, want)
		}
	}
	if err := os.WriteFile(filepath.Join(release, "broken"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := run(laravel.Hooks.BeforeFlip); err == nil || !strings.Contains(err.Error(), "Unable to prepare route") || strings.Contains(calls(), "view:cache") {
		t.Errorf("a cache that cannot be made: %v", err)
	}
	if cron.Hooks.User != "www-data" || laravel.Hooks.User != "www-data" || !slices.Equal(otherUnits(laravel.Restart), []string{"promo-queue@*.service"}) {
		t.Errorf("users %q, %q, units %q", cron.Hooks.User, laravel.Hooks.User, laravel.Restart)
	}
}

func TestExampleOfAQueueWorkersUnitIsValid(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		testenv.LeaveOut(t, "systemd-analyze is not there: the unit is not verified")
	}
	text, err := os.ReadFile("../../examples/hooks/promo-queue@.service")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	unit := filepath.Join(dir, "promo-queue@.service")
	// The verifier looks for the command, which not every machine has.
	if err := os.WriteFile(unit, []byte(strings.ReplaceAll(string(text), "/usr/bin/php", "/bin/true")), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", filepath.Join(dir, "promo-queue@1.service")).CombinedOutput(); err != nil || strings.Contains(string(out), "promo-queue@") {
		t.Errorf("%v: %s", err, out)
	}
}
