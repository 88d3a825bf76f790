// Package tabletest is the contract of [fleet.Table] as tests. Every implementation runs them, the one
// in memory too, so that what holds in a test of the protocol holds on DynamoDB.
package tabletest

import (
	"errors"
	"reflect"
	"testing"

	"s3pulldeploy/internal/fleet"
)

// Run tests the table that open returns; it is called for each test and must return an empty one.
func Run(t *testing.T, open func(t *testing.T) fleet.Table) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, fleet.Table)
	}{
		{"an absent item is nil without an error", absent},
		{"a write returns the whole new item and leaves what it does not name", partialWrite},
		{"an item without attributes exists", bareItem},
		{"every type comes back as it went in", valueTypes},
		{"any name and any key can be used", names},
		{"a caller's values are not the table's", noSharing},
		{"conditions hold exactly when the contract says", conditions},
		{"a condition on an absent item sees no attributes", conditionsWithoutItem},
		{"a refused write changes nothing and brings the old item", refusal},
		{"mistakes of the program are refused", mistakes},
		{"a query gives the prefix in order, and nothing else", query},
		{"a query follows every page", pages},
		{"delete obeys its condition", deletes},
		{"one writer wins each round", contention},
		{"a context that is over is the error, and the outcome unknown", endedContext},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

const scope = "bucket/prefix/site"

var head = fleet.Key{Partition: scope, Sort: "head"}

// write must succeed and returns the new item.
func write(t *testing.T, table fleet.Table, key fleet.Key, w fleet.Write) fleet.Item {
	t.Helper()
	it, err := table.Write(t.Context(), key, w)
	if err != nil {
		t.Fatal(err)
	}
	return it
}

// wantItem compares what the table holds, read strongly.
func wantItem(t *testing.T, table fleet.Table, key fleet.Key, want fleet.Item) {
	t.Helper()
	got, err := table.Get(t.Context(), key, true)
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, want)
}

func same(t *testing.T, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %#v\nwant %#v", got, want)
	}
}

// wantRefusal wants the error to be a refused condition on the key with the item as it stood.
func wantRefusal(t *testing.T, err error, key fleet.Key, stood fleet.Item) {
	t.Helper()
	var refused *fleet.ConditionError
	if !errors.As(err, &refused) {
		t.Fatalf("got error %v, want a refused condition", err)
	}
	same(t, refused.Key, key)
	same(t, refused.Item, stood)
}
