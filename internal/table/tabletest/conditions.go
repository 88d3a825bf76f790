package tabletest

import (
	"errors"
	"testing"

	"s3pulldeploy/internal/fleet"
)

func eq(attr string, v fleet.Value) fleet.Cond {
	return fleet.Compare{Attr: attr, Op: fleet.Eq, Value: v}
}

func ne(attr string, v fleet.Value) fleet.Cond {
	return fleet.Compare{Attr: attr, Op: fleet.Ne, Value: v}
}

func lt(attr string, v fleet.Value) fleet.Cond {
	return fleet.Compare{Attr: attr, Op: fleet.Lt, Value: v}
}

func in(attr string, vs ...fleet.Value) fleet.Cond { return fleet.In{Attr: attr, Values: vs} }

// sample is the item that conditions are tried on.
var sample = fleet.Item{
	"epoch": int64(7), "big": int64(1<<53 + 1), "state": "commit", "empty": "", "flag": true,
	"bytes": []byte("commit"), "good": fleet.Item{"release": "r1"},
}

var cases = []struct {
	name string
	cond fleet.Cond
	want bool
}{
	{"no condition", nil, true},
	{"item exists", fleet.Exists{Attr: "pk"}, true},
	{"item absent", fleet.Absent{Attr: "pk"}, false},
	{"attribute exists", fleet.Exists{Attr: "state"}, true},
	{"empty attribute exists", fleet.Exists{Attr: "empty"}, true},
	{"map exists", fleet.Exists{Attr: "good"}, true},
	{"missing attribute exists", fleet.Exists{Attr: "frozen"}, false},
	{"attribute absent", fleet.Absent{Attr: "state"}, false},
	{"missing attribute absent", fleet.Absent{Attr: "frozen"}, true},

	{"number equal", eq("epoch", int64(7)), true},
	{"number not equal", eq("epoch", int64(8)), false},
	{"number above 2^53 equal", eq("big", int64(1<<53+1)), true},
	{"number above 2^53 is not its neighbour", eq("big", int64(1<<53)), false},
	{"text equal", eq("state", "commit"), true},
	{"text of other case", eq("state", "Commit"), false},
	{"empty text equal", eq("empty", ""), true},
	{"equal of another type", eq("epoch", "7"), false},
	{"equal to bytes", eq("bytes", "commit"), false},
	{"equal to a flag", eq("flag", "true"), false},
	{"equal on missing", eq("frozen", int64(0)), false},
	{"empty equal on missing", eq("frozen", ""), false},

	{"unequal numbers", ne("epoch", int64(8)), true},
	{"equal numbers are not unequal", ne("epoch", int64(7)), false},
	{"unequal texts", ne("state", "abort"), true},
	{"equal texts are not unequal", ne("state", "commit"), false},
	{"unequal of another type is false", ne("epoch", "8"), false},
	{"unequal to bytes is false", ne("bytes", "x"), false},
	{"unequal on missing is false", ne("frozen", "x"), false},

	{"less", lt("epoch", int64(8)), true},
	{"less than itself", lt("epoch", int64(7)), false},
	{"less than smaller", lt("epoch", int64(6)), false},
	{"less than negative", lt("epoch", int64(-8)), false},
	{"numbers are not compared as text", lt("epoch", int64(10)), true},
	{"text less", lt("state", "commiu"), true},
	{"text less than its beginning", lt("state", "commi"), false},
	{"texts are compared as bytes", lt("state", "é"), true},
	{"less of another type is false", lt("epoch", "8"), false},
	{"less on missing is false", lt("frozen", int64(8)), false},

	{"in", in("state", "abort", "commit", "done"), true},
	{"in one", in("state", "commit"), true},
	{"not in", in("state", "abort", "done"), false},
	{"numbers in", in("epoch", int64(1), int64(7)), true},
	{"in of mixed types", in("epoch", "7", int64(7)), true},
	{"in of another type", in("epoch", "7"), false},
	{"in on missing", in("frozen", "", "x"), false},

	{"and", fleet.And{eq("epoch", int64(7)), eq("state", "commit")}, true},
	{"and, first false", fleet.And{eq("epoch", int64(8)), eq("state", "commit")}, false},
	{"and, last false", fleet.And{eq("epoch", int64(7)), eq("state", "x")}, false},
	{"or", fleet.Or{eq("epoch", int64(8)), eq("state", "commit")}, true},
	{"or, none", fleet.Or{eq("epoch", int64(8)), eq("state", "x")}, false},
	{"and of one", fleet.And{ne("epoch", int64(8))}, true},
	{"or of one and of one", fleet.Or{fleet.And{fleet.Or{ne("epoch", int64(7))}}}, false},
	{"and binds its own parts", fleet.And{fleet.Or{eq("epoch", int64(7)), eq("epoch", int64(8))}, eq("state", "x")}, false},
	{"or binds its own parts", fleet.Or{eq("epoch", int64(7)), fleet.And{eq("epoch", int64(8)), eq("state", "x")}}, true},
	{"open", fleet.Or{fleet.Absent{Attr: "pk"}, fleet.And{
		eq("epoch", int64(7)), in("state", "abort", "commit", "done"), fleet.Absent{Attr: "frozen"},
	}}, true},
	{"register anew", fleet.Or{fleet.Absent{Attr: "pk"}, ne("state", "commit")}, false},
}

func conditions(t *testing.T, table fleet.Table) {
	write(t, table, head, fleet.Write{Set: sample})
	for _, c := range cases {
		got, err := table.Write(t.Context(), head, fleet.Write{If: c.cond})
		if c.want {
			if err != nil {
				t.Errorf("%s: got error %v, want it to hold", c.name, err)
				continue
			}
			same(t, got, sample)
			continue
		}
		if err == nil {
			t.Errorf("%s: holds", c.name)
			continue
		}
		wantRefusal(t, err, head, sample)
	}
}

// conditionsWithoutItem wants every condition on an absent item to be as one on missing attributes.
func conditionsWithoutItem(t *testing.T, table fleet.Table) {
	for i, c := range []struct {
		cond fleet.Cond
		want bool
	}{
		{fleet.Exists{Attr: "pk"}, false},
		{fleet.Absent{Attr: "pk"}, true},
		{fleet.Exists{Attr: "a"}, false},
		{fleet.Absent{Attr: "a"}, true},
		{eq("a", ""), false},
		{ne("a", "x"), false},
		{lt("a", int64(1)), false},
		{in("a", int64(0), ""), false},
		{fleet.Or{fleet.Absent{Attr: "pk"}, ne("a", "x")}, true},
		{fleet.And{fleet.Exists{Attr: "pk"}, fleet.Absent{Attr: "a"}}, false},
	} {
		key := fleet.Key{Partition: scope, Sort: string(rune('a' + i))}
		_, err := table.Write(t.Context(), key, fleet.Write{Set: fleet.Item{"b": true}, If: c.cond})
		if c.want {
			if err != nil {
				t.Errorf("%#v: got error %v, want it to hold", c.cond, err)
			}
			wantItem(t, table, key, fleet.Item{"b": true})
			continue
		}
		wantRefusal(t, err, key, nil)
		wantItem(t, table, key, nil)
	}
}

func refusal(t *testing.T, table fleet.Table) {
	old := fleet.Item{"epoch": int64(4), "token": "mine"}
	write(t, table, head, fleet.Write{Set: old})
	it, err := table.Write(t.Context(), head, fleet.Write{
		Set: fleet.Item{"epoch": int64(5)}, Remove: []string{"token"}, If: eq("epoch", int64(3)),
	})
	wantRefusal(t, err, head, old)
	if it != nil {
		t.Errorf("a refused write returned %v", it)
	}
	if errors.Is(err, fleet.ErrUnavailable) || errors.Is(err, fleet.ErrThrottled) {
		t.Errorf("a refusal is an answer, got %v", err)
	}
	wantItem(t, table, head, old)
}

func deletes(t *testing.T, table fleet.Table) {
	ctx := t.Context()
	if err := table.Delete(ctx, head, nil); err != nil {
		t.Errorf("delete what is gone: %v", err)
	}
	wantRefusal(t, table.Delete(ctx, head, eq("incarnation", "me")), head, nil)
	wantRefusal(t, table.Delete(ctx, head, fleet.Absent{Attr: "incarnation"}), head, nil)

	it := fleet.Item{"incarnation": "me"}
	write(t, table, head, fleet.Write{Set: it})
	wantRefusal(t, table.Delete(ctx, head, eq("incarnation", "you")), head, it)
	wantItem(t, table, head, it)
	if err := table.Delete(ctx, head, eq("incarnation", "me")); err != nil {
		t.Error(err)
	}
	wantItem(t, table, head, nil)

	write(t, table, head, fleet.Write{Set: fleet.Item{"new": true}})
	wantItem(t, table, head, fleet.Item{"new": true}) // nothing of the old one
	if err := table.Delete(ctx, head, nil); err != nil {
		t.Error(err)
	}
	wantItem(t, table, head, nil)
}

func mistakes(t *testing.T, table fleet.Table) {
	set := func(v fleet.Value) fleet.Write { return fleet.Write{Set: fleet.Item{"a": v}} }
	cond := func(c fleet.Cond) fleet.Write { return fleet.Write{If: c} }
	for name, w := range map[string]fleet.Write{
		"int":                    set(1),
		"float":                  set(1.5),
		"nil":                    set(nil),
		"list of texts":          set([]string{"a"}),
		"plain map":              set(map[string]any{"a": "b"}),
		"int deep inside":        set(fleet.Item{"l": []fleet.Value{int64(1), 2}}),
		"no name inside":         set(fleet.Item{"": "x"}),
		"no name":                {Set: fleet.Item{"": "x"}},
		"the key set":            {Set: fleet.Item{"pk": "x"}},
		"the key removed":        {Remove: []string{"sk"}},
		"set and removed":        {Set: fleet.Item{"a": "x"}, Remove: []string{"a"}},
		"comparison with a flag": cond(eq("a", true)),
		"comparison with nil":    cond(eq("a", nil)),
		"comparison of the key":  cond(eq("pk", "x")),
		"unknown comparison":     cond(fleet.Compare{Attr: "a", Op: ">", Value: int64(1)}),
		"one of nothing":         cond(fleet.In{Attr: "a"}),
		"one of too many":        cond(fleet.In{Attr: "a", Values: make([]fleet.Value, 101)}),
		"empty and":              cond(fleet.And{}),
		"empty or inside":        cond(fleet.And{fleet.Exists{Attr: "a"}, fleet.Or{}}),
		"nil inside":             cond(fleet.And{nil}),
		"pointer to a condition": cond(&fleet.Exists{Attr: "a"}),
	} {
		_, err := table.Write(t.Context(), head, w)
		wantMistake(t, name, err)
	}
	_, err := table.Get(t.Context(), fleet.Key{Partition: scope}, true)
	wantMistake(t, "get without sort key", err)
	_, err = table.Query(t.Context(), "", "x", true)
	wantMistake(t, "query without partition", err)
	wantMistake(t, "delete without partition", table.Delete(t.Context(), fleet.Key{Sort: "x"}, nil))
	wantMistake(t, "delete on an empty condition", table.Delete(t.Context(), head, fleet.Or{}))
	wantItem(t, table, head, nil)
}

func wantMistake(t *testing.T, name string, err error) {
	t.Helper()
	var refused *fleet.ConditionError
	if err == nil || errors.As(err, &refused) || errors.Is(err, fleet.ErrUnavailable) {
		t.Errorf("%s: got error %v, want one that says what is wrong", name, err)
	}
}
