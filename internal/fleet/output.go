package fleet

import (
	"context"
	"strings"
	"time"

	"s3pulldeploy/internal/release"
)

// outputSize is the most that is kept of what a hook printed.
const outputSize = 4 << 10

// outputTTL is how long it is kept.
const outputTTL = 7 * 24 * time.Hour

// Output is the end of what a hook printed that failed on an instance: for people, the newest one of each instance. It is an item
// of its own, (scope, "output#"+instance), so that rows stay small.
type Output struct {
	Instance, Hook string
	Release        release.ID
	Text           string
	At             int64 // Unix seconds by the instance's clock
}

func outputSort(instance string) string { return "output#" + instance }

// PutOutput stores an output; what is longer than 4 KB loses its beginning.
func (l *Ledger) PutOutput(ctx context.Context, o Output, now time.Time) error {
	text := strings.ToValidUTF8(o.Text[max(0, len(o.Text)-outputSize):], "")
	_, err := l.write(ctx, Key{l.scope, outputSort(o.Instance)}, Write{Set: Item{
		"instance": o.Instance, "hook": o.Hook, "release": string(o.Release), "text": text,
		"at": now.Unix(), "ttl": now.Add(outputTTL).Unix(), "schema": int64(Schema),
	}})
	return wrap("put hook output", err)
}

// Output reads an instance's newest output; nil without an error when there is none.
func (l *Ledger) Output(ctx context.Context, instance string) (*Output, error) {
	it, err := l.table.Get(ctx, Key{l.scope, outputSort(instance)}, true)
	if err != nil || it == nil {
		return nil, wrap("read hook output", err)
	}
	d := decoder{item: it, what: "hook output"}
	o := Output{
		Instance: d.str("instance"), Hook: d.str("hook"), Release: release.ID(d.str("release")), Text: d.str("text"), At: d.num("at"),
	}
	return &o, wrap("read hook output", d.err)
}
