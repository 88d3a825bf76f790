package table

import (
	"testing"

	"s3pulldeploy/internal/fleet"
)

func TestTheSameWriteIsAlwaysTheSameRequest(t *testing.T) {
	for range 20 { // maps are walked in another order each time
		e := newExpression()
		update := e.update(fleet.Write{
			Set:    fleet.Item{"state": "commit", "epoch": int64(2), "beat": int64(5)},
			Remove: []string{"retry_at", "reason", "retry_at"},
		})
		cond := e.condition(fleet.And{
			fleet.Compare{Attr: "epoch", Op: fleet.Eq, Value: int64(2)},
			fleet.Or{fleet.Absent{Attr: "frozen"}, fleet.In{Attr: "state", Values: []fleet.Value{"prepare", "wave"}}},
			fleet.And{fleet.Compare{Attr: "kind", Op: fleet.Ne, Value: "rollback"}},
		})
		if want := "SET #0 = :0, #1 = :1, #2 = :2 REMOVE #3, #4"; *update != want {
			t.Fatalf("got  %s\nwant %s", *update, want)
		}
		want := "(#1 = :3 AND (attribute_not_exists(#5) OR #2 IN (:4, :5)) AND (attribute_type(#6, :7) AND #6 <> :6))"
		if *cond != want {
			t.Fatalf("got  %s\nwant %s", *cond, want)
		}
		for p, attr := range map[string]string{"#0": "beat", "#1": "epoch", "#2": "state", "#3": "reason", "#5": "frozen", "#6": "kind"} {
			if e.names[p] != attr {
				t.Fatalf("%s is %q, want %q", p, e.names[p], attr)
			}
		}
	}
}

func TestAnEmptyExpressionIsNone(t *testing.T) {
	e := newExpression()
	if e.update(fleet.Write{}) != nil || e.condition(nil) != nil || e.names != nil || e.values != nil {
		t.Errorf("DynamoDB refuses empty expressions and placeholders, got %+v", e)
	}
}
