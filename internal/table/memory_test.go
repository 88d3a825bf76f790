package table

import (
	"testing"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/table/tabletest"
)

func TestMemoryKeepsTheContract(t *testing.T) {
	tabletest.Run(t, func(*testing.T) fleet.Table { return NewMemory() })
}

func TestAFaultlessFaultyTableKeepsTheContract(t *testing.T) {
	tabletest.Run(t, func(*testing.T) fleet.Table { return &Faulty{Table: NewMemory()} })
}

func TestThePresentOfAPastTableKeepsTheContract(t *testing.T) {
	tabletest.Run(t, func(*testing.T) fleet.Table { return NewMemory().Past(0) })
}

var key = fleet.Key{Partition: "scope", Sort: "head"}

// set writes n to the table, which must succeed.
func set(t *testing.T, table fleet.Table, n int64) {
	t.Helper()
	if _, err := table.Write(t.Context(), key, fleet.Write{Set: fleet.Item{"n": n}}); err != nil {
		t.Fatal(err)
	}
}

// get reads n; nil when there is no item.
func get(t *testing.T, table fleet.Table, consistent bool) fleet.Value {
	t.Helper()
	it, err := table.Get(t.Context(), key, consistent)
	if err != nil {
		t.Fatal(err)
	}
	if it == nil {
		return nil
	}
	return it["n"]
}

func TestPastReadsLagByChangesAndConsistentOnesDoNot(t *testing.T) {
	m := NewMemory()
	past := m.Past(1)
	if got := get(t, past, false); got != nil {
		t.Errorf("of nothing: got %v", got)
	}
	set(t, past, 1)
	if got := get(t, past, false); got != nil {
		t.Errorf("before the first change there was no item, got %v", got)
	}
	set(t, past, 2)
	if got := get(t, past, false); got != int64(1) {
		t.Errorf("one change back: got %v, want 1", got)
	}
	if got := get(t, past, true); got != int64(2) {
		t.Errorf("consistent: got %v, want 2", got)
	}
	if err := past.Delete(t.Context(), key, nil); err != nil {
		t.Fatal(err)
	}
	items, err := past.Query(t.Context(), key.Partition, "", false)
	if err != nil || len(items) != 1 || items[0]["n"] != int64(2) {
		t.Errorf("a deleted item is still seen: got %v, %v", items, err)
	}
	if items, err = past.Query(t.Context(), key.Partition, "", true); err != nil || len(items) != 0 {
		t.Errorf("consistent: got %v, %v, want nothing", items, err)
	}
}

func TestADroppedItemLeavesNothingBehind(t *testing.T) {
	m, k := NewMemory(), fleet.Key{Partition: "p", Sort: "s"}
	if _, err := m.Write(t.Context(), k, fleet.Write{Set: fleet.Item{"a": int64(1)}}); err != nil {
		t.Fatal(err)
	}
	m.Drop(k)
	for name, from := range map[string]fleet.Table{"now": m, "before": m.Past(1)} {
		if it, err := from.Get(t.Context(), k, false); it != nil || err != nil {
			t.Errorf("%s: %v, %v", name, it, err)
		}
	}
}

func TestThePastIsRememberedUpToABound(t *testing.T) {
	m := NewMemory()
	for n := range int64(3 * remembered) {
		set(t, m, n)
	}
	if got, want := get(t, m.Past(1000), false), int64(2*remembered); got != want {
		t.Errorf("got %v, want the oldest that is remembered, %v", got, want)
	}
}
