package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/instance"
	"s3pulldeploy/internal/release"
)

func TestMachineThatIsToGoLeavesAtOnceAndNobodyWaitsForIt(t *testing.T) {
	bubble(t, func(r *rig) {
		boxes := r.boot("i-1", "i-2")
		goes := r.box("i-3")
		var notice atomic.Bool
		goes.lifecycle = func(context.Context) (instance.Lifecycle, error) {
			if notice.Load() {
				return instance.Lifecycle{Going: true, Reason: "spot notice: terminate"}, nil
			}
			return instance.Lifecycle{}, errors.New("the metadata service does not answer")
		}
		goes.boot()
		boxes[0].says("waiting for the first push", 5*time.Second, true)
		r.push(r1)
		r.live(r1, time.Minute, append(boxes, goes)...)
		notice.Store(true)
		r.until("row removed", 10*time.Second, func() bool { _, ok := r.row("i-3"); return !ok })
		if err := goes.wait(); !errors.Is(err, ErrAway) {
			t.Errorf("ended with %v, want ErrAway", err)
		}
		if s := goes.agent.Status(); !s.Healthy || s.Line != "left the fleet: spot notice: terminate" || goes.active() != r1 {
			t.Errorf("it serves %q and says %+v", goes.active(), s)
		}
		r.push(r2)
		if took := r.live(r2, time.Minute, boxes...); took > fleet.Lease/2 {
			t.Errorf("the next rollout took %v: somebody waited", took)
		}
	})
}

// ec2 is a metadata service and an Auto Scaling endpoint in one.
type ec2 struct {
	*httptest.Server
	mu     sync.Mutex
	state  string
	ill    int // questions for the state that are refused from now on
	called chan string
}

func newEC2(t *testing.T, state string) *ec2 {
	e := &ec2{state: state, called: make(chan string, 100)}
	e.Server = httptest.NewServer(e)
	t.Cleanup(e.Close)
	return e
}

func (e *ec2) become(state string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.state = state
}

func (e *ec2) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch strings.TrimPrefix(r.URL.Path, "/latest/meta-data/") {
	case "/latest/api/token":
		w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "60")
		fmt.Fprint(w, "token")
	case "autoscaling/target-lifecycle-state":
		if e.ill > 0 {
			e.ill--
			http.Error(w, "", http.StatusForbidden) // not tried again within a look
			return
		}
		fmt.Fprint(w, e.state)
	case "instance-id":
		fmt.Fprint(w, "i-0123456789abcdef0")
	case "tags/instance/aws:autoscaling:groupName":
		fmt.Fprint(w, "promo-web")
	case "/":
		action := r.FormValue("Action")
		e.called <- action
		fmt.Fprintf(w, "<%sResponse><%[1]sResult/></%[1]sResponse>", action)
	default:
		http.NotFound(w, r)
	}
}

func (e *ec2) lifecycle() lifecycle {
	return lifecycle{
		cfg: &config.Config{LifecycleHook: "launch", Endpoints: config.Endpoints{IMDS: e.URL, AutoScaling: e.URL}},
		aws: aws.Config{Region: "eu-central-1", Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "a", SecretAccessKey: "b"}, nil
		})},
		onEC2: true, every: 5 * time.Millisecond, over: &atomic.Bool{}, log: logger(),
	}
}

// expect waits for a call to Auto Scaling, over any number of others.
func (e *ec2) expect(t *testing.T, action string) {
	t.Helper()
	for {
		select {
		case got := <-e.called:
			if got == action {
				return
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("no %s", action)
		}
	}
}

func TestWarmPoolTakesTheMachineAndItJoinsWhenItComesOut(t *testing.T) {
	e := newEC2(t, "Warmed:Running")
	l, s := e.lifecycle(), &service{}
	done := make(chan error, 1)
	go func() { done <- l.await(t.Context(), s, false) }()
	e.expect(t, "CompleteLifecycleAction") // into the pool
	select {
	case err := <-done:
		t.Fatalf("it joins from the pool: %v", err)
	default:
	}
	if err := l.await(t.Context(), s, true); !errors.Is(err, ErrAway) || !errors.Is(err, ErrOnce) {
		t.Errorf("a single pass in the pool: %v", err)
	}
	e.become("InService")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	announced, end := l.launch(t.Context(), s)
	e.expect(t, "RecordLifecycleActionHeartbeat")
	s.active = func() release.ID { return r1 }
	announced.Ready()
	announced.Ready()                      // a second time changes nothing
	e.expect(t, "CompleteLifecycleAction") // into service
	for !l.over.Load() {
		if t.Context().Err() != nil {
			t.Fatal("the launch does not end")
		}
		time.Sleep(time.Millisecond)
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	if got, _ := l.launch(t.Context(), s); len(s.ready) != 2 || got != Service(s) {
		t.Errorf("the service heard %d times that it is ready, and the next life launches again: %v", len(s.ready), got != Service(s))
	}
}

func TestMachineInAWarmPoolStaysThereWhileNobodyAnswers(t *testing.T) {
	e := newEC2(t, "Warmed:Stopped")
	l := e.lifecycle()
	for _, c := range []struct{ refused, left int }{{silentLooks, 0}, {10 * silentLooks, 9*silentLooks - 1}} {
		done := make(chan error, 1)
		go func() { done <- l.await(t.Context(), &service{}, false) }()
		e.expect(t, "CompleteLifecycleAction") // it is in the pool
		e.mu.Lock()
		e.state, e.ill = "InService", c.refused
		e.mu.Unlock()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		e.mu.Lock()
		if e.ill != c.left {
			t.Errorf("it joined with %d of %d refusals left, want %d", e.ill, c.refused, c.left)
		}
		e.state, e.ill = "Warmed:Stopped", 0
		e.mu.Unlock()
	}
}

func TestNothingIsAskedWhereThereIsNoMetadataService(t *testing.T) {
	l := lifecycle{cfg: &config.Config{LifecycleHook: "launch"}, over: &atomic.Bool{}, log: logger()}
	if err := l.await(t.Context(), &service{}, false); err != nil || l.watched() != nil {
		t.Errorf("%v, watched %v", err, l.watched() != nil)
	}
	s := &service{}
	if got, end := l.launch(t.Context(), s); got != Service(s) || end() != nil {
		t.Error("it is launched")
	}
}
