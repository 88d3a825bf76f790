// Command push uploads a release, moves a site's fleet to it, and says what became of it.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"s3pulldeploy/internal/push"
)

func main() {
	debug.SetGCPercent(400) // it lives for seconds, and has a laptop's memory
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	os.Exit(push.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
