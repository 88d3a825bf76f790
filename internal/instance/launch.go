package instance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/smithy-go"
)

// What a launch takes. The shortest heartbeat timeout that Auto Scaling allows is 30 s, and a hook's own cannot be read without
// another permission.
const (
	heartbeatEvery = 15 * time.Second
	// launchTime is how long heartbeats go out. A machine that does not serve by then never will: the group does with it what the
	// hook's default result says.
	launchTime = time.Hour
	// settling is how long after it serves a machine may have no action to complete: it may be quicker than Auto Scaling, which
	// begins to wait some seconds after the start. Most have none because their agent only restarted.
	settling = 2 * time.Minute
)

var (
	// ErrNoGroup: the machine does not say which group it is in.
	ErrNoGroup = errors.New("the instance's tags do not name its Auto Scaling Group: it is in none, or instance_metadata_tags is not enabled in the launch template")
	// errNoAction: Auto Scaling does not wait for this machine.
	errNoAction = errors.New("no lifecycle action waits for this instance")
)

// LaunchOptions is which launch hook to serve.
type LaunchOptions struct {
	AWS      aws.Config
	Endpoint string // of Auto Scaling; empty: AWS
	IMDS     string // empty: the instance's own
	Hook     string // name of the lifecycle hook
	Log      *slog.Logger
}

// Launch is this machine's wait in its group's launch hook.
type Launch struct {
	o                     LaunchOptions
	client                *autoscaling.Client
	every, long, settling time.Duration
	group, instance       string // EC2's id of this machine; both empty until they are known
	said                  string // the last trouble that was logged
}

// NewLaunch wires a launch. It makes no request.
func NewLaunch(o LaunchOptions) *Launch {
	return &Launch{
		o: o, every: heartbeatEvery, long: launchTime, settling: settling,
		client: autoscaling.NewFromConfig(o.AWS, func(a *autoscaling.Options) {
			if o.Endpoint != "" {
				a.BaseEndpoint = aws.String(o.Endpoint)
			}
		}),
	}
}

// Run sends heartbeats until served is closed, and then completes the launch, so that the group takes the machine into service.
// Whatever fails is logged when it changes, and tried again at the next beat. It ends with the launch, when the group
// turns out not to wait for this machine, or with the context; its error is the context's cause, or that the machine did not serve in
// time, or could not say so.
func (l *Launch) Run(ctx context.Context, served <-chan struct{}) error {
	tick := time.NewTicker(l.every)
	defer tick.Stop()
	late := time.NewTimer(l.long)
	defer late.Stop()
	for waiting := true; waiting; {
		if err := l.heartbeat(ctx); !errors.Is(err, errNoAction) {
			l.trouble("launch hook: no heartbeat", err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late.C:
			select {
			case <-served: // at the last moment: one try
				waiting = false
				late.Reset(0)
			default:
				return fmt.Errorf("launch hook %s: does not serve after %v, no more heartbeats: Auto Scaling decides", l.o.Hook, l.long)
			}
		case <-served:
			waiting = false
		case <-tick.C:
		}
	}
	return l.finish(ctx, tick.C, late.C)
}

// finish completes the launch, as often as it takes.
func (l *Launch) finish(ctx context.Context, tick, late <-chan time.Time) error {
	settled := time.NewTimer(l.settling)
	defer settled.Stop()
	for {
		err := l.complete(ctx)
		var enough <-chan time.Time // after an error nobody knows what Auto Scaling waits for
		switch {
		case err == nil:
			l.o.Log.Info("launch completed", "hook", l.o.Hook, "group", l.group)
			return nil
		case errors.Is(err, errNoAction):
			enough = settled.C
		default:
			l.trouble("launch hook: not completed", err)
			settled.Reset(l.settling)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late:
			return fmt.Errorf("launch hook %s: not completed: %w", l.o.Hook, err)
		case <-enough:
			l.o.Log.Info("launch needs no completing", "hook", l.o.Hook)
			return nil
		case <-tick:
		}
	}
}

// trouble logs what is wrong, on change.
func (l *Launch) trouble(what string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != "" && text != l.said {
		l.o.Log.Warn(what, "hook", l.o.Hook, "error", err)
	}
	l.said = text
}

func (l *Launch) heartbeat(ctx context.Context) error {
	if err := l.find(ctx); err != nil {
		return err
	}
	_, err := l.client.RecordLifecycleActionHeartbeat(ctx, &autoscaling.RecordLifecycleActionHeartbeatInput{
		AutoScalingGroupName: &l.group, LifecycleHookName: &l.o.Hook, InstanceId: &l.instance,
	})
	return launchError("record heartbeat", err)
}

func (l *Launch) complete(ctx context.Context) error {
	if err := l.find(ctx); err != nil {
		return err
	}
	_, err := l.client.CompleteLifecycleAction(ctx, &autoscaling.CompleteLifecycleActionInput{
		AutoScalingGroupName: &l.group, LifecycleHookName: &l.o.Hook, InstanceId: &l.instance,
		LifecycleActionResult: aws.String("CONTINUE"),
	})
	return launchError("complete lifecycle action", err)
}

// Try sends one heartbeat. That no launch waits for this machine is fine: then it was allowed to ask.
func (l *Launch) Try(ctx context.Context) error {
	if err := l.heartbeat(ctx); !errors.Is(err, errNoAction) {
		return err
	}
	return nil
}

// find reads, once, which machine of which group this is.
func (l *Launch) find(ctx context.Context) error {
	if l.group != "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m := newMetadata(l.o.IMDS)
	id, err := m.get(ctx, "instance-id")
	if err != nil {
		return err
	}
	group, err := m.get(ctx, "tags/instance/aws:autoscaling:groupName")
	if err == nil && group == "" {
		err = ErrNoGroup
	}
	l.instance, l.group = id, group
	return err
}

// launchError is an SDK's error without the layers that it went through. That there is no action has no code of its own.
func launchError(what string, err error) error {
	if err == nil {
		return nil
	}
	var api smithy.APIError
	if !errors.As(err, &api) {
		return fmt.Errorf("%s: %w", what, err)
	}
	if api.ErrorCode() == "ValidationError" && strings.Contains(strings.ToLower(api.ErrorMessage()), "no active lifecycle action") {
		return errNoAction
	}
	return fmt.Errorf("%s: %s: %s", what, api.ErrorCode(), api.ErrorMessage())
}
