package push

import (
	"bytes"
	"strings"
	"testing"

	"s3pulldeploy/internal/config"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/release"
	"s3pulldeploy/internal/store"
	"s3pulldeploy/internal/testenv"
)

// history makes epoch logs from words: "A" deployed, "A<" rolled back to, "A!" live but not healthy, "A?" aborted.
func history(words string) (fleet.Head, []fleet.Log) {
	var h fleet.Head
	var logs []fleet.Log
	for i, word := range strings.Fields(words) {
		l := fleet.Log{Epoch: int64(i + 1), Sequence: int64(100 + i), Outcome: "done", Release: release.ID(word[:1])}
		switch word[1:] {
		case "<":
			l.Kind = fleet.KindRollback
		case "!":
			l.Reason = "2 of 3 failed"
		case "?":
			l.Outcome = "abort"
		}
		logs = append(logs, l)
		if l.Outcome == "done" {
			h.CommittedEpoch, h.CommittedRelease, h.CommittedSequence = l.Epoch, l.Release, l.Sequence
			if l.Reason == "" {
				h.Good = fleet.Target{Release: l.Release, Sequence: l.Sequence}
			}
		}
		h.Epoch, h.Kind = l.Epoch, l.Kind
	}
	return h, logs
}

func TestRollbackGoesToTheGoodOneBefore(t *testing.T) {
	cases := []struct{ history, exist, want string }{
		{"A B", "A B", "A"},
		{"A B C", "A B C", "B"},
		{"A B C B<", "A B C", "A"},        // again goes further back
		{"A B C B< D", "A B C D", "B"},    // a deploy after it starts from there
		{"A B C B< A< D E", "A D E", "D"}, // and only what is below counts
		{"A B! C", "A B C", "A"},          // what was never healthy is skipped
		{"A B!", "A B", "A"},              // also when it is the live one
		{"A B? C", "A B C", "A"},          // what was never live too
		{"A B C", "A C", "A"},             // and what the bucket has no more
		{"A A B", "A B", "A"},
		{"A B A", "A B", "B"}, // deployed again, not rolled back
		{"A", "A", ""},
		{"A B A<", "A B", ""},
		{"A B", "B", ""},
		{"", "A", ""},
	}
	for _, c := range cases {
		h, logs := history(c.history)
		var known []release.ID
		for _, id := range strings.Fields(c.exist) {
			known = append(known, release.ID(id))
		}
		got, err := goodBefore(h, logs, known)
		if string(got) != c.want || (err == nil) != (c.want != "") {
			t.Errorf("history %q, existing %q: %q, %v; want %q", c.history, c.exist, got, err, c.want)
		}
	}
}

func TestRollbackWithoutTheLastLogUsesTheHead(t *testing.T) {
	h, logs := history("A B")
	if got, err := goodBefore(h, logs[:1], []release.ID{"A", "B"}); got != "A" || err != nil {
		t.Errorf("%q, %v; want A", got, err)
	}
	h.Good = fleet.Target{Release: "A", Sequence: 1}
	if got, err := goodBefore(h, nil, []release.ID{"A", "B"}); got != "A" || err != nil {
		t.Errorf("without any log: %q, %v; want A", got, err)
	}
}

func TestALostRaceIsAConflictThatNamesTheWinner(t *testing.T) {
	s3 := testenv.S3(t)
	c := &config.Config{Site: "shop", Bucket: s3.NewBucket(t), Endpoints: config.Endpoints{S3: s3.Endpoint, DynamoDB: s3.Endpoint}}
	var out, errs bytes.Buffer
	s := &session{console: newConsole(false, strings.NewReader(""), &out, &errs), cfg: c}
	site, err := s.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	first := release.Pointer{Release: "first", Sequence: 1, Files: 1}
	if err := s.publish(t.Context(), site, view{}, first); err != nil {
		t.Fatal(err)
	}
	second := release.Pointer{Release: "second", Sequence: 2, Files: 1}
	err = s.publish(t.Context(), site, view{}, second) // read nothing, when there was nothing
	if exitCode(err) != exitConflict || !strings.Contains(err.Error(), "first") {
		t.Errorf("exit code %d, error %v", exitCode(err), err)
	}
	read, err := site.store.Pointer(t.Context(), "")
	if err != nil || string(read.Text) != "first\n1\n1" {
		t.Errorf("the pointer is %q, %v", read.Text, err)
	}
	if err := s.publish(t.Context(), site, view{Read: store.Read{ETag: read.ETag}}, second); err != nil {
		t.Errorf("with what was read: %v", err)
	}
}
