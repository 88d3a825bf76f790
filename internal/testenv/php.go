package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"s3pulldeploy/internal/testenv/parts"
)

// PHPServer is a web server with PHP that serves <root>/active with what is in share/.
type PHPServer struct {
	URL       string // the site, http://127.0.0.1:port
	LocalURL  string // the opcache route over TCP
	SocketURL string // the same over a unix socket, unix:/path:/uri
	Log       string // folder with the logs of nginx and php-fpm

	stop func()
}

// Stop ends nginx and php-fpm before the test's end does; it may be called again.
func (p PHPServer) Stop() { p.stop() }

// PHP starts one php-fpm pool of two workers and one nginx, both with the snippets and settings of
// share/ (only addresses and paths are other ones). They are this test's own: opcache starts empty.
// `<root>/active` need not exist yet. ini are more lines for php.ini.
func PHP(t testing.TB, root string, ini ...string) PHPServer {
	t.Helper()
	fpm, err := installedPHP()
	Require(t, "PHP tests", err)
	// The test's own folder has a name too long for a socket.
	dir, err := os.MkdirTemp("", "php-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })

	w := &webServer{dir: dir, root: root, fpm: fpm}
	t.Cleanup(w.stop)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := w.start(ctx, ini); err != nil {
		t.Fatalf("start PHP: %v", err)
	}
	return PHPServer{
		URL:       fmt.Sprintf("http://127.0.0.1:%d", w.port),
		LocalURL:  fmt.Sprintf("http://127.0.0.1:%d/_deploy/opcache", w.localPort),
		SocketURL: "unix:" + w.path("local.sock") + ":/_deploy/opcache",
		Log:       dir,
		stop:      w.stop,
	}
}

// installedPHP is php-fpm's executable, if nginx is there as well.
func installedPHP() (string, error) {
	if _, err := os.Stat(nginx); err != nil {
		return "", fmt.Errorf("nginx: %w", parts.ErrMissing)
	}
	found, err := filepath.Glob("/usr/sbin/php-fpm*")
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("php-fpm: %w", parts.ErrMissing)
	}
	return found[len(found)-1], nil
}

const nginx = "/usr/sbin/nginx"

// webServer is nginx and php-fpm in the foreground, with everything they write in dir.
type webServer struct {
	dir, root, fpm  string
	port, localPort int
	running         []*parts.Process
}

func (w *webServer) path(name string) string { return filepath.Join(w.dir, name) }

func (w *webServer) stop() {
	for _, p := range w.running {
		if p.Stop(5*time.Second) != nil {
			p.Kill() // Stop has; twice does no harm
		}
	}
	w.running = nil
}

func (w *webServer) start(ctx context.Context, ini []string) error {
	if err := w.startFPM(ctx, ini); err != nil {
		return err
	}
	var errs []error
	for range 3 { // somebody may take a free port in between
		err := w.startNginx(ctx)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (w *webServer) startFPM(ctx context.Context, ini []string) error {
	settings, err := share("php/opcache.ini")
	if err != nil {
		return err
	}
	settings = "zend_extension=opcache.so\n" + settings + "\n" + strings.Join(ini, "\n") + "\n"
	args := []string{"--nodaemonize", "--fpm-config", w.path("fpm.conf"), "-c", w.path("ini")}
	pool := "[global]\nerror_log = " + w.path("fpm.log") + "\n[www]\nlisten = " + w.path("fpm.sock") +
		"\npm = static\npm.max_children = 2\ncatch_workers_output = yes\nclear_env = yes\n"
	if os.Geteuid() == 0 {
		// As whom the test runs: nobody else can read its folders.
		pool += "user = root\ngroup = root\n"
		args = append(args, "--allow-to-run-as-root")
	}
	if err := errors.Join(
		os.Mkdir(w.path("ini"), 0o755),
		os.WriteFile(w.path("ini/opcache.ini"), []byte(settings), 0o644),
		os.WriteFile(w.path("fpm.conf"), []byte(pool), 0o644),
	); err != nil {
		return err
	}
	return w.run(ctx, parts.Command{
		Name: "php-fpm", Path: w.fpm, Args: args, Dir: w.dir, Log: w.path("fpm.out"), Death: syscall.SIGTERM,
		Env: []string{"PATH=" + os.Getenv("PATH"), "PHP_INI_SCAN_DIR=" + w.path("ini")},
	}, func(ctx context.Context) error { return listens(ctx, "unix", w.path("fpm.sock")) })
}

func (w *webServer) startNginx(ctx context.Context) error {
	port, err := parts.FreePort()
	if err != nil {
		return err
	}
	localPort, err := parts.FreePort()
	if err != nil {
		return err
	}
	w.port, w.localPort = port, localPort
	text, err := w.config()
	if err != nil {
		return err
	}
	params, err := os.ReadFile("/etc/nginx/fastcgi_params")
	if err != nil {
		return err
	}
	if err := errors.Join(
		os.WriteFile(w.path("fastcgi_params"), params, 0o644),
		os.WriteFile(w.path("nginx.conf"), []byte(text), 0o644),
	); err != nil {
		return err
	}
	return w.run(ctx, parts.Command{
		Name: "nginx", Path: nginx, Dir: w.dir, Log: w.path("nginx.out"), Death: syscall.SIGTERM,
		Args: []string{"-p", w.dir, "-c", w.path("nginx.conf"), "-e", w.path("nginx.log"), "-g", "daemon off;"},
	}, func(ctx context.Context) error {
		if err := listens(ctx, "unix", w.path("local.sock")); err != nil {
			return err
		}
		return listens(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	})
}

// config is the site as its operator would write it, with the snippets of share/.
func (w *webServer) config() (string, error) {
	site, err := share("nginx/site.conf")
	if err != nil {
		return "", err
	}
	local, err := share("nginx/local.conf")
	if err != nil {
		return "", err
	}
	probe, err := sharePath("probe.php")
	if err != nil {
		return "", err
	}
	fpm := "unix:" + w.path("fpm.sock")
	for _, change := range [][2]string{
		{"listen 127.0.0.1:8901;", fmt.Sprintf("listen 127.0.0.1:%d; listen unix:%s;", w.localPort, w.path("local.sock"))},
		{"root /var/www/promo.example.com/active;", "root " + w.root + "/active;"},
		{"/usr/share/s3-pull-deploy/probe.php", probe},
		{"fastcgi_pass unix:/run/php/php8.2-fpm.sock;", "fastcgi_pass " + fpm + ";"},
	} {
		if strings.Count(local, change[0]) != 1 {
			return "", fmt.Errorf("share/nginx/local.conf: %q is not there once", change[0])
		}
		local = strings.Replace(local, change[0], change[1], 1)
	}
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;"
	}
	return fmt.Sprintf(nginxConfig, user, w.dir, w.port, w.root, fpm, site, local), nil
}

// nginxConfig takes the user, our folder, the site's port and root, php-fpm and the two snippets.
const nginxConfig = `%s
worker_processes 1;
pid %[2]s/nginx.pid;
events { worker_connections 256; }
http {
	include /etc/nginx/mime.types;
	access_log off;
	client_body_temp_path %[2]s/body;
	proxy_temp_path %[2]s/proxy;
	fastcgi_temp_path %[2]s/fastcgi;
	uwsgi_temp_path %[2]s/uwsgi;
	scgi_temp_path %[2]s/scgi;
	server {
		listen 127.0.0.1:%d;
		root %s/active;
		index index.php;
		set $deploy_php %s;
		%s
		location / { try_files $uri $uri/ /index.php$is_args$args; }
	}
	%s
}
`

// run starts a command and waits until it is ready.
func (w *webServer) run(ctx context.Context, c parts.Command, ready func(context.Context) error) error {
	p, err := parts.Start(c)
	if err != nil {
		return err
	}
	if err := p.Await(ctx, ready); err != nil {
		p.Kill()
		return err
	}
	w.running = append(w.running, p)
	return nil
}

func listens(ctx context.Context, network, address string) error {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	return c.Close()
}

// share is a file of the module's share/.
func share(name string) (string, error) {
	path, err := sharePath(name)
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(path)
	return string(text), err
}

func sharePath(name string) (string, error) {
	root, err := parts.ModuleRoot()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "share", name), nil
}
