// Command agent keeps an instance on the release that its fleet agreed on.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"s3pulldeploy/internal/agent"
)

func main() {
	// A panic and the watchdog's SIGABRT end the process by a signal. Go's own way is exit code 2, which is that of wrong settings:
	// systemd would not start it again.
	debug.SetTraceback("crash")
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	os.Exit(agent.Main(ctx, os.Args[1:], reload, os.Stdout, os.Stderr))
}
