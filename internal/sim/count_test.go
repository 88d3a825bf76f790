package sim

import (
	"fmt"
	"maps"
	"strings"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
)

// sender is who sent a write, and what was durable there when it was sent.
type sender struct {
	*machine
	sent                   time.Duration
	state                  fleet.State
	doubted                bool
	active, linked, passed release.ID
	rows                   map[string]part // that its coordinator had read
}

func (m *machine) sender(now time.Duration) sender {
	return sender{m, now, m.state, m.doubted, m.active, m.linked, m.passed, maps.Clone(m.sweep)}
}

// part is what one partition of the rows was when a machine read it.
type part struct {
	at   time.Duration
	rows []fleet.Item
}

// swept remembers what a machine was given to read.
func (m *machine) swept(at time.Duration, partition string, rows []fleet.Item) {
	if !strings.Contains(partition, "#m") {
		return
	}
	if m.sweep == nil {
		m.sweep = map[string]part{}
	}
	m.sweep[partition] = part{at, rows}
}

// beat is one beat of one process.
type beat struct {
	incarnation string
	n           int64
}

func beatOf(row fleet.Item) beat {
	incarnation, _ := row["incarnation"].(string)
	return beat{incarnation, number(row, "beat")}
}

func number(it fleet.Item, name string) int64 {
	n, _ := it[name].(int64)
	return n
}

// counted judges a commit by the rows that its coordinator had read, by the table "who counts" of the protocol and not by the code that
// it counted with (I5, I10).
func (t *truth) counted(by sender, was, h fleet.Head) {
	if h.State == fleet.Abort && was.State.Open() && h.Once != fmt.Sprintf("ok %d", h.Sequence) {
		delete(t.runs, h.Sequence)
	}
	if h.State != fleet.Commit {
		return
	}
	var members, newly, yes int64
	for _, p := range by.rows {
		for _, row := range p.rows {
			vote, _ := row["vote"].(fleet.Item)
			voted := number(vote, "epoch") == h.Epoch && vote["release"] == string(h.Release)
			agreed, phase := voted && vote["yes"] == true, row["phase"]
			left := number(row, "left") == h.Epoch
			switch {
			case agreed:
				yes++
				if phase == string(fleet.Serve) {
					members++
				}
			case number(row, "missed") >= 4 || phase == string(fleet.Leaving) && !left:
			case voted && vote["kind"] == fleet.AboutRelease && phase != string(fleet.Leaving):
				t.w.fail("I5 valid commit: epoch %d committed %s, which %s refused", h.Epoch, h.Release, row["instance"])
			case (voted || phase == string(fleet.Out)) && left:
				members++
				newly++
			case phase == string(fleet.Serve) && !voted:
				members++
				newly++
				t.accused(by, h, p.at, row)
			}
		}
	}
	if most := max(1, t.w.guard[h.Sequence]*members/100); newly > most && !h.Automatic() {
		t.w.fail("I5 valid commit: epoch %d newly excluded %d of %d members, the guard allows %d", h.Epoch, newly, members, most)
	}
	if yes == 0 {
		t.w.fail("I5 valid commit: epoch %d committed without a yes in the coordinator's sweep", h.Epoch)
	}
}

// accused judges that a coordinator took a member, as its row was at that time, for silent, or counts an epoch as missed: it was, for a lease.
func (t *truth) accused(by sender, h fleet.Head, at time.Duration, row fleet.Item) {
	id, _ := row["instance"].(string)
	if number(row, "missed") > 0 {
		return // another has counted it, rightly, and it has not beaten since
	}
	last := t.landed[beatOf(row)]
	// The lease of a coordinator that was replaced runs from its last beat on the head.
	led, replaced := t.led[id]
	replaced = replaced && h.Coordinator != id && at-led > 30*time.Second && at-last > 15*time.Second
	if silent := at - last; silent < 30*time.Second && !replaced {
		t.w.fail("I5 valid commit, I10 no remote clocks: %s excluded %s from epoch %d, whose last beat was %v old", by.id, id, h.Epoch, silent)
	}
}

// ran judges that a run of fleet_once has come to its end on a machine: it is one for all, and what was noted as done is not done again.
// One that ends after its epoch was aborted is what that abort was for.
func (t *truth) ran(b *machine, epoch, sequence int64) {
	if t.decisions[epoch] == fleet.Abort {
		return
	}
	t.runs[sequence]++
	t.w.note("%s has run fleet_once of %d", b.id, sequence)
	if n := t.runs[sequence]; n > 1 {
		t.w.fail("fleet_once: %s has run it for %d, which is run %d without an abort between", b.id, sequence, n)
	}
}
