package table

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"testing"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/table/tabletest"
)

// caller does what the callers of a table do about its faults: a read is made again; a write too, with a token in it by which it knows
// its own success when the answer was lost, and that nobody else sees.
type caller struct {
	fleet.Table
	tokens atomic.Int64
}

const tokenName = "caller's token"

func failed(ctx context.Context, err error) bool {
	return (errors.Is(err, fleet.ErrThrottled) || errors.Is(err, fleet.ErrUnavailable)) && ctx.Err() == nil
}

func plain(it fleet.Item) fleet.Item {
	delete(it, tokenName)
	return it
}

func (c *caller) Get(ctx context.Context, key fleet.Key, consistent bool) (fleet.Item, error) {
	it, err := c.Table.Get(ctx, key, consistent)
	for failed(ctx, err) {
		it, err = c.Table.Get(ctx, key, consistent)
	}
	return plain(it), err
}

func (c *caller) Query(ctx context.Context, partition, prefix string, consistent bool) ([]fleet.Item, error) {
	items, err := c.Table.Query(ctx, partition, prefix, consistent)
	for failed(ctx, err) {
		items, err = c.Table.Query(ctx, partition, prefix, consistent)
	}
	for _, it := range items {
		plain(it)
	}
	return items, err
}

func (c *caller) Write(ctx context.Context, key fleet.Key, w fleet.Write) (fleet.Item, error) {
	token := fmt.Sprint(c.tokens.Add(1))
	w.Set = maps.Clone(w.Set)
	if w.Set == nil {
		w.Set = fleet.Item{}
	}
	w.Set[tokenName] = token
	var refused *fleet.ConditionError
	for {
		it, err := c.Table.Write(ctx, key, w)
		if failed(ctx, err) { // it may have landed all the same
			continue
		}
		if errors.As(err, &refused) {
			if refused.Item[tokenName] == token {
				return plain(refused.Item), nil
			}
			plain(refused.Item)
		}
		return plain(it), err
	}
}

// Delete leaves nothing to know its own success by but that what was there is gone.
func (c *caller) Delete(ctx context.Context, key fleet.Key, cond fleet.Cond) error {
	var refused *fleet.ConditionError
	was, err := c.Get(ctx, key, true)
	if err != nil {
		return err
	}
	for lost := false; ; {
		err := c.Table.Delete(ctx, key, cond)
		if lost && was != nil && errors.As(err, &refused) && refused.Item == nil {
			return nil
		}
		if !failed(ctx, err) {
			if errors.As(err, &refused) {
				plain(refused.Item)
			}
			return err
		}
		lost = lost || errors.Is(err, errLostReply)
	}
}

// A table that throttles and loses requests and replies keeps the contract for those who ask again as the ledger does. Unprocessed
// keys, which only batch requests have, do not occur: a sweep is queries, whose pages DynamoDB Local cuts small below.
func TestAFaultyTableKeepsTheContractForCallersWhoAskAgain(t *testing.T) {
	seed := uint64(0)
	var faults atomic.Int64
	tabletest.Run(t, func(*testing.T) fleet.Table {
		seed++
		draw := Chances{Throttle: 0.2, LoseRequest: 0.1, LoseReply: 0.2}.Hook(seed)
		return &caller{Table: &Faulty{Table: NewMemory(), Hook: func(ctx context.Context, r Request) Fault {
			if ctx.Err() != nil {
				return None // the request would not be sent
			}
			f := draw(ctx, r)
			if f != None {
				faults.Add(1)
			}
			return f
		}}}
	})
	if n := faults.Load(); n < 100 {
		t.Errorf("only %d faults", n)
	}
}

func TestDynamoDBKeepsTheContractWithSmallPages(t *testing.T) {
	tabletest.Run(t, func(t *testing.T) fleet.Table {
		d := made(t)
		d.perPage = 2
		return d
	})
}
