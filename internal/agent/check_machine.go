package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/php"
)

// examineMachine looks at paths, users and units, as whoever runs the check: run it as the agent runs.
func examineMachine(ctx context.Context, c *config.Config) []php.Finding {
	all := []php.Finding{
		examineFolder("root", c.Root),
		examineFolder("state_dir", c.StateDir),
	}
	for _, u := range []struct{ key, name string }{{"owner", c.Owner}, {"web_user", c.WebUser}, {"hooks.user", c.Hooks.User}} {
		if u.name == "" {
			continue
		}
		_, err := disk.LookupUser(u.name)
		all = append(all, found(err, fmt.Sprintf("%s: %s", u.key, u.name), u.key, "create the user, or name another"))
	}
	paths := make([]string, 0, len(c.Shared))
	for path := range c.Shared {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for _, path := range paths {
		_, err := os.Stat(c.Shared[path])
		what := fmt.Sprintf("shared: %s -> %s", path, c.Shared[path])
		all = append(all, found(err, what, what, "create it, or mount what it lies on: without it the instance votes no"))
	}
	h := c.Hooks
	if h.AfterSync+h.BeforeFlip+h.FleetOnce+h.AfterFlip != "" && h.User == "" && c.WebUser == "" {
		all = append(all, php.Finding{Verdict: php.Warn, What: "hooks: they run as the agent's own user", Cure: "set web_user or hooks.user"})
	}
	if len(c.Restart) > 0 {
		all = append(all, examineUnits(ctx, c.Restart)...)
	}
	return append(all, examineAgent(ctx, c))
}

// examineFolder looks whether a folder, or where it would be made, can be written and has room.
func examineFolder(key, dir string) php.Finding {
	what := fmt.Sprintf("%s: %s", key, dir)
	at := dir
	for {
		info, err := os.Stat(at)
		if err == nil && !info.IsDir() {
			return php.Finding{Verdict: php.Fail, What: fmt.Sprintf("%s: %s is no directory", what, at), Cure: "remove it, or set another " + key}
		}
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || at == filepath.Dir(at) {
			return php.Finding{Verdict: php.Fail, What: what + ": " + err.Error(), Cure: "run the check as the agent runs: as root"}
		}
		at = filepath.Dir(at)
	}
	if err := unix.Access(at, unix.W_OK|unix.X_OK); err != nil {
		return php.Finding{
			Verdict: php.Fail, What: fmt.Sprintf("%s: %s cannot be written: %v", what, at, err),
			Cure: "give it to the agent's user; under systemd a path outside /var/www and /srv needs ReadWritePaths= in a drop-in",
		}
	}
	var free unix.Statfs_t
	if err := unix.Statfs(at, &free); err != nil {
		return php.Finding{Verdict: php.Fail, What: what + ": " + err.Error(), Cure: "mount a filesystem that works"}
	}
	return examineRoom(what, &free)
}

// examineRoom looks whether a filesystem has room for any release at all: with less free the agent votes no.
func examineRoom(what string, fs *unix.Statfs_t) php.Finding {
	bytes, inodes := disk.Spare(fs)
	room := uint64(fs.Bavail) * uint64(fs.Bsize)
	switch {
	case room <= bytes:
		return php.Finding{Verdict: php.Fail, What: fmt.Sprintf("%s: only %d MiB are free", what, room>>20), Cure: "make room, or lower keep_releases"}
	case fs.Files > 0 && fs.Ffree <= inodes: // btrfs counts none
		return php.Finding{Verdict: php.Fail, What: fmt.Sprintf("%s: only %d inodes are free", what, fs.Ffree), Cure: "remove small files (`df -i` and `du --inodes` show where), or lower keep_releases"}
	case fs.Files == 0:
		return php.Finding{Verdict: php.OK, What: fmt.Sprintf("%s: can be written, %d MiB are free", what, room>>20)}
	}
	return php.Finding{Verdict: php.OK, What: fmt.Sprintf("%s: can be written, %d MiB and %d inodes are free", what, room>>20, fs.Ffree)}
}

// examineUnits looks which units would be restarted or reloaded.
func examineUnits(ctx context.Context, patterns []string) []php.Finding {
	c, err := toManager(ctx)
	if err != nil {
		what := fmt.Sprintf("restart: %q: %v: %v", patterns, ErrNoSystemd, err)
		return []php.Finding{{Verdict: php.Fail, What: what, Cure: "run the agent where systemd runs, or remove restart"}}
	}
	defer c.Close()
	return examinePatterns(patterns, os.Geteuid(), func(one string) (int, error) {
		running, err := c.ListUnitsByPatternsContext(ctx, []string{"active"}, []string{one})
		return len(running), err
	})
}

// examinePatterns asks for each pattern by itself: that one matches nothing is not to be hidden by what another does match.
func examinePatterns(patterns []string, uid int, running func(string) (int, error)) (all []php.Finding) {
	for _, one := range patterns {
		what := "restart: " + one
		n, err := running(one)
		if err != nil {
			all = append(all, php.Finding{Verdict: php.Fail, What: what + ": " + err.Error(), Cure: "correct the pattern"})
			continue
		}
		all = append(all, restartable(what, n, uid))
	}
	return all
}

// restartable is what there is to say of so many units that run. Whether polkit lets a user restart them only root and polkit's own
// user may ask; systemd tells when it is too late.
func restartable(what string, running, uid int) php.Finding {
	switch {
	case running == 0:
		return php.Finding{Verdict: php.Warn, What: what + ": none is running", Cure: "start them, or correct the pattern"}
	case uid != 0:
		return php.Finding{
			Verdict: php.Skip, What: fmt.Sprintf("%s: %d running; whether user %d may restart them was not tried", what, running, uid),
			Cure: "an agent without root needs polkit, and a rule that names the units: share/polkit/50-s3-pull-deploy.rules",
		}
	}
	return php.Finding{Verdict: php.OK, What: fmt.Sprintf("%s: %d running", what, running)}
}

// examineAgent looks whether the agent runs, and what it says.
func examineAgent(ctx context.Context, c *config.Config) php.Finding {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s, err := askStatus(ctx, SocketPath(c.Site))
	if err != nil {
		return php.Finding{Verdict: php.Warn, What: "agent: " + err.Error(), Cure: "systemctl enable --now s3-pull-deploy-agent@" + c.Site}
	}
	if !s.Healthy || len(s.Problems) > 0 {
		return php.Finding{Verdict: php.Warn, What: "agent: " + s.Line, Cure: "docs/operating.md says what the status line means"}
	}
	return php.Finding{Verdict: php.OK, What: "agent: " + s.Line}
}
