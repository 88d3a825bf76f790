package fleet_test

import (
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/table"
)

func TestTheNewestOutputOfAnInstanceIsKeptToItsLast4KB(t *testing.T) {
	n := 0
	l := fleet.NewLedger(table.NewMemory(), "b/s", func() string { n++; return strings.Repeat("x", n) })
	if o, err := l.Output(t.Context(), "i-1"); o != nil || err != nil {
		t.Errorf("before there is any: %+v, %v", o, err)
	}
	for _, text := range []string{"old", strings.Repeat("ö\n", 3000) + "the end"} {
		if err := l.PutOutput(t.Context(), fleet.Output{Instance: "i-1", Hook: "before_flip", Release: "r1", Text: text}, time.Unix(1000, 0)); err != nil {
			t.Fatal(err)
		}
	}
	o, err := l.Output(t.Context(), "i-1")
	if err != nil || o.Hook != "before_flip" || o.Release != "r1" || o.At != 1000 || !strings.HasSuffix(o.Text, "ö\nthe end") || len(o.Text) > 4096 || len(o.Text) < 4090 {
		t.Errorf("%d bytes, %+v, %v", len(o.Text), o, err)
	}
	if rows, err := l.Members(t.Context()); err != nil || len(rows) > 0 {
		t.Errorf("it is taken for a member: %v, %v", rows, err)
	}
}
