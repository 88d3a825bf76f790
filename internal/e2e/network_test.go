package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv"
)

// TestNetwork cuts agents off, each of which lives in a network of its own.
func TestNetwork(t *testing.T) {
	w := breakable(t)
	for _, s := range []struct {
		name string
		run  func(*testing.T, *world)
	}{ // those that wait longest come first
		{"the replies to one are lost", repliesLost},
		{"one is cut off from S3", cutOffFromS3},
		{"one is cut off from the table", cutOffFromTable},
		{"one is cut off from everything and starts again", cutOffFromAll},
		{"a cable that comes and goes", flapping},
		{"nobody reaches the table", tableAway},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.run(t, w)
		})
	}
}

// wired is a site of three machines on a network, each with its own way to the table.
type wired struct {
	*broken
	bucket *testenv.Proxy
	tables []*testenv.Proxy
	hosts  []*testenv.Host
}

func wire(t *testing.T, w *world) *wired {
	t.Helper()
	net := testenv.NewNetwork(t)
	n := &wired{broken: watchedSite(t, w), bucket: net.Service(w.s3.Endpoint)}
	n.s3 = n.bucket.URL()
	for i := range 3 {
		h, table := net.Host(), net.Service(w.dynamodb)
		n.hosts, n.tables = append(n.hosts, h), append(n.tables, table)
		n.table = table.URL()
		n.breakAgent(fmt.Sprintf("i-%d", i)).under = h.Command()
	}
	n.begin()
	return n
}

// last is the machine that the faults are about.
func (n *wired) last() (*agent, *testenv.Host, *witness) {
	return n.agents[2], n.hosts[2], n.witnesses[2]
}

// without wants a push to have gone live on the two others.
func (n *wired) without(r result) {
	n.t.Helper()
	n.deployed(r)
	if !strings.Contains(r.stdout, `"excluded": 1`) && !strings.Contains(r.stdout, `"excluded":1`) {
		n.t.Errorf("want one instance excluded: %s", r)
	}
}

// undisturbed wants the last machine to serve what it served before the push.
func (n *wired) undisturbed() {
	n.t.Helper()
	a, _, w := n.last()
	if w.flipped() != 1 || a.file("index.php") != fmt.Sprint(n.version-1) {
		n.t.Errorf("%s serves version %s, its link moved %d times", a.id, a.file("index.php"), w.flipped()-1)
	}
	select {
	case <-a.Done():
		n.t.Errorf("%s has ended: %v", a.id, a.Err())
	default:
	}
}

// healed wants everything to be right again, and says how soon that was.
func (n *wired) healed() {
	n.t.Helper()
	n.t.Logf("well %v after the network was", n.converged(healTime).Round(time.Millisecond))
}

// cutOffFromTable: one that cannot reach the table is found silent after a lease, and the others go without it; it serves on
// (F27).
func cutOffFromTable(t *testing.T, w *world) {
	n := wire(t, w)
	a, host, _ := n.last()
	host.Cut(n.tables[2])
	began := time.Now()
	n.without(n.deployNext()())
	if took := time.Since(began); took < 30*time.Second {
		t.Errorf("excluded after %v: nobody may be called silent before a lease is over", took)
	}
	n.undisturbed()
	if v := a.view(); !v.Isolated || !v.Healthy || v.Problems["table"] == "" {
		t.Errorf("it says %+v, want isolated and healthy", v)
	}
	host.Mend(n.tables[2])
	n.healed()
}

// cutOffFromS3: one that cannot fetch the release says no for its own reason, and the others go without it (F28).
func cutOffFromS3(t *testing.T, w *world) {
	n := wire(t, w)
	a, host, _ := n.last()
	host.Cut(n.bucket)
	n.without(n.deployNext()())
	n.undisturbed()
	if m := n.status().member(a.id); m.Vote != "no" || m.Phase != "out" || !strings.Contains(m.Reason, "S3") {
		t.Errorf("its row says %+v, want a no that names S3", m)
	}
	host.Mend(n.bucket)
	n.healed()
}

// cutOffFromAll: one without any network starts again, serves its last release and says that it is ready (F29).
func cutOffFromAll(t *testing.T, w *world) {
	n := wire(t, w)
	a, host, witness := n.last()
	host.Unplug()
	a.Kill()
	a.start()
	n.await(30*time.Second, "isolated", func() string {
		if v := a.view(); !v.Isolated || !v.Ready || !v.Healthy {
			return fmt.Sprintf("%+v", v)
		}
		return ""
	})
	if witness.flipped() != 1 || a.file("index.php") != fmt.Sprint(n.version) {
		t.Errorf("it serves version %s", a.file("index.php"))
	}
	host.Plug()
	n.healed()
	n.deployed(n.deployNext()())
	n.healed()
}

// repliesLost: for a minute what one sends to the table arrives, and it hears nothing (F30). It is not taken for silent and its vote
// counts; it flips only when it has read the decision.
func repliesLost(t *testing.T, w *world) {
	n := wire(t, w)
	epoch := n.record.now().epoch
	a, _, witness := n.last()
	table := n.tables[2]
	a.arm("A2=error:another one opens,A6=wait@1")
	push := n.deployNext()
	a.awaitFired("A6", 1)
	table.DropReplies()
	a.arm("A2=error:another one opens")
	deaf := time.Now()
	n.awaitHead(joinTime, epoch+1, "commit")
	n.await(joinTime, "the others flip", func() string {
		return missing(min(n.witnesses[0].flipped(), n.witnesses[1].flipped()), 2)
	})
	n.await(healTime+time.Minute, "a minute without replies", func() string {
		if left := time.Minute - time.Since(deaf); left > 0 {
			return left.String()
		}
		return ""
	})
	n.undisturbed()
	if v := a.view(); !v.Isolated || !v.Healthy {
		t.Errorf("it says %+v, want isolated and healthy", v)
	}
	if h := n.record.now(); h.epoch != epoch+1 || h.state != "commit" {
		t.Errorf("the head says %+v, want the commit to wait for whoever beats", h)
	}
	if table.Dropped() == 0 {
		t.Error("no reply was dropped")
	}
	table.Restore()
	a.arm("")
	r := push()
	n.deployed(r)
	if !strings.Contains(r.stdout, `"excluded": 0`) && !strings.Contains(r.stdout, `"excluded":0`) {
		t.Errorf("want nobody excluded: %s", r)
	}
	n.healed()
	n.wantEpochs(epoch, 1)
	if got := witness.flipped(); got != 2 {
		t.Errorf("%s moved its link %d times, want once", a.id, got-1)
	}
}

// flapping: a cable that is out and in for two seconds each while the fleet prepares, and beyond (F31). Fewer than three epochs.
func flapping(t *testing.T, w *world) {
	n := wire(t, w)
	epoch := n.record.now().epoch
	a, host, _ := n.last()
	a.arm("A2=error:another one opens,A6=sleep:9s@1")
	push := n.deployNext()
	a.awaitFired("A6", 1)
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for round := range 5 {
		host.Unplug()
		<-tick.C
		if h := n.record.now(); round < 2 && h.state != "prepare" {
			t.Errorf("after %d rounds the head says %+v", round, h)
		}
		host.Plug()
		<-tick.C
	}
	a.arm("")
	if r := push(); r.code != 0 {
		t.Errorf("push: %s", r)
	}
	n.healed()
	if took := n.record.now().epoch - epoch; took < 1 || took >= 3 {
		t.Errorf("it took %d epochs", took)
	}
}

// tableAway: the table is away from everybody, in the middle of a rollout too (F35). No agent ends, nothing that is served
// changes, and when it is back the rollout goes on.
func tableAway(t *testing.T, w *world) {
	n := wire(t, w)
	epoch := n.record.now().epoch
	for _, a := range n.agents {
		a.arm("A6=wait@1")
	}
	push := n.deployNext()
	n.awaitHead(joinTime, epoch+1, "prepare")
	for i, h := range n.hosts {
		h.Cut(n.tables[i])
	}
	for _, a := range n.agents {
		a.arm("")
	}
	n.await(30*time.Second, "all isolated", func() string {
		for _, a := range n.agents {
			if v := a.view(); !v.Isolated || !v.Healthy {
				return fmt.Sprintf("%s: %+v", a.id, v)
			}
		}
		return ""
	})
	n.undisturbed()
	if h := n.record.now(); h.epoch != epoch+1 || h.state != "prepare" {
		t.Errorf("the head says %+v", h)
	}
	for i, h := range n.hosts {
		h.Mend(n.tables[i])
	}
	n.deployed(push())
	n.healed()
}
