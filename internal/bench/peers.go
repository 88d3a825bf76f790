package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"s3pulldeploy/internal/testenv/parts"
)

// awsSync runs `aws s3 sync` with the settings that were found to be its best.
func (l *lab) awsSync(ctx context.Context, from, to, disk string) (cost, error) {
	took, _, err := l.measure(ctx, command{
		args: []string{l.tools.aws, "--endpoint-url", l.proxy.URL(), "s3", "sync", "--only-show-errors", "--delete", from, to},
		env:  l.aws, sync: disk,
	})
	return took, err
}

func (l *lab) awsDown(prefix string) func(context.Context, string) (cost, error) {
	return func(ctx context.Context, dir string) (cost, error) {
		return l.awsSync(ctx, "s3://"+bucket+"/"+prefix, dir, dir)
	}
}

func (l *lab) awsUp(t *tree, prefix string) func(context.Context, string) (cost, error) {
	return func(ctx context.Context, _ string) (cost, error) {
		return l.awsSync(ctx, t.dir, "s3://"+bucket+"/"+prefix, "")
	}
}

// rclone compares by MD5, which it has from the listing and by reading what is here: its other ways ask for each object's mtime or see no
// change that keeps the size.
func (l *lab) rclone(ctx context.Context, from, to, disk string) (cost, error) {
	took, _, err := l.measure(ctx, command{
		args: []string{l.tools.rclone, "sync", "-q", "--transfers", "64", "--checkers", "64", "--fast-list", "--checksum", from, to},
		// Over plain HTTP it can send nothing else: it hashes while it sends.
		env: []string{"AWS_REQUEST_CHECKSUM_CALCULATION=when_required"}, sync: disk,
	})
	return took, err
}

func (l *lab) rcloneDown(prefix string) func(context.Context, string) (cost, error) {
	return func(ctx context.Context, dir string) (cost, error) {
		return l.rclone(ctx, "s3:"+bucket+"/"+prefix, dir, dir)
	}
}

func (l *lab) rcloneUp(t *tree, prefix string) func(context.Context, string) (cost, error) {
	return func(ctx context.Context, _ string) (cost, error) {
		return l.rclone(ctx, t.dir, "s3:"+bucket+"/"+prefix, "")
	}
}

// curl signs a request for an object. What is sent is not hashed first, which is the quickest.
func (l *lab) curl(key, more string) string {
	return fmt.Sprintf("curl -sS --fail --aws-sigv4 aws:amz:%s:s3 --user %s:%s -H 'x-amz-content-sha256: UNSIGNED-PAYLOAD' %s %s/%s/%s",
		parts.Region, parts.AccessKey, parts.SecretKey, more, l.proxy.URL(), bucket, key)
}

// bundleDown fetches a tar.zst and unpacks it as it comes.
func (l *lab) bundleDown(key string) func(context.Context, string) (cost, error) {
	return func(ctx context.Context, dir string) (cost, error) {
		took, _, err := l.measure(ctx, command{
			args: []string{"bash", "-c", fmt.Sprintf("set -o pipefail; %s | zstd -dcq | tar -x -C %s", l.curl(key, ""), dir)}, sync: dir,
		})
		return took, err
	}
}

// bundleUp makes a tar.zst of a tree, in a file because S3 wants to know the length, and sends it.
func (l *lab) bundleUp(t *tree, key string) func(context.Context, string) (cost, error) {
	return func(ctx context.Context, dir string) (cost, error) {
		file := filepath.Join(dir, "bundle.tar.zst")
		took, _, err := l.measure(ctx, command{args: []string{
			"bash", "-c", fmt.Sprintf("set -o pipefail; tar -c -C %s . | zstd -q -3 -T0 -f -o %s && %s", t.dir, file, l.curl(key, "-T "+file)),
		}})
		return took, err
	}
}

// copyLinks is what an incremental deploy costs on this disk at least, by the usual tool: `cp -al` of a release.
func (l *lab) copyLinks(from string) func(context.Context, string) (cost, error) {
	return func(ctx context.Context, dir string) (cost, error) {
		took, _, err := l.measure(ctx, command{args: []string{"cp", "-al", from, filepath.Join(dir, "copy")}, sync: dir})
		took.traffic = traffic{}
		return took, err
	}
}

// seed puts a tree into the bucket for peers to fetch: by our own plain layout, which is one object a file, without latency.
func (l *lab) seed(ctx context.Context, t *tree) (prefix string, err error) {
	s, err := l.site(l.dir)
	if err != nil {
		return "", err
	}
	_, out, err := l.measure(ctx, command{
		args: []string{l.push, "-config=" + s.config, "-deploy=" + t.dir, "-layout=plain", "-wait=false", "-json"},
		env:  []string{"XDG_CACHE_HOME=" + s.cache},
	})
	if err != nil {
		return "", err
	}
	release, err := releaseOf(out)
	return s.name + "/" + release, err
}

// awsBest finds out whether the aws command is quicker as it comes or with 64 requests at once.
func (l *lab) awsBest(ctx context.Context, prefix string) (what string, err error) {
	config := filepath.Join(l.dir, "aws.config")
	if err := os.WriteFile(config, []byte("[default]\ns3 =\n  max_concurrent_requests = 64\n"), 0o644); err != nil {
		return "", err
	}
	results, err := l.contest(ctx, "aws at its best", 1, nothing, []contender{
		{name: "as it comes", run: l.awsDown(prefix)},
		{name: "64 requests at once", run: func(ctx context.Context, dir string) (cost, error) {
			l.aws = []string{"AWS_CONFIG_FILE=" + config}
			defer func() { l.aws = nil }()
			return l.awsDown(prefix)(ctx, dir)
		}},
	})
	if err != nil {
		return "", err
	}
	all := results[0]
	if all[1].synced() < all[0].synced() {
		l.aws = []string{"AWS_CONFIG_FILE=" + config}
		return all[1].Name, nil
	}
	return all[0].Name, nil
}
