package testenv

import (
	"context"
	"os"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv/parts"
)

// PHPServer is a web server with PHP that serves <root>/active with what is in share/.
type PHPServer struct {
	*parts.Web
	Log string // folder with the logs of nginx and php-fpm
}

// Stop ends nginx and php-fpm before the test's end does; it may be called again.
func (p PHPServer) Stop() { _ = p.Web.Stop(5 * time.Second) }

// PHP starts one php-fpm pool and one nginx as [parts.StartWeb] does. They are this test's own: opcache
// starts empty. `<root>/active` need not exist yet. ini are more lines for php.ini.
func PHP(t testing.TB, root string, ini ...string) PHPServer {
	t.Helper()
	return PHPWith(t, parts.WebOptions{Root: root, Ini: ini})
}

// PHPWith is [PHP] with other options; Dir is set.
func PHPWith(t testing.TB, o parts.WebOptions) PHPServer {
	t.Helper()
	// The test's own folder has a name too long for a socket.
	dir, err := os.MkdirTemp("", "php-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	o.Dir = dir
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w, err := parts.StartWeb(context.Background(), o)
	Require(t, "PHP tests", err)
	p := PHPServer{Web: w, Log: dir}
	t.Cleanup(p.Stop)
	return p
}
