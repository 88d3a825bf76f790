package benchfleet

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/table"
)

// What one partition key of a DynamoDB table gives, in units a second: from its developer guide, "Best practices for
// designing and using partition keys effectively". A unit reads 4 KB strongly consistent, 8 KB eventually, or writes 1 KB.
const (
	mostReads  = 3000
	mostWrites = 1000
)

// units is a number of read and write units.
type units struct{ reads, writes float64 }

// dollars is what they cost on demand in us-east-1: $0.125 a million reads, $0.625 a million writes.
func (u units) dollars() float64 { return (u.reads*0.125 + u.writes*0.625) / 1e6 }

// meter is a table in memory that takes as long as DynamoDB and counts the units of each key in each second.
type meter struct {
	*table.Memory
	mu       sync.Mutex
	hidden   atomic.Bool // sweeps see nothing: a fleet is being set up
	began    time.Time
	total    units
	requests int
	perKey   map[second]units
}

// second is one second of one partition key.
type second struct {
	key string
	at  int64
}

func newMeter() *meter {
	return &meter{Memory: table.NewMemory(), began: time.Now(), perKey: map[second]units{}}
}

// latency is how long DynamoDB takes for a small request, and what each further 100 KB of an answer adds.
const (
	latency = 5 * time.Millisecond
	perKB   = 100 * time.Microsecond
)

func (m *meter) count(key string, u units) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := second{key, int64(time.Since(m.began) / time.Second)}
	sum := m.perKey[at]
	m.perKey[at] = units{sum.reads + u.reads, sum.writes + u.writes}
	m.total = units{m.total.reads + u.reads, m.total.writes + u.writes}
	m.requests++
}

// reset begins to count anew.
func (m *meter) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total, m.requests, m.perKey = units{}, 0, map[second]units{}
}

// counted is what was counted since the last reset: the sum, and the busiest second of any key.
func (m *meter) counted() (total units, requests int, busiest units, keys [2]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for at, u := range m.perKey {
		if u.reads > busiest.reads {
			busiest.reads, keys[0] = u.reads, at.key
		}
		if u.writes > busiest.writes {
			busiest.writes, keys[1] = u.writes, at.key
		}
	}
	return m.total, m.requests, busiest, keys
}

func ceil(n, unit int) float64 { return float64(max(1, (n+unit-1)/unit)) }

func readUnits(size int, consistent bool) float64 {
	u := ceil(size, 4096)
	if !consistent {
		u /= 2
	}
	return u
}

// Get implements fleet.Table.
func (m *meter) Get(ctx context.Context, k fleet.Key, consistent bool) (fleet.Item, error) {
	time.Sleep(latency)
	it, err := m.Memory.Get(ctx, k, consistent)
	m.count(k.Partition, units{reads: readUnits(sizeOf(it), consistent)})
	return it, err
}

// Query implements fleet.Table.
func (m *meter) Query(ctx context.Context, p, prefix string, consistent bool) ([]fleet.Item, error) {
	if m.hidden.Load() {
		return nil, nil
	}
	items, err := m.Memory.Query(ctx, p, prefix, consistent)
	size := 0
	for _, it := range items {
		size += sizeOf(it)
	}
	time.Sleep(latency + time.Duration(size/1024)*perKB)
	m.count(p, units{reads: readUnits(size, consistent)})
	return items, err
}

// Write implements fleet.Table. A write that is refused costs as much.
func (m *meter) Write(ctx context.Context, k fleet.Key, w fleet.Write) (fleet.Item, error) {
	time.Sleep(latency)
	it, err := m.Memory.Write(ctx, k, w)
	m.count(k.Partition, units{writes: ceil(sizeOf(it), 1024)})
	return it, err
}

// Delete implements fleet.Table.
func (m *meter) Delete(ctx context.Context, k fleet.Key, c fleet.Cond) error {
	time.Sleep(latency)
	m.count(k.Partition, units{writes: 1})
	return m.Memory.Delete(ctx, k, c)
}

// sizeOf is an item's size as DynamoDB counts it, with 40 bytes for its key: names and texts in bytes, numbers about a byte
// for two digits, 3 bytes for each list and map and one for each element.
func sizeOf(it fleet.Item) int {
	if it == nil {
		return 0
	}
	n := 40
	for name, v := range it {
		n += len(name) + valueSize(v)
	}
	return n
}

func valueSize(v fleet.Value) int {
	switch v := v.(type) {
	case int64:
		return len(fmt.Sprint(v))/2 + 2
	case string:
		return len(v)
	case []byte:
		return len(v)
	case []fleet.Value:
		n := 3
		for e := range slices.Values(v) {
			n += 1 + valueSize(e)
		}
		return n
	case fleet.Item:
		n := 3
		for name, e := range v {
			n += 1 + len(name) + valueSize(e)
		}
		return n
	}
	return 1
}
