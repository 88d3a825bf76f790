// Package push is the push command: one verb a call, from a developer's tree to a live release.
//
// Parties. A person or a CI job calls it; the bucket keeps releases and the pointer; the fleet's agents do the rest
// by themselves. push never talks to an instance: it reads the fleet's items, and writes to them only what it asks for.
//
// Order of writes of -deploy. Everything is checked before the first byte goes out: the tree, the bucket, the
// table, the versions of the instances, a freeze, the pointer. Then the contents, then a look at what is there, then the pointer, under the condition that it
// is still the one that was read; last a hint for the fleet, which only saves time. A push that dies before the pointer
// has changed nothing for anybody. -rollback is the same without contents.
//
// The plain layout follows links inside the tree, files and directories, as `aws s3 sync` does. A link
// that leaves the tree, is absolute, broken or leads back into itself is an error. Modes and empty directories
// are lost. The pointer has exactly three lines, which an older tool of the same shape reads, unless the caller asks for
// something that has no other home: -message, -commit, -max-excluded, a rollback. Then `key "value"` lines follow, which
// that tool does not read. Never part of a release are .git, .deployignore, and the settings file with its copies.
//
// The packed layout keeps links as links, empty directories and the executable bit. A push hashes the tree, compares it
// with the manifest of the pointer's release, its parent, and uploads only contents that the bucket does not have. What
// fits into a delta goes into it, so a small push writes three objects: delta, manifest, pointer, in this order: a
// manifest that is there names only what is there, and later pushes may build on it, even if no pointer ever named it.
// What does not fit goes into packs first, and then it pays to look at the other kept manifests too. A pack takes about five
// seconds to upload, as far as a megabyte to 16 can do that, so that a connection that breaks costs seconds; and a pack says what it
// holds, so a push goes on where an interrupted one stopped, whatever came of its packs. Where a new instance
// would have to gather the release from too many places, all of it is stored anew, a new baseline. That is decided before anything is
// uploaded, so that -dry-run decides the same and nothing is uploaded twice. A push gives up [store.Store.PushTime] after
// its first look at the bucket. The user's cache directory keeps manifests, and sums of files by what the file system
// says of them; without it a push is slower and the same.
//
// Signatures. With signing_key every pointer is a signed note. It is signed from what this push has computed itself; a rollback
// signs a manifest that it reads from the bucket, so it demands that a pointer which is signed already names that very
// manifest. Where verify_keys are set, a push that cannot sign stops before it begins.
//
// Waiting. The release's sequence is followed through its epochs, retries included, until it is live, given up, or
// overtaken; [Outcome] has the ends. Interrupting push stops the waiting and nothing else.
//
// Output. Human text goes to stdout, with -json to stderr, where errors, warnings and the progress bar always
// go; -json prints one object for the verb's outcome, and nothing for an error. A release that is flipped to but fails
// its check has outcome "done", because the fleet has moved, with its reason, and exit code 1. Exit codes are one table, see
// [exits]. Colours are never used.
package push

import (
	"context"
	"errors"
	"flag"
	"io"
	"runtime"
	"slices"
	"time"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/version"
)

// Version is set by the linker.
var Version = "dev"

// The exit codes.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitAborted  = 3
	exitTimeout  = 4
	exitConflict = 5
)

// exits is what -help says about them.
var exits = []struct {
	code    int
	meaning string
}{
	{exitDone, "done"},
	{exitFailed, "failed"},
	{exitUsage, "wrong usage or settings"},
	{exitAborted, "the rollout was aborted or rolled back, for good"},
	{exitTimeout, "timed out; it may still go live"},
	{exitConflict, "another push won or superseded this one, or the site is frozen"},
}

// Which kind of end an error is; everything else is a failure.
var (
	errUsage    = errors.New("wrong usage")
	errAborted  = errors.New("aborted")
	errTimeout  = errors.New("timed out")
	errConflict = errors.New("conflict")
)

// kind gives an error one of the ends above without changing its text.
type kind struct {
	which error
	error
}

func (k kind) Unwrap() []error { return []error{k.which, k.error} }

// exitCode is the exit code of an error.
func exitCode(err error) int {
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errUsage):
		return exitUsage
	case errors.Is(err, errAborted):
		return exitAborted
	case errors.Is(err, errTimeout):
		return exitTimeout
	case errors.Is(err, errConflict), isConflict(err):
		return exitConflict
	}
	return exitFailed
}

// Main runs the push command and returns its exit code. Cancelling ctx interrupts it at the next request; a
// release that is published by then stays published. A multi-factor code is asked for on stdin if that is a terminal.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	err := run(ctx, args, stdin, stdout, stderr)
	if err != nil {
		complain(stderr, err)
	}
	return exitCode(err)
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		usage(stdout)
		return nil
	}
	if err != nil {
		return kind{errUsage, advise(err, "`push -help` shows the usage")}
	}
	s := &session{options: o, console: newConsole(o.json, stdin, stdout, stderr), noExec: runtime.GOOS == "windows"}
	if !slices.Contains([]string{verbVersion, verbKeygen, verbComplete}, o.verb) {
		if s.cfg, err = config.Load(o.config, config.ForPush); err != nil {
			return kind{errUsage, err}
		}
		if o.profile != "" {
			s.cfg.Profile = o.profile
		}
	}
	return verbs[o.verb].run(s, ctx)
}

// session is one call of the command.
type session struct {
	options
	*console
	cfg    *config.Config
	grace  time.Duration    // in place of store.Grace, for tests
	clock  func() time.Time // in place of the time that releases are named by, for tests
	judges <-chan time.Time // in place of a tick each packTime, at which a line is judged, for tests
	table  time.Duration    // in place of tableTime, for tests
	noExec bool             // files have no executable bit on this system
	signs  *release.Signer  // nil: what is published is not signed
	back   []byte           // the manifest of the release that is gone back to; nil in the plain layout
}

func (s *session) version(context.Context) error {
	b := version.This(Version)
	if s.json {
		return s.object(b)
	}
	_, err := io.WriteString(s.stdout, b.Text("push"))
	return err
}

// show prints the settings in force; secrets are masked.
func (s *session) show(context.Context) error {
	if s.json {
		return kind{errUsage, errors.New("-show prints YAML: it does not go with -json")}
	}
	_, err := s.stdout.Write(s.cfg.YAML())
	return err
}
