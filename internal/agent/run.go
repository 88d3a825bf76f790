package agent

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"sync/atomic"

	"s3pulldeploy/internal/account"
	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/disk"
	"s3pulldeploy/internal/instance"
	"s3pulldeploy/internal/notify"
	"s3pulldeploy/internal/store"
	"s3pulldeploy/internal/table"
	"s3pulldeploy/internal/version"
)

// Exit codes of the agent command, a part of push's.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// Version is set by the linker.
var Version = "dev"

type flags struct {
	config                    string
	check, once, show, status bool
	version                   bool
}

// Main runs the agent command: arguments and signals in, an exit code out. reload delivers a signal for each reload that is
// asked for.
func Main(ctx context.Context, args []string, reload <-chan os.Signal, stdout, stderr io.Writer) int {
	var f flags
	set := flag.NewFlagSet("agent", flag.ContinueOnError)
	set.SetOutput(stderr)
	set.StringVar(&f.config, "config", "config.yml", "the site's settings, `FILE`")
	set.BoolVar(&f.once, "once", false, "one pass as a member: bring up what is committed or pending, leave, exit")
	set.BoolVar(&f.check, "check", false, "try what a deploy needs here (AWS, paths, web server, PHP): a line each, ok or what mends it")
	set.BoolVar(&f.show, "show", false, "print the settings in force")
	set.BoolVar(&f.status, "status", false, "ask the running agent how it is")
	set.BoolVar(&f.version, "version", false, "print the version")
	set.Usage = func() { usage(stderr, set) }
	if err := set.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitDone
		}
		return exitUsage
	}
	if set.NArg() > 0 {
		fmt.Fprintf(stderr, "agent: unexpected argument %q\n", set.Arg(0))
		return exitUsage
	}
	if f.version {
		io.WriteString(stdout, version.This(Version).Text("agent"))
		return exitDone
	}
	c, err := config.Load(f.config, config.ForAgent)
	if err != nil {
		complain(stderr, err)
		return exitUsage
	}
	if err := f.verb(ctx, c, reload, stdout, stderr); err != nil {
		complain(stderr, err)
		return exitFailed
	}
	return exitDone
}

func usage(w io.Writer, set *flag.FlagSet) {
	fmt.Fprint(w, "agent keeps this instance on the release that its fleet agreed on.\n\n"+
		"  agent -config=/etc/s3-pull-deploy/SITE.yml           the daemon\n"+
		"  agent -config=FILE -once | -status | -show | -check  one pass, how it is, the settings, what is wrong\n"+
		"  agent -version\n\n")
	set.PrintDefaults()
	fmt.Fprint(w, "\nExit codes: 0 done, 1 failed, 2 wrong usage or settings.\n")
}

// complain prints an error in the commands' form: a line, and a second one with advice where there is any.
func complain(w io.Writer, err error) {
	fmt.Fprintf(w, "agent: %v\n", err)
	if hint := account.Hint(err); hint != "" {
		fmt.Fprintf(w, "agent: hint: %s\n", hint)
	}
}

func (f flags) verb(ctx context.Context, c *config.Config, reload <-chan os.Signal, stdout, stderr io.Writer) error {
	switch {
	case f.check:
		return check(ctx, c, stdout)
	case f.show:
		_, err := stdout.Write(c.YAML())
		return err
	case f.status:
		s, err := askStatus(ctx, SocketPath(c.Site))
		if err != nil {
			return err
		}
		return printStatus(stdout, s)
	}
	BoundMemory()
	log := slog.New(slog.NewTextHandler(stderr, nil))
	return serve(ctx, c, reload, log, f.once)
}

// memory is what the Go runtime may use before the collector works harder. With the executable's own pages, another 10 MiB, an agent stays
// under 96 MiB resident for a release of 76,000 files and 909 MB, which without a limit took 117 (`make bench`).
const memory = 80 << 20

// BoundMemory keeps this process small beside what it serves. Who sets GOMEMLIMIT decides otherwise.
func BoundMemory() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memory)
	}
}

// serve runs agents one after the other: each with the settings in force, until the context ends.
func serve(ctx context.Context, c *config.Config, reload <-chan os.Signal, log *slog.Logger, once bool) (err error) {
	down := &teardown{}
	defer func() { err = errors.Join(err, down.run()) }()
	s := &succession{log: log}
	metrics := NewMetrics(s.current.Load)
	var launched atomic.Bool
	if !once {
		stop, err := statusServer(SocketPath(c.Site), s.current.Load, metrics)
		if err != nil {
			return err
		}
		down.add("close status socket", stop)
		if c.Listen != "" {
			down.add("close listen", listenToo(c, s.current.Load, metrics, log))
		}
		down.add("stop watching settings", watch(ctx, c.Path, reload, log, s.changed))
	}
	return s.run(ctx, c, func(c *config.Config, refused error) error {
		return life(ctx, c, log, once, &launched, metrics, func(a *Agent) { s.born(a, refused) })
	})
}

// listenToo serves on the address of the settings what the socket serves. That it cannot is a warning: no rollout needs it.
func listenToo(c *config.Config, current func() *Agent, metrics http.Handler, log *slog.Logger) (stop func() error) {
	l, err := listenTCP(c.Listen)
	if err != nil {
		log.Warn("listen: metrics and status are only on the unix socket", "error", err)
		return func() error { return nil }
	}
	return serveHTTP(l, statusHandler(current, metrics, verdictPath(SocketPath(c.Site))))
}

// life is one agent's, from its parts to its end; born gets it before it runs. launched says, over all lives, that the machine's
// launch is over.
func life(ctx context.Context, c *config.Config, log *slog.Logger, once bool, launched *atomic.Bool, metrics *Metrics, born func(*Agent)) (err error) {
	down := &teardown{}
	defer func() { err = errors.Join(err, down.run()) }()
	aws, err := account.Load(ctx, account.Options{Region: c.Region, Profile: c.Profile, OwnEndpoints: c.Endpoints.S3 != "", IMDS: c.Endpoints.IMDS})
	if err != nil {
		return err
	}
	d, err := openDisk(c, log)
	if err != nil {
		return err
	}
	down.add("close disk", d.Close)
	id, err := identify(ctx, c, d, log)
	if err != nil {
		return err
	}
	var service Service = Systemd{IMDS: c.Endpoints.IMDS, EC2: id.Source == instance.SourceEC2}
	l := lifecycle{cfg: c, aws: aws, onEC2: onEC2(id), every: lookEvery, over: launched, log: log}
	if err := l.await(ctx, service, once); err != nil {
		return err
	}
	if !once {
		var end func() error
		service, end = l.launch(ctx, service)
		down.add("end launch", end)
	}
	a, err := New(Parts{
		Config: c, Disk: d, Identity: id, Version: Version, Clock: bootClock{}, Token: token, Random: random, Log: log, Once: once,
		Verdict: verdictPath(SocketPath(c.Site)),
		Bucket:  store.New(store.Options{Config: aws, Endpoint: c.Endpoints.S3, Bucket: c.Bucket, Prefix: c.Prefix, Site: c.Site, Logger: log}),
		Table:   table.NewDynamo(table.Options{Config: aws, Endpoint: c.Endpoints.DynamoDB, Name: c.Table}),
		Metrics: metrics,
		Notifier: notify.New(notify.Options{
			AWS: aws, Endpoint: c.Endpoints.SNS, Success: c.Notify.SNSSuccess, Error: c.Notify.SNSError, Webhook: c.Notify.Webhook.Reveal(),
		}),
		Service: service, Lifecycle: l.watched(),
	})
	if err != nil {
		return err
	}
	born(a)
	return a.Run(ctx)
}

// identityFile is the name, in the state directory, of who this instance was the last time.
const identityFile = "identity"

// identify finds out who this instance is. Where EC2 does not answer, it is who it was the last time: a restart without
// the metadata service must not make a new member.
func identify(ctx context.Context, c *config.Config, d *disk.Disk, log *slog.Logger) (instance.Identity, error) {
	id, err := instance.Identify(ctx, c.InstanceID, c.Endpoints.IMDS)
	if err != nil {
		return id, err
	}
	var was instance.Identity
	if _, err := d.Load(identityFile, &was); err != nil {
		log.Warn("identity of the last run", "error", err)
	}
	if id.Source == instance.SourceHostname && was.Source == instance.SourceEC2 {
		log.Warn("the metadata service does not answer, keeping the identity of the last run", "instance", was.ID)
		return was, nil
	}
	if id.ID == was.ID && id.Zone == "" {
		id.Zone = was.Zone
	}
	if id != was {
		err = d.Save(identityFile, id)
	}
	return id, err
}

func openDisk(c *config.Config, log *slog.Logger) (*disk.Disk, error) {
	owner, err := disk.LookupUser(c.Owner)
	if err != nil {
		return nil, fmt.Errorf("owner: %w", err)
	}
	web, err := disk.LookupUser(c.WebUser)
	if err != nil {
		return nil, fmt.Errorf("web_user: %w", err)
	}
	return disk.Open(disk.Options{
		Root: c.Root, Active: c.Active, StateDir: c.StateDir, Owner: owner, WebUser: web,
		Writable: c.Writable, Shared: c.Shared, Stamp: c.Stamp, Logger: log,
	})
}
