// Package parts starts the servers that tests and the demo run against: versitygw (an S3 server) and
// Amazon's DynamoDB Local, and nginx with a PHP pool.
//
// Everything listens on loopback only and on free ports. A started process belongs to the process that
// started it: it is stopped by its own id, and the kernel ends it when its owner dies, by a panic or by
// SIGKILL too. Nothing here installs anything: `make tools` puts the executables below .tools in the
// module's root, and [ErrMissing] names what is not there.
package parts

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// ErrMissing says that a part is not installed; `make tools` installs it.
var ErrMissing = errors.New("not installed, `make tools` does it")

// What the servers accept and what clients sign with: neither checks more than that both are the same.
const (
	Region    = "us-east-1"
	AccessKey = "AKIDEXAMPLE"
	SecretKey = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"
)

// startTime is how long a server may take to answer: DynamoDB Local needs 2 s on an idle machine, and
// several test binaries start theirs at once.
const startTime = 60 * time.Second

// ModuleRoot is the nearest folder at or above the working directory that has a go.mod.
func ModuleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find module root: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find module root: no go.mod at or above the working directory")
		}
		dir = parent
	}
}

// S3 is a running S3 server.
type S3 struct {
	*Process
	Endpoint string // http://127.0.0.1:port
	Dir      string // its data: a folder for each bucket
}

// StartS3 starts an S3 server that keeps its data and its log in dir, and waits until it answers.
func StartS3(ctx context.Context, dir string) (*S3, error) {
	tool, err := installed(".tools/bin/versitygw")
	if err != nil {
		return nil, fmt.Errorf("start versitygw: %w", err)
	}
	data := filepath.Join(dir, "buckets")
	versions := filepath.Join(dir, "versions") // without it there are no versioned buckets
	if err := errors.Join(os.MkdirAll(data, 0o755), os.MkdirAll(versions, 0o755)); err != nil {
		return nil, fmt.Errorf("start versitygw: %w", err)
	}
	p, endpoint, err := serve(ctx, func(port int) (Command, error) {
		return Command{
			Name: "versitygw",
			Path: tool,
			Args: []string{
				"--quiet", "--region", Region, "--port", loopback(port),
				"posix", "--versioning-dir", versions, data,
			},
			Env: append(os.Environ(), "ROOT_ACCESS_KEY="+AccessKey, "ROOT_SECRET_KEY="+SecretKey),
			Log: filepath.Join(dir, "versitygw.log"),
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return &S3{Process: p, Endpoint: endpoint, Dir: data}, nil
}

// DynamoDB is a running DynamoDB Local. It keeps everything in memory, and tables are the same for
// all credentials and regions.
type DynamoDB struct {
	*Process
	Endpoint string // http://127.0.0.1:port
}

// StartDynamoDB starts DynamoDB Local with its log in dir, and waits until it answers.
func StartDynamoDB(ctx context.Context, dir string) (*DynamoDB, error) {
	jar, err := installed(".tools/dynamodb-*[0-9]/lib/*/DynamoDBLocal.jar")
	if err != nil {
		return nil, fmt.Errorf("start DynamoDB Local: %w", err)
	}
	java, err := exec.LookPath("java")
	if err != nil {
		return nil, fmt.Errorf("start DynamoDB Local: java: %w", ErrMissing)
	}
	p, endpoint, err := serve(ctx, func(port int) (Command, error) {
		return Command{
			Name: "DynamoDB Local",
			Path: java,
			Args: []string{
				// A quick start on few cores matters here, throughput does not.
				"-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m",
				"-Djava.library.path=" + filepath.Join(filepath.Dir(jar), "DynamoDBLocal_lib"),
				"-jar", jar, "-inMemory", "-sharedDb", "-disableTelemetry", "-port", strconv.Itoa(port),
			},
			Dir: dir,
			Log: filepath.Join(dir, "dynamodb.log"),
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return &DynamoDB{Process: p, Endpoint: endpoint}, nil
}

// Build builds cmd/<name> of this module into dir, with the version that `make build` gives it, and returns the
// executable's path.
func Build(ctx context.Context, dir, name string, tags ...string) (string, error) {
	root, err := ModuleRoot()
	if err != nil {
		return "", fmt.Errorf("build %s: %w", name, err)
	}
	out := filepath.Join(dir, strings.Join(append([]string{name}, tags...), "-"))
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", strings.Join(tags, ","), "-ldflags", versionFlags(ctx, root),
		"-o", out, "./cmd/"+name)
	cmd.Dir = root
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, text)
	}
	return out, nil
}

// versionFlags makes the linker set both commands' version to what git calls this tree; nothing where that is no
// checkout.
func versionFlags(ctx context.Context, root string) string {
	cmd := exec.CommandContext(ctx, "git", "describe", "--tags", "--always", "--dirty")
	cmd.Dir = root
	text, err := cmd.Output()
	if err != nil {
		return ""
	}
	version := strings.TrimSpace(string(text))
	return fmt.Sprintf("-X s3pulldeploy/internal/agent.Version=%[1]s -X s3pulldeploy/internal/push.Version=%[1]s", version)
}

// Environ is the whole environment for a child that must use these servers: ours without anything of
// AWS, with [Credentials].
func Environ() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "AWS_") {
			env = append(env, kv)
		}
	}
	for k, v := range Credentials() {
		env = append(env, k+"="+v)
	}
	return env
}

// Credentials are the environment variables that make AWS's SDK use the servers' key and nothing else:
// no profile of the developer's, no instance metadata.
func Credentials() map[string]string {
	return map[string]string{
		"AWS_ACCESS_KEY_ID":           AccessKey,
		"AWS_SECRET_ACCESS_KEY":       SecretKey,
		"AWS_REGION":                  Region,
		"AWS_EC2_METADATA_DISABLED":   "true",
		"AWS_CONFIG_FILE":             os.DevNull,
		"AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
	}
}

// serve starts a server on a free port and waits until it answers HTTP, whatever it says. A port that
// somebody took in between ends the server early: then it tries another one, three times in all.
func serve(ctx context.Context, command func(port int) (Command, error)) (*Process, string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, fmt.Errorf("no answer for %v", startTime))
	defer cancel()
	var errs []error
	for range 3 {
		port, err := FreePort()
		if err != nil {
			return nil, "", err
		}
		c, err := command(port)
		if err != nil {
			return nil, "", err
		}
		p, err := Start(c)
		if err != nil {
			return nil, "", err
		}
		endpoint := "http://" + loopback(port)
		if err = p.Await(ctx, answers(endpoint)); err == nil {
			return p, endpoint, nil
		}
		p.Kill()
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, "", errors.Join(errs...)
}

// answers asks a server for anything over HTTP; a refusal is an answer too.
func answers(endpoint string) func(context.Context) error {
	return func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}
}

// installed finds a file below the module's root by a pattern as of [filepath.Glob].
func installed(pattern string) (string, error) {
	root, err := ModuleRoot()
	if err != nil {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("%s: %w", pattern, ErrMissing)
	}
	return found[0], nil
}

func loopback(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }
