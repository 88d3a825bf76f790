package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/php"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/table"
	"s3pulldeploy/internal/testenv"
)

// liveTime is for one rollout in real time, on a machine that does other things too.
const liveTime = 60 * time.Second

// webBox is a machine of a fleet in real time, with a web server and PHP of its own.
type webBox struct {
	*box
	web   testenv.PHPServer
	cache *php.Opcache
}

func realRig(t *testing.T) *rig {
	return &rig{t: t, bucket: newBucket(), table: table.NewMemory(), began: time.Now()}
}

// serve boots a machine; in its settings LOCAL, SITE and PREVIEW are addresses of its web server, and ini are for PHP.
func (r *rig) serve(id, settings string, ini ...string) webBox {
	r.t.Helper()
	return r.box(id, settings).serve(ini...)
}

// root is that of the settings, before they are read.
func (b *box) root() string {
	_, rest, _ := strings.Cut(b.settings, "root: ")
	root, _, _ := strings.Cut(rest, "\n")
	return root
}

func (b *box) serve(ini ...string) webBox {
	b.r.t.Helper()
	web := testenv.PHP(b.r.t, b.root(), ini...)
	b.settings = strings.NewReplacer("LOCAL", web.LocalURL, "SITE", web.URL, "PREVIEW", web.Preview).Replace(b.settings)
	b.boot()
	b.r.t.Cleanup(b.stop)
	return webBox{b, web, php.New(php.Options{URLs: []string{web.LocalURL}})}
}

// page is what a page of the site answers.
func (s webBox) page(path string) string {
	s.r.t.Helper()
	resp, err := http.Get(s.web.URL + path)
	if err != nil {
		s.r.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.r.t.Fatal(err)
	}
	return string(text)
}

// pushPHP pushes a release of n files of PHP and a page that says its release; more are name and text of further ones.
func (r *rig) pushPHP(id release.ID, n int, more ...string) {
	r.bucket.upload(id, "index.php", "<?php echo '"+string(id)+"';")
	for i := range n {
		var lines strings.Builder
		for line := range 150 {
			fmt.Fprintf(&lines, "    $x = $x * %d + strlen('%s %d');\n", line, id, line)
		}
		r.bucket.upload(id, fmt.Sprintf("lib/f%d.php", i), fmt.Sprintf("<?php\nfunction f%d($x) {\n%s    return $x;\n}\n", i, lines.String()))
	}
	for i := 0; i < len(more); i += 2 {
		r.bucket.upload(id, more[i], more[i+1])
	}
	r.point(id, 1+n+len(more)/2)
}

func (s webBox) status() php.Status {
	s.r.t.Helper()
	all, err := s.cache.Status(s.r.t.Context())
	if err != nil || len(all) != 1 {
		s.r.t.Fatalf("status of PHP: %v, %v", all, err)
	}
	return all[0]
}

const warmSettings = "opcache: {url: LOCAL}\nhealth_check: {url: SITE/index.php, preview: PREVIEW/index.php}\n"

func TestReleaseIsInOpcacheWhenItGoesLive(t *testing.T) {
	r := realRig(t)
	b := r.serve("i-1", warmSettings)
	r.pushPHP(r1, 20)
	r.live(r1, liveTime, b.box)
	r.pushPHP(r2, 20)
	r.live(r2, liveTime, b.box)
	s := b.status()
	if s.Scripts < 2*21 || s.LastRestart != 0 || s.Release != string(r2) {
		t.Errorf("after two releases: %+v, want all of both in opcache, and no reset", s)
	}
	if line := b.agent.Status().Line; strings.Contains(line, "cold") {
		t.Errorf("status is %q", line)
	}
}

func TestFirstReleaseGoesLiveBeforeTheWebServerThatWaitsForIt(t *testing.T) {
	r := realRig(t)
	route := t.TempDir() + "/held.sock" // not there: nobody listens yet
	b := r.serve("i-1", "opcache: {url: \"unix:"+route+":/_deploy/opcache\"}\nhealth_check: {url: SITE/index.php, preview: PREVIEW/index.php}\n")
	r.pushPHP(r1, 3)
	r.until("the first flip", liveTime, func() bool { return b.active() == r1 })
	r.until("not healthy before PHP was asked", liveTime, func() bool { return !b.agent.Status().Healthy })
	socket, _, _ := strings.Cut(strings.TrimPrefix(b.web.SocketURL, "unix:"), ":")
	if err := os.Symlink(socket, route); err != nil {
		t.Fatal(err)
	}
	r.live(r1, liveTime, b.box)
	if s := b.status(); s.Scripts < 4 {
		t.Errorf("in service before its release was compiled: %+v", s)
	}

	if err := os.Remove(route); err != nil { // with something to serve, a web server that is away is a reason
		t.Fatal(err)
	}
	r.pushPHP(r2, 3)
	r.until("no vote", liveTime, func() bool {
		m, _ := r.row("i-1")
		return m.Vote.Release == r2 && m.Vote.Kind == fleet.AboutMachine
	})
}

func TestReleaseThatDoesNotFitGoesLiveColdAndThenThereIsRoom(t *testing.T) {
	r := realRig(t)
	b := r.serve("i-1", warmSettings, "opcache.memory_consumption=8", "opcache.interned_strings_buffer=1", "opcache.max_accelerated_files=1000")
	r.pushPHP(r1, 260)
	r.live(r1, liveTime, b.box)
	r.until("tried to make room", liveTime, func() bool { return b.status().LastRestart != 0 })
	was := b.status()
	r.pushPHP(r2, 300) // opcache has room for one of them
	r.until("cold", liveTime, func() bool {
		m, _ := r.row("i-1")
		return m.Vote.Yes && m.Vote.Release == r2 && strings.Contains(m.Progress, "it does not fit")
	})
	r.live(r2, liveTime, b.box)
	r.until("room", liveTime, func() bool {
		s := b.status()
		return s.LastRestart != was.LastRestart && s.Scripts > 300 && !s.Full && b.agent.Status().Problems["opcache"] == ""
	})
}

func TestReleaseThatFailsItsPreviewGoesNowhere(t *testing.T) {
	r := realRig(t)
	b := r.serve("i-1", "opcache: {url: LOCAL}\nhealth_check: {url: SITE/index.php, preview: PREVIEW/check.php, attempts: 1}\n")
	r.pushPHP(r1, 1, "check.php", "<?php echo 'fine';")
	r.live(r1, liveTime, b.box)
	r.pushPHP(r2, 1, "check.php", "<?php http_response_code(500); echo 'no such column';")
	r.until("abort", liveTime, func() bool { return r.head().State == fleet.Abort && r.head().Release == r2 })
	r.until("the reason", liveTime, func() bool {
		m, _ := r.row("i-1")
		return m.Vote.Kind == fleet.AboutRelease && strings.Contains(m.Error, `status 500 instead of 200: "no such column"`)
	})
	if b.active() != r1 || !b.agent.Status().Healthy {
		t.Errorf("serves %s: %s", b.active(), b.agent.Status().Line)
	}
}

// Both workers hang in the release that is live, so php-fpm answers nobody until it is reloaded.
func TestFleetGoesBackFromAReleaseThatHangsPHP(t *testing.T) {
	r := realRig(t)
	b := r.serve("i-1", "opcache: {url: LOCAL, timeout: 5s}\nhealth_check: {url: SITE/index.php, preview: PREVIEW/index.php}\nrestart: [php8.2-fpm.service]\n")
	b.service.onReload(func() { _ = syscall.Kill(b.web.FPM(), syscall.SIGUSR2) })
	r.pushPHP(r1, 3)
	r.live(r1, liveTime, b.box)
	r.pushPHP(r2, 3, "hang.php", "<?php touch(__DIR__ . '/hangs' . getmypid()); while (true) { sleep(1); }")
	r.live(r2, liveTime, b.box)
	for range 2 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.web.URL+"/hang.php", nil)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			if resp, err := http.DefaultClient.Do(req); err == nil {
				resp.Body.Close()
			}
		}()
	}
	r.until("no worker is left", liveTime, func() bool {
		hang, _ := filepath.Glob(filepath.Join(b.cfg.Root, string(r2), "hangs*"))
		return len(hang) == 2
	})
	r.point(r1, 4, `kind "rollback"`)
	r.live(r1, liveTime, b.box)
	if s := b.status(); s.Scripts < 4 || s.Release != string(r1) {
		t.Errorf("after the rollback: %+v, want all of it in opcache", s)
	}
}

func TestMachineWithoutPHPStepsOut(t *testing.T) {
	r := realRig(t)
	well, ill := r.serve("i-1", warmSettings), r.serve("i-2", warmSettings)
	r.pushPHP(r1, 1)
	r.live(r1, liveTime, well.box, ill.box)
	ill.web.Stop()
	r.pushPHP(r2, 1)
	r.live(r2, liveTime, well.box)
	m, _ := r.row("i-2")
	if m.Phase != fleet.Out && m.Phase != fleet.Join || !strings.Contains(m.Error+ill.agent.Status().Line, "connection refused") {
		t.Errorf("the one without PHP: %+v\n%s", m, ill.agent.Status().Line)
	}
}

func TestPreloadedCodeIsReloadedOnceAnEpoch(t *testing.T) {
	for restart, want := range map[string]int{"[php8.2-fpm.service, queue@*.service]": 1, "[queue@*.service]": 0} {
		p := newPool(t)
		m, _ := settler(t, "true", p)
		m.cfg.Opcache.Mode, m.cfg.Restart = "reset", strings.Split(strings.Trim(restart, "[]"), ", ")
		p.set(func(p *pool) { p.preload, p.page = "/srv/preload.php", 500 })
		s := m.service.(*service)
		for range 2 {
			if err := m.settle(t.Context(), settleOf(1, r1)); err == nil || !strings.Contains(err.Error(), "health check") {
				t.Errorf("error is %v", err)
			}
		}
		if len(s.reloaded) != want || want > 0 && s.reloaded[0] != "php8.2-fpm.service" {
			t.Errorf("restart %s: reloaded %q", restart, s.reloaded)
		}
	}
}

// systemd calls a reload done when it has asked php-fpm for it: what is compiled into the old one's opcache is lost.
func TestNothingIsCompiledBeforeTheReloadHasHappened(t *testing.T) {
	p := newPool(t)
	m, _ := settler(t, "true", p)
	m.cfg.Opcache.Mode, m.cfg.Restart = "warm", []string{"php8.2-fpm.service"}
	p.set(func(p *pool) { p.preload, p.started = "/srv/preload.php", 100 })
	m.service.(*service).onReload(func() { p.set(func(p *pool) { p.asked, p.started, p.behind = nil, 101, 3 }) })
	if err := os.WriteFile(filepath.Join(m.cfg.Root, string(r1), "a.php"), []byte("<?php"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := m.settle(t.Context(), settleOf(1, r1)); err != nil || m.undone.text() != "" {
		t.Fatalf("%v, %q", err, m.undone.text())
	}
	p.set(func(p *pool) {
		if len(p.asked) < 5 || slices.Contains(p.asked[:4], "cached") || !slices.Contains(p.asked, "cached") {
			t.Errorf("after the reload it was asked %q", p.asked)
		}
	})
}

// Its unit is not among those of `restart`: it will never say that it was started again.
func TestAPoolThatIsNotReloadedIsNotWaitedForLongerThanTheHandover(t *testing.T) {
	p := newPool(t)
	m, _ := settler(t, "true", p)
	m.cfg.Opcache.Mode, m.cfg.Restart, m.handover = "warm", []string{"php8.1-fpm.service"}, 300*time.Millisecond
	p.set(func(p *pool) { p.preload, p.started = "/srv/preload.php", 100 })
	began := time.Now()
	if err := m.settle(t.Context(), settleOf(1, r1)); err != nil || m.warmFor != r1 {
		t.Fatalf("%v, compiled %q", err, m.warmFor)
	}
	if took := time.Since(began); took < m.handover || took > reloadTime/2 {
		t.Errorf("it took %v", took)
	}
	if said := m.undone.text(); strings.Count(said, "a pool with opcache.preload goes on as it was") != 1 {
		t.Errorf("said %q", said)
	}
}

// One that gives no answer is being reloaded, as long as process_control_timeout lets requests run.
func TestAPoolThatGivesNoAnswerIsWaitedForLongerThanTheHandover(t *testing.T) {
	p := newPool(t)
	m, _ := settler(t, "true", p)
	m.cfg.Restart, m.handover = []string{"php8.2-fpm.service"}, time.Millisecond
	p.set(func(p *pool) { p.preload, p.started = "/srv/preload.php", 100 })
	m.service.(*service).onReload(func() { p.set(func(p *pool) { p.started, p.ill = 101, 3 }) })
	if err := m.settle(t.Context(), settleOf(1, r1)); err != nil || m.undone.text() != "" {
		t.Errorf("%v, %q", err, m.undone.text())
	}
}

// Of two php-fpm polkit lets one be reloaded, whose opcache is then empty.
func TestWhatWasReloadedIsCompiledAgainThoughAnotherUnitMayNotBe(t *testing.T) {
	reloaded, kept := newPool(t), newPool(t)
	m, _ := settler(t, "true", reloaded, kept)
	m.cfg.Opcache.Mode, m.cfg.Restart, m.handover = "warm", []string{"php*-fpm.service"}, 3*time.Second
	if err := os.WriteFile(filepath.Join(m.cfg.Root, string(r1), "a.php"), []byte("<?php"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*pool{reloaded, kept} {
		p.set(func(p *pool) { p.preload, p.started = "/srv/preload.php", 100 })
	}
	if err := m.warm(t.Context(), r1, func(string) {}); err != nil || m.warmFor != r1 {
		t.Fatal(err)
	}
	s := m.service.(*service)
	s.barred, s.allowed = fmt.Errorf("php8.1-fpm.service: %w", ErrNotAllowed), 1
	s.onReload(func() { reloaded.set(func(p *pool) { p.asked, p.started, p.behind = nil, 101, 2 }) })
	if err := m.settle(t.Context(), settleOf(1, r1)); err != nil || m.warmFor != r1 || len(s.reloaded) != 1 {
		t.Fatalf("%v, compiled %q, reloaded %q", err, m.warmFor, s.reloaded)
	}
	reloaded.set(func(p *pool) {
		if len(p.asked) < 4 || slices.Contains(p.asked[:3], "cached") || !slices.Contains(p.asked, "cached") {
			t.Errorf("after the reload it was asked %q", p.asked)
		}
	})
	if said := m.undone.text(); !strings.Contains(said, "opcache.preload keeps code") || !strings.Contains(said, "php8.1-fpm.service: systemd does not allow it") {
		t.Errorf("said %q", said)
	}
}

// A php-fpm that was started with a release of another tool. What it preloads lies in the release, as users have it.
func TestPreloadedCodeFollowsTheFlip(t *testing.T) {
	const old = release.ID("2026-11-20_20-15-00")
	preload := func(id release.ID) string { return "<?php function preloaded() { return '" + string(id) + "'; }" }
	for name, c := range map[string]struct {
		restart string
		barred  error
		want    release.ID // whose preloaded code runs in the end
		warning string
	}{
		"reloaded":         {"[php8.2-fpm.service]", nil, r2, ""},
		"no unit is named": {"[]", nil, old, "opcache.preload keeps code of the release that was live when php-fpm started: name php-fpm's unit in `restart`"},
		"polkit forbids":   {"[php8.2-fpm.service]", fmt.Errorf("php8.2-fpm.service: %w", ErrNotAllowed), old, "opcache.preload keeps code of the release that was live when php-fpm started: php8.2-fpm.service: "},
	} {
		t.Run(name, func(t *testing.T) {
			r := realRig(t)
			b := r.box("i-1", warmSettings+"restart: "+c.restart)
			dir := filepath.Join(b.root(), string(old))
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(dir+"/preload.php", []byte(preload(old)), 0o644), os.Symlink(string(old), filepath.Join(b.root(), "active"))); err != nil {
				t.Fatal(err)
			}
			b.service.barred = c.barred
			s := b.serve("opcache.preload="+filepath.Join(b.root(), "active/preload.php"), "opcache.preload_user=root")
			if c.barred == nil {
				b.service.onReload(func() { _ = syscall.Kill(s.web.FPM(), syscall.SIGUSR2) })
			}
			for _, id := range []release.ID{r1, r2} {
				r.pushPHP(id, 3, "preload.php", preload(id), "which.php", "<?php echo '"+string(id)+" ', preloaded();")
				r.live(id, liveTime, b)
				r.until("what preload calls for", liveTime, func() bool {
					m, _ := r.row("i-1")
					return strings.HasPrefix(m.Progress, c.warning) && strings.Contains(b.agent.Status().Line, c.warning) && (c.warning != "" || m.Progress == "")
				})
			}
			if got := s.page("/which.php"); got != string(r2+" "+c.want) {
				t.Errorf("the page says %q, want the code of %s and what was preloaded of %s", got, r2, c.want)
			}
			if n := len(b.service.reloads()); c.want == r2 && n != 2 {
				t.Errorf("%d reloads in two rollouts", n)
			}
			before := s.status()
			s.page("/lib/f0.php")
			if after := s.status(); after.Scripts != before.Scripts || after.Release != string(r2) {
				t.Errorf("the release is not in opcache: %d scripts, %d after a request", before.Scripts, after.Scripts)
			}
		})
	}
}

func TestOnePoolWithPreloadIsEnoughForAReload(t *testing.T) {
	preloading, plain := newPool(t), newPool(t)
	m, _ := settler(t, "true", preloading, plain)
	m.cfg.Restart = []string{"php8.2-fpm.service"}
	preloading.set(func(p *pool) { p.preload = "/srv/preload.php" })
	if err := m.settle(t.Context(), settleOf(1, r1)); err != nil {
		t.Fatal(err)
	}
	if got := m.service.(*service).reloaded; len(got) != 1 {
		t.Errorf("reloaded %q", got)
	}
}

func TestReleaseIsCompiledAgainAfterAReloadUntilThatWorks(t *testing.T) {
	p := newPool(t)
	m, _ := settler(t, "true", p)
	m.cfg.Opcache.Mode, m.cfg.Restart = "warm", []string{"php8.2-fpm.service"}
	if err := os.WriteFile(filepath.Join(m.cfg.Root, string(r1), "a.php"), []byte("<?php"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := m.warm(t.Context(), r1, func(string) {}); err != nil || p.times("cached") != 1 {
		t.Fatalf("%v; looked %d times what is cached", err, p.times("cached"))
	}
	s := m.service.(*service)
	s.onReload(func() { p.set(func(p *pool) { p.ill = 2 }) }) // it takes a moment to come up
	p.set(func(p *pool) { p.preload, p.illFor = "/srv/preload.php", "cached" })
	if err := m.settle(t.Context(), settleOf(1, r1)); err == nil || !strings.Contains(err.Error(), "compile into opcache: ") {
		t.Fatalf("error is %v", err)
	}
	p.set(func(p *pool) { p.illFor = "" })
	if err := m.settle(t.Context(), settleOf(1, r1)); err != nil {
		t.Error(err)
	}
	if n := p.times("cached"); n != 3 || m.warmFor != r1 || len(s.reloaded) != 1 {
		t.Errorf("looked %d times what is cached, reloaded %q", n, s.reloaded)
	}
}

func TestPHPThatHangsAfterARollbackIsReloadedOnceAnEpoch(t *testing.T) {
	p := newPool(t)
	m, _ := settler(t, "true", p)
	m.cfg.Restart = []string{"php8.2-fpm.service"}
	s := m.service.(*service)
	back := settleOf(2, r1)
	back.Commit.Kind = fleet.KindRollback
	p.set(func(p *pool) { p.ill = forever })
	if err := m.settle(t.Context(), settleOf(1, r1)); err == nil || len(s.reloaded) != 0 {
		t.Errorf("a deploy: %v, reloaded %q", err, s.reloaded)
	}
	s.onReload(func() { p.set(func(p *pool) { p.ill, p.illFor = 0, "reset" }) })
	for range 2 {
		if err := m.settle(t.Context(), back); err == nil || len(s.reloaded) != 1 {
			t.Errorf("what a reload does not mend: %v, reloaded %q", err, s.reloaded)
		}
	}
	s.onReload(func() { p.set(func(p *pool) { p.ill, p.illFor = 0, "" }) })
	p.set(func(p *pool) { p.ill = forever })
	back.Epoch = 3
	if err := m.settle(t.Context(), back); err != nil || len(s.reloaded) != 2 {
		t.Errorf("what a reload mends: %v, reloaded %q", err, s.reloaded)
	}
}

// turns is a turn that others may have.
type turns struct {
	taken bool
	err   error
	asked int
}

func (t *turns) Try(ctx context.Context, work func(context.Context) error) (bool, error) {
	t.asked++
	if t.taken || t.err != nil {
		return false, t.err
	}
	return true, work(ctx)
}

// Two instances whose opcache is full when the release has gone live.
func TestRoomIsMadeAfterTheRolloutUnderALeaseByOneInstanceAtATime(t *testing.T) {
	r := realRig(t)
	var mu sync.Mutex
	emptied := map[string]bool{}
	full := func(id string) *box {
		p := newPool(t)
		p.set(func(p *pool) {
			p.full = true
			p.hear = func(action string) {
				mu.Lock()
				defer mu.Unlock()
				if action == "reset" {
					p.full, emptied[id] = false, true
				} else if action != "cached" || !emptied[id] {
					return
				}
				h, _, err := r.ledger().Head(context.Background(), true)
				turn, terr := r.table.Get(context.Background(), fleet.Key{Partition: "bucket/promo", Sort: "turn#opcache"}, true)
				if err != nil || terr != nil || h.State != fleet.Done || h.Release != r1 || turn["owner"] != id {
					t.Errorf("%s of %s in state %s of %s, and it is the turn of %v: %v, %v", action, id, h.State, h.Release, turn["owner"], err, terr)
				}
			}
		})
		b := r.box(id, fmt.Sprintf("opcache: {mode: warm, url: %q}", p.URL+"/_deploy/opcache"))
		b.boot()
		t.Cleanup(b.stop)
		return b
	}
	boxes := []*box{full("i-1"), full("i-2")}
	r.push(r1)
	r.live(r1, liveTime, boxes...)
	r.until("room on both, and nobody's turn", liveTime, func() bool {
		turn, err := r.table.Get(context.Background(), fleet.Key{Partition: "bucket/promo", Sort: "turn#opcache"}, true)
		mu.Lock()
		defer mu.Unlock()
		return len(emptied) == 2 && err == nil && turn["owner"] == ""
	})
}

func TestRoomIsMadeOnlyInTurnAndOnceForARelease(t *testing.T) {
	m, _ := settler(t, "true", newPool(t))
	root := m.cfg.Root
	web := testenv.PHP(t, root, "opcache.memory_consumption=8", "opcache.interned_strings_buffer=1", "opcache.max_accelerated_files=200")
	m.cfg.Opcache.Mode = "warm"
	m.opcache = php.New(php.Options{Mode: "warm", URLs: []string{web.LocalURL}})
	theirs := &turns{taken: true}
	m.turn = theirs
	if err := os.Symlink(string(r1), filepath.Join(root, "active")); err != nil {
		t.Fatal(err)
	}
	for n := range 150 { // of 223 keys: one more such release has no place
		path := filepath.Join(root, string(r1), fmt.Sprintf("f%d.php", n))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("<?php return 1;"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.warm(t.Context(), r1, func(string) {}); err != nil || m.coldness() != "" {
		t.Fatalf("%v, %q", err, m.coldness())
	}
	restarts := func() int64 {
		all, err := m.opcache.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return all[0].LastRestart
	}
	quiet := func(string) {}
	if again := m.makeRoom(t.Context(), quiet); again != turnRetry || theirs.asked != 1 || restarts() != 0 {
		t.Errorf("another's turn: again in %v, asked %d times, emptied at %d", again, theirs.asked, restarts())
	}
	theirs.taken, theirs.err = false, fleet.ErrUnavailable
	if again := m.makeRoom(t.Context(), quiet); again != roomRetry || restarts() != 0 {
		t.Errorf("no table: again in %v, emptied at %d", again, restarts())
	}
	theirs.err = nil
	if again := m.makeRoom(t.Context(), quiet); again != turnRetry || restarts() == 0 || m.coldness() != "" {
		t.Errorf("our turn: again in %v, emptied at %d, %q", again, restarts(), m.coldness())
	}
	if again := m.makeRoom(t.Context(), quiet); again != 0 || theirs.asked != 3 {
		t.Errorf("there is no more room to be had: again in %v, asked %d times", again, theirs.asked)
	}
}

// What is live may be what PHP hangs in and what the preview fails for: both stop a deploy, neither stops going back.
func TestRollbackDoesNotWaitForPHPNorForThePreview(t *testing.T) {
	p := newPool(t)
	m, _ := settler(t, "true", p)
	m.cfg.Opcache.Mode, m.cfg.HealthCheck.Preview = "warm", p.URL+"/"
	quiet := func(string) {}
	back := func(id release.ID) fleet.Want {
		return fleet.Want{Task: fleet.Stage, Epoch: 2, Commit: fleet.Commitment{Epoch: 2, Release: id, Kind: fleet.KindRollback}}
	}
	p.set(func(p *pool) { p.page = http.StatusInternalServerError })
	if err := m.rehearse(t.Context(), settleOf(2, r1), quiet); err == nil || !strings.Contains(err.Error(), "preview: ") {
		t.Errorf("a deploy that fails its preview: %v", err)
	}
	if err := m.rehearse(t.Context(), back(r1), quiet); err != nil || m.coldness() != "" || m.warmFor != r1 {
		t.Errorf("a rollback that fails it: %v, %q", err, m.coldness())
	}

	hang := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // else nobody notices that the client is gone
		<-r.Context().Done()
	}))
	t.Cleanup(hang.Close)
	m.opcache = php.New(php.Options{Mode: "warm", URLs: []string{hang.URL}, Timeout: 50 * time.Millisecond})
	if err := m.rehearse(t.Context(), settleOf(2, r2), quiet); err == nil || !isMachine(err) || !strings.Contains(err.Error(), "no answer in time") {
		t.Errorf("a deploy where PHP hangs: %v", err)
	}
	m.opcache, m.backTime = php.New(php.Options{Mode: "warm", URLs: []string{hang.URL}}), 50*time.Millisecond
	if err := m.rehearse(t.Context(), back(r2), quiet); err != nil || !strings.Contains(m.coldness(), "no answer in time") || m.warmFor == r2 {
		t.Errorf("a rollback where PHP hangs: %v, %q", err, m.coldness())
	}
}

func TestRoomThatCouldNotBeMadeIsSaidAsCold(t *testing.T) {
	p := newPool(t)
	m, _ := settler(t, "true", p)
	m.cfg.Opcache.Mode, m.turn = "warm", &turns{}
	if err := os.Symlink(string(r1), filepath.Join(m.cfg.Root, "active")); err != nil {
		t.Fatal(err)
	}
	p.set(func(p *pool) { p.full, p.illFor = true, "reset" })
	if again := m.makeRoom(t.Context(), func(string) {}); again != roomRetry || !strings.Contains(m.coldness(), "502 Bad Gateway") {
		t.Errorf("again in %v, %q", again, m.coldness())
	}
	p.set(func(p *pool) { p.full, p.illFor = false, "" })
	if again := m.makeRoom(t.Context(), func(string) {}); again != 0 || m.coldness() != "" {
		t.Errorf("afterwards: again in %v, %q", again, m.coldness())
	}
}

func TestSiteWithoutThePageIsNamedInTheLogOnce(t *testing.T) {
	m, _ := settler(t, "true", newPool(t))
	var log strings.Builder
	m.log = slog.New(slog.NewTextHandler(&log, nil))
	for epoch := range 3 {
		if err := m.settle(t.Context(), settleOf(int64(epoch+1), r1)); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(log.String(), "no page /_deploy/release"); n != 1 {
		t.Errorf("%d times:\n%s", n, log.String())
	}
}
