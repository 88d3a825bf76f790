package parts

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/template"
	"time"
)

// Web is nginx in front of a PHP pool of its own, both on loopback, set up as the manual says: PHP gets
// the release's real path, so that one request sees one release.
type Web struct {
	URL   string   // http://127.0.0.1:port, the site
	Local string   // http://127.0.0.1:port, the agent's own routes
	Nginx *Process // worker processes end with it
	FPM   *Process
}

// WebOptions are what differs between two web servers of one machine.
type WebOptions struct {
	Dir   string // configuration, logs and sockets; a short path that the web user may enter
	Root  string // document root: the symlink that flips
	Probe string // PHP file behind POST /_deploy/opcache of Local; empty: no such route
}

// StartWeb starts PHP's pool and nginx and waits until both answer.
func StartWeb(ctx context.Context, o WebOptions) (*Web, error) {
	nginx, err := program("nginx")
	if err != nil {
		return nil, fmt.Errorf("start nginx: %w", err)
	}
	fpm, err := program("php-fpm8.2", "php-fpm")
	if err != nil {
		return nil, fmt.Errorf("start php-fpm: %w", err)
	}
	w := &Web{}
	if w.FPM, err = startFPM(ctx, fpm, o); err != nil {
		return nil, err
	}
	if err := w.startNginx(ctx, nginx, o); err != nil {
		w.FPM.Kill()
		return nil, err
	}
	return w, nil
}

// Stop ends both servers.
func (w *Web) Stop(grace time.Duration) error {
	return errors.Join(w.Nginx.Stop(grace), w.FPM.Stop(grace))
}

func startFPM(ctx context.Context, fpm string, o WebOptions) (*Process, error) {
	file := filepath.Join(o.Dir, "php-fpm.conf")
	if err := render(file, fpmConfig, o, 0); err != nil {
		return nil, fmt.Errorf("start php-fpm: %w", err)
	}
	p, err := Start(Command{
		Name:  "php-fpm",
		Path:  fpm,
		Args:  []string{"--nodaemonize", "--fpm-config", file},
		Log:   filepath.Join(o.Dir, "php-fpm.log"),
		Death: syscall.SIGTERM, // its children outlive a killed master
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	err = p.Await(ctx, func(context.Context) error {
		c, err := net.Dial("unix", filepath.Join(o.Dir, "php.sock"))
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil {
		p.Kill()
		return nil, err
	}
	return p, nil
}

func (w *Web) startNginx(ctx context.Context, nginx string, o WebOptions) error {
	file := filepath.Join(o.Dir, "nginx.conf")
	var local int
	var err error
	w.Nginx, w.URL, err = serve(ctx, func(port int) (Command, error) {
		if local, err = FreePort(); err != nil {
			return Command{}, err
		}
		return Command{
			Name:  "nginx",
			Path:  nginx,
			Args:  []string{"-e", filepath.Join(o.Dir, "nginx-error.log"), "-p", o.Dir, "-c", file},
			Log:   filepath.Join(o.Dir, "nginx.log"),
			Death: syscall.SIGTERM, // its workers outlive a killed master
		}, render(file, nginxConfig, o, port, local)
	})
	w.Local = "http://" + loopback(local)
	return err
}

// program finds the first of some executables on the PATH or where Debian keeps daemons.
func program(names ...string) (string, error) {
	for _, name := range names {
		if found, err := exec.LookPath(name); err == nil {
			return found, nil
		}
		if found, err := exec.LookPath("/usr/sbin/" + name); err == nil {
			return found, nil
		}
	}
	return "", fmt.Errorf("%s: %w", strings.Join(names, " or "), ErrMissing)
}

// render writes a server's configuration. ports are the site's and the local one, where there are any.
func render(file string, t *template.Template, o WebOptions, ports ...int) error {
	if slices.ContainsFunc([]string{o.Dir, o.Root, o.Probe}, func(s string) bool { return strings.ContainsAny(s, " ;{}\"'\n") }) {
		return fmt.Errorf("write %s: a path has a character that needs quoting", file)
	}
	var b strings.Builder
	err := t.Execute(&b, map[string]any{
		"Dir": o.Dir, "Root": o.Root, "Probe": o.Probe, "Ports": ports, "User": webUser(),
	})
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return os.WriteFile(file, []byte(b.String()), 0o644)
}

// webUser is whom PHP runs as when we are root: Debian's www-data, where it exists. Else it runs as we do.
func webUser() string {
	if _, err := user.Lookup("www-data"); err == nil && os.Geteuid() == 0 {
		return "www-data"
	}
	return ""
}

var fpmConfig = template.Must(template.New("php-fpm.conf").Parse(`[global]
error_log = {{.Dir}}/php-fpm-error.log
[www]
{{with .User}}user = {{.}}
group = {{.}}
{{end}}listen = {{.Dir}}/php.sock
listen.mode = 0666
pm = static
pm.max_children = 4
catch_workers_output = yes
`))

var nginxConfig = template.Must(template.New("nginx.conf").Parse(`daemon off;
{{with .User}}user {{.}};
{{end}}worker_processes 1;
pid {{.Dir}}/nginx.pid;
error_log {{.Dir}}/nginx-error.log;
events { worker_connections 512; }
http {
	access_log off;
	types { text/css css; }
	default_type application/octet-stream;
	client_body_temp_path {{.Dir}}/tmp-body;
	proxy_temp_path {{.Dir}}/tmp-proxy;
	fastcgi_temp_path {{.Dir}}/tmp-fastcgi;
	uwsgi_temp_path {{.Dir}}/tmp-uwsgi;
	scgi_temp_path {{.Dir}}/tmp-scgi;
	server {
		listen 127.0.0.1:{{index .Ports 0}};
		root {{.Root}};
		index index.php;
		location / { try_files $uri $uri/ =404; }
		location ~ \.php$ {
			fastcgi_param SCRIPT_FILENAME $realpath_root$fastcgi_script_name;
			{{template "params" .}}
		}
	}
	server {
		listen 127.0.0.1:{{index .Ports 1}};
		{{with .Probe}}location = /_deploy/opcache {
			fastcgi_param SCRIPT_FILENAME {{.}};
			{{template "params" $}}
		}{{end}}
		root {{.Root}};
		location / { return 404; }
	}
}
{{define "params"}}fastcgi_pass unix:{{.Dir}}/php.sock;
			fastcgi_param DOCUMENT_ROOT $realpath_root;
			fastcgi_param REQUEST_METHOD $request_method;
			fastcgi_param QUERY_STRING $query_string;
			fastcgi_param CONTENT_TYPE $content_type;
			fastcgi_param CONTENT_LENGTH $content_length;
			fastcgi_param REQUEST_URI $request_uri;
			fastcgi_param SERVER_PROTOCOL $server_protocol;
			fastcgi_param REMOTE_ADDR $remote_addr;
			fastcgi_param HTTP_HOST $http_host;{{end}}`))
