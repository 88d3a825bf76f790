// Restart does with units, as whoever runs it, what an agent does after a flip: restart reload|restart UNIT…
package main

import (
	"context"
	"fmt"
	"os"

	"s3pulldeploy/internal/agent"
)

func main() {
	do := agent.Systemd{}.Restart
	if os.Args[1] == "reload" {
		do = func(ctx context.Context, units []string) error {
			_, err := agent.Systemd{}.Reload(ctx, units)
			return err
		}
	}
	if err := do(context.Background(), os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
