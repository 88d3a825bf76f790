// Command agent keeps an instance on the release that its fleet agreed on.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"s3pulldeploy/internal/agent"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	os.Exit(agent.Main(ctx, os.Args[1:], reload, os.Stdout, os.Stderr))
}
