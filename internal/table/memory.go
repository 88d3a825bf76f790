package table

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"s3pulldeploy/internal/fleet"
)

// remembered is how many states of an item Memory keeps, the present one included.
const remembered = 8

// Memory is a [fleet.Table] in memory, for tests. Every operation takes effect at one instant, and no
// item is shared with a caller. It has no goroutines and no clock, so it works in testing/synctest.
//
// Reads give the present state, eventually consistent ones too; [Memory.Past] has older ones.
type Memory struct {
	mu         sync.Mutex
	partitions map[string]map[string][]fleet.Item // states by sort key, newest last; nil: no item
}

// NewMemory returns an empty table.
func NewMemory() *Memory {
	return &Memory{partitions: make(map[string]map[string][]fleet.Item)}
}

// Get implements [fleet.Table].
func (m *Memory) Get(ctx context.Context, key fleet.Key, _ bool) (fleet.Item, error) {
	return m.get(ctx, key, 0)
}

func (m *Memory) get(ctx context.Context, key fleet.Key, back int) (fleet.Item, error) {
	if err := cmp.Or(checkKey(key), ended(ctx)); err != nil {
		return nil, fmt.Errorf("read %s: %w", text(key), err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return clone(m.state(key, back)), nil
}

// Query implements [fleet.Table].
func (m *Memory) Query(ctx context.Context, partition, prefix string, _ bool) ([]fleet.Item, error) {
	return m.query(ctx, partition, prefix, 0)
}

func (m *Memory) query(ctx context.Context, partition, prefix string, back int) ([]fleet.Item, error) {
	if partition == "" {
		return nil, errors.New("read items: a query needs a partition")
	}
	if err := ended(ctx); err != nil {
		return nil, fmt.Errorf("read items %s/%s*: %w", partition, prefix, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var items []fleet.Item
	for _, sort := range slices.Sorted(maps.Keys(m.partitions[partition])) {
		if !strings.HasPrefix(sort, prefix) {
			continue
		}
		if it := m.state(fleet.Key{Partition: partition, Sort: sort}, back); it != nil {
			items = append(items, clone(it))
		}
	}
	return items, nil
}

// Write implements [fleet.Table].
func (m *Memory) Write(ctx context.Context, key fleet.Key, w fleet.Write) (fleet.Item, error) {
	if err := cmp.Or(checkWrite(key, w), ended(ctx)); err != nil {
		return nil, fmt.Errorf("write %s: %w", text(key), err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.state(key, 0)
	if !holds(w.If, old) {
		return nil, &fleet.ConditionError{Key: key, Item: clone(old)}
	}
	it := clone(old)
	if it == nil {
		it = fleet.Item{}
	}
	for name, v := range w.Set {
		it[name] = cloneValue(v)
	}
	for _, name := range w.Remove {
		delete(it, name)
	}
	m.put(key, it)
	return clone(it), nil
}

// Delete implements [fleet.Table].
func (m *Memory) Delete(ctx context.Context, key fleet.Key, cond fleet.Cond) error {
	if err := cmp.Or(checkKey(key), checkCond(cond), ended(ctx)); err != nil {
		return fmt.Errorf("delete %s: %w", text(key), err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.state(key, 0)
	if cond != nil && (old == nil || !holds(cond, old)) {
		return &fleet.ConditionError{Key: key, Item: clone(old)}
	}
	if old != nil {
		m.put(key, nil)
	}
	return nil
}

// Drop forgets an item with all its history, as when its time to live is over. Nobody's [Memory.Past] has it any more.
func (m *Memory) Drop(key fleet.Key) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.partitions[key.Partition], key.Sort)
}

// Past returns the same table with eventually consistent reads that lag: each item as it stood the
// given number of changes ago, or as far back as is remembered (seven). Everything else is the present.
func (m *Memory) Past(changes int) fleet.Table { return past{m, changes} }

type past struct {
	*Memory
	back int
}

func (p past) Get(ctx context.Context, key fleet.Key, consistent bool) (fleet.Item, error) {
	if consistent {
		return p.Memory.Get(ctx, key, true)
	}
	return p.get(ctx, key, p.back)
}

func (p past) Query(ctx context.Context, partition, prefix string, consistent bool) ([]fleet.Item, error) {
	if consistent {
		return p.Memory.Query(ctx, partition, prefix, true)
	}
	return p.query(ctx, partition, prefix, p.back)
}

// state is an item as it stood so many changes back; nil when there was none. Callers hold the lock and
// copy what they give away.
func (m *Memory) state(key fleet.Key, back int) fleet.Item {
	states := m.partitions[key.Partition][key.Sort]
	if len(states) == 0 {
		return nil
	}
	return states[max(0, len(states)-1-back)]
}

// put makes it the item's present state. The first state of every item is that there was none.
func (m *Memory) put(key fleet.Key, it fleet.Item) {
	p := m.partitions[key.Partition]
	if p == nil {
		p = make(map[string][]fleet.Item)
		m.partitions[key.Partition] = p
	}
	states := p[key.Sort]
	if states == nil {
		states = []fleet.Item{nil}
	}
	states = append(states, it)
	if len(states) > remembered {
		states = slices.Delete(states, 0, 1)
	}
	p[key.Sort] = states
}

// holds evaluates a condition that checkCond has passed; it is nil where there is no item.
func holds(c fleet.Cond, it fleet.Item) bool {
	switch c := c.(type) {
	case nil:
		return true
	case fleet.Exists:
		return has(it, c.Attr)
	case fleet.Absent:
		return !has(it, c.Attr)
	case fleet.Compare:
		return compare(it[c.Attr], c.Op, c.Value)
	case fleet.In:
		return slices.ContainsFunc(c.Values, func(v fleet.Value) bool { return compare(it[c.Attr], fleet.Eq, v) })
	case fleet.And:
		return !slices.ContainsFunc(c, func(part fleet.Cond) bool { return !holds(part, it) })
	case fleet.Or:
		return slices.ContainsFunc(c, func(part fleet.Cond) bool { return holds(part, it) })
	}
	panic("table: unchecked condition")
}

func has(it fleet.Item, attr string) bool {
	if attr == partitionAttribute {
		return it != nil
	}
	_, ok := it[attr]
	return ok
}

// compare is false where the types differ, and so where there is no attribute.
func compare(have fleet.Value, op fleet.Op, want fleet.Value) bool {
	switch want := want.(type) {
	case int64:
		have, ok := have.(int64)
		return ok && ordered(have, op, want)
	case string:
		have, ok := have.(string)
		return ok && ordered(have, op, want)
	}
	return false
}

func ordered[T int64 | string](have T, op fleet.Op, want T) bool {
	switch op {
	case fleet.Eq:
		return have == want
	case fleet.Ne:
		return have != want
	default:
		return have < want
	}
}

func clone(it fleet.Item) fleet.Item {
	if it == nil {
		return nil
	}
	c := make(fleet.Item, len(it))
	for name, v := range it {
		c[name] = cloneValue(v)
	}
	return c
}

// cloneValue copies a value as a table gives it back: what is nil comes back empty.
func cloneValue(v fleet.Value) fleet.Value {
	switch v := v.(type) {
	case []byte:
		return append([]byte{}, v...)
	case []fleet.Value:
		l := make([]fleet.Value, len(v))
		for i, e := range v {
			l[i] = cloneValue(e)
		}
		return l
	case fleet.Item:
		if v == nil {
			return fleet.Item{}
		}
		return clone(v)
	}
	return v
}
