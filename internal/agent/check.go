package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/php"
)

// errCheck is how -check ends when something must be mended.
var errCheck = errors.New("check: not everything is as it must be")

// check looks at this machine as the settings have it and prints a line for each thing that was looked at, and a second one with
// the cure where there is something to mend: permissions, paths, users, units, web server and PHP. It changes nothing, and fails when a deploy would not work.
func check(ctx context.Context, c *config.Config, w io.Writer) error {
	bad := false
	for _, f := range slices.Concat(examineAWS(ctx, c), examineMachine(ctx, c), examinePHP(ctx, c)) {
		bad = bad || f.Verdict == php.Fail
		fmt.Fprintf(w, "%-4s  %s\n", f.Verdict, f.What)
		if f.Cure != "" {
			fmt.Fprintf(w, "      hint: %s\n", f.Cure)
		}
	}
	if bad {
		return errCheck
	}
	return nil
}

// examinePHP looks at web server and PHP.
func examinePHP(ctx context.Context, c *config.Config) []php.Finding {
	live, _ := os.Readlink(filepath.Join(c.Root, c.Active)) // none yet, or not ours: then nothing is live
	if live != "" {
		live = filepath.Base(live)
	}
	return php.Examine(ctx, php.Setup{
		Opcache: php.Options{Mode: c.Opcache.Effective(), URLs: c.Opcache.URL, Host: c.Opcache.Host, Timeout: c.Opcache.Timeout},
		Site:    php.Site{URL: c.HealthCheck.URL, Host: c.HealthCheck.Host, Timeout: c.HealthCheck.Timeout},
		Root:    c.Root, Live: live, Reload: len(fpmUnits(c.Restart)) > 0, Addresses: addresses(),
	})
}

// addresses are those by which others reach this machine.
func addresses() (out []string) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			out = append(out, n.IP.String())
		}
	}
	return out
}
