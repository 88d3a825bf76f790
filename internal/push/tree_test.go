package push

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/testenv"
)

// plant makes a tree of files ("path": text), directories ("path/": "") and links ("path": "-> target").
func plant(t *testing.T, tree map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "app")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range tree {
		full := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(full), 0o755)
		target, link := strings.CutPrefix(text, "-> ")
		switch {
		case strings.HasSuffix(name, "/"):
			err = errors.Join(err, os.MkdirAll(full, 0o755))
		case link:
			err = errors.Join(err, os.Symlink(target, full))
		default:
			err = errors.Join(err, os.WriteFile(full, []byte(text), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func scanned(t *testing.T, dir string, c *config.Config) (*Tree, error) {
	t.Helper()
	tree, err := Scan(dir, c)
	if err == nil {
		t.Cleanup(func() { tree.Close() })
	}
	return tree, err
}

func paths(tree *Tree) string {
	var names []string
	for _, f := range tree.Files {
		names = append(names, f.Path)
	}
	return strings.Join(names, " ")
}

func TestScanTakesWhatWillBeARelease(t *testing.T) {
	cases := map[string]struct {
		tree   map[string]string
		config config.Config
		want   string
	}{
		"files in order, without empty directories": {
			tree: map[string]string{"b": "1", "a/z": "1", "a.php": "1", "empty/": ""}, want: "a.php a/z b",
		},
		"links inside are followed": {
			tree: map[string]string{"real/x": "1", "dir": "-> real", "sub/file": "-> ../real/x"}, want: "dir/x real/x sub/file",
		},
		"git and ignored files are left out": {
			tree: map[string]string{
				".git/HEAD": "1", "sub/.git": "gitdir: x", "a.log": "1", "tmp/x": "1", "x": "1",
				".deployignore": "tmp/\n",
			},
			config: config.Config{Ignore: []string{"*.log"}}, want: "x",
		},
		"what is ignored is not looked at": {
			tree:   map[string]string{"x": "1", "out": "-> /etc", "gone": "-> nowhere", "loop": "-> .", ".env": "1", "sock": "-> /dev/null"},
			config: config.Config{Ignore: []string{"out/", "gone", "loop", ".env", "sock"}}, want: "x",
		},
		"examples of secrets are none": {
			tree: map[string]string{".env.example": "1", "a.pem": "-----BEGIN CERTIFICATE-----"}, want: ".env.example a.pem",
		},
		"allowed secrets":                   {tree: map[string]string{".env": "1"}, config: config.Config{Secrets: config.Allow}, want: ".env"},
		"an empty shared directory is fine": {tree: map[string]string{"up/": "", "x": "1"}, config: config.Config{Shared: map[string]string{"up": "/efs"}}, want: "x"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			tree, err := scanned(t, plant(t, c.tree), &c.config)
			if err != nil {
				t.Fatal(err)
			}
			if got := paths(tree); got != c.want {
				t.Errorf("files %q, want %q", got, c.want)
			}
		})
	}
}

func TestScanRefusesWhatNoReleaseMayHave(t *testing.T) {
	cases := map[string]struct {
		tree   map[string]string
		config config.Config
		want   string
	}{
		"a link out by an absolute path": {tree: map[string]string{"l": "-> /etc/passwd"}, want: `link "l" points to "/etc/passwd"`},
		"a link out":                     {tree: map[string]string{"d/l": "-> ../../other"}, want: `link "d/l" points to "../../other"`},
		"a broken link":                  {tree: map[string]string{"l": "-> gone"}, want: `link "l" points to "gone", which does not exist`},
		"a link to itself":               {tree: map[string]string{"l": "-> l"}, want: `link "l" points to "l"`},
		"a circle of directories":        {tree: map[string]string{"a/b/l": "-> ../.."}, want: `link "a/b/l" leads back`},
		"a device behind a link":         {tree: map[string]string{"l": "-> /dev/null"}, want: `link "l"`},
		"a name with a line break":       {tree: map[string]string{"a\nb": "1"}, want: `"a\nb"`},
		"the stamp":                      {tree: map[string]string{"_cache.php": "1"}, config: config.Config{Stamp: "_cache.php"}, want: `"_cache.php" has the name of`},
		"a shared directory with files":  {tree: map[string]string{"up/a/b": "1"}, config: config.Config{Shared: map[string]string{"up": "/efs"}}, want: `directory "up" is in`},
		"an environment":                 {tree: map[string]string{"d/.env.local": "1"}, want: `"d/.env.local" holds`},
		"an environment in capitals":     {tree: map[string]string{".ENV": "1"}, want: `".ENV" holds`},
		"a private key in capitals":      {tree: map[string]string{"ID_RSA": "-----BEGIN OPENSSH PRIVATE KEY-----"}, want: `"ID_RSA" is a private key`},
		"a private key by another name":  {tree: map[string]string{"inc/data": aKey}, want: `"inc/data" is a private key`},
		"a private key":                  {tree: map[string]string{"id_rsa": "-----BEGIN OPENSSH PRIVATE KEY-----"}, want: `"id_rsa" is a private key`},
		"a deploy key":                   {tree: map[string]string{"config/deploy_ed25519": "-----BEGIN OPENSSH PRIVATE KEY-----"}, want: `"config/deploy_ed25519" is a private key`},
		"a key behind its certificate":   {tree: map[string]string{"tls.pem": "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n-----BEGIN EC PRIVATE KEY-----"}, want: `"tls.pem" is a private key`},
		"PuTTY's key":                    {tree: map[string]string{"x.ppk": "PuTTY-User-Key-File-3: ssh-ed25519"}, want: `"x.ppk" is a private key`},
		"the key that signs releases":    {tree: map[string]string{"promo-ci.key": "PRIVATE+KEY+promo-ci+1d6a0f9c+AZ"}, want: `"promo-ci.key" is a private key`},
		"a malformed pattern":            {tree: map[string]string{".deployignore": "[a"}, want: "malformed"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := scanned(t, plant(t, c.tree), &c.config)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want something with %q", err, c.want)
			}
		})
	}
}

// aKey is a key as far as a look at it tells; nobody has the rest.
const aKey = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtz\n"

func TestPrivateKeysAreKnownByTheirContents(t *testing.T) {
	body := strings.TrimPrefix(aKey, "-----BEGIN OPENSSH PRIVATE KEY-----\n")
	for what, c := range map[string]struct {
		name, text string
		want       bool
	}{
		"OpenSSH":                        {"notes.txt", aKey, true},
		"PKCS 8":                         {"a", "-----BEGIN PRIVATE KEY-----\r\n" + body, true},
		"with a passphrase":              {"a", "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n" + body, true},
		"PGP":                            {"a.asc", "-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: GnuPG v2\n\n" + body, true},
		"behind its certificate":         {"tls.crt", "-----BEGIN CERTIFICATE-----\n" + body + "-----END CERTIFICATE-----\n" + aKey, true},
		"of a service account":           {"google.json", `{"private_key": "-----BEGIN PRIVATE KEY-----\n` + body + `"}`, true},
		"in a string of PHP":             {"config.php", "<?php $key = <<<'EOD'\n" + aKey + "EOD;", true},
		"PuTTY's":                        {"login", "PuTTY-User-Key-File-3: ssh-ed25519\n", true},
		"our own":                        {"ci", "PRIVATE+KEY+promo-ci+1d6a0f9c+AZ", true},
		"a certificate":                  {"tls.crt", "-----BEGIN CERTIFICATE-----\n" + body, false},
		"a public key":                   {"a.pub", "-----BEGIN PUBLIC KEY-----\n" + body, false},
		"a program that reads keys":      {"RSA.php", `<?php if (preg_match('#-----BEGIN RSA PRIVATE KEY-----#', $text)) $n = "-----BEGIN RSA PRIVATE KEY-----\r\n" . chunk_split($key);`, false},
		"a program that reads PuTTY's":   {"PuTTY.php", "<?php\n$head = 'PuTTY-User-Key-File-';", false},
		"a manual":                       {"vendor/firebase/php-jwt/README.md", aKey, false},
		"a form to fill in":              {"a.sample", "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----", false},
		"text that the key lies deep in": {"dump.sql", strings.Repeat("-", keyHead) + aKey, false},
	} {
		if got := holdsKey(c.name, []byte(c.text)[:min(len(c.text), keyHead)]); got != c.want {
			t.Errorf("%s: a private key %v, want %v", what, got, c.want)
		}
	}
}

// Trees that people deploy, whose libraries read keys, must not make them switch the look off.
func TestDebiansTreesHoldNoSecrets(t *testing.T) {
	for _, dir := range []string{"/usr/share/mediawiki", "/usr/share/wordpress"} {
		root, err := os.OpenRoot(dir)
		if errors.Is(err, fs.ErrNotExist) {
			if strings.HasSuffix(dir, "mediawiki") { // only the bench needs it
				continue
			}
			testenv.LeaveOut(t, err.Error())
		}
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		s := &scanner{root: root, tree: &Tree{root: root}, config: &settings{Config: &config.Config{}}, keys: map[string]bool{}}
		err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() { // Debian's links lead out of the tree
				err = s.file(name)
			}
			return err
		})
		if err := errors.Join(err, s.secrets(config.Refuse)); err != nil || len(s.tree.Files) < 1000 {
			t.Errorf("%s: looked at %d files, %v", dir, len(s.tree.Files), err)
		}
	}
}

func TestScanRefusesSpecialFiles(t *testing.T) {
	dir := plant(t, map[string]string{"x": "1"})
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := scanned(t, dir, &config.Config{}); err == nil || !strings.Contains(err.Error(), `"pipe" is a named pipe`) {
		t.Errorf("a pipe: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "pipe")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir) // a socket's path is short
	l, err := net.Listen("unix", "sock")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := scanned(t, dir, &config.Config{}); err == nil || !strings.Contains(err.Error(), `"sock" is a socket`) {
		t.Errorf("a socket: %v", err)
	}
}

func TestScanLeavesTheSettingsOut(t *testing.T) {
	dir := plant(t, map[string]string{"x": "1", "conf/deploy.yml": "site: a", "link.yml": "-> conf/deploy.yml"})
	tree, err := scanned(t, dir, &config.Config{Path: filepath.Join(dir, "conf/deploy.yml")})
	if err != nil || paths(tree) != "x" {
		t.Errorf("files %v, %v; want x alone", tree, err)
	}
}

func TestScanLeavesACopyOfTheSettingsOutAndWarnsOfOthers(t *testing.T) {
	const ours = "site: shop\nbucket: deploys\n"
	own := filepath.Join(t.TempDir(), "config.yml")
	if err := os.WriteFile(own, []byte(ours), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(own, config.ForPush)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := scanned(t, plant(t, map[string]string{
		"copy": ours, "a/config.yml": ours, // as they are
		"b/agent.yaml": ours + "root: /var/www/shop\n", "b/staging.yml": "site: shop-staging\nbucket: deploys\n",
		"services.yml": "services: {a: b}\n", "notes.txt": ours + "\n", "same-size": strings.Repeat("x", len(ours)),
	}), c)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := paths(tree), "b/agent.yaml b/staging.yml notes.txt same-size services.yml"; got != want {
		t.Errorf("files %q, want %q", got, want)
	}
	if len(tree.Warnings) != 1 || !strings.HasPrefix(tree.Warnings[0], `"b/agent.yaml" is a settings file of shop`) {
		t.Errorf("warnings %q, want one of b/agent.yaml", tree.Warnings)
	}
}

func TestScanWithoutFilesIsWrongUsage(t *testing.T) {
	for name, dir := range map[string]string{
		"missing": filepath.Join(t.TempDir(), "none"), "empty": plant(t, nil),
		"all ignored": plant(t, map[string]string{".git/x": "1", ".deployignore": ""}),
	} {
		if _, err := scanned(t, dir, &config.Config{}); !errors.Is(err, errUsage) || hint(err) == "" {
			t.Errorf("%s: %v, hint %q: want wrong usage with a hint", name, err, hint(err))
		}
	}
}

func TestScanWarnsOfNamesThatDifferInCase(t *testing.T) {
	tree, err := scanned(t, plant(t, map[string]string{"Lib/a": "1", "lib/b": "1", "x": "1"}), &config.Config{})
	if err != nil || len(tree.Warnings) != 1 || tree.Warnings[0] != `"Lib" and "lib" differ only in case` {
		t.Errorf("warnings %q, %v", tree.Warnings, err)
	}
}

func TestAFileThatChangesAfterTheScanIsNotRead(t *testing.T) {
	dir := plant(t, map[string]string{"x": "1"})
	tree, err := scanned(t, dir, &config.Config{})
	if err != nil {
		t.Fatal(err)
	}
	in, err := tree.Open(tree.Files[0])
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := os.Chtimes(filepath.Join(dir, "x"), time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := tree.Files[0].unchanged(in); err == nil || !strings.Contains(err.Error(), `"x" changed`) {
		t.Errorf("while it was read: %v", err)
	}
	if _, err := tree.Open(tree.Files[0]); err == nil || !strings.Contains(err.Error(), `"x" changed`) {
		t.Errorf("before it was read: %v", err)
	}
}
