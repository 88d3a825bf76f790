package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

// TestAnswers is about servers that answer slowly, not to the end, or with a no.
func TestAnswers(t *testing.T) {
	w := breakable(t)
	for _, s := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"the table throttles for longer than a lease", tableThrottles},
		{"credentials expire and no new ones come", credentialsExpire},
		{"contents come slowly", contentsSlow},
		{"contents are cut off in the middle", contentsCut},
		{"S3 says that it is busy", bucketBusy},
		{"the key of the contents is disabled", keyDisabled},
		{"the reply to the pointer's write is lost", pointerReplyLost},
		{"an agent that may open few files", fewFiles},
		{"an agent in little memory", littleMemory},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.run(t, w)
		})
	}
}

// behind is a site of two, of whom the first reaches S3 through a proxy.
func behind(t *testing.T, w *world) (*broken, *testenv.Proxy) {
	t.Helper()
	b := watchedSite(t, w)
	bucket := testenv.NewProxy(t, w.s3.Endpoint)
	b.s3 = bucket.URL()
	b.breakAgent("i-0")
	b.s3 = w.s3.Endpoint
	b.breakAgent("i-1")
	return b, bucket
}

// contentsSlow: 1 kB a second to one of two (F37). The rollout waits for it, and nobody is left out.
func contentsSlow(t *testing.T, w *world) {
	b, bucket := behind(t, w)
	b.begin()
	b.version = small
	bucket.Slow(1000)
	r := b.deployNext()()
	bucket.Restore()
	b.deployed(r)
	if !strings.Contains(r.stdout, `"excluded": 0`) && !strings.Contains(r.stdout, `"excluded":0`) {
		t.Errorf("want nobody excluded: %s", r)
	}
	b.converged(healTime)
}

// contentsCut: every connection is reset after 3 MiB (F37). Reading goes on where it was: little comes twice.
func contentsCut(t *testing.T, w *world) {
	b, bucket := behind(t, w)
	b.begin()
	b.version = large
	before := bucket.Passed()
	bucket.CutAfter(3 << 20)
	b.deployed(b.deployNext()())
	passed := bucket.Passed() - before
	bucket.Restore()
	if size := int64(18 << 20); passed < size || passed > size*3/2 {
		t.Errorf("%d bytes came for a release of %d", passed, size)
	}
	b.converged(healTime)
}

// errorXML is what S3 answers besides a status.
func errorXML(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", code, message)
}

// isContents says whether a key is of contents, and not the pointer.
func isContents(r *http.Request, key string) bool {
	return r.Method == http.MethodGet && strings.Contains(key, "/") && !strings.HasPrefix(key, "/")
}

// fronted is a site of two, of whom the first reaches S3 through a middle.
func fronted(t *testing.T, w *world) (*broken, *middle) {
	t.Helper()
	b := watchedSite(t, w)
	m := b.between()
	b.breakAgent("i-0")
	b.s3 = w.s3.Endpoint
	b.breakAgent("i-1")
	b.begin()
	return b, m
}

// bucketBusy: S3 answers 503 to one of two for a while (F37). It is asked again, not too often, and nobody is left out.
func bucketBusy(t *testing.T, w *world) {
	b, m := fronted(t, w)
	var refused atomic.Int64
	m.breaks(func(w http.ResponseWriter, r *http.Request, key string) bool {
		busy := isContents(r, key) && refused.Add(1) <= 6
		if busy {
			errorXML(w, http.StatusServiceUnavailable, "SlowDown", "Please reduce your request rate.")
		}
		return busy
	})
	b.deployed(b.deployNext()())
	b.converged(healTime)
	if n := refused.Load(); n < 6 || n > 30 {
		t.Errorf("%d requests for contents, 6 of them refused", n)
	}
}

// keyDisabled: S3 may not decrypt the contents for one of two (F39). It says so, the other goes on without it, and S3 is not
// flooded.
func keyDisabled(t *testing.T, w *world) {
	b, m := fronted(t, w)
	first := b.agents[0]
	var refused atomic.Int64
	m.breaks(func(w http.ResponseWriter, r *http.Request, key string) bool {
		if isContents(r, key) {
			refused.Add(1)
			errorXML(w, http.StatusBadRequest, "KMS.DisabledException", "arn:aws:kms:key/1 is disabled.")
			return true
		}
		return false
	})
	b.deployed(b.deployNext()())
	began := time.Now()
	b.await(joinTime, "its row says why", func() string {
		if m := b.status().member(first.id); m.Vote != "no" || m.Phase != "out" || !strings.Contains(m.Reason, "KMS.Disabled") {
			return fmt.Sprintf("%+v", m)
		}
		return ""
	})
	b.await(joinTime, "a while", func() string {
		if left := 12*time.Second - time.Since(began); left > 0 {
			return left.String()
		}
		return ""
	})
	if n := refused.Load(); n > 10 {
		t.Errorf("%d requests for what cannot be read, in 12 seconds", n)
	}
	if n := b.witnesses[0].flipped(); n != 1 {
		t.Errorf("its link moved %d times", n-1)
	}
	m.heals()
	b.converged(healTime)
}

// tableThrottles: every request to the table is refused for its rate, for longer than a lease and in the middle of a rollout;
// then each tenth (F32). Nobody is called silent for that.
func tableThrottles(t *testing.T, w *world) {
	b := watchedSite(t, w)
	m := b.front(w.dynamodb)
	b.table = m.URL
	for n := range 3 {
		b.breakAgent(fmt.Sprintf("i-%d", n))
	}
	b.begin()
	epoch := b.record.now().epoch
	for _, a := range b.agents {
		a.arm("A6=sleep:5s@1")
	}
	push := b.deployNext()
	b.awaitHead(joinTime, epoch+1, "prepare")
	b.await(joinTime, "all fetch", func() string {
		for _, a := range b.agents {
			if a.fired("A6") == 0 {
				return a.id + " does not"
			}
		}
		return ""
	})
	time.Sleep(2 * time.Second) // the coordinator sees everybody a few times
	var asked, every atomic.Int64
	every.Store(1)
	m.breaks(func(w http.ResponseWriter, _ *http.Request, _ string) bool {
		throttled := asked.Add(1)%every.Load() == 0
		if throttled {
			w.Header().Set("Content-Type", "application/x-amz-json-1.0")
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"__type":"com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException","message":"slow down"}`)
		}
		return throttled
	})
	began := time.Now()
	b.await(healTime, "longer than a lease", func() string {
		if left := 36*time.Second - time.Since(began); left > 0 {
			return left.String()
		}
		return ""
	})
	if n := asked.Load(); n < 20 || n > 36*60 {
		t.Errorf("%d requests while all were throttled", n)
	}
	every.Store(10)
	r := push()
	b.deployed(r)
	if !strings.Contains(r.stdout, `"excluded": 0`) && !strings.Contains(r.stdout, `"excluded":0`) {
		t.Errorf("want nobody excluded: %s", r)
	}
	m.heals()
	b.converged(healTime)
	b.wantEpochs(epoch, 1)
}

// pointerReplyLost: the pointer is written and push does not hear of it (F3). It finds its own pointer, and is done. The table takes its
// time besides, more than an agent gives it.
func pointerReplyLost(t *testing.T, w *world) {
	b := breakSite(t, w, 1)
	m := b.between()
	table := testenv.NewProxy(t, w.dynamodb)
	table.Delay(2500 * time.Millisecond)
	b.write("push.yml", b.settings(m.URL, table.URL()))
	var writes atomic.Int64
	m.breaks(func(_ http.ResponseWriter, r *http.Request, key string) bool {
		if r.Method != http.MethodPut || key != "latest-deploy" || writes.Add(1) > 1 {
			return false
		}
		m.proxy.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler) // the connection breaks
	})
	b.deployed(b.deployNext()())
	b.converged(healTime)
	if n := writes.Load(); n < 2 {
		t.Errorf("the pointer was written %d times: the lost reply was not noticed", n)
	}
}

// metadata is an instance's metadata service that gives credentials which soon expire.
func metadata(t *testing.T, lifetime time.Duration) (server *httptest.Server, away *atomic.Bool) {
	t.Helper()
	away = new(atomic.Bool)
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		const role = "/latest/meta-data/iam/security-credentials/"
		switch {
		case away.Load():
			panic(http.ErrAbortHandler)
		case r.Method == http.MethodPut:
			w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "21600")
			fmt.Fprint(w, "token")
		case r.URL.Path == role:
			fmt.Fprint(w, "deploy")
		case r.URL.Path == role+"deploy":
			fmt.Fprintf(w, `{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":%q,"SecretAccessKey":%q,"Token":"","Expiration":%q}`,
				parts.AccessKey, parts.SecretKey, time.Now().Add(lifetime).UTC().Format(time.RFC3339))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(server.Close)
	return server, away
}

// credentialsExpire: the metadata service is away, and then S3 and DynamoDB say that the credentials have expired (F40). What is
// served stays, the agent says what is wrong, and new credentials are all that it takes.
func credentialsExpire(t *testing.T, w *world) {
	b := watchedSite(t, w)
	bucket, table := b.between(), b.front(w.dynamodb)
	b.table = table.URL
	imds, away := metadata(t, 10*time.Second)
	a := b.breakAgent("i-0")
	settings := strings.Replace(a.settings(a.extra...), "endpoints: {", fmt.Sprintf("endpoints: {imds: %q, ", imds.URL), 1)
	check(t, os.WriteFile(a.config, []byte(settings), 0o644))
	a.env = append(a.env, "AWS_ACCESS_KEY_ID=", "AWS_SECRET_ACCESS_KEY=", "AWS_EC2_METADATA_DISABLED=false")
	b.begin()

	away.Store(true)
	bucket.breaks(func(w http.ResponseWriter, _ *http.Request, _ string) bool {
		errorXML(w, http.StatusBadRequest, "ExpiredToken", "The provided token has expired.")
		return true
	})
	table.breaks(func(w http.ResponseWriter, _ *http.Request, _ string) bool {
		w.Header().Set("Content-Type", "application/x-amz-json-1.0")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"__type":"com.amazon.coral.service#ExpiredTokenException","message":"The security token included in the request is expired"}`)
		return true
	})
	push := b.deployNext()
	b.await(30*time.Second, "it says what is wrong", func() string {
		v := a.view()
		if !v.Isolated || !v.Healthy || !strings.Contains(v.Problems["table"], "xpired") || !strings.Contains(v.Problems["pointer"], "xpired") {
			return fmt.Sprintf("%+v", v)
		}
		return ""
	})
	if n := b.witnesses[0].flipped(); n != 1 {
		t.Errorf("its link moved %d times", n-1)
	}
	away.Store(false)
	bucket.heals()
	table.heals()
	b.deployed(push())
	b.converged(healTime)
}

// fewFiles: an agent with a limit of 64 open files (F71) brings up a plain release of many small files, and a large packed one,
// in little memory.
func fewFiles(t *testing.T, w *world) {
	b := watchedSite(t, w)
	a := b.newAgent("i-0")
	a.under = []string{"/usr/bin/prlimit", "--nofile=64:64"}
	a.configure()
	a.start()
	b.awaitPhase(joinTime, "serve", a)
	files := map[string]string{"index.php": "many"}
	for n := range 600 {
		files[fmt.Sprintf("d%d/f%d.php", n%40, n)] = strings.Repeat(fmt.Sprint(n), 200)
	}
	b.live(1, files, "-layout=plain")
	noise := rand.NewChaCha8([32]byte{1})
	for n := range 3 {
		blob := make([]byte, 12<<20)
		_, _ = noise.Read(blob)
		files[fmt.Sprintf("blob%d", n)] = string(blob)
	}
	b.live(1, files, "-layout=packed")
	for name, text := range files {
		if a.file(name) != text {
			t.Errorf("%s is not as it was pushed", name)
		}
	}
	if most := peak(t, a); most > 96<<20 {
		t.Errorf("it took %d MiB of memory, want at most 96", most>>20)
	}
}

// peak is the most memory that a process ever had resident, in bytes.
func peak(t *testing.T, a *agent) (bytes int64) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(a.Pid()), "status"))
	check(t, err)
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			_, err := fmt.Sscan(rest, &bytes)
			check(t, err)
			return bytes << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}
