package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv"
)

// TestBroken is what the matrix of steps does not reach: faults that last, meet, or come at one moment of two machines.
func TestBroken(t *testing.T) {
	w := breakable(t)
	for _, s := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"a coordinator that sleeps through its decision", sleepsThroughDecision},
		{"a vote that has landed stands", voteStands},
		{"a decision that has landed stands", decisionStands},
		{"the reply to a decision is lost", decisionReplyLost},
		{"a persisted decision is applied without AWS", appliesWithoutAWS},
		{"all agents die before they vote", allDie},
		{"a newer push while everybody prepares", supersededInPrepare},
		{"a newer push between commit and flip", newerInCommit},
		{"an agent that hangs", hangs},
		{"a pointer that S3 does not show", pointerFrozen},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.run(t, w)
		})
	}
}

// pair is a site of two, of whom the first opens and so coordinates.
func pair(t *testing.T, w *world) (b *broken, first, second *agent) {
	t.Helper()
	b = breakSite(t, w, 2)
	b.agents[1].arm("A2=error:the other one opens")
	return b, b.agents[0], b.agents[1]
}

// wantEpochs wants the head to have gone on by so many epochs.
func (b *broken) wantEpochs(before int64, more int64) {
	b.t.Helper()
	if now := b.record.now().epoch; now != before+more {
		b.t.Errorf("the head went from epoch %d to %d, want %d more", before, now, more)
	}
}

// awaitHead waits for a state of the head in an epoch.
func (b *broken) awaitHead(within time.Duration, epoch int64, states ...string) {
	b.t.Helper()
	b.await(within, fmt.Sprintf("epoch %d in %v", epoch, states), func() string {
		h := b.record.now()
		if h.epoch == epoch && strings.Contains(strings.Join(states, " "), h.state) {
			return ""
		}
		return fmt.Sprintf("%+v", h)
	})
}

// voteStands: killed when the vote has landed and its answer was not seen (F7). The vote counts, and the next life keeps it.
func voteStands(t *testing.T, w *world) {
	b, first, second := pair(t, w)
	epoch := b.record.now().epoch
	second.arm("A2=error:the other one opens,A12=sleep:2s@1")
	first.arm("A12+=kill@1")
	push := b.deployNext()
	first.awaitDeath()
	if m := b.status().member(first.id); m.Vote != "yes" {
		t.Errorf("the row of the dead agent has the vote %q, want yes", m.Vote)
	}
	first.arm("")
	first.start()
	b.await(joinTime, "registered again", func() string { return missing(first.logged("msg=registered"), 2) })
	if m := b.status().member(first.id); m.Vote != "yes" {
		t.Errorf("the next life's row has the vote %q, want yes", m.Vote)
	}
	b.deployed(push())
	second.arm("")
	b.converged(healTime)
	b.wantEpochs(epoch, 1)
	if n := first.logged("msg=vote", fmt.Sprintf(" epoch=%d ", epoch+1)); n != 1 {
		t.Errorf("%d votes, want one", n)
	}
}

// decisionStands: killed when the decision has landed and its answer was not seen (F12). The other one obeys it at once.
func decisionStands(t *testing.T, w *world) {
	b, first, second := pair(t, w)
	epoch := b.record.now().epoch
	first.arm("A14+=kill@1")
	push := b.deployNext()
	first.awaitDeath()
	b.awaitHead(joinTime, epoch+1, "commit")
	b.await(joinTime, "the other one flips", func() string { return missing(b.witnesses[1].flipped(), 2) })
	if n := b.witnesses[0].flipped(); n != 1 {
		t.Errorf("the dead agent's link moved %d times", n-1)
	}
	first.arm("")
	second.arm("")
	first.start()
	b.deployed(push())
	b.converged(healTime)
	b.wantEpochs(epoch, 1)
}

// decisionReplyLost: the decision lands and the coordinator never hears of it (F14). It finds its own decision, and does not
// decide again.
func decisionReplyLost(t *testing.T, w *world) {
	b := watchedSite(t, w)
	table := testenv.NewProxy(t, w.dynamodb)
	b.table = table.URL()
	first := b.breakAgent("i-0")
	b.table = w.dynamodb
	second := b.breakAgent("i-1")
	b.begin()
	epoch := b.record.now().epoch
	second.arm("A2=error:the other one opens")
	first.arm("A14=wait@1")
	push := b.deployNext()
	first.awaitFired("A14", 1)
	table.DropReplies()
	first.arm("")
	b.awaitHead(joinTime, epoch+1, "commit")
	b.await(joinTime, "the other one flips", func() string { return missing(b.witnesses[1].flipped(), 2) })
	if n := b.witnesses[0].flipped(); n != 1 {
		t.Error("the coordinator flipped although it could not read the decision")
	}
	if table.Dropped() == 0 {
		t.Error("no reply was dropped")
	}
	table.Restore()
	second.arm("")
	b.deployed(push())
	b.converged(healTime)
	b.wantEpochs(epoch, 1)
}

// sleepsThroughDecision: the coordinator is stopped with a COMMIT in its hand, the other one takes over and decides (F13, F15).
// The late one is refused, and adopts what was decided.
func sleepsThroughDecision(t *testing.T, w *world) {
	b, first, second := pair(t, w)
	epoch := b.record.now().epoch
	first.arm("A14=wait@1")
	push := b.deployNext()
	first.awaitFired("A14", 1)
	check(t, first.Signal(syscall.SIGSTOP))
	first.arm("")
	stopped := time.Now()
	b.awaitHead(25*time.Second, epoch+1, "commit", "done")
	t.Logf("decided by the other one %v after the coordinator was stopped", time.Since(stopped).Round(time.Millisecond))
	if took := time.Since(stopped); took < 10*time.Second {
		t.Errorf("decided after %v: nobody can have taken over yet", took)
	}
	b.await(joinTime, "the other one flips", func() string { return missing(b.witnesses[1].flipped(), 2) })
	if n := b.witnesses[0].flipped(); n != 1 {
		t.Error("a stopped agent flipped")
	}
	check(t, first.Signal(syscall.SIGCONT))
	second.arm("")
	b.deployed(push())
	b.converged(healTime)
	b.wantEpochs(epoch, 1)
	if n := second.logged("msg=decided", fmt.Sprintf(" epoch=%d ", epoch+1)); n != 1 {
		t.Errorf("the other one says %d times that it decided", n)
	}
	if n := first.logged(`msg="no longer coordinating"`) + first.logged("msg=decided", fmt.Sprintf(" epoch=%d ", epoch+1)); n != 1 {
		t.Errorf("the late coordinator does not say that it is none any more:\n%s", first.logText())
	}
}

// appliesWithoutAWS: killed between the persisted decision and the flip, and S3 and the table are gone when it starts again (F8).
func appliesWithoutAWS(t *testing.T, w *world) {
	b := watchedSite(t, w)
	s3, table := testenv.NewProxy(t, w.s3.Endpoint), testenv.NewProxy(t, w.dynamodb)
	b.s3, b.table = s3.URL(), table.URL()
	first := b.breakAgent("i-0")
	b.s3, b.table = w.s3.Endpoint, w.dynamodb
	b.breakAgent("i-1")
	b.begin()
	first.arm("A17=kill@1")
	push := b.deployNext()
	first.awaitDeath()
	first.arm("")
	if n := b.witnesses[0].flipped(); n != 1 {
		t.Error("it had flipped already")
	}
	s3.Refuse()
	table.Refuse()
	first.start()
	b.await(joinTime, "the flip without AWS", func() string { return missing(b.witnesses[0].flipped(), 2) })
	if got := first.file("index.php"); got != fmt.Sprint(b.version) {
		t.Errorf("it serves version %s, want %d", got, b.version)
	}
	s3.Restore()
	table.Restore()
	b.deployed(push())
	b.converged(healTime)
}

// allDie: both are killed with the release on their disks and their votes unsent (F16). Nobody flips before the decision, and
// the epoch goes on where it was.
func allDie(t *testing.T, w *world) {
	b, first, second := pair(t, w)
	epoch := b.record.now().epoch
	first.arm("A12=kill@1")
	second.arm("A2=error:the other one opens,A12=kill@1")
	push := b.deployNext()
	first.awaitDeath()
	second.awaitDeath()
	for n, w := range b.witnesses {
		if w.flipped() != 1 {
			t.Errorf("%s flipped before the decision", b.agents[n].id)
		}
	}
	for _, a := range b.agents {
		a.arm("")
		a.start()
	}
	b.deployed(push())
	b.converged(healTime)
	b.wantEpochs(epoch, 1)
}

// supersededInPrepare: a newer pointer aborts the epoch that is being prepared, and the next one takes it (F69).
func supersededInPrepare(t *testing.T, w *world) {
	b := breakSite(t, w, 2)
	epoch := b.record.now().epoch
	for _, a := range b.agents {
		a.arm("A6=wait@1")
	}
	older := b.deployNext()
	b.awaitHead(joinTime, epoch+1, "prepare")
	newer := b.deployNext()
	b.await(joinTime, "the older one is given up", func() string {
		if h := b.record.now(); h.epoch == epoch+1 && h.state == "prepare" {
			return fmt.Sprintf("the head says %+v", h)
		}
		return ""
	})
	for _, a := range b.agents {
		a.arm("")
	}
	b.deployed(newer())
	if r := older(); r.code != 5 || !strings.Contains(r.stdout, `"superseded"`) {
		t.Errorf("the older push: want exit code 5, superseded: %s", r)
	}
	b.converged(healTime)
	b.wantEpochs(epoch, 2)
	for n, w := range b.witnesses {
		if got := w.flipped(); got != 2 {
			t.Errorf("%s moved its link %d times, want once, to the newer release", b.agents[n].id, got-1)
		}
	}
}

// newerInCommit: a newer pointer after the commit and before the flips (F69). The decision is applied first.
func newerInCommit(t *testing.T, w *world) {
	b := breakSite(t, w, 2)
	epoch := b.record.now().epoch
	for _, a := range b.agents {
		a.arm("A13=wait@1")
	}
	older := b.deployNext("-wait=false")
	b.awaitHead(joinTime, epoch+1, "commit")
	if r := older(); r.code != 0 {
		t.Fatalf("push without waiting: %s", r)
	}
	if r := b.deployNext("-wait=false")(); r.code != 0 {
		t.Fatalf("the newer push, without waiting: %s", r)
	}
	for _, a := range b.agents {
		a.arm("")
	}
	b.converged(healTime)
	b.wantEpochs(epoch, 2)
	for _, a := range b.agents { // its log: a witness that is late sees two as one
		if got := a.logged("msg=flipped"); got != 3 {
			t.Errorf("%s flipped %d times, want to both releases", a.id, got-1)
		}
	}
}

// hangs: an agent whose loop does not go on says no WATCHDOG=1 any more (F70). What it serves stays; ended as systemd would
// and started again, it catches up.
func hangs(t *testing.T, w *world) {
	const watchdog = 2 * time.Second
	b := watchedSite(t, w)
	first := b.breakAgent("i-0").notified(watchdog)
	second := b.breakAgent("i-1")
	b.begin()
	b.await(joinTime, "pings", func() string { return missing(len(first.systemd.heard("WATCHDOG=1")), 3) })
	second.arm("A2=error:the first one opens")
	first.arm("A4=hang")
	first.awaitFired("A4", 1)
	hung := time.Now()
	push := b.deployNext()
	b.await(healTime, "three watchdogs pass", func() string {
		if left := 3*watchdog - time.Since(hung); left > 0 {
			return left.String()
		}
		return ""
	})
	for _, ping := range first.systemd.heard("WATCHDOG=1") {
		if late := ping.at.Sub(hung); late > watchdog/2 {
			t.Errorf("a ping %v after the loop had hung", late)
		}
	}
	if got := first.file("index.php"); got != fmt.Sprint(b.version-1) {
		t.Errorf("it serves %q, want version %d", got, b.version-1)
	}
	check(t, first.Signal(syscall.SIGABRT))
	<-first.Done()
	first.arm("")
	second.arm("")
	first.start()
	b.deployed(push())
	b.converged(healTime)
}

// pointerFrozen: S3 goes on answering with the pointer of before (F38). What is served stays, the agent says that something is
// wrong, push says that it cannot know, and when S3 shows the pointer it goes.
func pointerFrozen(t *testing.T, w *world) {
	b := watchedSite(t, w)
	m := b.between()
	b.breakAgent("i-0")
	b.begin()
	m.breaks(func(w http.ResponseWriter, r *http.Request, key string) bool {
		frozen := key == "latest-deploy" && r.Header.Get("If-None-Match") != ""
		if frozen {
			w.WriteHeader(http.StatusNotModified)
		}
		return frozen
	})
	r := b.deployNext("-timeout=5s")()
	if r.code != 4 {
		t.Errorf("want exit code 4: %s", r)
	}
	b.await(45*time.Second, "the agent says so", func() string { return b.agents[0].saying("S3 still") })
	if n := b.witnesses[0].flipped(); n != 1 {
		t.Errorf("the link moved %d times", n-1)
	}
	if v := b.agents[0].view(); !v.Healthy || !v.Ready {
		t.Errorf("it is not healthy: %+v", v)
	}
	m.heals()
	b.converged(healTime)
}
