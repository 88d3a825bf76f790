package agent

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/store"
	"s3pulldeploy/internal/table"
)

// namespace begins the name of each of our metrics.
const namespace = "s3_pull_deploy"

// scrapeTime bounds what a scrape asks PHP.
const scrapeTime = 2 * time.Second

// Metrics are an agent's numbers for Prometheus, over all lives of one process. Counters count from its start; all else is read when
// it is asked for. A nil *Metrics counts nothing.
type Metrics struct {
	current func() *Agent
	all     *prometheus.Registry
	steps   *prometheus.HistogramVec
	votes   *prometheus.CounterVec
	flips   *prometheus.CounterVec
	checks  *prometheus.CounterVec
}

// NewMetrics wires the metrics of whichever agent current returns; nil while there is none.
func NewMetrics(current func() *Agent) *Metrics {
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, []string{label})
	}
	m := &Metrics{
		current: current, all: prometheus.NewRegistry(),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Name: "step_duration_seconds",
			Help:    "Steps of rollouts on this instance: inspect, stage (download to warm-up), flip, settle (PHP, after_flip, health check), fleet_once.",
			Buckets: []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800},
		}, []string{"step", "result"}),
		votes:  counter("votes_total", "Votes of this instance.", "vote"),
		flips:  counter("flips_total", "Flips of the active link.", "result"),
		checks: counter("settle_total", "Looks at what PHP serves after a flip, the health check among them; failures are repeated.", "result"),
	}
	for _, vote := range []string{"yes", "no"} { // there from the start, so that a rate can be taken of the first
		m.votes.WithLabelValues(vote)
	}
	for _, result := range []string{"ok", "failed"} {
		m.flips.WithLabelValues(result)
		m.checks.WithLabelValues(result)
	}
	m.all.MustRegister(m.steps, m.votes, m.flips, m.checks, live{m},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// ServeHTTP answers a scrape.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	promhttp.HandlerFor(m.all, promhttp.HandlerOpts{MaxRequestsInFlight: 4}).ServeHTTP(w, r)
}

// step counts a job that was not given up.
func (m *Metrics) step(want fleet.Want, began time.Time, err error) {
	if m == nil {
		return
	}
	result, vote := "ok", "yes"
	if err != nil {
		result, vote = "failed", "no"
	}
	m.steps.WithLabelValues(want.Task.String(), result).Observe(time.Since(began).Seconds())
	switch {
	case want.Task == fleet.Stage && !want.Joining:
		m.votes.WithLabelValues(vote).Inc()
	case want.Task == fleet.Flip:
		m.flips.WithLabelValues(result).Inc()
	case want.Task == fleet.Settle:
		m.checks.WithLabelValues(result).Inc()
	}
}

// live collects what is true now.
type live struct{ m *Metrics }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
}

var (
	descInfo      = desc("info", "1; the labels say who and what.", "site", "instance", "group", "version", "release", "phase")
	descHealthy   = desc("healthy", "What the load balancer is told.")
	descReady     = desc("ready", "In service, or nothing was ever pushed.")
	descBehind    = desc("behind", "The fleet committed to something that this instance does not serve.")
	descIsolated  = desc("isolated", "The table does not answer; what is on the disk is served.")
	descDuplicate = desc("duplicate", "Another agent has this instance's id.")
	descLeads     = desc("coordinates", "This instance coordinates the open epoch.")
	descFrozen    = desc("frozen", "Rollouts are frozen.")
	descOpen      = desc("epoch_open", "An epoch is undecided.")
	descEpoch     = desc("head_epoch", "The newest epoch that is known.")
	descServing   = desc("serving_epoch", "The epoch whose release is live here.")
	descPushed    = desc("serving_sequence", "When what is live was pushed: the pointer's sequence, Unix seconds.")
	descProblem   = desc("problem", "1 for each part that has a problem now.", "part")
	descPointer   = desc("pointer_read_timestamp_seconds", "When S3 last answered a read of the pointer.")
	descTable     = desc("table_answer_timestamp_seconds", "When the table last answered.")
	descRequests  = desc("s3_requests_total", "Requests to S3 since the settings were read.")
	descSent      = desc("s3_sent_bytes_total", "Bytes of request bodies to S3.")
	descReceived  = desc("s3_received_bytes_total", "Bytes of response bodies from S3.")
	descAsked     = desc("table_requests_total", "Requests to the table since the settings were read.", "kind")
	descMemory    = desc("opcache_memory_bytes", "Opcache's shared memory.", "pool", "kind")
	descKeys      = desc("opcache_keys", "Keys in opcache.", "pool")
	descMaxKeys   = desc("opcache_max_keys", "Keys that opcache has room for.", "pool")
	descPool      = desc("opcache_up", "Whether the pool's route answers.", "pool")
)

// Describe implements [prometheus.Collector]; without descriptions what is collected may differ from time to time.
func (live) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (l live) Collect(out chan<- prometheus.Metric) {
	a := l.m.current()
	if a == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	s := a.Status()
	gauge(descInfo, 1, s.Site, s.Instance, s.Group, s.Version, string(s.Flipped.Release), string(s.Phase))
	for d, on := range map[*prometheus.Desc]bool{
		descHealthy: s.Healthy, descReady: s.Ready, descBehind: s.Behind, descIsolated: s.Isolated, descDuplicate: s.Duplicate,
		descLeads: s.Coordinates, descFrozen: s.Head.Frozen != nil, descOpen: s.HaveHead && s.Head.State.Open(),
	} {
		gauge(d, map[bool]float64{true: 1}[on])
	}
	gauge(descEpoch, float64(s.Head.Epoch))
	gauge(descServing, float64(s.Flipped.Epoch))
	gauge(descPushed, float64(s.Flipped.Sequence))
	for part := range s.Problems {
		gauge(descProblem, 1, part)
	}
	if !s.PointerRead.IsZero() {
		gauge(descPointer, seconds(s.PointerRead))
	}
	if !s.TableAnswered.IsZero() {
		gauge(descTable, seconds(s.TableAnswered))
	}
	if b, ok := a.p.Bucket.(interface{ Counts() store.Counts }); ok {
		c := b.Counts()
		for d, v := range map[*prometheus.Desc]int64{descRequests: c.Requests, descSent: c.Sent, descReceived: c.Received} {
			out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
		}
	}
	if t, ok := a.p.Table.(interface{ Counts() table.Counts }); ok {
		c := t.Counts()
		for kind, v := range map[string]int64{"read": c.Reads, "write": c.Writes} {
			out <- prometheus.MustNewConstMetric(descAsked, prometheus.CounterValue, float64(v), kind)
		}
	}
	l.collectPools(a, gauge)
}

// collectPools asks every pool how its opcache is.
func (l live) collectPools(a *Agent, gauge func(*prometheus.Desc, float64, ...string)) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	up := map[string]float64{}
	for _, url := range a.p.Config.Opcache.URL {
		up[url] = 0
	}
	pools, _ := a.machine.opcache.Status(ctx) // which did not answer is in up
	for _, p := range pools {
		up[p.URL] = 1
		gauge(descMemory, float64(p.UsedMemory), p.URL, "used")
		gauge(descMemory, float64(p.FreeMemory), p.URL, "free")
		gauge(descMemory, float64(p.WastedMemory), p.URL, "wasted")
		gauge(descKeys, float64(p.Keys), p.URL)
		gauge(descMaxKeys, float64(p.MaxKeys), p.URL)
	}
	for url, v := range up {
		gauge(descPool, v, url)
	}
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
