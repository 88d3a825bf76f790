package agent

import (
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
)

// scrape reads all metrics; names with their labels to values.
func scrape(t *testing.T, h http.Handler) map[string]float64 {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	out := map[string]float64{}
	for line := range strings.Lines(w.Body.String()) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil && !strings.HasPrefix(name, "#") {
			out[strings.TrimPrefix(name, "s3_pull_deploy_")] = v
		}
	}
	return out
}

func TestMetricsTellOfARollout(t *testing.T) {
	bubble(t, func(r *rig) {
		b := r.box("i-1", `hooks: {before_flip: 'test "$DEPLOY_RELEASE" = `+string(r1)+`'}`)
		var current atomic.Pointer[Agent]
		b.metrics = NewMetrics(current.Load)
		if n := scrape(t, b.metrics)["info"]; n != 0 {
			t.Errorf("info before there is an agent: %v", n)
		}
		b.boot()
		current.Store(b.agent)
		b.says("waiting for the first push", 5*time.Second, true)
		r.push(r1)
		r.live(r1, time.Minute, b)
		r.push(r2)
		r.until("abort", time.Minute, func() bool { return r.head().State == fleet.Abort })
		b.says("serving", 10*time.Second, true)
		if _, err := r.ledger().Freeze(t.Context(), r.head(), fleet.Freeze{By: "ann", Why: "sale"}); err != nil {
			t.Fatal(err)
		}
		b.says("frozen", 10*time.Second, true)
		got := scrape(t, b.metrics)
		for name, want := range map[string]float64{
			"healthy": 1, "ready": 1, "behind": 0, "isolated": 0, "epoch_open": 0, "frozen": 1, `problem{part="release"}`: 1, "head_epoch": 2, "serving_epoch": 1,
			`votes_total{vote="yes"}`: 1, `votes_total{vote="no"}`: 1, `flips_total{result="ok"}`: 1, `flips_total{result="failed"}`: 0,
			`settle_total{result="ok"}`: 1, `step_duration_seconds_count{result="ok",step="stage"}`: 1,
			`step_duration_seconds_count{result="failed",step="stage"}`:                                                   1,
			`info{group="default",instance="i-1",phase="serve",release="` + string(r1) + `",site="promo",version="test"}`: 1,
		} {
			if v, ok := got[name]; !ok || v != want {
				t.Errorf("%s is %v (there: %v), want %v", name, v, ok, want)
			}
		}
		for _, name := range []string{"pointer_read_timestamp_seconds", "table_answer_timestamp_seconds"} {
			if age := float64(time.Now().Unix()) - got[name]; age < -2 || age > 30 {
				t.Errorf("%s is %v s ago", name, age)
			}
		}
	})
}

func TestMetricsHaveOnePrefixAndHelp(t *testing.T) {
	w := httptest.NewRecorder()
	NewMetrics(func() *Agent { return nil }).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(w.Body.String(), -1) {
		if !regexp.MustCompile(`^(s3_pull_deploy|go|process)_`).MatchString(m[1]) {
			t.Errorf("metric %s", m[1])
		}
	}
}

func TestListenServesTheSameAsTheSocketOnThisMachineOnly(t *testing.T) {
	for listen, host := range map[string]string{":0": "127.0.0.1:", "127.0.0.1:0": "127.0.0.1:", "[::]:0": "[::]:"} {
		l, err := listenTCP(listen)
		if err != nil {
			t.Logf("%s: %v", listen, err) // a machine without IPv6
			continue
		}
		if got := l.Addr().String(); !strings.HasPrefix(got, host) {
			t.Errorf("%s listens on %s", listen, got)
		}
		l.Close()
	}
	l, err := listenTCP(":0")
	if err != nil {
		t.Fatal(err)
	}
	none := func() *Agent { return nil }
	stop := serveHTTP(l, statusHandler(none, NewMetrics(none), filepath.Join(t.TempDir(), "x")))
	for path, want := range map[string]string{"/metrics": "s3_pull_deploy_votes_total", "/health": "unhealthy", "/status": `"Line":"starting"`} {
		resp, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.Contains(string(body), want) {
			t.Errorf("%s: %.300s", path, body)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
