package agent

import (
	"context"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/notify"
	"s3pulldeploy/internal/release"
)

// Notifier tells people how an epoch ended; package notify has the real one. Send is bounded.
type Notifier interface {
	Send(ctx context.Context, o notify.Outcome) error
}

// tell has people told of an epoch whose log this node wrote. Nothing waits for it but the end of [Agent.Run]: the fresh context
// lets an agent that is told to stop right after a rollout still say how that went.
func (a *Agent) tell(l fleet.Log, p release.Pointer) {
	if a.p.Notifier == nil {
		return
	}
	o := outcome(l, p)
	o.Site, o.Instance = a.p.Config.Site, a.p.Identity.ID
	a.jobs.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), notify.Patience)
		defer cancel()
		if err := a.p.Notifier.Send(ctx, o); err != nil {
			a.log.Warn("not everybody was told of the outcome", "epoch", o.Epoch, "outcome", o.Outcome, "error", err)
		}
	})
}

// outcome is an epoch's log in the words of a notification. The sequence of a push is its time, so what passed since is how
// long it took; an epoch that the fleet began by itself has an older release's sequence, and no such time.
func outcome(l fleet.Log, p release.Pointer) notify.Outcome {
	o := notify.Outcome{
		Epoch: l.Epoch, Outcome: l.Outcome, Kind: l.Kind, Release: string(l.Release), Members: int(l.Members),
		Excluded: l.Excluded, Nos: l.Nos, Reason: l.Reason, Author: p.Author, Commit: p.Commit, Message: p.Message,
	}
	if l.Outcome == string(fleet.Abort) {
		o.Outcome = notify.Aborted
	}
	if o.Kind == "" {
		o.Kind = "deploy"
	}
	if took := time.Duration(l.At-l.Sequence) * time.Second; took > 0 && took < 24*time.Hour && p.Release == l.Release && p.Kind == l.Kind {
		o.Took = took
	}
	return o
}
