package tabletest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"

	"s3pulldeploy/internal/fleet"
)

func absent(t *testing.T, table fleet.Table) {
	for _, consistent := range []bool{false, true} {
		it, err := table.Get(t.Context(), head, consistent)
		if it != nil || err != nil {
			t.Errorf("consistent %v: got %v, %v, want nothing", consistent, it, err)
		}
		items, err := table.Query(t.Context(), scope, "", consistent)
		if len(items) != 0 || err != nil {
			t.Errorf("consistent %v: got %v, %v, want nothing", consistent, items, err)
		}
	}
}

func partialWrite(t *testing.T, table fleet.Table) {
	write(t, table, head, fleet.Write{Set: fleet.Item{"epoch": int64(1), "state": "prepare", "reason": "x"}})
	want := fleet.Item{"epoch": int64(2), "state": "prepare"}
	same(t, write(t, table, head, fleet.Write{
		Set: fleet.Item{"epoch": int64(2)}, Remove: []string{"reason", "never-there", "reason"},
	}), want)
	wantItem(t, table, head, want)
}

func bareItem(t *testing.T, table fleet.Table) {
	same(t, write(t, table, head, fleet.Write{}), fleet.Item{})
	wantItem(t, table, head, fleet.Item{})
	other := fleet.Key{Partition: scope, Sort: "other"}
	same(t, write(t, table, other, fleet.Write{Remove: []string{"a"}}), fleet.Item{})
	wantItem(t, table, other, fleet.Item{})
	items, err := table.Query(t.Context(), scope, "", true)
	if err != nil {
		t.Fatal(err)
	}
	same(t, items, []fleet.Item{{}, {}})
}

func valueTypes(t *testing.T, table fleet.Table) {
	want := fleet.Item{
		"zero": int64(0), "least": int64(math.MinInt64), "most": int64(math.MaxInt64),
		"odd":  int64(1<<53 + 1), // where a float64 would round
		"text": "ünï\x00code\n", "no text": "",
		"bytes": []byte{0, 0xff, '\n'}, "no bytes": []byte{},
		"yes": true, "no": false,
		"list": []fleet.Value{int64(1), "a", []byte("b"), []fleet.Value{}, fleet.Item{"deep": true}},
		"map":  fleet.Item{"pk": "is only a name inside", "none": fleet.Item{}},
	}
	same(t, write(t, table, head, fleet.Write{Set: want}), want)
	wantItem(t, table, head, want)

	nothing := fleet.Item{"bytes": []byte(nil), "list": []fleet.Value(nil), "map": fleet.Item(nil)}
	empty := fleet.Item{"bytes": []byte{}, "list": []fleet.Value{}, "map": fleet.Item{}}
	other := fleet.Key{Partition: scope, Sort: "other"}
	same(t, write(t, table, other, fleet.Write{Set: nothing}), empty)
	wantItem(t, table, other, empty)
}

func names(t *testing.T, table fleet.Table) {
	key := fleet.Key{Partition: "bücket/a b/#:\"'\n", Sort: "#0 :0 \x01 ) OR attribute_exists(pk"}
	it := fleet.Item{
		"status": "s", "Name": "n", "ttl": int64(1), "a.b": "dot", "a[0]": "index", "#0": "hash", ":0": "colon",
		"with space": "x", "ö": "y",
	}
	cond := make(fleet.And, 0, len(it))
	for name := range it {
		cond = append(cond, fleet.Or{fleet.Absent{Attr: name}, fleet.Exists{Attr: name}})
	}
	same(t, write(t, table, key, fleet.Write{Set: it, If: cond}), it)
	wantItem(t, table, key, it)
	same(t, write(t, table, key, fleet.Write{Remove: []string{"a.b", "status"}, If: fleet.And{
		fleet.Compare{Attr: "a[0]", Op: fleet.Eq, Value: "index"}, fleet.Compare{Attr: "#0", Op: fleet.Ne, Value: ":0"},
	}})["a[0]"], "index")
}

func noSharing(t *testing.T, table fleet.Table) {
	inner := fleet.Item{"release": "r1"}
	bytes := []byte("abc")
	set := fleet.Item{"good": inner, "text": bytes, "bad": []fleet.Value{int64(1)}}
	want := fleet.Item{"good": fleet.Item{"release": "r1"}, "text": []byte("abc"), "bad": []fleet.Value{int64(1)}}
	returned := write(t, table, head, fleet.Write{Set: set})
	spoil := func(it fleet.Item) {
		it["good"].(fleet.Item)["release"] = "spoilt"
		it["text"].([]byte)[0] = 'X'
		it["bad"].([]fleet.Value)[0] = int64(9)
		it["more"] = true
	}
	spoil(set)
	spoil(returned)
	wantItem(t, table, head, want)

	read, err := table.Get(t.Context(), head, true)
	if err != nil {
		t.Fatal(err)
	}
	spoil(read)
	_, err = table.Write(t.Context(), head, fleet.Write{If: fleet.Absent{Attr: "pk"}})
	var refused *fleet.ConditionError
	if !errors.As(err, &refused) {
		t.Fatal(err)
	}
	spoil(refused.Item)
	items, err := table.Query(t.Context(), scope, "", true)
	if err != nil || len(items) != 1 {
		t.Fatal(items, err)
	}
	spoil(items[0])
	wantItem(t, table, head, want)
}

func query(t *testing.T, table fleet.Table) {
	sorts := []string{"note#2", "epoch#000000000010", "head", "note#10", "epoch#000000000009", "note", "note#", "notf", "é", "Z"}
	for _, s := range sorts {
		write(t, table, fleet.Key{Partition: scope, Sort: s}, fleet.Write{Set: fleet.Item{"me": s}})
		write(t, table, fleet.Key{Partition: scope + "#m00", Sort: s}, fleet.Write{Set: fleet.Item{"me": "elsewhere"}})
	}
	for prefix, want := range map[string]string{
		"":            "Z epoch#000000000009 epoch#000000000010 head note note# note#10 note#2 notf é",
		"note#":       "note# note#10 note#2",
		"epoch#":      "epoch#000000000009 epoch#000000000010",
		"note":        "note note# note#10 note#2",
		"head":        "head",
		"head and on": "",
	} {
		for _, consistent := range []bool{true, false} {
			items, err := table.Query(t.Context(), scope, prefix, consistent)
			if err != nil {
				t.Fatal(err)
			}
			got := make([]string, len(items))
			for i, it := range items {
				got[i] = it["me"].(string)
			}
			same(t, strings.Join(got, " "), want)
		}
	}
}

// pages takes more than the 1 MB that DynamoDB reads at once, with the prefix's items in the middle.
func pages(t *testing.T, table fleet.Table) {
	big := []byte(strings.Repeat("x", 60_000))
	for i := range 45 {
		sort := fmt.Sprintf("%c#%02d", "abc"[i/15], i)
		write(t, table, fleet.Key{Partition: scope, Sort: sort}, fleet.Write{Set: fleet.Item{"i": int64(i), "big": big}})
	}
	for prefix, want := range map[string][2]int64{"": {0, 45}, "b#": {15, 30}} {
		items, err := table.Query(t.Context(), scope, prefix, true)
		if err != nil {
			t.Fatal(err)
		}
		if len(items) != int(want[1]-want[0]) {
			t.Fatalf("prefix %q: got %d items, want %d", prefix, len(items), want[1]-want[0])
		}
		for i, it := range items {
			if it["i"] != want[0]+int64(i) || len(it["big"].([]byte)) != len(big) {
				t.Fatalf("prefix %q: item %d is %v with %d bytes", prefix, i, it["i"], len(it["big"].([]byte)))
			}
		}
	}
}

// contention lets writers increment one counter under the condition that it is as they read it: each
// value has exactly one winner, and who lost is shown the winner's item.
func contention(t *testing.T, table fleet.Table) {
	const writers, rounds = 8, 10
	write(t, table, head, fleet.Write{Set: fleet.Item{"n": int64(0)}})
	for round := range int64(rounds) {
		var wg sync.WaitGroup
		outcomes := make([]error, writers)
		for i := range outcomes {
			wg.Go(func() {
				_, outcomes[i] = table.Write(context.WithoutCancel(t.Context()), head, fleet.Write{
					Set: fleet.Item{"n": round + 1, "winner": int64(i)},
					If:  fleet.Compare{Attr: "n", Op: fleet.Eq, Value: round},
				})
			})
		}
		wg.Wait()
		won := -1
		for i, err := range outcomes {
			if err != nil {
				continue
			}
			if won >= 0 {
				t.Fatalf("round %d: %d and %d both won", round, won, i)
			}
			won = i
		}
		if won < 0 {
			t.Fatalf("round %d: nobody won: %v", round, outcomes)
		}
		want := fleet.Item{"n": round + 1, "winner": int64(won)}
		for i, err := range outcomes {
			if i != won {
				wantRefusal(t, err, head, want)
			}
		}
		wantItem(t, table, head, want)
	}
}

func endedContext(t *testing.T, table fleet.Table) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, got := table.Get(ctx, head, true)
	_, queried := table.Query(ctx, scope, "", true)
	_, written := table.Write(ctx, head, fleet.Write{Set: fleet.Item{"a": true}})
	deleted := table.Delete(ctx, head, nil)
	for op, err := range map[string]error{"get": got, "query": queried, "write": written, "delete": deleted} {
		if !errors.Is(err, context.Canceled) || !errors.Is(err, fleet.ErrUnavailable) {
			t.Errorf("%s: got error %v, want canceled and unavailable", op, err)
		}
	}
}
