package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"s3pulldeploy/internal/testenv/parts"
)

// lab is what all contenders share: one S3 server behind the proxy, one DynamoDB Local, and disks of their own.
type lab struct {
	out      io.Writer
	began    time.Time
	dir      string // what is ours, but for what lies on the disks
	disk     string // where contenders work: the mount point of one of disks
	disks    map[string]string
	s3       *parts.S3
	dynamodb *parts.DynamoDB
	proxy    *proxy
	push     string // the built command
	tools    tools
	trees    map[string]*tree
	aws      []string // environment for the aws command, at its best
	awsHow   string
	runs     int // rounds of a contest
	least    int // of them, also for those who took longer than patience
	patience time.Duration
	quick    bool
	undo     []func() error
	sites    int
}

// tools are the peers' executables.
type tools struct{ aws, rclone, zstd, curl, tar string }

// bucket is the one that everything is in.
const bucket = "bench"

func (l *lab) say(format string, args ...any) {
	fmt.Fprintf(l.out, "%5.0fs  %s\n", time.Since(l.began).Seconds(), fmt.Sprintf(format, args...))
}

func (l *lab) later(f func() error) { l.undo = append(l.undo, f) }

// close undoes everything, the last thing first.
func (l *lab) close() error {
	var errs []error
	for i := len(l.undo) - 1; i >= 0; i-- {
		errs = append(errs, l.undo[i]())
	}
	l.undo = nil
	return errors.Join(errs...)
}

// open builds, mounts and starts everything below dir, which has the cache of packages too.
func (l *lab) open(ctx context.Context, dir string) (err error) {
	if l.tools, err = findTools(); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if l.dir, err = os.MkdirTemp(dir, "run-"); err != nil {
		return err
	}
	l.later(func() error { return os.RemoveAll(l.dir) })
	l.say("building push")
	if l.push, err = parts.Build(ctx, l.dir, "push"); err != nil {
		return err
	}
	l.disks = map[string]string{}
	for name, mkfs := range map[string][]string{
		"ext4":   {"mkfs.ext4", "-q", "-O", "has_journal", "-E", "lazy_itable_init=0,lazy_journal_init=0"},
		"xfs":    {"mkfs.xfs", "-q", "-m", "reflink=1"},
		"server": {"mkfs.xfs", "-q"}, // of the S3 server: what it does must not disturb the contenders' disks
	} {
		if l.disks[name], err = l.mount(ctx, name, mkfs); err != nil {
			return err
		}
	}
	l.disk = l.disks["ext4"]
	return l.serve(ctx)
}

// findTools looks for the peers.
func findTools() (t tools, err error) {
	root, err := parts.ModuleRoot()
	if err != nil {
		return t, err
	}
	for name, at := range map[string]*string{
		"aws": &t.aws, filepath.Join(root, ".tools/bin/rclone"): &t.rclone, "zstd": &t.zstd, "curl": &t.curl, "tar": &t.tar,
	} {
		if *at, err = exec.LookPath(name); err != nil {
			return t, fmt.Errorf("%w: `make bench` installs it", err)
		}
	}
	return t, nil
}

// imageSize is that of a disk, sparse: what a run leaves at a time is a tenth of it.
const imageSize = 24 << 30

// mount makes a disk in a file, with a journal, and mounts it.
func (l *lab) mount(ctx context.Context, name string, mkfs []string) (string, error) {
	image, at := filepath.Join(l.dir, name+".img"), filepath.Join(l.dir, name)
	f, err := os.Create(image)
	if err != nil {
		return "", err
	}
	if err := errors.Join(f.Truncate(imageSize), f.Close(), os.Mkdir(at, 0o755)); err != nil {
		return "", err
	}
	for _, args := range [][]string{append(mkfs, image), {"mount", "-o", "loop", image, at}} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
		}
	}
	l.later(func() error {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			return fmt.Errorf("umount %s: %w: %s", at, err, bytes.TrimSpace(out))
		}
		return nil
	})
	return at, nil
}

// serve starts the servers and makes bucket and table.
func (l *lab) serve(ctx context.Context) (err error) {
	if l.s3, err = parts.StartS3(ctx, l.disks["server"]); err != nil {
		return err
	}
	l.later(func() error { return l.s3.Stop(10 * time.Second) })
	if l.dynamodb, err = parts.StartDynamoDB(ctx, l.dir); err != nil {
		return err
	}
	l.later(func() error { return l.dynamodb.Stop(10 * time.Second) })
	if l.proxy, err = startProxy(strings.TrimPrefix(l.s3.Endpoint, "http://")); err != nil {
		return err
	}
	l.later(l.proxy.Close)
	s, err := l.site(l.dir)
	if err != nil {
		return err
	}
	_, _, err = l.measure(ctx, command{args: []string{l.push, "-config=" + s.config, "-init"}})
	return err
}

// environ is the whole environment of every process that is measured.
func (l *lab) environ() []string {
	return append(parts.Environ(),
		"RCLONE_CONFIG=/dev/null", "RCLONE_CONFIG_S3_TYPE=s3", "RCLONE_CONFIG_S3_PROVIDER=Other", "RCLONE_CONFIG_S3_ENV_AUTH=true",
		"RCLONE_CONFIG_S3_ENDPOINT="+l.endpoint(), "RCLONE_CONFIG_S3_NO_CHECK_BUCKET=true", "RCLONE_CONFIG_S3_USE_UNSIGNED_PAYLOAD=true")
}

// endpoint is the S3 server's as contenders see it.
func (l *lab) endpoint() string {
	if l.proxy == nil {
		return ""
	}
	return l.proxy.URL()
}

// describe says what machine this is and which tools took part.
func (l *lab) describe(ctx context.Context) string {
	version := func(args ...string) string {
		out, err := exec.CommandContext(ctx, args[0], args[1:]...).Output()
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		if err != nil {
			return "?"
		}
		return first
	}
	cpu := field("/proc/cpuinfo", "model name", ":")
	memory := field("/proc/meminfo", "MemTotal", ":")
	system := strings.Trim(field("/etc/os-release", "PRETTY_NAME", "="), `"`)
	busy, _ := os.ReadFile("/proc/loadavg")
	load, _, _ := strings.Cut(string(busy), " ")
	return fmt.Sprintf("%s, %s processors, %s of memory, %s, Linux %s; load average %s at the start. %s (%s); %s; %s; versitygw; %s.",
		cmp.Or(cpu, "unknown processor"), version("nproc"), memory, system, version("uname", "-r"), load,
		version(l.tools.aws, "--version"), l.awsHow, version(l.tools.rclone, "--version"), version(l.tools.zstd, "--version"), version("go", "version"))
}

// field is the value of the first line of a file that begins so.
func field(file, name, separator string) string {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(line, separator); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
