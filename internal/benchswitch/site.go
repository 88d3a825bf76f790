package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"s3pulldeploy/internal/php"
	"s3pulldeploy/internal/testenv/parts"
)

// servers are what all sites share.
type servers struct {
	dir         string
	push, agent string // the built commands
	s3          *parts.S3
	dynamodb    *parts.DynamoDB
	sites       int
}

func startServers(ctx context.Context, dir string, undo *teardown) (*servers, error) {
	say("building push and agent, starting an S3 server and DynamoDB Local")
	s := &servers{dir: dir}
	var err error
	if s.push, err = parts.Build(ctx, dir, "push"); err != nil {
		return nil, err
	}
	if s.agent, err = parts.Build(ctx, dir, "agent"); err != nil {
		return nil, err
	}
	if s.s3, err = parts.StartS3(ctx, dir); err != nil {
		return nil, err
	}
	undo.stop(s.s3)
	if s.dynamodb, err = parts.StartDynamoDB(ctx, dir); err != nil {
		return nil, err
	}
	undo.stop(s.dynamodb)
	return s, nil
}

// site is one application in one mode, on a web server and an agent of its own.
type site struct {
	*servers
	app    *app
	dir    string
	root   string
	web    *parts.Web
	cache  *php.Opcache
	pushes int
}

// workersPHP is the pool's size: one more than requests usually run at a time.
const workersPHP = 6

// start starts web server and agent, and deploys the first release.
func (s *servers) start(ctx context.Context, a *app, mode string, undo *teardown) (*site, error) {
	s.sites++
	t := &site{servers: s, app: a, dir: filepath.Join(s.dir, fmt.Sprintf("s%d", s.sites))}
	t.root = filepath.Join(t.dir, "www")
	if err := os.MkdirAll(t.root, 0o755); err != nil {
		return nil, err
	}
	var err error
	fileCache := ""
	if memory, ok := strings.CutSuffix(mode, onDisk); ok {
		mode, fileCache = memory, filepath.Join(t.dir, "file_cache")
	}
	if t.web, err = parts.StartWeb(ctx, parts.WebOptions{Dir: t.dir, Root: t.root, User: "www-data", Ini: a.ini, FileCache: fileCache, Workers: workersPHP}); err != nil {
		return nil, err
	}
	undo.stop(t.web)
	t.cache = php.New(php.Options{URLs: []string{t.web.LocalURL}, Timeout: 30 * time.Second})
	settings := fmt.Sprintf(`site: switch-%d
bucket: bench-switch
layout: packed
region: %s
endpoints: {s3: "%s", dynamodb: "%s"}
root: %s
instance_id: i-1
state_dir: %s
poll_interval: 1s
pointer_interval: 5s
opcache: {mode: %s, url: "%s"}
health_check: {url: "%s/health.php"}
%s`, s.sites, parts.Region, s.s3.Endpoint, s.dynamodb.Endpoint, t.root, filepath.Join(t.dir, "state"), mode, t.web.LocalURL, t.web.URL, a.settings)
	if err := os.WriteFile(t.config(), []byte(settings), 0o644); err != nil {
		return nil, err
	}
	if _, err := t.call(ctx, "-init"); err != nil {
		return nil, err
	}
	agent, err := parts.Start(parts.Command{
		Name: "agent", Path: s.agent, Args: []string{"-config=" + t.config()}, Log: t.agentLog(),
		Env: append(parts.Environ(), "RUNTIME_DIRECTORY="+t.dir),
	})
	if err != nil {
		return nil, err
	}
	undo.stop(agent)
	if err := t.deploy(ctx); err != nil {
		return nil, err
	}
	if err := t.await(ctx, "the first release", func() (bool, error) { return t.live() != "", nil }); err != nil {
		return nil, err
	}
	if a.install != nil && s.sites > 0 {
		return t, a.install(ctx, t.web.URL)
	}
	return t, nil
}

// onDisk is what a mode ends with when opcache has a cache on the disk besides.
const onDisk = "+file_cache"

func (t *site) config() string   { return filepath.Join(t.dir, "config.yml") }
func (t *site) agentLog() string { return filepath.Join(t.dir, "agent.log") }

// live is the release that the link leads to, empty: none yet.
func (t *site) live() string {
	to, _ := os.Readlink(filepath.Join(t.root, "active"))
	return to
}

// deploy pushes the application with one file changed.
func (t *site) deploy(ctx context.Context) error {
	t.pushes++
	if err := write(filepath.Join(t.app.dir, "version.php"), fmt.Sprintf("<?php return '%s %d';\n", t.dir, t.pushes)); err != nil {
		return err
	}
	text, err := t.call(ctx, "-deploy="+t.app.dir, "-json")
	if err != nil {
		return err
	}
	var out struct{ Outcome, Reason string }
	if err := json.Unmarshal([]byte(text[max(0, strings.LastIndex(text, "\n{")):]), &out); err != nil {
		return fmt.Errorf("push -deploy: %w: %s", err, text)
	}
	if out.Outcome != "done" && out.Outcome != "published" { // the latter: the agent had not joined yet
		return fmt.Errorf("push -deploy: %s: %s", out.Outcome, out.Reason)
	}
	return nil
}

// call runs push to its end and returns what it said.
func (t *site) call(ctx context.Context, args ...string) (string, error) {
	log := filepath.Join(t.dir, "push.log")
	if err := os.RemoveAll(log); err != nil {
		return "", err
	}
	p, err := parts.Start(parts.Command{
		Name: "push", Path: t.push, Args: append([]string{"-config=" + t.config()}, args...), Log: log,
		Env: append(parts.Environ(), "XDG_CACHE_HOME="+filepath.Join(t.dir, "cache")),
	})
	if err != nil {
		return "", err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		return "", errors.Join(context.Cause(ctx), p.Stop(grace))
	}
	text, rerr := os.ReadFile(log)
	if err := errors.Join(p.Err(), rerr); err != nil {
		return "", fmt.Errorf("push %s: %w: %s", args[0], err, text)
	}
	return string(text), nil
}

// await asks every 50 ms, for two minutes at most.
func (t *site) await(ctx context.Context, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, fmt.Errorf("%s: not after two minutes", what))
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}
