package fleet_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/table"
)

// FuzzHostileTable: whoever writes to the table (T8) puts anything of any type anywhere into the head, a note, a row and a log. A member that
// verifies signatures neither falls over nor is brought to stage or flip to anything.
func FuzzHostileTable(f *testing.F) {
	for kind, attr := range []string{"epoch", "state", "release", "committed_sequence", "flip_delay", "good", "frozen", "text", "vote", "beat"} {
		f.Add(attr, uint8(kind), int64(1)<<62, "commit", []byte("r1\n100\n3"))
	}
	f.Add("state", uint8(0), int64(-1), "prepare", packed("r1", 100).Text())
	f.Add("committed_epoch", uint8(1), int64(9), "", []byte("r1\n100\n3\n\n— x y\n"))
	signer, err := release.NewSigner(fuzzKey)
	if err != nil {
		f.Fatal(err)
	}
	keys, err := release.NewKeyring([]string{signer.Public()})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, attr string, kind uint8, number int64, text string, pointer []byte) {
		values := []fleet.Value{
			text, number, kind%2 == 0, pointer,
			fleet.Item{attr: number, "release": text, "sequence": number},
			[]fleet.Value{text, number},
			fleet.Item{"by": text, "why": text, "until": number},
		}
		mem := table.NewMemory()
		n := 0
		l := fleet.NewLedger(mem, scope, func() string { n++; return fmt.Sprint("t", n) })
		l.Keys = keys
		head := fleet.Item{
			"epoch": int64(3), "state": "commit", "sequence": int64(100), "release": "r1", "digest": "d", "fence": int64(2), "beat": int64(1),
			"committed_epoch": int64(3), "committed_sequence": int64(100), "committed_release": "r1", "schema": int64(fleet.Schema),
		}
		note := fleet.Item{"text": pointer, "digest": "d", "schema": int64(fleet.Schema)}
		row := fleet.Item{"instance": "i-9", "incarnation": "y", "beat": int64(1), "phase": "serve", "epoch": int64(3)}
		log := fleet.Item{"epoch": int64(2), "outcome": "done", "release": "r1", "nos": []fleet.Value{"i-9: no"}, "at": int64(100)}
		if kind&1 == 0 {
			head["state"] = "prepare"
		}
		if attr != "" && attr != "pk" && attr != "sk" {
			for i, it := range []fleet.Item{head, note, row, log} {
				it[attr] = values[(int(kind)+i)%len(values)]
			}
		}
		for key, it := range map[fleet.Key]fleet.Item{
			{Partition: scope, Sort: "head"}: head, {Partition: scope, Sort: "note#100"}: note, {Partition: scope + "#m00", Sort: "i-9"}: row,
			{Partition: scope, Sort: "epoch#000000000002"}: log,
		} {
			if _, err := mem.Write(t.Context(), key, fleet.Write{Set: it}); err != nil {
				return // no table would hold it
			}
		}
		node := fleet.NewNode(fleet.Options{
			Scope: scope, Instance: "i-1", Ledger: l, Journal: &fullDisk{}, Clock: &ticking{}, PollInterval: time.Second,
			Random: func() float64 { return 0 }, Log: slog.New(slog.DiscardHandler), Incarnation: "x", PrepareTimeout: time.Minute,
		})
		for range 6 {
			_ = node.Offer(pointer, time.Unix(200, 0), node.Newest())
			if w, _ := node.Step(t.Context()); w.Task != fleet.Idle {
				t.Fatalf("asked to %s %q", w.Task, w.Commit.Release)
			}
			node.View()
		}
		_, _ = l.Logs(t.Context()) // as push reads them
	})
}

// fuzzKey is fixed, so that an input fails or passes whenever it is tried. It signs nothing, here or elsewhere.
const fuzzKey = "PRIVATE+KEY+fuzz+1d38f6b6+Ae4XFE6LMmg/wdkPSwdrnFGeDsulAKZd60v0DyW1vxxw"

// ticking is a clock that goes on by a second each time that it is looked at.
type ticking struct{ at time.Duration }

func (c *ticking) Boot() time.Duration { c.at += time.Second; return c.at }
func (c *ticking) Now() time.Time      { return time.Unix(200, 0) }
