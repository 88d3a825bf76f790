package agent

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/instance"
)

// lives runs a succession that begins with settings "a"; each life does what is said for its place, and is
// recorded with its settings and with what it was told about refused ones.
func lives(ctx context.Context, s *succession, do ...func() error) (lived []string, err error) {
	s.log = logger()
	err = s.run(ctx, &config.Config{Path: "a"}, func(c *config.Config, refused error) error {
		told := c.Path
		if refused != nil {
			told += " told: " + refused.Error()
		}
		lived = append(lived, told)
		if len(lived) > len(do) {
			return errors.New("one life too many")
		}
		return do[len(lived)-1]()
	})
	return lived, err
}

func TestSuccessionOfSettings(t *testing.T) {
	broken := errors.New("no such root")
	fail := func() error { return broken }
	end := func() error { return nil }
	for _, c := range []struct {
		name string
		do   func(s *succession) []func() error
		want []string
		err  error
	}{
		{"ends", func(*succession) []func() error { return []func() error{end} }, []string{"a"}, nil},
		{"the first does not work", func(*succession) []func() error { return []func() error{fail} }, []string{"a"}, broken},
		{"reloaded", func(s *succession) []func() error {
			return []func() error{s.to("b"), s.to("c"), end}
		}, []string{"a", "b", "c"}, nil},
		{"the new ones do not work", func(s *succession) []func() error {
			return []func() error{s.to("b"), fail, end}
		}, []string{"a", "b", "a told: the new settings do not work: no such root"}, nil},
		{"nor do the old ones any more", func(s *succession) []func() error {
			return []func() error{s.to("b"), fail, fail}
		}, []string{"a", "b", "a told: the new settings do not work: no such root"}, broken},
		{"mended while they did not work", func(s *succession) []func() error {
			return []func() error{s.to("b"), func() error { s.changed(&config.Config{Path: "c"}, nil); return broken }, end}
		}, []string{"a", "b", "c"}, nil},
		{"mended, and not really", func(s *succession) []func() error {
			return []func() error{s.to("b"), func() error { s.changed(&config.Config{Path: "c"}, nil); return broken }, fail, end}
		}, []string{"a", "b", "c", "a told: the new settings do not work: no such root"}, nil},
		{"told twice", func(s *succession) []func() error {
			return []func() error{s.to("b"), func() error { return ErrReload }, end}
		}, []string{"a", "b", "b"}, nil},
	} {
		s := &succession{}
		got, err := lives(t.Context(), s, c.do(s)...)
		if !slices.Equal(got, c.want) || !errors.Is(err, c.err) {
			t.Errorf("%s: lived %q, %v; want %q, %v", c.name, got, err, c.want, c.err)
		}
	}
}

// to is a life that ends because settings of that name were read.
func (s *succession) to(name string) func() error {
	return func() error {
		s.changed(&config.Config{Path: name}, nil)
		return ErrReload
	}
}

func TestStopIsNotTakenForSettingsThatDoNotWork(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := &succession{}
	late := errors.New("stop schedule: timed out")
	got, err := lives(ctx, s, s.to("b"), func() error { cancel(); return late })
	if !slices.Equal(got, []string{"a", "b"}) || !errors.Is(err, late) {
		t.Errorf("lived %q, ended with %v", got, err)
	}
}

func TestSettingsThatChangeBetweenTwoLivesAreNotMissed(t *testing.T) {
	bubble(t, func(r *rig) {
		s := &succession{log: logger()}
		s.changed(&config.Config{Path: "b"}, nil) // nobody is there to hear of it
		b := r.box("i-1")
		if err := b.prepare(); err != nil {
			t.Fatal(err)
		}
		defer b.disk.Close()
		s.born(b.agent, errors.New("the others do not work"))
		if err := b.agent.Run(r.t.Context()); !errors.Is(err, ErrReload) {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestWhyNewSettingsDoNotWorkIsShownByTheOldOnes(t *testing.T) {
	bubble(t, func(r *rig) {
		s := &succession{log: logger()}
		b := r.box("i-1")
		b.boot()
		s.born(b.agent, errors.New("the new settings do not work: no such root"))
		b.says("settings: the new settings do not work: no such root", 5*time.Second, true)
	})
}

func TestWatchReadsTheFileOnASignalAndEnds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yml")
	if err := os.WriteFile(file, []byte("site: promo\nbucket: my-bucket\nroot: /srv/promo\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	type read struct {
		c   *config.Config
		err error
	}
	signals, got := make(chan os.Signal), make(chan read, 4)
	stop := watch(t.Context(), file, signals, logger(), func(c *config.Config, err error) { got <- read{c, err} })
	signals <- os.Interrupt
	if r := <-got; r.err != nil || r.c.Site != "promo" {
		t.Errorf("read %+v", r)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	signals <- os.Interrupt
	if r := <-got; r.err == nil || r.c != nil {
		t.Errorf("without the file: read %+v", r)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestIdentityOutlivesTheMetadataService(t *testing.T) {
	t.Parallel() // the service's absence takes its time
	imds := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "60")
		text := map[string]string{"token": "t", "instance-id": "i-0123456789abcdef0", "availability-zone": "eu-central-1a"}
		_, _ = w.Write([]byte(text[q.URL.Path[strings.LastIndex(q.URL.Path, "/")+1:]]))
	}))
	defer imds.Close()
	dir := t.TempDir()
	d, err := disk.Open(disk.Options{Root: filepath.Join(dir, "www"), Active: "active", StateDir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	c := &config.Config{Endpoints: config.Endpoints{IMDS: imds.URL}}
	for range 30 { // an answer that takes over a second is none
		if got, err := identify(t.Context(), c, d, logger()); err == nil && got.Source == instance.SourceEC2 {
			break
		}
	}
	is := func(when string, want instance.Identity) {
		t.Helper()
		if got, err := identify(t.Context(), c, d, logger()); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", when, got, err, want)
		}
	}
	ec2 := instance.Identity{ID: "i-0123456789abcdef0", Zone: "eu-central-1a", Source: instance.SourceEC2}
	is("on EC2", ec2)
	imds.Close()
	is("the service is away", ec2)
	c.InstanceID = ec2.ID
	is("the same id in the settings", instance.Identity{ID: ec2.ID, Zone: ec2.Zone, Source: instance.SourceConfig})
}
