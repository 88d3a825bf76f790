package benchfleet

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

var docs = flag.String("docs", "", "measure everything and write the results between the markers of this `file`")

// The markers in the file.
const (
	begins = "<!-- bench-fleet -->\n"
	ends   = "<!-- bench-fleet end -->\n"
)

// TestBench is `make bench-fleet`. Without -docs there is nothing to measure: what is quick has tests of its own.
func TestBench(t *testing.T) {
	if *docs == "" {
		return
	}
	var out strings.Builder
	fmt.Fprintf(&out, "Measured on %s with %d processors (%s), one process for all agents, DynamoDB Local beside it; the busiest keys in virtual time.\n\n",
		time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), runtime.Version())
	fmt.Fprint(&out, "| instances | push to last flip | push to done | spread of the flips | requests | read, write units | cost | busiest key, units a second |\n|---|---|---|---|---|---|---|---|\n")
	real := map[int]rollout{}
	for _, n := range []int{3, 50, 200} {
		real[n] = march(t, n, 5)
		fmt.Fprint(&out, real[n].row("real, poll 1 s", ""))
	}
	for _, n := range []int{3, 200, 1000, 3000, 10_000} {
		r := model(t, n, 5*time.Second, 2*time.Second)
		within(t, r)
		fmt.Fprint(&out, r.row("model, poll 5 s", fmt.Sprintf("%.0f of %d, %.0f of %d", r.busiest.reads, mostReads, r.busiest.writes, mostWrites)))
	}
	growth := real[200].live.Seconds() / real[3].live.Seconds()
	idle, still := idleHour(t), atRest(t, 20*time.Second)
	fmt.Fprint(&out, "\n| | measured | to hold |\n|---|---|---|\n")
	missed := 0
	line := func(what, measured, hold string, ok bool) {
		if !ok {
			missed++
			measured += " **missed**"
		}
		fmt.Fprintf(&out, "| %s | %s | %s |\n", what, measured, hold)
	}
	line("spread of the flips, 50 agents, median", fmt.Sprintf("%v; at most %v", real[50].spread, real[50].widest), "under 50 ms", real[50].spread < 50*time.Millisecond)
	line("push to live, 200 agents", seconds(real[200].live), "under 4 s", real[200].live < 4*time.Second)
	line("push to live, 200 agents to 3", fmt.Sprintf("%.1fx", growth), "under 2x", growth < 2)
	line("idle instance-month", fmt.Sprintf("$%.3f: in an hour %.0f read units, %.0f write units, %d reads of the pointer", idle.dollars(), idle.units.reads, idle.units.writes, idle.s3),
		"under $0.10", idle.dollars() < 0.10)
	line("idle agent, memory", fmt.Sprintf("%.1f MiB resident", still.rss), "under 30 MiB", still.rss < 30)
	line("idle agent, processor", fmt.Sprintf("%.2f %% of one", 100*still.cpu), "not measurable", still.cpu < 0.01)
	if err := between(*docs, out.String()); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out.String())
	if missed > 0 {
		t.Errorf("%d of what is to hold were missed", missed)
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

func (r rollout) row(how, busiest string) string {
	if busiest == "" {
		busiest = "not counted"
	}
	spread := fmt.Sprintf("%d ms", r.spread.Milliseconds())
	if r.widest > r.spread {
		spread += fmt.Sprintf(", at most %d", r.widest.Milliseconds())
	}
	return fmt.Sprintf("| %d (%s) | %s | %s | %s | %d | %.0f, %.0f | $%.6f | %s |\n", r.members, how, seconds(r.live), seconds(r.done),
		spread, r.requests, r.units.reads, r.units.writes, r.units.dollars(), busiest)
}

// between replaces what lies between the markers of a file.
func between(file, text string) error {
	old, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(old), begins)
	_, tail, there := strings.Cut(rest, ends)
	if !ok || !there {
		return fmt.Errorf("write results: %s has no %q", file, strings.TrimSpace(begins))
	}
	return os.WriteFile(file, []byte(head+begins+"\n"+text+"\n"+ends+tail), 0o644)
}
