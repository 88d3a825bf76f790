package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/failpoint"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/php"
	"s3pulldeploy/internal/release"
)

// turn lets one instance of the fleet at a time do some work; [fleet.Turn] is the real one.
type turn interface {
	Try(ctx context.Context, work func(context.Context) error) (ran bool, err error)
}

// unfit is an error whose reason is this machine, not the release.
type unfit struct{ error }

func (e unfit) Unwrap() error { return e.error }

// rehearse has PHP compile a staged release, and looks at it through the preview before this machine votes for it. For a rollback
// it is no condition: the release was live once, and what is live now may be what PHP hangs in and what the preview fails for.
func (m *machine) rehearse(ctx context.Context, w fleet.Want, say func(string)) error {
	id := w.Commit.Release
	if goesBack(w) {
		limit, cancel := context.WithTimeout(ctx, m.backTime)
		defer cancel()
		if err := m.warm(limit, id, say); err != nil {
			m.log.Warn("the rollback goes on without PHP", "release", string(id), "error", err)
			m.warmed(id, nil, err)
		}
		return ctx.Err()
	}
	err := m.warm(ctx, id, say)
	if php.Unreachable(err) && m.vacant() {
		// A web server that is held back until there is a release (the gate of systemd/) would wait for us, and we for it.
		m.log.Info("nothing is served here yet, the release goes live without a rehearsal", "release", string(id), "cause", err)
		return nil
	}
	if err != nil {
		return err
	}
	h := m.cfg.HealthCheck
	if h.Preview == "" || w.Joining { // what the fleet decided is not voted on again
		return nil
	}
	say("preview")
	check := php.Health{
		URL: h.Preview, Host: h.Host, Expect: h.Expect, Timeout: h.Timeout, Attempts: h.Attempts, Release: string(id), Preview: true,
	}
	err = check.Check(ctx)
	switch {
	case err == nil:
		return nil
	case php.Unreachable(err):
		return unfit{fmt.Errorf("preview: %w", err)}
	}
	return fmt.Errorf("preview: %w", err)
}

// goesBack says whether the fleet or this machine returns to a release that was live before.
func goesBack(w fleet.Want) bool { return w.Back || w.Commit.Kind == fleet.KindRollback }

// vacant says that no release was ever live on this machine.
func (m *machine) vacant() bool {
	id, err := m.disk.Active()
	return id == "" && err == nil
}

// warm has PHP compile a release. That there is no room is no reason not to go live: it is said.
func (m *machine) warm(ctx context.Context, id release.ID, say func(string)) error {
	if m.cfg.Opcache.Effective() != config.Warm {
		return nil
	}
	all, err := m.opcache.Warm(ctx, m.folder(id), say)
	if err != nil {
		return unfit{fmt.Errorf("compile into opcache: %w", err)}
	}
	m.warmed(id, all, nil)
	m.warmFor = id
	return nil
}

func (m *machine) folder(id release.ID) string { return filepath.Join(m.cfg.Root, string(id)) }

// warmed keeps what is to be said of a warm-up, and of the pools that it failed in.
func (m *machine) warmed(id release.ID, all []php.Warmth, err error) {
	var cold []string
	if err != nil {
		cold = append(cold, "cold: "+err.Error())
	}
	for _, w := range all {
		m.log.Info("opcache", "release", string(id), "route", w.URL, "files", w.Files, "cached", w.Cached, "broken", w.Broken, "cold", w.Cold, "short", w.Short)
		if w.Cold != "" || w.Short != "" {
			cold = append(cold, w.String())
		}
	}
	m.cold.set(strings.Join(cold, "; "))
}

// coldness is why the last release is not all in opcache; empty: it is, or nobody asked.
func (m *machine) coldness() string { return m.cold.text() }

// switchPHP does what the mode asks for after a flip, where that is not done yet, and has all pools, and the site as visitors
// reach it, say which release they run.
func (m *machine) switchPHP(ctx context.Context, id release.ID) error {
	if err := failpoint.Hit("A21"); err != nil {
		return err
	}
	if m.cfg.Opcache.Effective() == config.Reset {
		done, err := m.opcache.Except(m.after.reset).Reset(ctx)
		for _, s := range done {
			m.after.reset[s.URL] = true
		}
		if err != nil {
			return fmt.Errorf("reset opcache: %w", err)
		}
	}
	pools, err := m.opcache.Status(ctx)
	if err != nil {
		return fmt.Errorf("ask PHP: %w", err)
	}
	if pools, err = m.reloadPreloaded(ctx, pools); err != nil {
		return err
	}
	if m.warmFor != id { // php-fpm was reloaded, or it went live before there was a web server, or before this process
		if err := m.warm(ctx, id, func(string) {}); err != nil {
			return err
		}
	}
	silent, err := php.Prove(pools, string(id))
	for _, route := range silent {
		m.log.Warn("the pool finds no release at the root of its local route: nothing proves what it serves", "route", route)
	}
	if err != nil {
		return err // not "ask PHP: ": what is stale must not be cut off in the table
	}
	return m.askSite(ctx, id)
}

// reloadPreloaded reloads php-fpm where a pool holds preloaded code of the release before, once an epoch, and asks all pools again. Where
// it may not, the rest of the release is served all the same, and a warning says so.
func (m *machine) reloadPreloaded(ctx context.Context, pools []php.Status) ([]php.Status, error) {
	if m.after.reload || !slices.ContainsFunc(pools, preloads) {
		return pools, nil
	}
	const keeps = "opcache.preload keeps code of the release that was live when php-fpm started: "
	units := fpmUnits(m.cfg.Restart)
	if len(units) == 0 {
		m.warn(keeps + "name php-fpm's unit in `restart`, then it is reloaded after each flip")
		m.after.reload = true
		return pools, nil
	}
	pools, err := m.reload(ctx, units, pools)
	switch {
	case untouched(err) && ctx.Err() == nil:
		m.warn(keeps + err.Error())
		m.after.reload = true
		return pools, nil
	case err != nil:
		return nil, fmt.Errorf("reload php-fpm for opcache.preload: %w", err)
	}
	return pools, nil
}

func preloads(s php.Status) bool { return s.Settings.Preload != "" }

// revive reloads a php-fpm that gives no answer after a rollback, once an epoch: its workers may hang in code of the release
// that was live. What it does not mend is for those to say who ask PHP next.
func (m *machine) revive(ctx context.Context) {
	if m.after.reload {
		return
	}
	limit, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	_, err := m.opcache.Status(limit)
	if err == nil || ctx.Err() != nil {
		return
	}
	units := fpmUnits(m.cfg.Restart)
	if len(units) == 0 {
		m.log.Warn("PHP gives no answer after a rollback: name php-fpm's unit in `restart`, then it is reloaded", "error", err)
		m.after.reload = true
		return
	}
	m.log.Warn("PHP gives no answer after a rollback: php-fpm is reloaded", "units", units, "error", err)
	if _, err := m.reload(ctx, units, nil); err != nil {
		m.log.Warn("reload php-fpm", "error", err)
	}
}

// answerTime is how long php-fpm may take to answer after a rollback, and answerPause what lies between two questions after a reload,
// when it may first wait for running requests.
const (
	answerTime  = 10 * time.Second
	answerPause = 100 * time.Millisecond
)

// reload reloads php-fpm, which empties opcache, and waits for it. Where some units are untouched, that is the error after this.
func (m *machine) reload(ctx context.Context, units []string, before []php.Status) ([]php.Status, error) {
	begun, err := m.service.Reload(ctx, units)
	if begun > 0 {
		m.warmFor = ""
	}
	if err != nil && (begun == 0 || !untouched(err)) {
		return before, err
	}
	m.after.reload = true
	pools, late := m.reloaded(ctx, before)
	return pools, cmp.Or(late, err)
}

// reloaded waits until all pools answer, and those that preload are no longer what they were before: systemd calls the reload done when
// it has asked for it, and the old workers go on for a moment. What goes on after the handover was not
// reloaded: that is said, and nobody waits for it.
func (m *machine) reloaded(ctx context.Context, before []php.Status) ([]php.Status, error) {
	limit, cancel := context.WithTimeout(ctx, reloadTime)
	defer cancel()
	old := map[string]int64{} // when they were started, by their routes; a probe of an older package does not say
	for _, s := range before {
		if preloads(s) && s.Started > 0 {
			old[s.URL] = s.Started
		}
	}
	for end := time.Now().Add(m.handover); ; {
		pools, err := m.opcache.Status(limit)
		goesOn := slices.ContainsFunc(pools, func(s php.Status) bool { return old[s.URL] == s.Started && s.Started > 0 })
		switch {
		case err == nil && !goesOn:
			return pools, nil
		case err == nil && time.Now().After(end):
			m.warn("a pool with opcache.preload goes on as it was after the reload: is its unit named in `restart`?")
			return pools, nil
		}
		select {
		case <-limit.Done():
			return nil, cmp.Or(err, limit.Err())
		case <-time.After(answerPause):
		}
	}
}

// fpmUnits are those of the settings' units that are php-fpm.
func fpmUnits(restart []string) (units []string) {
	for _, unit := range restart {
		if strings.Contains(unit, "fpm") {
			units = append(units, unit)
		}
	}
	return units
}

// otherUnits are those that are not: php-fpm must not be restarted under load, and needs it only for opcache.preload.
func otherUnits(restart []string) []string {
	return slices.DeleteFunc(slices.Clone(restart), func(unit string) bool { return strings.Contains(unit, "fpm") })
}

// askSite asks PHP over the path that visitors take, where that is known and the site has the page for it. Only that it is stale
// matters here: what else is wrong with the site is for the health check to say.
func (m *machine) askSite(ctx context.Context, id release.ID) error {
	h := m.cfg.HealthCheck
	if h.URL == "" || m.cfg.Opcache.Effective() == config.Off {
		return nil
	}
	_, err := php.Site{URL: h.URL, Host: h.Host, Timeout: h.Timeout}.Runs(ctx, string(id))
	switch {
	case errors.Is(err, php.ErrStale):
		return err
	case errors.Is(err, php.ErrNoPage) && !m.pageless:
		m.pageless = true
		m.log.Warn("nothing proves which release visitors get: include share/nginx/site.conf (share/apache/site.conf) in the site's server block", "error", err)
	}
	return nil
}

// room is the wish to look whether opcache could hold one more release.
type room struct {
	due   bool
	retry time.Duration // boot time before which it is not tried again
}

const (
	turnRetry = 5 * time.Second // while another instance makes room
	roomRetry = time.Minute     // after an error
)

// roomWanted says whether an instance in service, of a fleet that is done, is to look after room in opcache.
func (a *Agent) roomWanted() bool {
	return a.quiet() && a.room.due && a.p.Clock.Boot() >= a.room.retry
}

// roomMade takes the end of such a look.
func (a *Agent) roomMade(again time.Duration) {
	a.room.due = again > 0
	a.room.retry = a.p.Clock.Boot() + again
}

// makeRoom empties what could not hold one more release and compiles the live one again, when it is this instance's turn. It
// returns in how long to come back, 0 for not before the next flip.
func (m *machine) makeRoom(ctx context.Context, say func(string)) (again time.Duration) {
	if m.cfg.Opcache.Effective() != config.Warm {
		return 0
	}
	id, err := m.disk.Active()
	if err != nil {
		return roomRetry
	}
	why, err := m.opcache.Tight(ctx, m.folder(id))
	if err != nil {
		m.log.Warn("room in opcache", "error", err)
		return roomRetry
	}
	if len(why) == 0 {
		if m.coldness() != "" { // there is room now
			if err := m.warm(ctx, id, say); err != nil {
				m.log.Warn("room in opcache", "error", err)
				return roomRetry
			}
		}
		return 0
	}
	if m.roomFor == id {
		m.log.Warn("opcache has no room for two releases: every deploy will be cold", "release", string(id), "why", strings.Join(why, "; "))
		return 0
	}
	ran, err := m.turn.Try(ctx, func(ctx context.Context) error {
		m.log.Info("making room in opcache", "release", string(id), "why", strings.Join(why, "; "))
		made, err := m.opcache.MakeRoom(ctx, m.folder(id), say)
		m.warmed(id, made, err)
		return err
	})
	switch {
	case err != nil:
		m.log.Warn("make room in opcache", "error", err)
		return roomRetry
	case !ran:
		return turnRetry
	}
	m.roomFor = id
	m.log.Info("made room in opcache", "release", string(id))
	return turnRetry // it looks once more: is there room now
}
