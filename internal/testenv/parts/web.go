package parts

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/template"
	"time"
)

// Web is nginx (or Apache) in front of a PHP pool of its own, set up with the snippets and settings of share/ as an
// operator would: only addresses and paths are other ones. opcache starts empty.
type Web struct {
	URL       string // the site, http://127.0.0.1:port
	LocalURL  string // the opcache route over TCP
	SocketURL string // the same over a unix socket, unix:/path:/uri
	Preview   string // a release by its name, http://127.0.0.1:port

	front, fpm *Process // the web server, and php-fpm
}

// WebOptions are what differs between two web servers of one machine.
type WebOptions struct {
	Dir  string   // configuration, logs and sockets: a short path, a socket's name has 107 bytes at most
	Root string   // the site's root, with the link `active` in it, now or later
	User string   // whom PHP and nginx run as if we are root; empty, or we are not: as we do
	Ini  []string // more lines for php.ini
	// FileCache is a folder for what opcache compiled, made for the user of PHP, with the lines that share/php/opcache.ini has for it;
	// empty: they stay comments.
	FileCache string

	Workers int // of the pool; 0: 2
	// Apache takes Apache instead of nginx, without a route on a socket.
	Apache bool

	// Edit changes a file of share/, named as in it, as an operator does who knows better; nil: they stay as they are.
	Edit func(name, text string) string
	// Public is the folder in the release that visitors see, such as /public; empty: the release itself.
	Public string
}

// StartWeb starts PHP's pool and nginx and waits until both listen.
func StartWeb(ctx context.Context, o WebOptions) (*Web, error) {
	name := "nginx"
	if o.Apache {
		name = "apache2"
	}
	server, err := program("/usr/sbin/" + name)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	fpm, err := program("/usr/sbin/php-fpm*")
	if err != nil {
		return nil, fmt.Errorf("start php-fpm: %w", err)
	}
	if os.Geteuid() != 0 {
		o.User = ""
	} else if o.User == "" {
		o.User = "root"
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, fmt.Errorf("no answer for %v", startTime))
	defer cancel()

	w := &Web{SocketURL: "unix:" + o.path("local.sock") + ":/_deploy/opcache"}
	if w.fpm, err = startFPM(ctx, fpm, o); err != nil {
		return nil, err
	}
	start := w.startNginx
	if o.Apache {
		start = w.startApache
	}
	if err := start(ctx, server, o); err != nil {
		w.fpm.Kill()
		return nil, err
	}
	return w, nil
}

// FPM is the process id of php-fpm's master.
func (w *Web) FPM() int { return w.fpm.Pid() }

// Stop ends both servers. It may be called again.
func (w *Web) Stop(grace time.Duration) error {
	return errors.Join(w.front.Stop(grace), w.fpm.Stop(grace))
}

func (o WebOptions) path(name string) string { return filepath.Join(o.Dir, name) }

func startFPM(ctx context.Context, fpm string, o WebOptions) (*Process, error) {
	ini, err := share("php/opcache.ini")
	if err != nil {
		return nil, fmt.Errorf("start php-fpm: %w", err)
	}
	if o.FileCache != "" {
		if ini, err = o.withFileCache(ini); err != nil {
			return nil, fmt.Errorf("start php-fpm: %w", err)
		}
	}
	ini = "zend_extension=opcache.so\n" + ini + "\n" + strings.Join(o.Ini, "\n") + "\n"
	var pool strings.Builder
	err = errors.Join(
		poolConfig.Execute(&pool, o),
		os.MkdirAll(o.path("ini"), 0o755),
		os.WriteFile(o.path("ini/opcache.ini"), []byte(ini), 0o644),
		os.WriteFile(o.path("fpm.conf"), []byte(pool.String()), 0o644),
	)
	if err != nil {
		return nil, fmt.Errorf("start php-fpm: %w", err)
	}
	args := []string{"--nodaemonize", "--fpm-config", o.path("fpm.conf"), "-c", o.path("ini")}
	if o.User == "root" {
		args = append(args, "--allow-to-run-as-root")
	}
	p, err := Start(Command{
		Name: "php-fpm", Path: fpm, Args: args, Dir: o.Dir, Log: o.path("fpm.out"),
		Env:   []string{"PATH=" + os.Getenv("PATH"), "PHP_INI_SCAN_DIR=" + o.path("ini")},
		Death: syscall.SIGTERM, // its children outlive a killed master
	})
	if err != nil {
		return nil, err
	}
	err = p.Await(ctx, func(ctx context.Context) error { return listens(ctx, "unix", o.path("fpm.sock")) })
	if err != nil {
		p.Kill()
		return nil, err
	}
	return p, nil
}

// withFileCache does what opcache.ini says to do for a cache on the disk.
func (o WebOptions) withFileCache(ini string) (string, error) {
	for _, setting := range []string{"file_cache", "validate_timestamps", "revalidate_freq"} {
		before, after, ok := strings.Cut(ini, "\n;opcache."+setting+"=")
		if !ok {
			return "", fmt.Errorf("share/php/opcache.ini has no line ;opcache.%s", setting)
		}
		if setting == "file_cache" {
			_, after, _ = strings.Cut(after, "\n")
			after = o.FileCache + "\n" + after
		}
		ini = before + "\nopcache." + setting + "=" + after
	}
	args := []string{"-d", "-m", "0700", o.FileCache}
	if o.User != "" {
		args = append(args, "-o", o.User)
	}
	if out, err := exec.Command("install", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return ini, nil
}

func (w *Web) startNginx(ctx context.Context, nginx string, o WebOptions) error {
	params, err := os.ReadFile("/etc/nginx/fastcgi_params")
	if err != nil {
		return fmt.Errorf("start nginx: %w", err)
	}
	if err := os.WriteFile(o.path("fastcgi_params"), params, 0o644); err != nil {
		return fmt.Errorf("start nginx: %w", err)
	}
	var local, preview int
	w.front, w.URL, err = serve(ctx, func(port int) (Command, error) {
		if local, err = FreePort(); err == nil {
			preview, err = FreePort()
		}
		if err != nil {
			return Command{}, err
		}
		text, err := o.nginxConf(port, local, preview)
		if err != nil {
			return Command{}, fmt.Errorf("start nginx: %w", err)
		}
		return Command{
			Name: "nginx", Path: nginx, Dir: o.Dir, Log: o.path("nginx.out"),
			Args:  []string{"-p", o.Dir, "-c", o.path("nginx.conf"), "-e", o.path("nginx.log")},
			Death: syscall.SIGTERM, // its workers outlive a killed master
		}, os.WriteFile(o.path("nginx.conf"), []byte(text), 0o644)
	})
	w.LocalURL = "http://" + loopback(local) + "/_deploy/opcache"
	w.Preview = "http://" + loopback(preview)
	return err
}

// nginxConf is the site as its operator would write it: with share/'s public snippet included, and its
// local route and preview copied and changed in the lines that say so.
func (o WebOptions) nginxConf(port, localPort, previewPort int) (string, error) {
	// Copies: the web user may not enter the folder that the module lies in.
	err := errors.Join(o.copyShare("probe.php"), o.copyShare("release.php"))
	if err != nil {
		return "", err
	}
	pool := "unix:" + o.path("fpm.sock") + ";"
	local, err1 := o.edited("nginx/local.conf",
		"listen 127.0.0.1:8901;", fmt.Sprintf("listen %s; listen unix:%s;", loopback(localPort), o.path("local.sock")),
		"root /var/www/promo.example.com/active;", "root "+o.Root+"/active;",
		"/usr/share/s3-pull-deploy/probe.php", o.path("probe.php"),
		"unix:/run/php/php8.2-fpm.sock;", pool)
	preview, err2 := o.edited("nginx/preview.conf",
		"listen 127.0.0.1:8902;", fmt.Sprintf("listen %s;", loopback(previewPort)),
		"/var/www/promo.example.com/$http_x_deploy_release/public;", o.Root+"/$http_x_deploy_release"+o.Public+";",
		"/usr/share/s3-pull-deploy/nginx/site.conf", o.path("site.conf"),
		"unix:/run/php/php8.2-fpm.sock;", pool)
	site, err3 := o.edited("nginx/site.conf", "/usr/share/s3-pull-deploy/release.php", o.path("release.php"))
	if err := errors.Join(err1, err2, err3, os.WriteFile(o.path("site.conf"), []byte(site), 0o644)); err != nil {
		return "", err
	}
	var b strings.Builder
	err = nginxConfig.Execute(&b, struct {
		WebOptions
		Port   int
		Blocks []string
	}{o, port, []string{local, preview}})
	return b.String(), err
}

// edited is a file of share/ in which each old text, which is there once, is replaced by the new one behind it.
func (o WebOptions) edited(name string, changes ...string) (string, error) {
	text, err := share(name)
	if err != nil {
		return "", err
	}
	for change := range slices.Chunk(changes, 2) {
		if strings.Count(text, change[0]) != 1 {
			return "", fmt.Errorf("share/%s: %q is not there once", name, change[0])
		}
		text = strings.Replace(text, change[0], change[1], 1)
	}
	if o.Edit != nil {
		text = o.Edit(name, text)
	}
	return text, nil
}

// copyShare copies a file of share/ to the web server's folder.
func (o WebOptions) copyShare(name string) error {
	text, err := share(name)
	if err != nil {
		return err
	}
	return os.WriteFile(o.path(filepath.Base(name)), []byte(text), 0o644)
}

var poolConfig = template.Must(template.New("fpm.conf").Parse(`[global]
error_log = {{.Dir}}/fpm.log
[www]
{{with .User}}user = {{.}}
group = {{.}}
{{end}}listen = {{.Dir}}/fpm.sock
listen.mode = 0666
pm = static
pm.max_children = {{or .Workers 2}}
catch_workers_output = yes
clear_env = yes
`))

var nginxConfig = template.Must(template.New("nginx.conf").Parse(`daemon off;
{{with .User}}user {{.}};
{{end}}worker_processes 1;
pid {{.Dir}}/nginx.pid;
events { worker_connections 256; }
http {
	include /etc/nginx/mime.types;
	access_log off;
	client_body_temp_path {{.Dir}}/body;
	proxy_temp_path {{.Dir}}/proxy;
	fastcgi_temp_path {{.Dir}}/fastcgi;
	uwsgi_temp_path {{.Dir}}/uwsgi;
	scgi_temp_path {{.Dir}}/scgi;
	server {
		listen 127.0.0.1:{{.Port}};
		root {{.Root}}/active{{.Public}};
		index index.php;
		set $deploy_php unix:{{.Dir}}/fpm.sock;
		include {{.Dir}}/site.conf;
		location / { try_files $uri $uri/ /index.php$is_args$args; }
	}
{{range .Blocks}}{{.}}
{{end}}}
`))

// program finds an executable where Debian keeps daemons, the newest of those that match.
func program(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("%s: %w", pattern, ErrMissing)
	}
	return exec.LookPath(found[len(found)-1])
}

// share is a file of the module's share/: what a package installs under /usr/share/s3-pull-deploy.
func share(name string) (string, error) {
	root, err := ModuleRoot()
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(root, "share", name))
	return string(text), err
}

func listens(ctx context.Context, network, address string) error {
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return err
	}
	return c.Close()
}
