package benchfleet

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/testenv"
)

// hoursAMonth is what AWS calls a month.
const hoursAMonth = 730

// getDollars is a GET of S3, in us-east-1.
const getDollars = 0.0004 / 1000

// idleness is what one idle instance asks in an hour, at the default settings.
type idleness struct {
	units units
	s3    int
}

// dollars is a month of it.
func (i idleness) dollars() float64 {
	return hoursAMonth * (i.units.dollars() + float64(i.s3)*getDollars)
}

// idleHour counts the requests of a real agent in an hour in which nothing happens.
func idleHour(t *testing.T) (i idleness) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		m := newMeter()
		b := &bucket{releases: map[release.ID]map[string]string{}}
		b.publish("r1", time.Now().Unix())
		ctx, stop := context.WithCancel(context.Background())
		a, d := recruit(dir, "i-0123456789abcdef0", "", b, m, bubbleClock{time.Now()})
		ended := make(chan error)
		go func() { ended <- a.Run(ctx) }()
		time.Sleep(5 * time.Minute)
		if s := a.Status(); !s.Ready || s.Flipped.Release != "r1" {
			t.Fatalf("after five minutes: %s", s.Line)
		}
		m.reset()
		b.mu.Lock()
		b.reads = 0
		b.mu.Unlock()
		time.Sleep(time.Hour)
		i.units, _, _, _ = m.counted()
		b.mu.Lock()
		i.s3 = b.reads
		b.mu.Unlock()
		stop()
		must(<-ended)
		must(d.Close())
	})
	t.Logf("idle hour: %+v, %d reads of the pointer: $%.3f a month", i.units, i.s3, i.dollars())
	return i
}

func TestAnIdleInstanceCostsLessThanTenCents(t *testing.T) {
	if i := idleHour(t); i.dollars() >= 0.10 || i.s3 < 100 || i.units.writes < 55 {
		t.Errorf("%+v, $%.3f a month: want under $0.10 for a beat a minute, the head each 5 s and the pointer each 30 s", i, i.dollars())
	}
}

// rest is an idle agent's memory and processor time, of the real binary.
type rest struct {
	rss float64 // MiB
	cpu float64 // share of one processor
}

// atRest runs the built agent for so long after it has come up and waits for its first push.
func atRest(t *testing.T, long time.Duration) (r rest) {
	t.Helper()
	s3, endpoint, bin := testenv.S3(t), testenv.DynamoDB(t), testenv.Bin(t, "agent")
	dir, run := t.TempDir(), t.TempDir()
	name, bucket := testenv.Name(t), s3.NewBucket(t)
	text := fmt.Sprintf("site: promo\nbucket: %s\nregion: us-east-1\ntable: %s\nendpoints: {s3: %q, dynamodb: %q}\nroot: %s/www\nstate_dir: %s/state\ninstance_id: i-1\n",
		bucket, name, s3.Endpoint, endpoint, dir, dir)
	file := filepath.Join(dir, "agent.yml")
	must(os.WriteFile(file, []byte(text), 0o600))
	s := newTable(t, name, bucket+"/promo")
	cmd := exec.Command(bin, "-config", file)
	cmd.Env = append(s3.Env(), "RUNTIME_DIRECTORY="+run)
	must(cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		if rows, err := s.Members(t.Context()); err == nil && len(rows) == 1 && rows[0].Phase == "serve" {
			break
		}
		if time.Since(began) > time.Minute {
			t.Fatal("the agent does not come up")
		}
	}
	before := ticks(cmd.Process.Pid)
	time.Sleep(long)
	r.cpu = float64(ticks(cmd.Process.Pid)-before) / 100 / long.Seconds()
	r.rss = resident(cmd.Process.Pid)
	t.Logf("idle agent: %.1f MiB resident, %.2f %% of a processor over %v", r.rss, 100*r.cpu, long)
	return r
}

// ticks is the processor time of a process, in hundredths of a second.
func ticks(pid int) (n int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	must(err)
	_, rest, _ := strings.Cut(string(text), ") ")
	for _, f := range strings.Fields(rest)[11:13] { // utime, stime
		v, err := strconv.Atoi(f)
		must(err)
		n += v
	}
	return n
}

// resident is the memory of a process, in MiB.
func resident(pid int) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			kb, err := strconv.Atoi(f[1])
			must(err)
			return float64(kb) / 1024
		}
	}
	panic("no VmRSS in /proc")
}

func TestAnIdleAgentIsSmall(t *testing.T) {
	if r := atRest(t, 3*time.Second); r.rss >= 30 || r.cpu > 0.05 {
		t.Errorf("%.1f MiB and %.1f %% of a processor; want under 30 MiB and next to nothing", r.rss, 100*r.cpu)
	}
}
