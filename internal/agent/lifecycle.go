package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/instance"
)

// lookEvery is how often the metadata service is asked what becomes of the machine: what AWS recommends for spot notices, which
// come two minutes before the end.
const lookEvery = 5 * time.Second

// silentLooks is how many looks in a row may go unanswered before a machine that was away is taken for one that stays: a minute.
const silentLooks = 12

// ErrAway: the machine is about to go, or in a warm pool, and is no member of the fleet.
var ErrAway = errors.New("not in the fleet")

// onEC2 says that a metadata service answers here, or ought to. Elsewhere each question would cost a second of silence.
func onEC2(id instance.Identity) bool { return id.Source == instance.SourceEC2 || id.Zone != "" }

// watchLifecycle has the loop told when the machine is to leave. A metadata service that does not answer changes nothing.
func (a *Agent) watchLifecycle(ctx context.Context, t *triggers) error {
	look := a.p.Lifecycle
	if look == nil || a.p.Once {
		return nil
	}
	_, err := t.Every(lookEvery, true, func() {
		if l, err := look(ctx); err == nil && l.Away() {
			a.post(func() { a.away = l })
		}
	})
	return err
}

// goAway leaves the fleet at once: it waits no lease for a machine that said that it goes. What is served stays, and so does what
// the load balancer is told.
func (a *Agent) goAway() error {
	a.log.Warn("leaving the fleet", "reason", a.away.Reason, "warm_pool", a.away.Warm)
	err := a.leave(true)
	a.mu.Lock()
	a.view.Line = "left the fleet: " + a.away.Reason
	a.mu.Unlock()
	return errors.Join(fmt.Errorf("%w: %s", ErrAway, a.away.Reason), err)
}

// lifecycle is what EC2 does with the machine, before, during and after an agent's life.
type lifecycle struct {
	cfg   *config.Config
	aws   aws.Config
	onEC2 bool
	every time.Duration // lookEvery
	over  *atomic.Bool  // the machine's launch is over: outlives this life
	log   *slog.Logger
}

func (l lifecycle) look(ctx context.Context) (instance.Lifecycle, error) {
	return instance.Look(ctx, l.cfg.Endpoints.IMDS)
}

// watched is [Parts].Lifecycle.
func (l lifecycle) watched() func(context.Context) (instance.Lifecycle, error) {
	if !l.onEC2 {
		return nil
	}
	return l.look
}

// await waits until the machine is to be a member. One that enters a warm pool does not serve there, so its launch is completed at
// once: the pool takes it, and the hook comes again when it leaves the pool. A single pass does not wait. A metadata service that does
// not answer changes nothing: who was never said to be away joins, and who was waits on.
func (l lifecycle) await(ctx context.Context, service Service, once bool) error {
	if !l.onEC2 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	var pool sync.WaitGroup
	defer pool.Wait()
	defer cancel()
	tick := time.NewTicker(l.every)
	defer tick.Stop()
	said, completing, silent := "", false, 0
	for {
		now, err := l.look(ctx)
		if err != nil {
			silent++
		} else {
			silent = 0
		}
		switch {
		case err == nil && !now.Away(), err != nil && (said == "" || silent > silentLooks):
			return nil
		case once:
			return fmt.Errorf("%w: %w: %s", ErrOnce, ErrAway, now.Reason)
		}
		if err == nil && now.Reason != said {
			said = now.Reason
			l.log.Info("not in the fleet", "reason", said)
			service.Status("not in the fleet: " + said)
		}
		l.over.Store(false) // leaving a pool is another launch
		if now.Warm && l.cfg.LifecycleHook != "" && !completing {
			completing = true
			serves := make(chan struct{})
			close(serves)
			pool.Go(func() { l.run(ctx, serves) })
		}
		service.Watchdog()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

// launch has the group take the machine into service when the agent says that it is ready. It returns the service to say that to,
// and what ends the wait.
func (l lifecycle) launch(ctx context.Context, s Service) (Service, func() error) {
	if !l.onEC2 || l.cfg.LifecycleHook == "" || l.over.Load() {
		return s, func() error { return nil }
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &announced{Service: s, serves: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() { l.over.Store(l.run(ctx, r.serves)) })
	return r, func() error { cancel(); wg.Wait(); return nil }
}

// run is one launch; false says that it was ended before its end.
func (l lifecycle) run(ctx context.Context, serves <-chan struct{}) bool {
	err := instance.NewLaunch(instance.LaunchOptions{
		AWS: l.aws, Endpoint: l.cfg.Endpoints.AutoScaling, IMDS: l.cfg.Endpoints.IMDS, Hook: l.cfg.LifecycleHook,
		Log: l.log.With("component", "launch"),
	}).Run(ctx, serves)
	if err != nil && ctx.Err() != nil {
		return false
	}
	if err != nil {
		l.log.Error("launch", "error", err)
	}
	return true
}

// announced is a service that others hear of too when the machine may serve.
type announced struct {
	Service
	once   sync.Once
	serves chan struct{}
}

func (a *announced) Ready() {
	a.Service.Ready()
	a.once.Do(func() { close(a.serves) })
}
