package testenv_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

// call sends a signed request, without any service's SDK.
func call(t *testing.T, service, method, url, body string, header http.Header) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	sum := sha256.Sum256([]byte(body))
	digest := hex.EncodeToString(sum[:])
	req.Header.Set("X-Amz-Content-Sha256", digest)
	key := aws.Credentials{AccessKeyID: os.Getenv("AWS_ACCESS_KEY_ID"), SecretAccessKey: os.Getenv("AWS_SECRET_ACCESS_KEY")}
	if err := v4.NewSigner().SignHTTP(t.Context(), key, req, digest, service, os.Getenv("AWS_REGION"), time.Now()); err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestS3KeepsAnObjectAndItsConditions(t *testing.T) {
	t.Setenv("AWS_PROFILE", "of-the-developer")
	s := testenv.S3(t)
	if v, ok := os.LookupEnv("AWS_PROFILE"); ok {
		t.Errorf("AWS_PROFILE is still set: %q", v)
	}
	object := s.Endpoint + "/" + s.NewBucket(t) + "/folder/object"
	if code, text := call(t, "s3", "PUT", object, "content", nil); code != 200 {
		t.Fatalf("put: %d %s", code, text)
	}
	if code, text := call(t, "s3", "GET", object, "", nil); code != 200 || text != "content" {
		t.Fatalf("get: %d %q", code, text)
	}
	once := http.Header{"If-None-Match": {"*"}}
	if code, text := call(t, "s3", "PUT", object, "other", once); code != http.StatusPreconditionFailed {
		t.Fatalf("put if none match: %d %s", code, text)
	}
}

func TestDynamoDBAnswersTheSameServerAllTheTime(t *testing.T) {
	endpoint := testenv.DynamoDB(t)
	header := http.Header{
		"Content-Type": {"application/x-amz-json-1.0"},
		"X-Amz-Target": {"DynamoDB_20120810.ListTables"},
	}
	if code, text := call(t, "dynamodb", "POST", endpoint, "{}", header); code != 200 || !strings.Contains(text, "TableNames") {
		t.Fatalf("list tables: %d %s", code, text)
	}
	if again := testenv.DynamoDB(t); again != endpoint {
		t.Fatalf("second use: %s, first %s", again, endpoint)
	}
}

func TestEnvHasTheServersKeyAndNothingElseOfAWS(t *testing.T) {
	t.Setenv("AWS_SESSION_TOKEN", "of-the-developer")
	env := strings.Join(testenv.S3Server{}.Env(), "\n")
	if strings.Contains(env, "of-the-developer") || !strings.Contains(env, "AWS_ACCESS_KEY_ID="+parts.AccessKey) {
		t.Fatal(env)
	}
}

func TestStopReportsAProcessThatHadToBeKilled(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p, err := parts.Start(parts.Command{Name: "stubborn", Path: "/bin/sh", Args: []string{"-c", "trap '' TERM; echo ready; while :; do sleep 1; done"}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ready := func(context.Context) error {
		if p.Tail() != "ready" {
			return fmt.Errorf("log is %q", p.Tail())
		}
		return nil
	}
	if err := p.Await(t.Context(), ready); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(time.Millisecond); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("stop: %v", err)
	}
}

func TestAwaitSaysWhyAProcessEnded(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p, err := parts.Start(parts.Command{Name: "short", Path: "/bin/sh", Args: []string{"-c", "echo no such port; exit 3"}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	err = p.Await(t.Context(), func(context.Context) error { return io.EOF })
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "no such port") {
		t.Fatalf("await: %v", err)
	}
}

// orphanEnv makes the test binary start a child and kill itself.
const orphanEnv = "TESTENV_ORPHAN"

func orphan() {
	p, err := parts.Start(parts.Command{Name: "child", Path: "/bin/sleep", Args: []string{"600"}, Log: os.DevNull})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(p.Pid())
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

func TestProcessDiesWithItsOwnerEvenByKill(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), orphanEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	_ = cmd.Wait() // killed by itself
	var pid int
	if _, err := fmt.Sscan(line, &pid); err != nil {
		t.Fatalf("child's id %q: %v", line, err)
	}
	for alive(pid) {
		select {
		case <-t.Context().Done():
			t.Fatalf("process %d outlives its owner", pid)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// alive says whether a process runs; one that has ended and waits to be reaped does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z")
}

// outcome is how a test would have ended.
type outcome struct {
	testing.TB
	skipped, failed string
}

func (o *outcome) Helper()                   {}
func (o *outcome) Skipf(f string, a ...any)  { o.skipped = fmt.Sprintf(f, a...) }
func (o *outcome) Fatalf(f string, a ...any) { o.failed = fmt.Sprintf(f, a...) }

func TestOnlyAPartThatIsNotInstalledSkipsAndOnlyWhereThatIsAllowed(t *testing.T) {
	missing := fmt.Errorf("start x: %w", parts.ErrMissing)
	for _, c := range []struct {
		name, required string
		err            error
		skips, fails   bool
	}{
		{"started", "", nil, false, false},
		{"not installed", "", missing, true, false},
		{"not installed where all must run", "1", missing, false, true},
		{"broken", "", io.ErrUnexpectedEOF, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("S3PULLDEPLOY_REQUIRE_PARTS", c.required)
			var got outcome
			testenv.Require(&got, "x tests", c.err)
			if (got.skipped != "") != c.skips || (got.failed != "") != c.fails {
				t.Errorf("skipped %q, failed %q", got.skipped, got.failed)
			}
			if c.skips && !strings.Contains(got.skipped, "make test") {
				t.Errorf("the skip does not say what to do: %q", got.skipped)
			}
		})
	}
}

func TestWhoIsNotRootLeavesOutWhatNeedsRoot(t *testing.T) {
	for _, required := range []string{"", "1"} {
		t.Setenv("S3PULLDEPLOY_REQUIRE_PARTS", required)
		var got outcome
		testenv.Root(&got, "a mount")
		leftOut := os.Geteuid() != 0
		if (got.skipped != "") != (leftOut && required == "") || (got.failed != "") != (leftOut && required == "1") {
			t.Errorf("required %q, as user %d: skipped %q, failed %q", required, os.Geteuid(), got.skipped, got.failed)
		}
	}
}
