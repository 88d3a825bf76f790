package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"s3pulldeploy/internal/testenv/parts"
)

// fleet is the running demo.
type fleet struct {
	dir      string
	bin      struct{ push, agent string }
	s3       *parts.S3
	dynamodb *parts.DynamoDB
	members  []*instance
}

// instance is one machine of the fleet, as far as one machine can be three.
type instance struct {
	id, dir string
	web     *parts.Web
	agent   *parts.Process
}

// outcome is what `push -json` prints of a rollout; times are in milliseconds.
type outcome struct {
	Release      string `json:"release"`
	Outcome      string `json:"outcome"`
	Reason       string `json:"reason"`
	Members      int    `json:"members"`
	Excluded     int    `json:"excluded"`
	LiveMS       int64  `json:"live_ms"`
	FlipSpreadMS int64  `json:"flip_spread_ms"`
}

// startFleet builds and starts everything, up to a fleet that waits for its first push.
func startFleet(ctx context.Context, dir string, undo *teardown) (*fleet, error) {
	f := &fleet{dir: dir}
	var err error
	say("building push and agent")
	if f.bin.push, err = parts.Build(ctx, dir, "push"); err != nil {
		return nil, err
	}
	if f.bin.agent, err = parts.Build(ctx, dir, "agent"); err != nil {
		return nil, err
	}

	say("starting an S3 server and DynamoDB Local")
	if f.s3, err = parts.StartS3(ctx, dir); err != nil {
		return nil, err
	}
	undo.stop(f.s3)
	if f.dynamodb, err = parts.StartDynamoDB(ctx, dir); err != nil {
		return nil, err
	}
	undo.stop(f.dynamodb)

	if err := os.WriteFile(f.config(), []byte(f.settings()), 0o644); err != nil {
		return nil, err
	}
	say("push -init: bucket and table")
	if _, err := f.run(ctx, "-init"); err != nil {
		return nil, err
	}

	say("starting %d instances", instances)
	for n := range instances {
		m, err := f.startInstance(ctx, fmt.Sprintf("i-%d", n+1), undo)
		if err != nil {
			return nil, err
		}
		f.members = append(f.members, m)
	}
	return f, f.awaitMembers(ctx)
}

// startInstance starts the web server and the agent of one instance.
func (f *fleet) startInstance(ctx context.Context, id string, undo *teardown) (*instance, error) {
	m := &instance{id: id, dir: filepath.Join(f.dir, id)}
	root := filepath.Join(m.dir, "www")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, err
	}
	var err error
	if m.web, err = parts.StartWeb(ctx, parts.WebOptions{Dir: m.dir, Root: root, User: "www-data"}); err != nil {
		return nil, err
	}
	undo.stop(m.web)

	settings := f.settings() + fmt.Sprintf(`root: %s
instance_id: %s
state_dir: %s
poll_interval: 1s
pointer_interval: 5s
opcache: {url: "%s"}
health_check: {url: "%s/health.php"}
`, root, id, filepath.Join(m.dir, "state"), m.web.LocalURL, m.web.URL)
	file := filepath.Join(m.dir, "config.yml")
	if err := os.WriteFile(file, []byte(settings), 0o644); err != nil {
		return nil, err
	}
	m.agent, err = parts.Start(parts.Command{
		Name: "agent " + id,
		Path: f.bin.agent,
		Args: []string{"-config=" + file},
		Env:  append(parts.Environ(), "RUNTIME_DIRECTORY="+m.dir), // for its status socket, as systemd does
		Log:  filepath.Join(m.dir, "agent.log"),
	})
	if err != nil {
		return nil, err
	}
	undo.stop(m.agent)
	return m, nil
}

// config is the settings file of the developer who pushes.
func (f *fleet) config() string { return filepath.Join(f.dir, "push.yml") }

// settings is the part of the settings that developer and instances share.
func (f *fleet) settings() string {
	return fmt.Sprintf(`site: demo
bucket: demo-bucket
region: %s
endpoints: {s3: "%s", dynamodb: "%s"}
`, parts.Region, f.s3.Endpoint, f.dynamodb.Endpoint)
}

func (f *fleet) urls() []string {
	var urls []string
	for _, m := range f.members {
		urls = append(urls, m.web.URL)
	}
	return urls
}

// awaitMembers waits until all instances serve, as far as one can without a release.
func (f *fleet) awaitMembers(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("not in service after 30s"))
	defer cancel()
	for _, m := range f.members {
		err := m.agent.Await(ctx, func(ctx context.Context) error {
			phase, err := f.phase(ctx, m.id)
			if err == nil && phase != "serve" {
				err = fmt.Errorf("phase is %q", phase)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// phase is an instance's phase in `push -status`, empty when it is not there.
func (f *fleet) phase(ctx context.Context, id string) (string, error) {
	text, err := f.command(ctx, "-status", "-json").Output()
	if err != nil {
		return "", fmt.Errorf("push -status: %w", err)
	}
	var status struct {
		Members []struct{ Instance, Phase string }
	}
	if err := json.Unmarshal(text, &status); err != nil {
		return "", fmt.Errorf("push -status: %w", err)
	}
	for _, m := range status.Members {
		if m.Instance == id {
			return m.Phase, nil
		}
	}
	return "", nil
}

// push runs a verb that rolls out, and wants it live on every instance.
func (f *fleet) push(ctx context.Context, verb ...string) (outcome, error) {
	text, err := f.run(ctx, append(verb, "-json")...)
	if err != nil {
		return outcome{}, err
	}
	var out outcome
	if err := json.Unmarshal(text, &out); err != nil {
		return out, fmt.Errorf("push %s: %w: %s", verb[0], err, text)
	}
	if out.Outcome != "done" || out.Members != instances || out.Excluded != 0 {
		return out, fmt.Errorf("push %s: %s on %d instances, %d excluded: %s", verb[0], out.Outcome, out.Members, out.Excluded, out.Reason)
	}
	return out, nil
}

// run runs push, shows what it tells people and returns what it tells programs.
func (f *fleet) run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := f.command(ctx, args...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		fmt.Println("   " + lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("push %s: %w", strings.Join(args, " "), errors.Join(context.Cause(ctx), err))
	}
	return stdout.Bytes(), nil
}

func (f *fleet) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, f.bin.push, append([]string{"-config=" + f.config()}, args...)...)
	cmd.Env = append(parts.Environ(), "XDG_CACHE_HOME="+filepath.Join(f.dir, "cache"))
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = grace
	return cmd
}

// describe says where everything is, for those who keep it running.
func (f *fleet) describe(w io.Writer) {
	fmt.Fprintln(w, "\nstill running, until Ctrl-C:")
	for _, m := range f.members {
		fmt.Fprintf(w, "  %s  %s  %s\n", m.id, m.web.URL, filepath.Join(m.dir, "agent.log"))
	}
	fmt.Fprintf(w, "try, in another terminal:\n  export AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s\n  %s -config=%s -status\n",
		parts.AccessKey, parts.SecretKey, f.bin.push, f.config())
}

// writeApp copies examples/php to dir, with version in each of its PHP files in place of 'dev'.
func writeApp(dir, version string) error {
	root, err := parts.ModuleRoot()
	if err != nil {
		return err
	}
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(root, "examples", "php"))); err != nil {
		return fmt.Errorf("write version %s: %w", version, err)
	}
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".php" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(path, bytes.ReplaceAll(text, []byte("'dev'"), []byte("'"+version+"'")), 0o644)
	})
}
