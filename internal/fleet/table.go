package fleet

import (
	"context"
	"errors"
	"fmt"
)

// Table is what the protocol asks of a database: items under a partition and a sort key, strongly
// consistent reads where asked, and single-item conditional writes. Package table has the DynamoDB
// one and one in memory; both run the same conformance suite.
//
// Every method may fail with [ErrThrottled], [ErrUnavailable], [ErrDenied] or [ErrNoTable] (wrapped).
// After ErrUnavailable a write may or may not have happened: the caller finds out by its own token.
type Table interface {
	// Get returns the item, or nil without an error when there is none.
	Get(ctx context.Context, key Key, consistent bool) (Item, error)
	// Query returns all items of a partition whose sort key begins with prefix, in order of the
	// sort key, following every page. It is complete or it fails: never part of an answer.
	Query(ctx context.Context, partition, prefix string, consistent bool) ([]Item, error)
	// Write changes one item if its condition holds and returns the whole new item; where the
	// condition does not hold it fails with a *ConditionError that carries the item as it stands.
	Write(ctx context.Context, key Key, w Write) (Item, error)
	// Delete removes an item if the condition holds. An item that is gone already is a success
	// when the condition is nil, else a *ConditionError.
	Delete(ctx context.Context, key Key, cond Cond) error
}

// Key names an item: partition ("pk") and sort key ("sk").
type Key struct{ Partition, Sort string }

// Item is an item's attributes, without the key. Values are int64, string, []byte, bool, []Value
// (a list) or Item (a map); nothing else may be stored.
type Item map[string]Value

// Value is one attribute's value; Item says which types there are.
type Value any

// Write is one conditional update: attributes to set and attributes to remove of one item, which is
// created when it is absent (and If allows that). Attributes that are not named stay.
type Write struct {
	Set    Item
	Remove []string
	If     Cond // nil: always
}

// Cond is a condition on the item as it stands: one of Exists, Absent, Compare, In, And, Or.
// A comparison with an attribute that is absent or of another type is false, Ne included (DynamoDB's
// own <> is true there, so its adapter asks for existence too).
type Cond interface{ cond() }

type (
	// Exists holds when the item has the attribute; Absent when it has not (or there is no item).
	// The attribute "pk" stands for the item itself.
	Exists struct{ Attr string }
	Absent struct{ Attr string }
	// Compare holds when the attribute exists, has Value's type (int64 or string) and compares so.
	Compare struct {
		Attr  string
		Op    Op
		Value Value
	}
	// In holds when the attribute equals one of the values.
	In struct {
		Attr   string
		Values []Value
	}
	// And holds when all hold, Or when any does; both take at least one condition.
	And []Cond
	Or  []Cond
)

// Op is a comparison.
type Op string

// The comparisons that conditions use.
const (
	Eq Op = "="
	Ne Op = "<>"
	Lt Op = "<"
)

func (Exists) cond()  {}
func (Absent) cond()  {}
func (Compare) cond() {}
func (In) cond()      {}
func (And) cond()     {}
func (Or) cond()      {}

// ConditionError says that a write was refused by its condition; Item is the item as it stood, nil
// when there was none.
type ConditionError struct {
	Key  Key
	Item Item
}

func (e *ConditionError) Error() string {
	return fmt.Sprintf("write %s/%s: condition failed", e.Key.Partition, e.Key.Sort)
}

// What a table can answer besides data. Adapters map their SDK's errors to these and wrap the cause.
var (
	ErrThrottled   = errors.New("table throttled")          // try again later; nothing was done
	ErrUnavailable = errors.New("table unavailable")        // no answer, or a 5xx: a write may have happened
	ErrDenied      = errors.New("table access denied")      // permissions or credentials
	ErrNoTable     = errors.New("table does not exist")     // push -init creates it
	ErrNoAccount   = errors.New("no AWS credentials found") // nothing to sign with
)
