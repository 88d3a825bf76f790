package push

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/release"
)

// The verbs' names that code mentions.
const (
	verbDeploy   = "deploy"
	verbVersion  = "version"
	verbComplete = "completion"
	verbKeygen   = "keygen"
	verbInit     = "init"
	verbRollback = "rollback"
)

// verb is one thing that push does.
type verb struct {
	value   string // what its flag takes: "", such as "DIR", or such as "[=RELEASE]" where it may be left out
	about   string
	options string // the options that go with it, besides the common ones
	run     func(*session, context.Context) error
}

// needsValue says whether the verb's value may not be left out.
func (v verb) needsValue() bool { return v.value != "" && v.value[0] != '[' }

// common are the options of every verb.
const common = "config profile json"

var verbs map[string]verb

func init() { // a verb's code mentions other verbs: as a plain variable this would be a cycle
	verbs = map[string]verb{
		verbDeploy: {
			"DIR", "upload a tree as a new release and move the fleet to it",
			"message commit layout wait timeout max-excluded dry-run force", (*session).deploy,
		},
		verbRollback: {
			"[=RELEASE]", "move the fleet back: to the good release before the live one; again goes further back",
			"message wait timeout max-excluded dry-run force", (*session).rollback,
		},
		"manifest":   {"[=RELEASE]", "print the list of files of a packed release as JSON; default: the pointer's", "", (*session).printManifest},
		"status":     {"", "the fleet, the pointer, every instance; the first line says what is stuck", "watch", (*session).status},
		"releases":   {"", "what is in the bucket, newest first", "", (*session).releases},
		"abort":      {"", "hold the newest release: it does not go live, an open rollout of it ends, what has flipped goes back", "", (*session).abort},
		"freeze":     {"REASON", "stop every rollout but rollbacks, until -unfreeze or for a time", "for", (*session).freeze},
		"unfreeze":   {"", "lift the freeze", "", (*session).unfreeze},
		"forget":     {"INSTANCE|silent", "drop the rows of an instance that is gone, or of all that are silent", "force", (*session).forget},
		"approve":    {"[=RELEASE]", "let the wave that is under way pass, where rollout.approve asks for that", "", (*session).approve},
		"retry":      {"", "try a release again that was aborted or held", "", (*session).retry},
		"gc":         {"", "remove from the bucket what no release needs, but for the newest keep_remote and those in use", "dry-run", (*session).gc},
		verbKeygen:   {"NAME", "make a pair of keys for signed releases: NAME.key to sign with, and what verifies it", "", (*session).keygen},
		"check":      {"", "try what a push needs: permissions, settings, the fleet; a line each, ok or what mends it", "", (*session).checkup},
		"policy":     {"instance|ci|developer", "print the least IAM policy for these settings, as JSON", "", (*session).policy},
		verbInit:     {"", "create what is missing of bucket and table; change nothing that exists", "", (*session).initialise},
		"show":       {"", "print the settings in force, secrets masked", "", (*session).show},
		verbComplete: {"bash|zsh", "print a completion script for a shell", "", (*session).completion},
		verbVersion:  {"", "print the version", "", (*session).version},
	}
}

// options are a parsed command line.
type options struct {
	verb string
	arg  string // the verb's value: the directory, the release, or ""
	// fault is what is wrong with a verb, in words of our own: package flag would call each a "boolean flag".
	fault error

	message, commit, layout, maxExcluded string
	wait, watch, dryRun, force, json     bool
	timeout, length                      time.Duration // length: of a freeze
	config, profile                      string
}

// verbFlag is a verb as a flag; with IsBoolFlag its value may be left out.
type verbFlag struct {
	name string
	o    *options
}

func (v verbFlag) String() string { return "" }

// IsBoolFlag makes `-rollback` stand for `-rollback=true`.
func (v verbFlag) IsBoolFlag() bool { return v.o != nil && !verbs[v.name].needsValue() }

func (v verbFlag) Set(value string) error {
	if v.IsBoolFlag() && value == "true" {
		value = ""
	}
	switch {
	case v.o.verb != "":
		v.o.fault = fmt.Errorf("one verb a call: -%s was given already", v.o.verb)
	case value != "" && verbs[v.name].value == "":
		v.o.fault = fmt.Errorf("-%s takes no value", v.name)
	}
	v.o.verb, v.o.arg = v.name, value
	return v.o.fault
}

// parse reads the command line. Its error is [flag.ErrHelp] when help was asked for.
func parse(args []string) (options, error) {
	var o options
	set := flagSet(&o)
	if err := set.Parse(args); err != nil {
		return o, cmp.Or(o.fault, err)
	}
	if set.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q: values are given as -flag=value", set.Arg(0))
	}
	if o.verb == "" {
		return o, fmt.Errorf("no verb: one of -%s is needed", strings.Join(slices.Sorted(maps.Keys(verbs)), ", -"))
	}
	return o, o.check(set)
}

func flagSet(o *options) *flag.FlagSet {
	set := flag.NewFlagSet("push", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	set.Usage = func() {}
	for name, v := range verbs {
		set.Var(verbFlag{name, o}, name, v.about)
	}
	set.StringVar(&o.message, "message", "", "why this is pushed, for people; adds a line to the pointer")
	set.StringVar(&o.commit, "commit", "", "the commit, for people and hooks; adds a line to the pointer")
	set.StringVar(&o.layout, "layout", "", "how the bucket keeps the release, in place of the settings': plain or packed")
	set.BoolVar(&o.watch, "watch", false, "look again every two seconds, until interrupted")
	set.BoolVar(&o.wait, "wait", true, "wait for the fleet")
	set.DurationVar(&o.timeout, "timeout", 15*time.Minute, "how long to wait, from the pointer on")
	set.DurationVar(&o.length, "for", 0, "how long to freeze, as 2h; without it until -unfreeze")
	set.StringVar(&o.maxExcluded, "max-excluded", "", "how many members this rollout may leave behind: 3 or 40%; adds a line to the pointer")
	set.BoolVar(&o.dryRun, "dry-run", false, "check everything, name all that would change, write nothing")
	set.BoolVar(&o.force, "force", false, "push although nothing changed, with all contents stored anew, or over a pointer that cannot be read")
	set.StringVar(&o.config, "config", "config.yml", "the settings file")
	set.StringVar(&o.profile, "profile", "", "AWS profile, in place of the settings'")
	set.BoolVar(&o.json, "json", false, "one JSON object on stdout, text for people on stderr")
	return set
}

// check refuses options that do not go with the verb, and values out of range.
func (o options) check(set *flag.FlagSet) error {
	allowed := strings.Fields(common + " " + verbs[o.verb].options)
	var err error
	set.Visit(func(f *flag.Flag) {
		if _, isVerb := verbs[f.Name]; !isVerb && !slices.Contains(allowed, f.Name) && err == nil {
			err = fmt.Errorf("-%s does not go with -%s", f.Name, o.verb)
		}
	})
	if err != nil {
		return err
	}
	switch o.layout {
	case "", config.Plain, config.Packed:
	default:
		return fmt.Errorf("-layout must be plain or packed, not %q", o.layout)
	}
	if o.timeout <= 0 {
		return fmt.Errorf("-timeout must be above zero, not %v", o.timeout)
	}
	if o.maxExcluded != "" {
		if _, err := release.ParseShare(o.maxExcluded); err != nil {
			return fmt.Errorf("-max-excluded: %w", err)
		}
	}
	if o.length < 0 || o.length > longestFreeze {
		return fmt.Errorf("-for must be up to %v, not %v", longestFreeze, o.length)
	}
	if v := verbs[o.verb]; v.needsValue() && o.arg == "" {
		return fmt.Errorf("-%s needs a value: -%s=%s", o.verb, o.verb, v.value)
	}
	return nil
}

// usage prints what push can do.
func usage(w io.Writer) {
	fmt.Fprint(w, "push moves a site's fleet to a release. One verb a call:\n\n")
	for _, name := range []string{verbDeploy, verbRollback, "status", "releases", "manifest", "approve", "abort", "retry", "freeze", "unfreeze", "forget", "gc", "check", verbInit, "policy", verbKeygen, "show", verbComplete, verbVersion} {
		v := verbs[name]
		value := v.value
		if v.needsValue() {
			value = "=" + value
		}
		fmt.Fprintf(w, "  push -%-21s %s\n", name+value, v.about)
		if v.options != "" {
			fmt.Fprintf(w, "  %26s options: -%s\n", "", strings.ReplaceAll(v.options, " ", " -"))
		}
	}
	fmt.Fprint(w, "\nOptions:\n")
	flagSet(&options{}).VisitAll(func(f *flag.Flag) {
		if _, isVerb := verbs[f.Name]; !isVerb {
			fmt.Fprintf(w, "  -%-14s %s", f.Name, f.Usage)
			if f.DefValue != "" && f.DefValue != "false" {
				fmt.Fprintf(w, " (default %s)", f.DefValue)
			}
			fmt.Fprintln(w)
		}
	})
	fmt.Fprint(w, "\nExit codes:\n")
	for _, e := range exits {
		fmt.Fprintf(w, "  %d  %s\n", e.code, e.meaning)
	}
}
