package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"s3pulldeploy/internal/account"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/php"
	"s3pulldeploy/internal/table"
	"s3pulldeploy/internal/testenv"
	"s3pulldeploy/internal/testenv/parts"
)

func TestCheckSaysALineEachAndHowToMendIt(t *testing.T) {
	broken := func(_, text string) string {
		return strings.Replace(text, "set $deploy_root $realpath_root;", "set $deploy_root $document_root;", 1)
	}
	for name, c := range map[string]struct {
		edit func(name, text string) string
		ini  string
		code int
		want []string
	}{
		"as packaged":        {nil, "", exitDone, []string{"ok    opcache route http://127.0.0.1:", "ok    web server: PHP gets the release", "ok    probe: it answers at none"}},
		"opcache is off":     {nil, "opcache.enable=0", exitFailed, []string{"fail  opcache of http://127.0.0.1:", "opcache.enable=1", "ok    web server: PHP gets the release"}},
		"releases are mixed": {nil, "opcache.use_cwd=0", exitFailed, []string{"fail  opcache of http://127.0.0.1:", "files of two releases are mixed", "\n      hint: opcache.use_cwd=1"}},
		"a link is passed on": {broken, "", exitFailed, []string{
			"fail  web server: it hands PHP ", "\n      hint: the web server must pass $realpath_root", "ok    opcache route",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			page := filepath.Join(root, string(r1), "index.php")
			if err := os.MkdirAll(filepath.Dir(page), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(page, []byte("<?php echo 1;"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(string(r1), filepath.Join(root, "active")); err != nil {
				t.Fatal(err)
			}
			web := testenv.PHPWith(t, parts.WebOptions{Root: root, Edit: c.edit, Ini: []string{c.ini}})
			file := filepath.Join(t.TempDir(), "agent.yml")
			s3, dynamo, name := testenv.S3(t), testenv.DynamoDB(t), testenv.Name(t)
			createTable(t, dynamo, name)
			text := fmt.Sprintf("site: promo\nbucket: %s\ntable: %s\ninstance_id: web-1\nendpoints: {s3: %q, dynamodb: %q, imds: %q}\nregion: us-east-1\nroot: %s\nstate_dir: %s\n"+
				"opcache: {url: %q}\nhealth_check: {url: %q}\n", s3.NewBucket(t), name, s3.Endpoint, dynamo, "http://127.0.0.1:1", root, t.TempDir(), web.LocalURL, web.URL+"/index.php")
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			var stdout, stderr bytes.Buffer
			code := Main(t.Context(), []string{"-config=" + file, "-check"}, nil, &stdout, &stderr)
			if code != c.code {
				t.Errorf("exit code %d, want %d: %s", code, c.code, stderr.String())
			}
			for _, want := range c.want {
				if !strings.Contains(stdout.String(), want) {
					t.Errorf("no %q in\n%s", want, stdout.String())
				}
			}
		})
	}
}

// createTable creates a table in DynamoDB Local.
func createTable(t *testing.T, endpoint, name string) {
	t.Helper()
	cfg, err := account.Load(t.Context(), account.Options{Region: "us-east-1", OwnEndpoints: true})
	if err != nil {
		t.Fatal(err)
	}
	db := table.NewDynamo(table.Options{Config: cfg, Endpoint: endpoint, Name: name, Timeout: time.Minute})
	if _, err := db.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The first request of a kind takes a server that has just started longer than an agent waits.
	if _, err := db.Get(t.Context(), fleet.Key{Partition: "none", Sort: "none"}, true); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Query(t.Context(), "none", "", true); err != nil {
		t.Fatal(err)
	}
}

// checked runs -check with settings, and returns its exit code and what it says.
func checked(t *testing.T, settings string) (int, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "agent.yml")
	if err := os.WriteFile(file, []byte(settings), 0o644); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	code := Main(t.Context(), []string{"-config=" + file, "-check"}, nil, &stdout, &stderr)
	return code, stdout.String() + stderr.String()
}

func TestCheckNamesWhatIsMissingInBucketTableAndPaths(t *testing.T) {
	s3, dynamo := testenv.S3(t), testenv.DynamoDB(t)
	settings := fmt.Sprintf("site: promo\nbucket: %s\ntable: none-%s\ninstance_id: web-1\nendpoints: {s3: %q, dynamodb: %q, imds: \"http://127.0.0.1:1\"}\nregion: us-east-1\n"+
		"root: %s/www\nstate_dir: /dev/null/state\nweb_user: nobody-of-this-name\nowner: no-such-owner\nhooks: {user: no-such-user}\nrestart: [no-such-unit.service]\nshared: {.env: /srv/nowhere/.env}\nlifecycle_hook: launch\n",
		s3.NewBucket(t), testenv.Name(t), s3.Endpoint, dynamo, t.TempDir())
	code, said := checked(t, settings)
	if code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{
		"read the pointer: nothing was pushed yet", "fail  table none-", "hint: `push -init` creates it", "ok    root: ", "fail  state_dir: /dev/null",
		"fail  web_user: ", "fail  owner: ", "fail  hooks.user: ", "hint: create the user", `  restart: `, "no-such-unit.service", "fail  shared: .env -> /srv/nowhere/.env: ", "warn  launch hook launch: there is no metadata service here",
		"ok    instance: web-1 (config), zone unknown", "warn  agent: ",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in\n%s", want, said)
		}
	}
}

func TestCheckAsksForEachPatternOfRestart(t *testing.T) {
	lost := errors.New("connection closed")
	got := examinePatterns([]string{"php-fpm.service", "queue@*.service", "cron.service"}, 0, func(one string) (int, error) {
		return map[string]int{"queue@*.service": 2}[one], map[string]error{"cron.service": lost}[one]
	})
	want := []php.Finding{
		{Verdict: php.Warn, What: "restart: php-fpm.service: none is running", Cure: "start them, or correct the pattern"},
		{Verdict: php.OK, What: "restart: queue@*.service: 2 running"},
		{Verdict: php.Fail, What: "restart: cron.service: connection closed", Cure: "correct the pattern"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("found %+v", got)
	}
}

func TestCheckNamesEachPermissionThatIsDenied(t *testing.T) {
	denied, metadata := testenv.Denied(t), newEC2(t, "InService")
	settings := fmt.Sprintf("site: promo\nbucket: my-bucket\nregion: us-east-1\nroot: %s\nstate_dir: %s\nlifecycle_hook: launch\nendpoints: {s3: %[3]q, dynamodb: %[3]q, imds: %[4]q, autoscaling: ",
		t.TempDir(), t.TempDir(), denied, metadata.URL)
	settings = "notify: {sns_success: 'arn:aws:sns:us-east-1:123456789012:all', sns_error: 'arn:aws:sns:us-east-1:123456789012:all', webhook: 'https://hooks.example.com/x'}\n" + settings
	if _, said := checked(t, settings+metadata.URL+"}\n"); !strings.Contains(said, "ok    instance: i-0123456789abcdef0 (ec2)") || !strings.Contains(said, "ok    launch hook launch\n") {
		t.Errorf("with a launch hook that may be completed:\n%s", said)
	}
	code, said := checked(t, settings+denied+"}\n")
	if code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	for _, what := range []string{
		"bucket my-bucket: read the pointer", "table s3-pull-deploy: read the head (dynamodb:GetItem)", "table s3-pull-deploy: read the members (dynamodb:Query)",
		"table s3-pull-deploy: write (dynamodb:UpdateItem)", "table s3-pull-deploy: delete (dynamodb:DeleteItem)",
	} {
		if !regexp.MustCompile(`(?m)^fail  ` + regexp.QuoteMeta(what) + `: .*denied.*\n      hint: ` + regexp.QuoteMeta(cureRole) + `$`).MatchString(said) {
			t.Errorf("no %q with its cure in\n%s", what, said)
		}
	}
	if !regexp.MustCompile(`(?m)^fail  launch hook launch: .*\n      hint: allow the role autoscaling:RecordLifecycleActionHeartbeat`).MatchString(said) {
		t.Errorf("no launch hook with its cure in\n%s", said)
	}
	_, tried := checked(t, settings+metadata.URL+"}\n")
	topic := "skip  topic arn:aws:sns:us-east-1:123456789012:all: publish (sns:Publish): not tried, it would tell people\n      hint: " + cureRole
	if strings.Count(tried, topic) != 1 || !strings.Contains(tried, "skip  webhook: not tried") {
		t.Errorf("not one line that the topic, and one that the webhook was not tried:\n%s", tried)
	}
}

func TestCheckFailsWhereADeployWouldVoteNoForRoom(t *testing.T) {
	for name, c := range map[string]struct {
		fs   unix.Statfs_t
		want php.Verdict
		said string
	}{
		"room for both":            {unix.Statfs_t{Bsize: 4096, Blocks: 1 << 24, Bavail: 1 << 20, Files: 1 << 20, Ffree: 1 << 19}, php.OK, "4096 MiB and 524288 inodes are free"},
		"no inodes":                {unix.Statfs_t{Bsize: 4096, Blocks: 1 << 24, Bavail: 1 << 20, Files: 1 << 20, Ffree: 1024}, php.Fail, "only 1024 inodes are free"},
		"no bytes":                 {unix.Statfs_t{Bsize: 4096, Blocks: 1 << 24, Bavail: 8192, Files: 1 << 20, Ffree: 1 << 19}, php.Fail, "only 32 MiB are free"},
		"a small one has its 5 %":  {unix.Statfs_t{Bsize: 4096, Blocks: 25600, Bavail: 2560, Files: 2000, Ffree: 200}, php.OK, "10 MiB and 200 inodes are free"},
		"btrfs counts no inodes":   {unix.Statfs_t{Bsize: 4096, Blocks: 1 << 24, Bavail: 1 << 20}, php.OK, "4096 MiB are free"},
		"a small one without room": {unix.Statfs_t{Bsize: 4096, Blocks: 25600, Bavail: 2560, Files: 2000, Ffree: 100}, php.Fail, "only 100 inodes are free"},
	} {
		got := examineRoom("root: /srv", &c.fs)
		if got.Verdict != c.want || !strings.HasSuffix(got.What, c.said) || (got.Cure == "") != (c.want == php.OK) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestCheckDoesNotCallUnitsFineThatPolkitMayForbid(t *testing.T) {
	for _, c := range []struct {
		running, uid int
		want         php.Verdict
		cure         string
	}{
		{2, 0, php.OK, ""},
		{2, 998, php.Skip, "share/polkit/50-s3-pull-deploy.rules"},
		{0, 998, php.Warn, "start them"},
	} {
		if got := restartable("restart: x", c.running, c.uid); got.Verdict != c.want || !strings.Contains(got.Cure, c.cure) {
			t.Errorf("%d running, as user %d: %+v", c.running, c.uid, got)
		}
	}
}

func TestCheckTriesWritesWithoutWriting(t *testing.T) {
	s3, dynamo, name := testenv.S3(t), testenv.DynamoDB(t), testenv.Name(t)
	createTable(t, dynamo, name)
	bucket := s3.NewBucket(t)
	settings := fmt.Sprintf("site: promo\nbucket: %s\ntable: %s\ninstance_id: web-1\nendpoints: {s3: %q, dynamodb: %q, imds: \"http://127.0.0.1:1\"}\nregion: us-east-1\nroot: %s\nstate_dir: %s\n",
		bucket, name, s3.Endpoint, dynamo, t.TempDir(), t.TempDir())
	code, said := checked(t, settings)
	if code != exitDone || strings.Count(said, "ok    table "+name) != 4 {
		t.Errorf("exit code %d:\n%s", code, said)
	}
	cfg, err := account.Load(t.Context(), account.Options{Region: "us-east-1", OwnEndpoints: true})
	if err != nil {
		t.Fatal(err)
	}
	l := fleet.NewLedger(table.NewDynamo(table.Options{Config: cfg, Endpoint: dynamo, Name: name}), bucket+"/promo", token)
	if rows, err := l.Members(t.Context()); err != nil || len(rows) > 0 {
		t.Errorf("the check left %v, %v", rows, err)
	}
}
