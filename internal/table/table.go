// Package table has the tables that the fleet's protocol runs on: DynamoDB ([Dynamo]), one in memory
// ([Memory]), and a wrapper that breaks either for tests ([Faulty]). All of them keep the contract of
// [fleet.Table], and the suite in package tabletest is that contract's executable form.
//
// The table has the keys pk (partition) and sk (sort), both strings. Everything else in an item is the
// caller's, and no attribute has a meaning here but [ttlAttribute], which DynamoDB expires items by.
//
// Three rules go beyond what DynamoDB promises by itself:
//
//   - A comparison with an attribute that is absent or of another type is false, "not equal" included.
//   - A conditional delete of an item that is not there is refused.
//   - A write is sent a second time only where the first certainly did nothing (throttled, or signed
//     with a wrong clock). So each answer speaks for the whole call: throttled, denied and "no such
//     table" mean that nothing was written, and [fleet.ErrUnavailable] is the only one that leaves it
//     open.
//
// A request is bounded by two seconds of its own besides the caller's context; a query has them for
// each page. Where the caller's context ends first the error is that context's and ErrUnavailable.
//
// A key, a value or a condition that no table can hold is a mistake of the program: every
// implementation refuses it alike, before anything is sent, with an error that is none of fleet's.
package table

import (
	"context"
	"errors"
	"fmt"

	"s3pulldeploy/internal/fleet"
)

// The names that are fixed in the table's layout.
const (
	partitionAttribute = "pk"
	sortAttribute      = "sk"
	ttlAttribute       = "ttl" // Unix seconds
)

// maxIn is how many values DynamoDB takes in one IN.
const maxIn = 100

// text is how errors name an item.
func text(k fleet.Key) string { return k.Partition + "/" + k.Sort }

// ended is the error of a request whose context is over: the context's own, and ErrUnavailable.
func ended(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", fleet.ErrUnavailable, err)
	}
	return nil
}

func checkKey(k fleet.Key) error {
	if k.Partition == "" || k.Sort == "" {
		return errors.New("a key needs a partition and a sort key")
	}
	return nil
}

func checkWrite(k fleet.Key, w fleet.Write) error {
	if err := checkKey(k); err != nil {
		return err
	}
	for name, v := range w.Set {
		if err := checkName(name); err != nil {
			return err
		}
		if err := checkValue(v); err != nil {
			return fmt.Errorf("attribute %q: %w", name, err)
		}
	}
	for _, name := range w.Remove {
		if err := checkName(name); err != nil {
			return err
		}
		if _, twice := w.Set[name]; twice {
			return fmt.Errorf("attribute %q is set and removed in one write", name)
		}
	}
	return checkCond(w.If)
}

func checkName(name string) error {
	switch name {
	case "":
		return errors.New("an attribute needs a name")
	case partitionAttribute, sortAttribute:
		return fmt.Errorf("attribute %q is part of the key", name)
	}
	return nil
}

func checkValue(v fleet.Value) error {
	switch v := v.(type) {
	case int64, string, []byte, bool:
		return nil
	case []fleet.Value:
		for i, e := range v {
			if err := checkValue(e); err != nil {
				return fmt.Errorf("[%d]: %w", i, err)
			}
		}
		return nil
	case fleet.Item:
		for name, e := range v {
			if name == "" {
				return errors.New("a name in a map is empty")
			}
			if err := checkValue(e); err != nil {
				return fmt.Errorf("%q: %w", name, err)
			}
		}
		return nil
	}
	return fmt.Errorf("a table holds no %T", v)
}

// checkCond refuses conditions that mean nothing; nil is the condition that always holds.
func checkCond(c fleet.Cond) error {
	switch c := c.(type) {
	case nil:
		return nil
	case fleet.Exists:
		return checkPresence(c.Attr)
	case fleet.Absent:
		return checkPresence(c.Attr)
	case fleet.Compare:
		if c.Op != fleet.Eq && c.Op != fleet.Ne && c.Op != fleet.Lt {
			return fmt.Errorf("condition on %q: unknown comparison %q", c.Attr, c.Op)
		}
		return checkOperands(c.Attr, c.Value)
	case fleet.In:
		if len(c.Values) == 0 || len(c.Values) > maxIn {
			return fmt.Errorf("condition on %q: one of %d values, must be 1 to %d", c.Attr, len(c.Values), maxIn)
		}
		return checkOperands(c.Attr, c.Values...)
	case fleet.And:
		return checkAll(c)
	case fleet.Or:
		return checkAll(c)
	}
	return fmt.Errorf("unknown condition %T", c)
}

func checkPresence(attr string) error {
	if attr == partitionAttribute {
		return nil // stands for the item itself
	}
	return checkName(attr)
}

func checkOperands(attr string, values ...fleet.Value) error {
	if err := checkName(attr); err != nil {
		return err
	}
	for _, v := range values {
		switch v.(type) {
		case int64, string:
		default:
			return fmt.Errorf("condition on %q: a %T is not compared, only int64 and string are", attr, v)
		}
	}
	return nil
}

func checkAll(conds []fleet.Cond) error {
	if len(conds) == 0 {
		return errors.New("a list of conditions is empty")
	}
	for _, c := range conds {
		if c == nil {
			return errors.New("a list of conditions has a nil one")
		}
		if err := checkCond(c); err != nil {
			return err
		}
	}
	return nil
}
