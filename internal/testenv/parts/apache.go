package parts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"text/template"
)

// startApache is startNginx with Apache and the files of share/apache. Its user must get through to Dir and Root.
func (w *Web) startApache(ctx context.Context, apache string, o WebOptions) error {
	if o.User == "root" {
		o.User = "www-data" // it refuses root
	}
	var local, preview int
	var err error
	w.front, w.URL, err = serve(ctx, func(port int) (Command, error) {
		if local, err = FreePort(); err == nil {
			preview, err = FreePort()
		}
		if err != nil {
			return Command{}, err
		}
		text, err := o.apacheConf(port, local, preview)
		if err != nil {
			return Command{}, fmt.Errorf("start apache: %w", err)
		}
		return Command{
			Name: "apache", Path: apache, Dir: o.Dir, Log: o.path("apache.out"),
			Args:  []string{"-D", "FOREGROUND", "-f", o.path("apache.conf")},
			Death: syscall.SIGTERM, // its workers outlive a killed master
		}, os.WriteFile(o.path("apache.conf"), []byte(text), 0o644)
	})
	w.LocalURL = "http://" + loopback(local) + "/_deploy/opcache"
	w.Preview = "http://" + loopback(preview)
	return err
}

// apacheConf is the site as its operator would write it, with what is in share/apache.
func (o WebOptions) apacheConf(port, localPort, previewPort int) (string, error) {
	err := errors.Join(o.copyShare("probe.php"), o.copyShare("release.php"), o.copyShare("apache/realroot"), o.copyShare("apache/healthy.asis"), os.Chmod(o.path("realroot"), 0o755))
	if err != nil {
		return "", err
	}
	pool := "unix:" + o.path("fpm.sock")
	local, err1 := o.edited("apache/local.conf",
		"Listen 127.0.0.1:8901", "Listen "+loopback(localPort), "VirtualHost 127.0.0.1:8901", "VirtualHost "+loopback(localPort),
		"DocumentRoot /var/www/promo.example.com/active", "DocumentRoot "+o.Root+"/active",
		"/usr/share/s3-pull-deploy/probe.php", o.path("probe.php"), "unix:/run/php/php8.2-fpm.sock", pool)
	preview, err2 := o.edited("apache/preview.conf",
		"Listen 127.0.0.1:8902", "Listen "+loopback(previewPort), "VirtualHost 127.0.0.1:8902", "VirtualHost "+loopback(previewPort),
		"preview_root /var/www/promo.example.com", "preview_root "+o.Root, "/%1/public]", "/%1"+o.Public+"]",
		"preview_php unix:/run/php/php8.2-fpm.sock", "preview_php "+pool)
	as := " www-data:www-data"
	if o.User == "" {
		as = "" // only root can start it as somebody else
	}
	site, err3 := o.edited("apache/site.conf",
		"<Directory /usr/share/s3-pull-deploy/apache>", "<Directory "+o.Dir+">", "/usr/share/s3-pull-deploy/apache/healthy.asis", o.path("healthy.asis"),
		`"prg:/usr/share/s3-pull-deploy/apache/realroot" www-data:www-data`, `"prg:`+o.path("realroot")+`"`+as, "E=DEPLOY_SCRIPT:/usr/share/s3-pull-deploy/release.php", "E=DEPLOY_SCRIPT:"+o.path("release.php"))
	if err := errors.Join(err1, err2, err3, os.WriteFile(o.path("site.conf"), []byte(site), 0o644)); err != nil {
		return "", err
	}
	var b strings.Builder
	err = apacheConfig.Execute(&b, struct {
		WebOptions
		Port   int
		Blocks []string
	}{o, port, []string{local, preview}})
	return b.String(), err
}

var apacheConfig = template.Must(template.New("apache.conf").Parse(`ServerRoot {{.Dir}}
PidFile {{.Dir}}/apache.pid
ErrorLog {{.Dir}}/apache.log
DefaultRuntimeDir {{.Dir}}
Mutex fcntl:{{.Dir}} default
ServerName localhost
{{range $name, $module := .Modules}}LoadModule {{$module}}_module /usr/lib/apache2/modules/mod_{{$module}}.so
{{end}}{{with .User}}User {{.}}
Group {{.}}
{{end}}TypesConfig /etc/mime.types
Listen 127.0.0.1:{{.Port}}
<Directory />
	Require all denied
</Directory>
Define deploy_previous {{.Root}}/previous{{.Public}}
Define deploy_php unix:{{.Dir}}/fpm.sock
<VirtualHost 127.0.0.1:{{.Port}}>
	DocumentRoot {{.Root}}/active{{.Public}}
	DirectoryIndex index.php
	<Directory {{.Root}}>
		Require all granted
		Options FollowSymLinks
		AllowOverride All
		FallbackResource /index.php
	</Directory>
	Include {{.Dir}}/site.conf
</VirtualHost>
{{range .Blocks}}{{.}}
{{end}}`))

// Modules are those of Apache that share/apache needs, and the few that it does not do without.
func (o WebOptions) Modules() []string {
	return []string{"mpm_event", "authz_core", "authz_host", "alias", "dir", "mime", "env", "headers", "rewrite", "proxy", "proxy_fcgi", "proxy_http", "asis"}
}
