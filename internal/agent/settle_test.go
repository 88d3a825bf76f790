package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/php"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/table"
)

// pool is a PHP pool behind its local route, and the site that it serves.
type pool struct {
	*httptest.Server
	mu     sync.Mutex
	root   string // where PHP finds the site
	ill    int    // how many times more the route answers 502
	illFor string // an action that is answered with 502
	page   int    // the site's status
	asked  []string

	preload string
	full    bool
	hear    func(action string) // what is asked for, before it is answered
	started int                 // when PHP says that it was started
	behind  int                 // for how many more answers it says what it said before
}

// forever is more answers than a test asks for.
const forever = 1000

func newPool(t *testing.T) *pool {
	p := &pool{page: http.StatusOK}
	p.Server = httptest.NewServer(p)
	t.Cleanup(p.Close)
	return p
}

func (p *pool) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Method == http.MethodGet {
		w.WriteHeader(p.page)
		return
	}
	action := r.PostFormValue("action")
	p.asked = append(p.asked, action)
	if p.hear != nil {
		p.hear(action)
	}
	if p.ill > 0 || action == p.illFor {
		p.ill = max(p.ill-1, 0)
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	started := p.started
	if p.behind > 0 {
		p.behind--
		started--
	}
	fmt.Fprintf(w, `{"probe":"s3-pull-deploy","protocol":2,"action":%q,"root":%q,"enabled":true,"reset":%t,"full":%t,"started":%d,"free_memory":99000000,"max_keys":9999,"settings":{"preload":%q}}`,
		action, p.root, action == "reset", p.full, started, p.preload)
}

func (p *pool) set(change func(p *pool)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p)
}

// times is how often the pool was asked to do something.
func (p *pool) times(action string) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range p.asked {
		if a == action {
			n++
		}
	}
	return n
}

// settler is a machine with releases r1 and r2 that is asked to settle, without a fleet. after_flip appends a
// line to the file told and then runs hook, in which TOLD is that file.
func settler(t *testing.T, hook string, pools ...*pool) (m *machine, told string) {
	t.Helper()
	var urls []string
	for _, p := range pools {
		urls = append(urls, p.URL+"/_deploy/opcache")
	}
	told = filepath.Join(t.TempDir(), "told")
	b := (&rig{t: t, bucket: newBucket(), table: table.NewMemory(), began: time.Now()}).box("i-1",
		fmt.Sprintf("opcache: {mode: reset, url: [%s]}", strings.Join(urls, ", ")),
		fmt.Sprintf("health_check: {url: %q, attempts: 1}", pools[0].URL+"/"),
		fmt.Sprintf("hooks: {after_flip: 'echo $DEPLOY_RELEASE >> %s; %s'}", told, strings.ReplaceAll(hook, "TOLD", told)))
	if err := b.prepare(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.disk.Close() })
	for _, id := range []release.ID{r1, r2} {
		if err := os.Mkdir(filepath.Join(b.cfg.Root, string(id)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range pools {
		p.set(func(p *pool) { p.root = filepath.Join(b.cfg.Root, string(r1)) })
	}
	return b.agent.machine, told
}

func settleOf(epoch int64, id release.ID) fleet.Want {
	return fleet.Want{Task: fleet.Settle, Epoch: epoch, Commit: fleet.Commitment{Epoch: epoch, Release: id}}
}

// lines is how many lines a file has.
func lines(t *testing.T, file string) int {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Count(string(text), "\n")
}

func TestSettlingAgainRepeatsOnlyWhatFailed(t *testing.T) {
	p := newPool(t)
	p.set(func(p *pool) { p.page = http.StatusInternalServerError }) // the database is away
	m, told := settler(t, "true", p)
	for range 3 {
		if err := m.settle(t.Context(), settleOf(1, r1)); err == nil || !strings.Contains(err.Error(), "health check: ") {
			t.Fatalf("error is %v", err)
		}
	}
	if n, hooks := p.times("reset"), lines(t, told); n != 1 || hooks != 1 || p.times("status") != 3 {
		t.Errorf("%d resets, %d after_flips and %d proofs in three tries, want one, one and three", n, hooks, p.times("status"))
	}
	p.set(func(p *pool) { p.page = http.StatusOK })
	if err := m.settle(t.Context(), settleOf(1, r1)); err != nil {
		t.Error(err)
	}
	p.set(func(p *pool) { p.root = strings.Replace(p.root, string(r1), string(r2), 1) })
	if err := m.settle(t.Context(), settleOf(2, r2)); err != nil {
		t.Error(err)
	}
	if n, hooks := p.times("reset"), lines(t, told); n != 2 || hooks != 2 {
		t.Errorf("%d resets and %d after_flips in two epochs, want two of each", n, hooks)
	}
}

// asking is a log that says when a machine was refused.
type asking struct {
	slog.Handler
	refused chan struct{}
}

func (a asking) Enabled(context.Context, slog.Level) bool { return true }

func (a asking) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "does not answer yet") {
		select {
		case a.refused <- struct{}{}:
		default:
		}
	}
	return nil
}

func TestTheFirstReleaseWaitsForTheWebServerThatItLetsStart(t *testing.T) {
	p := newPool(t)
	m, told := settler(t, "true", p)
	socket := filepath.Join(t.TempDir(), "web.sock") // a port that is free now may be somebody else's a moment later
	m.opcache = php.New(php.Options{Mode: config.Reset, URLs: []string{"unix:" + socket + ":/_deploy/opcache"}, Timeout: liveTime})
	if err := m.settle(t.Context(), settleOf(1, r1)); !php.Unreachable(err) {
		t.Fatalf("a web server that is down: %v", err)
	}
	ask := asking{slog.DiscardHandler, make(chan struct{}, 1)}
	m.opened, m.log = true, slog.New(ask)
	settled := make(chan error, 1)
	go func() { settled <- m.settle(t.Context(), settleOf(1, r1)) }()
	<-ask.refused
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	late := &http.Server{Handler: p}
	go func() { _ = late.Serve(l) }()
	t.Cleanup(func() { _ = late.Close() })
	if err := <-settled; err != nil || m.opened || lines(t, told) != 1 {
		t.Errorf("error %v, opened %v, %d after_flips", err, m.opened, lines(t, told))
	}
}

func TestFailedHookIsRepeatedWithoutAReset(t *testing.T) {
	p := newPool(t)
	m, told := settler(t, "[ $(wc -l < TOLD) = 3 ]", p)
	for try := range 4 {
		if err := m.settle(t.Context(), settleOf(1, r1)); (err == nil) != (try >= 2) {
			t.Errorf("try %d: %v", try+1, err)
		}
	}
	if n, hooks := p.times("reset"), lines(t, told); n != 1 || hooks != 3 {
		t.Errorf("%d resets, %d after_flips, want one, and three until it passed", n, hooks)
	}
}

func TestOnlyThePoolThatFailedIsResetAgain(t *testing.T) {
	well, ill := newPool(t), newPool(t)
	ill.set(func(p *pool) { p.ill = forever })
	m, told := settler(t, "true", well, ill)
	for range 2 {
		if err := m.settle(t.Context(), settleOf(1, r1)); err == nil || !strings.Contains(err.Error(), "reset opcache: "+ill.URL) {
			t.Errorf("error is %v", err)
		}
	}
	ill.set(func(p *pool) { p.ill = 0 })
	if err := m.settle(t.Context(), settleOf(1, r1)); err != nil {
		t.Error(err)
	}
	if a, b, hooks := well.times("reset"), ill.times("reset"), lines(t, told); a != 1 || b != 3 || hooks != 1 {
		t.Errorf("%d and %d resets, %d after_flips; want one, three and one", a, b, hooks)
	}
}

func TestFlippedButStaleIsAnErrorOfItsOwn(t *testing.T) {
	p := newPool(t)
	m, told := settler(t, "true", p)
	err := m.settle(t.Context(), settleOf(2, r2))
	var stale *php.StaleError
	if !errors.As(err, &stale) || stale.Release != string(r2) || !strings.HasSuffix(stale.Root, string(r1)) {
		t.Fatalf("error is %v", err)
	}
	if lines(t, told) != 0 {
		t.Error("after_flip ran for a release that PHP does not run from")
	}
	p.set(func(p *pool) { p.root = "" }) // it sees the root under no path: proves nothing
	if err := m.settle(t.Context(), settleOf(2, r2)); err != nil || p.times("reset") != 1 {
		t.Errorf("%v after %d resets", err, p.times("reset"))
	}
}

func TestGivingUpSaysNothingAboutARelease(t *testing.T) {
	p := newPool(t)
	m, _ := settler(t, "true", p)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.settle(ctx, settleOf(1, r1)); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if bad := m.past.bad(); len(bad) > 0 {
		t.Errorf("bad: %v", bad)
	}
	p.set(func(p *pool) { p.page = http.StatusInternalServerError })
	_ = m.settle(t.Context(), settleOf(1, r1))
	if bad := recall(m.disk, m.log).bad(); !bad[r1] {
		t.Errorf("after a failed check and a restart, bad is %v", bad)
	}
	p.set(func(p *pool) { p.page = http.StatusOK })
	if err := m.settle(t.Context(), settleOf(1, r1)); err != nil {
		t.Error(err)
	}
	p.set(func(p *pool) { p.page = http.StatusInternalServerError })
	_ = m.settle(t.Context(), settleOf(3, r1))
	if bad := recall(m.disk, m.log).bad(); len(bad) > 0 {
		t.Errorf("a release that worked once is bad: %v", bad)
	}
}

// What systemd does not let the agent do is no fault of the release, and going back from it would not mend that.
func TestUnitsThatMayNotBeTouchedAreAWarningUntilTheNextFlip(t *testing.T) {
	p := newPool(t)
	m, told := settler(t, "true", p)
	m.cfg.Restart = []string{"php8.2-fpm.service", "queue@*.service"}
	s := m.service.(*service)
	s.stuck, s.barred = fmt.Errorf("queue@1.service: %w", ErrNotAllowed), fmt.Errorf("php8.2-fpm.service: %w", ErrNotAllowed)
	p.set(func(p *pool) { p.preload, p.page = "/srv/preload.php", http.StatusInternalServerError })
	for range 2 { // the warning is said once an epoch, and stays
		if err := m.settle(t.Context(), settleOf(1, r1)); err == nil || !strings.Contains(err.Error(), "health check: ") {
			t.Fatalf("error is %v", err)
		}
	}
	p.set(func(p *pool) { p.page = http.StatusOK })
	if err := m.settle(t.Context(), settleOf(1, r1)); err != nil || lines(t, told) != 1 || len(s.reloaded) != 1 || len(s.restarted) != 1 {
		t.Errorf("%v; %d after_flips, reloaded %q, restarted %q", err, lines(t, told), s.reloaded, s.restarted)
	}
	said := m.undone.text()
	for _, want := range []string{"opcache.preload keeps code", "php8.2-fpm.service: ", "queue@1.service: ", "share/polkit"} {
		if strings.Count(said, want) < 1 || strings.Count(said, "queue@1.service: ") != 1 {
			t.Errorf("no %q in %q", want, said)
		}
	}
	s.stuck, s.barred = nil, nil
	if err := m.settle(t.Context(), settleOf(2, r1)); err != nil || m.undone.text() != "" {
		t.Errorf("%v; after a flip where all was allowed: %q", err, m.undone.text())
	}
	s.stuck = errors.New("queue@1.service: failed")
	if err := m.settle(t.Context(), settleOf(3, r1)); err == nil || !strings.Contains(err.Error(), "restart: queue@1.service: failed") {
		t.Errorf("a unit that does not come back: %v", err)
	}
}

// Settings that do not fit the machine: no release mends them, and none is bad because of them.
func TestSystemdThatCannotBeAskedAndUnitsThatDoNotRunAreWarnings(t *testing.T) {
	p := newPool(t)
	m, told := settler(t, "true", p)
	p.set(func(p *pool) { p.preload = "/srv/preload.php" })
	m.cfg.Restart = []string{"no-such-fpm.service", "no-such-queue@*.service"}
	m.service = Systemd{}
	if err := m.settle(t.Context(), settleOf(1, r1)); err != nil || lines(t, told) != 1 {
		t.Errorf("%v; %d after_flips", err, lines(t, told))
	}
	said := m.undone.text()
	if !strings.Contains(said, "opcache.preload keeps code") || !strings.Contains(said, ErrNoUnit.Error()) && !strings.Contains(said, ErrNoSystemd.Error()) {
		t.Errorf("said %q", said)
	}
	s := &service{barred: fmt.Errorf("%q: %w", m.cfg.Restart[:1], ErrNoUnit), stuck: ErrNoSystemd}
	m.service = s
	for range 2 { // said once an epoch
		if err := m.settle(t.Context(), settleOf(2, r1)); err != nil || len(s.reloaded) != 1 || len(s.restarted) != 1 {
			t.Errorf("%v, reloaded %q, restarted %q", err, s.reloaded, s.restarted)
		}
	}
	for _, want := range []string{`: ["no-such-fpm.service"]: no unit of that name is running`, "restart: what runs in these units may be of the release before: systemd is out of reach"} {
		if strings.Count(m.undone.text(), want) != 1 {
			t.Errorf("no %q in %q", want, m.undone.text())
		}
	}
	over, cancel := context.WithCancel(t.Context())
	s.barred = ErrNoSystemd
	s.onReload(cancel)
	if err := m.settle(over, settleOf(3, r1)); err == nil || m.undone.text() != "" || m.after.reload || m.after.units {
		t.Errorf("given up: %v, %q", err, m.undone.text())
	}
}

func TestWhatPolkitAnswersIsKnown(t *testing.T) {
	for name, want := range map[string]bool{
		"org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": true,
		"org.freedesktop.DBus.Error.AccessDenied":                     true,
		"org.freedesktop.systemd1.NoSuchUnit":                         false,
	} {
		if got := denied(fmt.Errorf("begin: %w", godbus.Error{Name: name})); got != want {
			t.Errorf("%s: %t, want %t", name, got, want)
		}
	}
	if denied(nil) || denied(errors.New("connection closed")) {
		t.Error("another error is taken for a refusal")
	}
}
