package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"s3pulldeploy/internal/testenv/parts"
)

// app is an application to deploy again and again.
type app struct {
	name     string
	dir      string   // the tree that is pushed
	ini      []string // what its PHP needs
	settings string   // of the agent, besides those of every site
	pages    []string // that are asked for in turn
	rate     int      // requests a second: what this machine answers with some idle time left
	// install is done once, when the first release is live; it may be nil.
	install func(ctx context.Context, site string) error
}

// footer is PHP that ends every page with the releases that its files are from: folders of the root.
const footer = `
function bench_releases() {
    $seen = array();
    foreach (get_included_files() as $file) {
        if (preg_match('~/(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)/~', $file, $found)) {
            $seen[$found[1]] = true;
        }
    }
    return '<!-- releases ' . implode(',', array_keys($seen)) . ' --></html>' . "\n";
}
`

func makeApp(ctx context.Context, name, dir string, undo *teardown) (*app, error) {
	switch name {
	case "files":
		return filesApp(filepath.Join(dir, "files"))
	case "wordpress":
		return wordpressApp(ctx, dir, undo)
	}
	return nil, errors.New("there are `files` and `wordpress`")
}

// filesApp is a page made of 400 files of about 8 KB; those of WordPress are 17 KB on average.
func filesApp(dir string) (*app, error) {
	a := &app{name: "400 files", dir: dir, pages: []string{"/"}, rate: 120}
	index := "<?php" + footer + "$sum = 0;\n"
	for i := range 399 {
		var body strings.Builder
		fmt.Fprintf(&body, "<?php\nclass Part%d {\n", i)
		for m := range 28 {
			fmt.Fprintf(&body, "    /** What part %d does with its argument, for the %dth time. */\n    public static function step%d(int $x, array $o = []): int {\n"+
				"        if ($x %% %d === 0) { return $x + strlen('part %d step %d'); }\n        foreach ($o as $k => $v) { $x += $k * $v; }\n"+
				"        return ($x * %d + %d) %% 65521;\n    }\n\n", i, m, m, m+2, i, m, i+m, m)
		}
		body.WriteString("}\n")
		if err := write(filepath.Join(dir, fmt.Sprintf("lib/part%d.php", i)), body.String()); err != nil {
			return nil, err
		}
		index += fmt.Sprintf("require __DIR__ . '/lib/part%d.php'; $sum = Part%d::step%d($sum);\n", i, i, i%28)
	}
	index += "echo '<html>', $sum, bench_releases();\n"
	return a, errors.Join(write(filepath.Join(dir, "index.php"), index), write(filepath.Join(dir, "health.php"), "<?php echo 'ok';\n"))
}

// wordpressApp is Debian's WordPress with a theme as small as one can be and a database of its own.
func wordpressApp(ctx context.Context, dir string, undo *teardown) (*app, error) {
	const from = "/usr/share/wordpress"
	if _, err := os.Stat(from); err != nil {
		return nil, fmt.Errorf("wordpress: %w", parts.ErrMissing)
	}
	db, err := parts.StartMariaDB(ctx, dir)
	if err != nil {
		return nil, err
	}
	undo.stop(db)
	uploads := filepath.Join(dir, "uploads")
	a := &app{
		name: "WordPress", dir: filepath.Join(dir, "wordpress"), pages: []string{"/", "/?p=1", "/?s=hello"}, rate: 70, install: installWordPress,
		ini:      []string{"extension=mysqlnd.so", "extension=mysqli.so", "extension=ctype.so", "extension=iconv.so", "extension=tokenizer.so"},
		settings: fmt.Sprintf("shared: {wp-content/uploads: %s}\n", uploads),
	}
	config := fmt.Sprintf(`<?php
define('DB_NAME', 'wordpress'); define('DB_USER', 'root'); define('DB_PASSWORD', ''); define('DB_HOST', 'localhost:%s');
define('DB_CHARSET', 'utf8mb4'); define('DB_COLLATE', '');
define('AUTH_KEY', 'a'); define('SECURE_AUTH_KEY', 'b'); define('LOGGED_IN_KEY', 'c'); define('NONCE_KEY', 'd');
define('WP_HOME', 'http://' . $_SERVER['HTTP_HOST']); define('WP_SITEURL', WP_HOME);
define('WP_DEFAULT_THEME', 'bench'); define('DISABLE_WP_CRON', true); define('AUTOMATIC_UPDATER_DISABLED', true);
define('WP_HTTP_BLOCK_EXTERNAL', true); define('FS_METHOD', 'direct');
$table_prefix = 'wp_';
if (!defined('ABSPATH')) { define('ABSPATH', __DIR__ . '/'); }
require_once ABSPATH . 'wp-settings.php';
`, db.Socket)
	theme := filepath.Join(a.dir, "wp-content/themes/bench")
	return a, errors.Join(
		db.Create("wordpress"), os.MkdirAll(uploads, 0o777), os.Chmod(uploads, 0o777), copyTree(from, a.dir),
		write(filepath.Join(a.dir, "wp-config.php"), config),
		write(filepath.Join(a.dir, "health.php"), "<?php echo 'ok';\n"),
		write(filepath.Join(theme, "style.css"), "/*\nTheme Name: Bench\n*/\n"),
		write(filepath.Join(theme, "functions.php"), "<?php"+footer),
		write(filepath.Join(theme, "index.php"), `<!doctype html><html><head><?php wp_head(); ?></head><body>
<?php while (have_posts()) { the_post(); the_title('<h1>', '</h1>'); the_content(); } wp_footer(); ?>
</body><?php echo bench_releases();
`))
}

// installWordPress fills in the form of the installation.
func installWordPress(ctx context.Context, site string) error {
	form := url.Values{
		"weblog_title": {"Bench"}, "user_name": {"bench"}, "admin_password": {"c0rrect horse"}, "admin_password2": {"c0rrect horse"},
		"pw_weak": {"1"}, "admin_email": {"bench@example.com"}, "blog_public": {"0"}, "language": {""},
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, site+"/wp-admin/install.php?step=2", strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("install WordPress: %w", err)
	}
	resp.Body.Close()
	if a := ask(http.DefaultClient, site+"/"); a.err != nil {
		return fmt.Errorf("install WordPress: %w", a.err)
	}
	return nil
}

// copyTree copies files and folders, and what links lead to; a link that leads nowhere is left out.
func copyTree(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		source, target := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		info, err := os.Stat(source)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return err
		case info.IsDir():
			err = copyTree(source, target)
		default:
			var text []byte
			if text, err = os.ReadFile(source); err == nil {
				err = write(target, string(text))
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func write(path, text string) error {
	return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644))
}
