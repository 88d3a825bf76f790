package e2e

import (
	"context"
	"fmt"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"s3pulldeploy/internal/testenv/parts"
)

// head is the head item, as far as the oracle looks at it.
type head struct {
	epoch, fence       int64
	state              string
	release, committed string
	committedSequence  int64
}

// fact is what is known of an epoch: what it is about, and how it was decided: commit, abort, or "" while it is open.
type fact struct{ release, decision string }

// record is what the head was seen to say, many times a second.
type record struct {
	read    func(context.Context) (h head, there bool, err error)
	reading sync.Mutex // what is taken later was read later

	mu     sync.Mutex
	last   head
	epochs map[int64]fact
	wrong  []string
}

// newRecord begins to read the head, until the end of the test, which fails if the head ever went back, or an epoch has two decisions:
// in the head, in its log, or by what its agents say.
func (b *broken) newRecord() *record {
	table := tableOf(b)
	r := &record{read: table.head, epochs: map[int64]fact{}}
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	ended.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			r.look(ctx)
			<-tick.C
		}
	})
	b.t.Cleanup(func() {
		cancel()
		ended.Wait()
		logs, err := table.logs()
		if err != nil {
			b.t.Error("read epoch logs:", err)
		}
		for _, l := range logs {
			r.logged(l)
		}
		said := map[string]string{}
		for _, a := range b.agents {
			r.decisions(said, a.id, a.logText())
		}
		for _, text := range r.wrong {
			b.t.Error(text)
		}
	})
	return r
}

// look reads the head, and says whether it could.
func (r *record) look(ctx context.Context) bool {
	r.reading.Lock()
	defer r.reading.Unlock()
	h, there, err := r.read(ctx)
	if err != nil || !there {
		return false // the server is busy, or there is none yet
	}
	r.take(h)
	return true
}

func (r *record) take(h head) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h.epoch < r.last.epoch || h.fence < r.last.fence || h.committedSequence < r.last.committedSequence {
		r.blame("the head went back from %+v to %+v", r.last, h)
	}
	r.last = h
	r.learn(h.epoch, fact{h.release, map[string]string{"commit": "commit", "done": "commit", "abort": "abort"}[h.state]})
}

// learn takes what is said of an epoch, which must not be otherwise than what was known.
func (r *record) learn(epoch int64, f fact) {
	was := r.epochs[epoch]
	if was.release != "" && f.release != was.release || was.decision != "" && f.decision != was.decision {
		r.blame("epoch %d was %+v and then %+v", epoch, was, f)
	}
	r.epochs[epoch] = f
}

// logged compares an epoch's log with what the head said.
func (r *record) logged(l epochLog) {
	decision := map[string]string{"done": "commit", "abort": "abort"}[l.outcome]
	if was := r.epochs[l.epoch]; decision != "" && was.decision != "" && was != (fact{l.release, decision}) {
		r.blame("epoch %d was %+v, its log says %+v", l.epoch, was, l)
	}
}

var decidedLine = regexp.MustCompile(`msg=decided .*\bepoch=(\d+) commit=(true|false)`)

// decisions looks for the agents that say that they decided; said has those of the others.
func (r *record) decisions(said map[string]string, id, log string) {
	for _, m := range decidedLine.FindAllStringSubmatch(log, -1) {
		if who, again := said[m[1]]; again {
			r.blame("epoch %s was decided by %s and by %s", m[1], who, id)
		}
		said[m[1]] = id
		var epoch int64
		_, _ = fmt.Sscan(m[1], &epoch)
		if was := r.epochs[epoch]; was.decision != "" && (was.decision == "commit") != (m[2] == "true") {
			r.blame("%s decided epoch %d, commit=%s, which was %+v", id, epoch, m[2], was)
		}
	}
}

func (r *record) blame(format string, args ...any) {
	r.wrong = append(r.wrong, fmt.Sprintf(format, args...))
}

// now is the head as it was last read.
func (r *record) now() head {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}

// committed says whether a release was committed by now. It is not certain that it was not while an earlier epoch's decision was missed.
func (r *record) committed(release string) (yes, certain bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last.committed == release {
		return true, true
	}
	certain = true
	for e := int64(1); e <= r.last.epoch; e++ {
		f := r.epochs[e]
		if f == (fact{release, "commit"}) {
			return true, true
		}
		certain = certain && (f.decision != "" || e == r.last.epoch)
	}
	return false, certain
}

// siteTable is the table as the oracle reads it.
type siteTable struct {
	client *dynamodb.Client
	scope  string
}

func tableOf(b *broken) siteTable {
	return siteTable{scope: b.bucket + "/" + b.name, client: dynamodb.New(dynamodb.Options{
		Region: parts.Region, BaseEndpoint: aws.String(b.world.dynamodb),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: parts.AccessKey, SecretAccessKey: parts.SecretKey}, nil
		}),
	})}
}

func textOf(item map[string]types.AttributeValue, name string) string {
	v, _ := item[name].(*types.AttributeValueMemberS)
	if v == nil {
		return ""
	}
	return v.Value
}

func numberOf(item map[string]types.AttributeValue, name string) (n int64) {
	if v, _ := item[name].(*types.AttributeValueMemberN); v != nil {
		_, _ = fmt.Sscan(v.Value, &n)
	}
	return n
}

// head reads the head as it is now.
func (t siteTable) head(ctx context.Context) (h head, there bool, err error) {
	out, err := t.client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName: aws.String("s3-pull-deploy"), ConsistentRead: aws.Bool(true),
		Key: map[string]types.AttributeValue{
			"pk": &types.AttributeValueMemberS{Value: t.scope}, "sk": &types.AttributeValueMemberS{Value: "head"},
		},
	})
	if err != nil || out.Item == nil {
		return head{}, false, err
	}
	i := out.Item
	return head{
		numberOf(i, "epoch"), numberOf(i, "fence"), textOf(i, "state"), textOf(i, "release"), textOf(i, "committed_release"), numberOf(i, "committed_sequence"),
	}, true, nil
}

// epochLog is an epoch's log, of which there is at most one.
type epochLog struct {
	epoch            int64
	outcome, release string
}

func (t siteTable) logs() (logs []epochLog, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), joinTime)
	defer cancel()
	out, err := t.client.Query(ctx, &dynamodb.QueryInput{
		TableName: aws.String("s3-pull-deploy"), ConsistentRead: aws.Bool(true), KeyConditionExpression: aws.String("pk = :scope AND begins_with(sk, :epoch)"),
		ExpressionAttributeValues: map[string]types.AttributeValue{
			":scope": &types.AttributeValueMemberS{Value: t.scope}, ":epoch": &types.AttributeValueMemberS{Value: "epoch#"},
		},
	})
	if err != nil {
		return nil, err
	}
	for _, i := range out.Items {
		logs = append(logs, epochLog{numberOf(i, "epoch"), textOf(i, "outcome"), textOf(i, "release")})
	}
	return logs, nil
}

// What the record must see, if it were there.
func TestTheRecordSeesASecondDecision(t *testing.T) {
	first := head{epoch: 1, fence: 1, state: "commit", release: "r1", committed: "r1", committedSequence: 1}
	prepare := head{epoch: 2, fence: 2, state: "prepare", release: "r2", committed: "r1", committedSequence: 1}
	with := func(h head, change func(*head)) head { change(&h); return h }
	abort := with(prepare, func(h *head) { h.state = "abort" })
	for name, c := range map[string]struct {
		heads []head
		logs  []epochLog
		said  []string
		wrong int
	}{
		"all is well":                        {[]head{first, prepare, abort}, []epochLog{{1, "done", "r1"}, {2, "abort", "r2"}}, []string{"msg=decided x=y epoch=1 commit=true", "msg=decided epoch=2 commit=false"}, 0},
		"both ways":                          {[]head{first, with(first, func(h *head) { h.state = "abort" })}, nil, nil, 1},
		"open again":                         {[]head{abort, prepare}, nil, nil, 1},
		"another release":                    {[]head{prepare, with(prepare, func(h *head) { h.release = "r3" })}, nil, nil, 1},
		"an older epoch":                     {[]head{prepare, first}, nil, nil, 1},
		"its log":                            {[]head{first, prepare, abort}, []epochLog{{2, "done", "r2"}}, nil, 1},
		"two coordinators":                   {[]head{first}, nil, []string{"msg=decided epoch=1 commit=true", "msg=decided epoch=1 commit=true"}, 1},
		"a coordinator who thinks otherwise": {[]head{first}, nil, []string{"msg=decided epoch=1 commit=false"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := &record{epochs: map[int64]fact{}}
			for _, h := range c.heads {
				r.take(h)
			}
			for _, l := range c.logs {
				r.logged(l)
			}
			said := map[string]string{}
			for n, log := range c.said {
				r.decisions(said, fmt.Sprint("i-", n), log)
			}
			if len(r.wrong) != c.wrong {
				t.Errorf("%d things are wrong, want %d: %q", len(r.wrong), c.wrong, r.wrong)
			}
		})
	}
}
