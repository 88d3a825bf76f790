package push

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/php"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
)

func TestStatusBeginsWithWhatIsStuck(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	member := func(id string, epoch int64, active release.ID) fleet.Member {
		return fleet.Member{Instance: id, Phase: fleet.Serve, Seen: now.Unix() - 5, Active: fleet.Active{Epoch: epoch, Release: active}}
	}
	done := fleet.Head{
		Epoch: 2, State: fleet.Done, Sequence: 100, Release: "R2",
		CommittedEpoch: 2, CommittedSequence: 100, CommittedRelease: "R2",
	}
	with := func(change func(*view)) view {
		v := view{
			Now: now, Pointer: release.Pointer{Release: "R2", Sequence: 100, Files: 1}, HasHead: true, Head: done, Live: 2,
			Members: []fleet.Member{member("i-1", 2, "R2"), member("i-2", 2, "R2")},
		}
		change(&v)
		return v
	}
	cases := map[string]view{
		"all 2 on R2":        with(func(*view) {}),
		"nothing was pushed": {},
		"cannot tell: table": with(func(v *view) { v.HeadErr = errors.New("table away") }),
		"1 of 2 on R2; not: i-2 (serve: no php)": with(func(v *view) {
			v.Members[1].Active.Release, v.Members[1].Error = "R1", "no php"
		}),
		"epoch 3 to R3 is in state prepare, waiting for i-2 40%": with(func(v *view) {
			v.Head.Epoch, v.Head.State, v.Head.Release = 3, fleet.Prepare, "R3"
			v.Members[0].Vote.Epoch, v.Members[1].Progress = 3, "40%"
		}),
		"R2 was aborted: hook; held": with(func(v *view) {
			v.Head.State, v.Head.Hold, v.Head.Reason, v.Head.CommittedSequence = fleet.Abort, 100, "hook", 90
		}),
		"R2 was aborted: wave 1; not tried again: push anew": with(func(v *view) {
			v.Head.State, v.Head.Hold, v.Head.Reason, v.Head.CommittedSequence = fleet.Abort, 100, "wave 1", 90
			v.Head.Bad = []int64{100}
		}),
		"R2 is live and fails: 500; the rollback to R1 was aborted: hook; held: `push -retry`": with(func(v *view) {
			v.Head.State, v.Head.Hold, v.Head.Reason, v.Head.Why, v.Head.Release = fleet.Abort, 100, "hook", "500", "R1"
			v.Head.Bad, v.Head.Source = []int64{100}, 90
		}),
		"R2 is live and fails: 500; the rollback to R1 was aborted: disk; tried again at 1970-01-01T00:00:05Z; R3 is held: `push -retry`": with(func(v *view) {
			v.Head.State, v.Head.Hold, v.Head.RetryAt, v.Head.Reason, v.Head.Why, v.Head.Release = fleet.Abort, 101, 5, "disk", "500", "R1"
			v.Head.Bad, v.Head.Source, v.Pointer.Release, v.Pointer.Sequence = []int64{100}, 90, "R3", 101
		}),
		"R2 is live and fails: 500; the rollback to R1 was aborted: disk; not tried again: `push -rollback` goes back; R3 is held: `push -retry`": with(func(v *view) {
			v.Head.State, v.Head.Hold, v.Head.Reason, v.Head.Why, v.Head.Release = fleet.Abort, 101, "disk", "500", "R1"
			v.Head.Bad, v.Head.Source, v.Pointer.Release, v.Pointer.Sequence = []int64{100}, 90, "R3", 101
		}),
		"R2 is live and fails: 500; the rollback to R1 was aborted: disk; tried again next; R3 is held: `push -retry`": with(func(v *view) {
			v.Head.State, v.Head.Hold, v.Head.Again, v.Head.Reason, v.Head.Why, v.Head.Release = fleet.Abort, 101, 100, "disk", "500", "R1"
			v.Head.Bad, v.Head.Source, v.Pointer.Release, v.Pointer.Sequence = []int64{100}, 90, "R3", 101
		}),
		"R2 is live and fails: 500; the rollback to R1 was aborted: disk; R3 is rolled out next": with(func(v *view) {
			v.Head.State, v.Head.Hold, v.Head.Reason, v.Head.Why, v.Head.Release = fleet.Abort, 100, "disk", "500", "R1"
			v.Head.Bad, v.Head.Source, v.Pointer.Release, v.Pointer.Sequence = []int64{100}, 90, "R3", 101
		}),
		"R2 is live and fails: 500; the rollback to R1 was aborted: kept; R3 is rolled out next": with(func(v *view) {
			v.Head.State, v.Head.Hold, v.Head.Again, v.Head.Reason, v.Head.Why, v.Head.Release = fleet.Abort, 101, 101, "kept", "500", "R1"
			v.Head.Bad, v.Head.Source, v.Pointer.Release, v.Pointer.Sequence = []int64{100}, 90, "R3", 101
		}),
		"R2 is live and fails: 500; the rollback to R1 was aborted: slow; R3 is rolled out next": with(func(v *view) {
			v.Head.State, v.Head.Hold, v.Head.RetryAt, v.Head.Reason, v.Head.Why, v.Head.Release = fleet.Abort, 0, 5, "slow", "500", "R1"
			v.Head.Bad, v.Head.Source, v.Pointer.Release, v.Pointer.Sequence = []int64{100}, 90, "R3", 101
		}),
		"R2 is live and fails: 500; the rollback to R1 was aborted: disk; not tried again: `push -rollback` goes back; R3 waits: frozen by maria": with(func(v *view) {
			v.Head.State, v.Head.Hold, v.Head.Reason, v.Head.Why, v.Head.Release = fleet.Abort, 100, "disk", "500", "R1"
			v.Head.Bad, v.Head.Source, v.Pointer.Release, v.Pointer.Sequence = []int64{100}, 90, "R3", 101
			v.Head.Frozen = &fleet.Freeze{By: "maria", Why: "sale"}
		}),
		"R2 is live and fails: 500; the rollback to R1 was aborted: disk; R0 is rolled out next": with(func(v *view) {
			v.Head.State, v.Head.Hold, v.Head.Reason, v.Head.Why, v.Head.Release = fleet.Abort, 100, "disk", "500", "R1"
			v.Head.Bad, v.Head.Source, v.Pointer.Release, v.Pointer.Sequence = []int64{100}, 90, "R0", 101
			v.Head.Frozen, v.Pointer.Kind = &fleet.Freeze{By: "maria", Why: "sale"}, fleet.KindRollback
		}),
		"R2 was aborted: kept; tried again next": with(func(v *view) {
			v.Head.State, v.Head.Hold, v.Head.Again, v.Head.Reason = fleet.Abort, 100, 100, "kept"
		}),
		"frozen by maria until it is lifted: sale; all 2": with(func(v *view) { v.Head.Frozen = &fleet.Freeze{By: "maria", Why: "sale"} }),
		"R3 is published and not rolled out":              with(func(v *view) { v.Pointer.Release, v.Pointer.Sequence = "R3", 101 }),
		"no instance is live; R2 is published":            with(func(v *view) { v.Live = 0 }),
		"the table's head is lost: `push -init`":          with(func(v *view) { v.Head, v.HasHead = fleet.Head{}, false }),
		"the pointer cannot be read: has no numbers":      with(func(v *view) { v.Garbage = errors.New("has no numbers") }),
	}
	for want, v := range cases {
		if got := v.summary(); !strings.HasPrefix(got, want) {
			t.Errorf("%q, want it to begin with %q", got, want)
		}
	}
}

// The table keeps 200 bytes of a reason: the cause, and hardly anything of the cure.
func TestFlippedButStaleIsSaidWithItsWholeCure(t *testing.T) {
	stale := &php.StaleError{URL: "http://127.0.0.1:8901/_deploy/opcache", Root: "/var/www/promo.example.com/2026-11-20_20-15-01", Release: "2026-11-20_20-15-02"}
	kept := ("3 of 3 failed after the flip: i-0123456789abcdef0: " + stale.Error())[:200]
	cause, _, _ := strings.Cut(stale.Error(), " (")
	for name, r := range map[string]*Result{
		"taken back":                  {Outcome: RolledBack, Release: "R2", Reason: kept},
		"with nothing to go back to":  {Outcome: Done, unhealthy: true, Release: "R2", Reason: kept},
		"not good, and nobody failed": {Outcome: Done, unhealthy: true, Release: "R2", Reason: stale.Error()[:200]},
	} {
		var said strings.Builder
		complain(&said, r.err())
		if text := said.String(); !strings.Contains(text, cause) || !strings.Contains(text, "push: hint: "+stale.Cure()) {
			t.Errorf("%s:\n%s", name, text)
		}
	}
	settled := fleet.Head{Epoch: 3, State: fleet.Done, Sequence: 101, Release: "R1", Source: 90, CommittedEpoch: 3, CommittedSequence: 101, CommittedRelease: "R1"}
	back := settled
	back.Bad, back.Why = []int64{101}, kept
	for name, v := range map[string]view{
		"taken back": {Pointer: release.Pointer{Release: "R2", Sequence: 101}, HasHead: true, Live: 1, Head: back},
		"in a row":   {HasHead: true, Live: 1, Head: settled, Members: []fleet.Member{{Instance: "i-1", Phase: fleet.Serve, Error: stale.Error()[:200]}}},
	} {
		var human strings.Builder
		st := v.status("shop")
		st.print(&console{human: &human}, "shop in b")
		if text := human.String(); !strings.Contains(text, cause) || !strings.Contains(text, "\nhint       "+stale.Cure()+"\n") || st.Hint != stale.Cure() {
			t.Errorf("%s:\n%s", name, text)
		}
	}
	if st := (view{HasHead: true, Live: 1, Head: fleet.Head{Epoch: 2, State: fleet.Done}}).status("shop"); st.Hint != "" {
		t.Errorf("all is well, and the hint is %q", st.Hint)
	}
}

func TestStatusNamesEachCauseOnce(t *testing.T) {
	noTable := func(what string) error {
		return fmt.Errorf("%s: %w: ResourceNotFoundException: Cannot do operations", what, fleet.ErrNoTable)
	}
	v := view{HeadErr: noTable("read head"), MembersErr: noTable("read members"), BucketErr: store.ErrUnavailable, PointerErr: store.ErrUnavailable}
	st := v.status("shop")
	if got, want := strings.Join(st.Problems, "; "), "S3 unavailable; read head: table does not exist"; got != want {
		t.Errorf("problems %q, want %q", got, want)
	}
	var human strings.Builder
	st.print(&console{human: &human}, "shop in b")
	if got, want := human.String(), "cannot tell: S3 unavailable\nshop in b\nproblem    read head: table does not exist\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
}

func TestJSONTellsNoInstancesFromInstancesThatCouldNotBeRead(t *testing.T) {
	for want, v := range map[string]view{`"members":[]`: {}, `"members":null`: {MembersErr: fleet.ErrThrottled}} {
		if text, err := json.Marshal(v.status("shop")); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("no %s in %s, %v", want, text, err)
		}
	}
}

func TestStatusShowsWhatIsKnownOfPointerHeadFreezeAndInstances(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	v := view{
		Now: now, Pointer: release.Pointer{Release: "R3", Sequence: 300}, HasHead: true, Head: fleet.Head{
			Epoch: 7, State: fleet.Prepare, Release: "R3", Sequence: 300, Coordinator: "web-1",
			CommittedEpoch: 6, CommittedSequence: 200, CommittedRelease: "R2", Frozen: &fleet.Freeze{By: "ann", Why: "sale"},
		},
		Members: []fleet.Member{
			{
				Instance: "web-1", Group: "web", Zone: "eu-central-1a", Phase: fleet.Serve, Version: "1.3", Seen: now.Unix() - 4,
				Active: fleet.Active{Epoch: 6, Release: "R2"}, Vote: fleet.Vote{Epoch: 7, Release: "R3", Yes: true},
			},
			{Instance: "web-2", Group: "web", Phase: fleet.Serve, Version: "1.3", Seen: now.Unix() - 5, Progress: "3 of 9 MB", Active: fleet.Active{Epoch: 6, Release: "R2"}},
			{
				Instance: "cron", Group: "cron", Phase: fleet.Out, Version: "1.2", Seen: now.Unix() - 65, Error: "no space left",
				Vote: fleet.Vote{Epoch: 7, Release: "R3", Kind: fleet.AboutMachine},
			},
		},
	}
	const want = `epoch 7 to R3 is in state prepare, waiting for web-2 3 of 9 MB
shop in b
pointer    R3  sequence 300
head       R3  sequence 300, epoch 7 prepare, coordinator web-1
committed  R2  sequence 200
frozen     by ann until it is lifted: sale
INSTANCE  GROUP  ZONE           PHASE  RELEASE  VOTE  SEEN  VERSION  PROGRESS, REASON
cron      cron   -              out    -        no    1m5s  1.2      no space left
web-1     web    eu-central-1a  serve  R2       yes   4s    1.3      
web-2     web    -              serve  R2       -     5s    1.3      3 of 9 MB
`
	var human strings.Builder
	v.status("shop").print(&console{human: &human}, "shop in b")
	if got := human.String(); got != want {
		t.Errorf("it shows\n%s\nwant\n%s", got, want)
	}
}

// Scripts read these: fields may be added, none may go or be called otherwise.
func TestJSONHasTheFieldsThatScriptsRead(t *testing.T) {
	status := view{
		Pointer: release.Pointer{Release: "R"}, HasHead: true, Head: fleet.Head{CommittedEpoch: 1, Frozen: &fleet.Freeze{}}, Members: []fleet.Member{{}},
	}.status("shop")
	for object, want := range map[any]string{
		&Result{}:          "release sequence files uploaded_bytes unchanged_files outcome members excluded live_ms flip_spread_ms reason",
		&status:            "site line pointer.release pointer.sequence head.epoch head.state head.release head.sequence head.coordinator committed.release committed.sequence freeze.by freeze.why freeze.until problems",
		&status.Members[0]: "instance group zone phase release vote reason progress seen_s version",
		&listed{}:          "release layout state pointer pushed author commit message files bytes instances",
	} {
		text, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		var fields map[string]any
		if err := json.Unmarshal(text, &fields); err != nil {
			t.Fatal(err)
		}
		for path := range strings.FieldsSeq(want) {
			name, below, deep := strings.Cut(path, ".")
			value, there := fields[name]
			if deep {
				inner, _ := value.(map[string]any)
				_, there = inner[below]
			}
			if !there {
				t.Errorf("no %s in %s", path, text)
			}
		}
	}
}

func TestVersionsOfLiveInstancesAreComparedBeforeAPush(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	member := func(id, version string, schema, age int64) fleet.Member {
		return fleet.Member{Instance: id, Phase: fleet.Serve, Version: version, Schema: schema, Seen: now.Unix() - age}
	}
	v := view{Now: now, Members: []fleet.Member{
		member("i-1", "1.2", 1, 5), member("i-2", "1.3", 1, 5), member("i-3", "1.3", 0, 5), member("i-4", "1.4", 2, 3600),
	}}
	if got := v.versions(); got != "2 of 1.3, 1 of 1.2" {
		t.Errorf("versions %q", got)
	}
	if err := v.usable(false); err != nil {
		t.Errorf("only an instance that is gone is newer: %v", err)
	}
	if v.Members = v.Members[1:3]; v.versions() != "" {
		t.Errorf("all the same: %q", v.versions())
	}
	v.Members = append(v.Members, member("i-5", "2.0", fleet.Schema+1, 5))
	err := v.usable(true) // -force is for pointers
	if err == nil || exitCode(err) != exitFailed || !strings.Contains(err.Error(), `"i-5" runs version "2.0"`) || !strings.Contains(hint(err), "that version of push") {
		t.Errorf("a live instance is newer: %v, hint %q", err, hint(err))
	}
}

func TestLiveInstancesAreThoseThatWillTakePart(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	alive := fleet.Member{Phase: fleet.Serve, Seen: now.Unix() - 100}
	if !live(alive, now) {
		t.Error("a member that beat 100 s ago is not live")
	}
	for what, change := range map[string]func(*fleet.Member){
		"leaving": func(m *fleet.Member) { m.Phase = fleet.Leaving },
		"missed":  func(m *fleet.Member) { m.Missed = 1 },
		"old":     func(m *fleet.Member) { m.Seen -= 100 },
	} {
		m := alive
		change(&m)
		if live(m, now) {
			t.Errorf("%s: live", what)
		}
	}
}
