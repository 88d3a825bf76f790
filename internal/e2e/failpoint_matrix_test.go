package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// matrix asks for the whole of it: every step also on the plain layout, on a machine that joins, and on all machines at once.
var matrix = flag.Bool("matrix", false, "break agents also on the plain layout, as they join, and all at once")

// stepsOfAgent are the named steps, and whether they can fail.
var stepsOfAgent = []struct {
	name  string
	fails bool
}{
	{"A24", true}, // first: it takes longest
	{"A1", true},
	{"A2", true},
	{"A3", true},
	{"A4", true},
	{"A5", true},
	{"A6", true},
	{"A7", true},
	{"A8", true},
	{"A9", true},
	{"A10", true},
	{"A11", true},
	{"A12", true},
	{"A13", false},
	{"A14", true},
	{"A15", true},
	{"A16", true},
	{"A17", true},
	{"A18", true},
	{"A19", true},
	{"A20", true},
	{"A21", true},
	{"A22", true},
	{"A23", true},
	// What has landed at the server is not known to have.
	{"A3+", false},
	{"A5+", false},
	{"A12+", false},
	{"A14+", false},
	{"A23+", false},
}

// way is how an agent comes to a step.
type way struct {
	name   string
	joins  bool     // it starts on an empty disk, and all others are served long since
	all    bool     // all agents are broken, not one of two
	deploy []string // arguments of push
}

var (
	packedWay = way{name: "deploy"}
	joinWay   = way{name: "join", joins: true}
	plainWay  = way{name: "plain", deploy: []string{"-layout=plain"}}
	allWay    = way{name: "all", all: true}
)

// waysTo are the ways on which a step is broken. A machine that joins registers and fetches everything; it opens and
// decides nothing.
func waysTo(step string) []way {
	switch step {
	case "A3", "A3+":
		return []way{joinWay}
	case "A7": // on the parent there is nothing to get but the delta
		if !*matrix {
			return []way{joinWay}
		}
		return []way{joinWay, plainWay}
	}
	if !*matrix {
		return []way{packedWay}
	}
	switch step {
	case "A5", "A5+", "A12", "A12+", "A14", "A14+":
		return []way{packedWay, plainWay, allWay}
	}
	return []way{packedWay, plainWay, allWay, joinWay}
}

// TestAgentBrokenAtEachStep kills, delays and fails an agent at each named step of a rollout, and wants everything to be right
// again soon after: see [broken.converged], and the witnesses for what must hold all the while.
func TestAgentBrokenAtEachStep(t *testing.T) {
	w := breakable(t)
	for _, step := range stepsOfAgent {
		for _, by := range waysTo(step.name) {
			t.Run(step.name+" "+by.name, func(t *testing.T) {
				t.Parallel()
				agents := 2
				if flips(step.name) {
					agents = 3 // one that fails after the commit is to be the fewer: a release that half of them cannot serve is none
				}
				b := breakSite(t, w, agents)
				if step.name == "A24" { // from the fourth version on there is something to remove
					b.deployed(b.deployNext()())
					b.deployed(b.deployNext()())
				}
				b.breakAt(step.name, "kill@1", by)
				b.breakAt(step.name, "sleep:1500ms@1", by)
				if step.fails && !(by.all && flips(step.name)) { // where all fail after the commit, the fleet goes back
					b.breakAt(step.name, "error:EIO@1", by)
				}
			})
		}
	}
}

// flips says whether a step is one of a committed release's way into service.
func flips(step string) bool {
	return slices.Contains([]string{"A16", "A17", "A18", "A19", "A20", "A21", "A22"}, step)
}

// breakAt breaks the first agent (or all) at a step while the next version is deployed, mends it, and wants all to be well.
func (b *broken) breakAt(step, action string, by way) {
	b.t.Helper()
	first := b.agents[0]
	targets := b.agents[:1]
	if by.all {
		targets = b.agents
	}
	before := map[*agent]int{}
	flips := make([]int, len(b.agents))
	for n, a := range b.agents {
		before[a], flips[n] = a.fired(step), b.witnesses[n].flipped()
	}
	push := func() result { return result{} }
	if by.joins {
		b.witnesses[0] = b.rejoin(first, step+"="+action)
		flips[0] = 0
	} else {
		for _, a := range b.agents {
			a.arm("A2=error:the other one opens")
		}
		for _, a := range targets {
			a.arm(step + "=" + action)
		}
		push = b.deployNext(by.deploy...)
	}
	b.await(healTime, fmt.Sprintf("failpoint %s=%s", step, action), func() string {
		if slices.ContainsFunc(targets, func(a *agent) bool { return a.fired(step) > before[a] }) {
			return ""
		}
		if !by.joins && b.pushing.failed() {
			b.t.Fatalf("%s=%s: no agent has come there, and push has ended: %s", step, action, b.pushing)
		}
		return "no agent has come there"
	})
	mended := time.Now()
	for _, a := range b.agents {
		broke := slices.Contains(targets, a) && a.fired(step) > before[a]
		b.mend(a, broke && strings.HasPrefix(action, "kill"))
	}
	if r := push(); !by.joins {
		b.deployed(r)
	}
	b.converged(healTime)
	b.t.Logf("%s=%s: well %v after it was mended", step, action, time.Since(mended).Round(time.Millisecond))
	for n, w := range b.witnesses[:len(b.agents)] {
		want := 1
		if by.joins && n > 0 {
			want = 0
		}
		if got := w.flipped() - flips[n]; got != want {
			b.t.Errorf("%s=%s: %s moved its link %d times, want %d: %+v", step, action, b.agents[n].id, got, want, w.flips)
		}
	}
}

// mend disarms an agent, and starts it again if it has killed itself.
func (b *broken) mend(a *agent, killed bool) {
	b.t.Helper()
	if killed {
		a.awaitDeath()
	}
	a.arm("")
	if killed {
		a.start()
	}
}

// rejoin ends an agent, takes its disk away and starts it armed.
func (b *broken) rejoin(a *agent, list string) *witness {
	b.t.Helper()
	a.end()
	for _, w := range b.witnesses {
		if w.root == a.root {
			w.end()
		}
	}
	fresh := filepath.Join(a.dir, fmt.Sprintf("www-%d", time.Now().UnixNano()))
	check(b.t, os.Mkdir(fresh, 0o755))
	check(b.t, os.RemoveAll(filepath.Join(a.dir, "state")))
	a.root = fresh
	a.configure()
	a.arm(list)
	w := b.watch(a)
	a.start()
	return w
}
