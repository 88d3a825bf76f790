package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/table"
)

const scope = "bucket/promo"

// scene is what both simulations have: a table, a bucket's pointer, what was pushed, and what has gone wrong.
type scene struct {
	seed     uint64
	rng      *rand.Rand
	now      time.Duration // virtual, since the start
	epoch    time.Time     // the true wall clock at the start
	mem      *table.Memory
	tokens   int
	machines []*machine

	pointer  []byte
	sequence int64
	pushed   map[int64]release.ID
	guard    map[int64]int64     // max_excluded in percent, by sequence
	broken   map[release.ID]bool // releases that every hook refuses
	spoilt   map[release.ID]bool // releases that fail their check wherever they are flipped to
	hooked   bool                // all have a fleet_once hook
	stepwise bool                // releases may go out in waves
	calm     bool                // faults are over
	busy     bool                // agents restart all the time

	tables  *tables                 // nil: the table itself does not fail
	people  *people                 // nil: nobody takes anything back
	digest  func(release.ID) string // of what the bucket has now
	altered map[release.ID]int      // how often what the bucket has was overwritten; nil: that never happens

	truth   truth
	violate []string
	trace   []string
	log     *slog.Logger
}

// machine is what is known of one machine from outside. Its disk survives crashes.
type machine struct {
	id, group   string
	up, gone    bool          // gone: terminated for good
	serving     bool          // its web server is up: it goes on while the agent is down
	inService   bool          // as the agent last said
	since       time.Duration // when it began to say so
	pausedUntil time.Duration
	cut         time.Duration // no table before this
	s3cut       time.Duration
	forgotten   bool          // its row was deleted by hand
	sick        bool          // staging fails for a reason of the machine
	skew        time.Duration // of the wall clock

	// durable
	state   fleet.State
	doubted bool                  // whether the last save of the state happened
	disk    map[release.ID]bool   // complete and durable
	digests map[release.ID]string // of what is on the disk
	active  release.ID
	linked  release.ID // where the active link leads durably
	passed  release.ID // whose check has passed since the link was moved

	sweep map[string]part // what its coordinator last read of each partition

	view  func() fleet.View          // what the agent shows now; nil: it is judged when it shows something
	phase func() (fleet.Phase, bool) // the agent's own word, and whether it is ready
}

// says takes what the agent shows of itself.
func (m *machine) says(now time.Duration, v fleet.View) {
	in := v.Ready && !v.Isolated
	if in && !m.inService {
		m.since = now
	}
	m.inService = in
}

func newScene(seed uint64) *scene {
	s := &scene{
		seed: seed, rng: rand.New(rand.NewPCG(seed, 7)), mem: table.NewMemory(), epoch: time.Unix(1_790_000_000, 0),
		pushed: map[int64]release.ID{}, guard: map[int64]int64{}, broken: map[release.ID]bool{}, spoilt: map[release.ID]bool{},
	}
	s.log = slog.New(slog.DiscardHandler)
	if os.Getenv("SIM_LOG") != "" {
		s.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.String("t", s.now.String())
			}
			return a
		}}))
	}
	s.truth = newTruth(s)
	return s
}

// lost says that the head was restored to an older time and not mended yet.
func (s *scene) lost() bool { return s.tables != nil && s.tables.lost }

func (s *scene) wall() time.Time { return s.epoch.Add(s.now) }

func (s *scene) fault(p float64) bool { return !s.calm && s.chance(p) }

func (s *scene) chance(p float64) bool { return s.rng.Float64() < p }

// between is a random duration, more often short than long.
func (s *scene) between(lo, hi time.Duration) time.Duration {
	f := s.rng.Float64()
	return lo + time.Duration(f*f*float64(hi-lo))
}

func (s *scene) token() string {
	s.tokens++
	return fmt.Sprintf("t%d", s.tokens)
}

func (s *scene) ledger() *fleet.Ledger {
	l := fleet.NewLedger(s.mem, scope, s.token)
	l.Parallel = 1
	return l
}

func (s *scene) note(format string, args ...any) {
	line := fmt.Sprintf("%10v %s", s.now.Round(time.Millisecond), fmt.Sprintf(format, args...))
	s.trace = append(s.trace, line)
	s.log.Info(line)
}

func (s *scene) fail(format string, args ...any) {
	s.violate = append(s.violate, fmt.Sprintf(format, args...))
}

func (s *scene) report() string {
	tail := s.trace[max(0, len(s.trace)-60):]
	return fmt.Sprintf("seed %d: %s\n%s", s.seed, strings.Join(s.violate, "; "), strings.Join(tail, "\n"))
}

// push publishes a release the way the push command does; back is an earlier release to roll back to.
func (s *scene) push(back release.ID) {
	h, ok, err := s.ledger().Head(context.Background(), true)
	if err != nil {
		panic(err)
	}
	s.sequence = max(s.wall().Unix(), s.sequence+1, h.Sequence+1)
	id, extra := release.ID(fmt.Sprintf("r%d", len(s.pushed)+1)), ""
	if back != "" {
		id, extra = back, "\nkind \"rollback\""
	}
	if s.stepwise && back == "" && !s.calm && s.chance(0.35) {
		extra = s.inWaves()
	}
	s.pushed[s.sequence], s.guard[s.sequence] = id, 10
	if s.fateOf("max_excluded", s.sequence).chance(0.2) { // a bad day
		s.guard[s.sequence] = 40
		extra += "\nmax_excluded \"40%\""
	}
	s.broken[id] = s.broken[id] || back == "" && !s.calm && s.chance(0.15)
	s.pointer = fmt.Appendf(nil, "%s\n%d\n3%s", id, s.sequence, extra)
	s.spoilt[id] = s.spoilt[id] || back == "" && !s.calm && s.chance(0.15)
	s.note("push %s as %d%s, broken %v, spoilt %v", id, s.sequence, extra, s.broken[id], s.spoilt[id])
	if ok && s.chance(0.8) {
		s.ask(h, fleet.Item{"hint": s.sequence})
	}
}

// inWaves are lines of a pointer that goes out step by step.
func (s *scene) inWaves() string {
	waves := []string{"1", "50%", "1,50%", "web:1,2"}[s.rng.IntN(4)]
	if s.people != nil && s.people.rng.IntN(3) == 0 {
		waves = "cron:1,50%"
	}
	lines := fmt.Sprintf("\nwaves %q", waves)
	if s.chance(0.5) {
		lines += fmt.Sprintf("\nbake %q", s.between(time.Second, 2*time.Minute).Round(time.Second))
	}
	if s.chance(0.3) {
		lines += "\napprove \"true\""
	}
	return lines
}

// approve approves the wave under way, as somebody does sooner or later.
func (s *scene) approve() {
	if h := s.truth.head; h.State == fleet.Wave && h.Approved < h.Wave {
		s.ask(h, fleet.Item{"approved": h.Wave})
	}
}

// ask is a request of push to the fleet, which the truth sees too.
func (s *scene) ask(h fleet.Head, set fleet.Item, remove ...string) {
	if now, err := s.ledger().Request(context.Background(), h, set, remove...); err == nil {
		s.truth.head = now
	}
}

// freeze or unfreeze, as push does.
func (s *scene) freeze(on bool) {
	h, ok, err := s.ledger().Head(context.Background(), true)
	if err != nil || !ok {
		return
	}
	s.note("freeze %v", on)
	if on {
		until := int64(0)
		if s.chance(0.5) {
			until = s.wall().Add(s.between(time.Second, 5*time.Minute)).Unix()
		}
		s.ask(h, fleet.Item{"frozen": fleet.Item{"by": "sim", "why": "sim", "until": until}})
		return
	}
	s.ask(h, fleet.Item{}, "frozen")
}
