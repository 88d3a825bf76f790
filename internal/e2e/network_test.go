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
		{"one is cut off from S3", cutOffFromS3},
		{"one is cut off from the table", cutOffFromTable},
		{"one is cut off from everything and starts again", cutOffFromAll},
		{"the replies to one are lost", repliesLost},
		{"a cable that comes and goes", flapping},
		{"nobody reaches the table", tableAway},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.run(t, w)
		})
	}
}

// wired is a site of three machines on a network.
type wired struct {
	*broken
	bucket, dynamodb *testenv.Proxy
	hosts            []*testenv.Host
}

func wire(t *testing.T, w *world) *wired {
	t.Helper()
	net := testenv.NewNetwork(t)
	n := &wired{broken: watchedSite(t, w), bucket: net.Service(w.s3.Endpoint), dynamodb: net.Service(w.dynamodb)}
	n.s3, n.table = n.bucket.URL(), n.dynamodb.URL()
	for i := range 3 {
		h := net.Host()
		n.hosts = append(n.hosts, h)
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
	host.Cut(n.dynamodb)
	began := time.Now()
	n.without(n.deployNext()())
	if took := time.Since(began); took < 30*time.Second {
		t.Errorf("excluded after %v: nobody may be called silent before a lease is over", took)
	}
	n.undisturbed()
	if v := a.view(); !v.Isolated || !v.Healthy || v.Problems["table"] == "" {
		t.Errorf("it says %+v, want isolated and healthy", v)
	}
	host.Mend(n.dynamodb)
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

// repliesLost: what one sends arrives, and it hears nothing (F30). It flips only when it has read the decision.
func repliesLost(t *testing.T, w *world) {
	n := wire(t, w)
	epoch := n.record.now().epoch
	_, host, _ := n.last()
	host.Deafen(n.dynamodb)
	push := n.deployNext()
	n.awaitHead(joinTime, epoch+1, "prepare")
	deaf := time.Now()
	n.await(30*time.Second, "a while without replies", func() string {
		if left := 15*time.Second - time.Since(deaf); left > 0 {
			return left.String()
		}
		return ""
	})
	n.undisturbed()
	host.Hear(n.dynamodb)
	n.deployed(push())
	n.healed()
	n.wantEpochs(epoch, 1)
	for i, w := range n.witnesses {
		if w.flipped() != 2 {
			t.Errorf("%s moved its link %d times, want once", n.agents[i].id, w.flipped()-1)
		}
	}
}

// flapping: a cable that is out and in for two seconds each while the fleet prepares (F31).
func flapping(t *testing.T, w *world) {
	n := wire(t, w)
	epoch := n.record.now().epoch
	_, host, _ := n.last()
	for _, a := range n.agents {
		a.arm("A6=sleep:1s")
	}
	push := n.deployNext()
	n.awaitHead(joinTime, epoch+1, "prepare")
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for range 5 {
		host.Unplug()
		<-tick.C
		host.Plug()
		<-tick.C
	}
	for _, a := range n.agents {
		a.arm("")
	}
	if r := push(); r.code != 0 {
		t.Errorf("push: %s", r)
	}
	n.healed()
	if now := n.record.now().epoch; now > epoch+3 {
		t.Errorf("it took %d epochs", now-epoch)
	}
}

// tableAway: the table is away from everybody, in the middle of a rollout too (F35). No agent ends, nothing that is served
// changes, and when it is back the rollout goes on.
func tableAway(t *testing.T, w *world) {
	n := wire(t, w)
	epoch := n.record.now().epoch
	for _, a := range n.agents {
		a.arm("A6=sleep:3s@1")
	}
	push := n.deployNext()
	n.awaitHead(joinTime, epoch+1, "prepare")
	for _, h := range n.hosts {
		h.Cut(n.dynamodb)
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
	for _, h := range n.hosts {
		h.Mend(n.dynamodb)
	}
	n.deployed(push())
	n.healed()
}
