// Package notify tells people how an epoch ended: by Amazon SNS and by a webhook in Slack's format.
//
// Whoever created the epoch's log calls [Notifier.Send], so there is one notification for an epoch, whatever its fleet. It is
// best effort and bounded: all of it takes at most [Patience], each way on its own, with one line of text and no retry beyond that;
// what fails is an error that the caller logs, and changes nothing about the outcome. An agent that dies between the log and
// here sends none.
//
// SNS. A success goes to one topic, everything else to the other. The request is signed for the region in the topic's ARN. The subject
// is the outcome in at most 100 printable ASCII characters, which e-mail shows; the message is the text; attributes (site, outcome,
// kind, release, epoch) let subscriptions filter. A FIFO topic gets the site as its group and the epoch against duplicates.
//
// Webhook. {"text": "…"}, as Slack, Mattermost and Rocket.Chat take it, with their three special characters escaped. Such a URL is a
// password: it is in no error. A redirect is an error, since a POST that follows one arrives as a GET.
package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/service/sns"
	"github.com/aws/aws-sdk-go-v2/service/sns/types"
	"github.com/aws/smithy-go"
)

const (
	// Patience is for one notification on all its ways. An agent that is told to end waits as long for it.
	Patience = 10 * time.Second
	// pause is between two tries of the webhook.
	pause = time.Second
	tries = 3
)

// Options is who is told. Empty ones are not.
type Options struct {
	AWS      aws.Config
	Endpoint string // of SNS; empty: AWS
	Success  string // topic ARNs
	Error    string
	Webhook  string
}

// Notifier sends. Make it with [New]; it is safe for concurrent use.
type Notifier struct {
	o      Options
	client *http.Client
	pause  time.Duration
}

// New wires a notifier. It makes no request.
func New(o Options) *Notifier {
	return &Notifier{o: o, pause: pause, client: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Send tells everybody who is to hear of the outcome, all at once, and returns what did not work, joined: within
// [Patience], or the context's time.
func (n *Notifier) Send(ctx context.Context, o Outcome) error {
	ctx, cancel := context.WithTimeout(ctx, Patience)
	defer cancel()
	topic := n.o.Error
	if o.Success() {
		topic = n.o.Success
	}
	var errs [2]error
	var wg sync.WaitGroup
	if topic != "" {
		wg.Go(func() { errs[0] = n.publish(ctx, topic, o) })
	}
	if n.o.Webhook != "" {
		wg.Go(func() { errs[1] = n.post(ctx, o) })
	}
	wg.Wait()
	return errors.Join(errs[:]...)
}

// publish sends to an SNS topic. The SDK tries again by itself.
func (n *Notifier) publish(ctx context.Context, topic string, o Outcome) error {
	parsed, err := arn.Parse(topic)
	if err != nil {
		return fmt.Errorf("publish to %q: %w", topic, err)
	}
	client := sns.NewFromConfig(n.o.AWS, func(s *sns.Options) {
		s.Region = parsed.Region
		if n.o.Endpoint != "" {
			s.BaseEndpoint = aws.String(n.o.Endpoint)
		}
	})
	in := &sns.PublishInput{
		TopicArn: aws.String(topic), Subject: aws.String(o.subject()), Message: aws.String(o.Text()),
		MessageAttributes: map[string]types.MessageAttributeValue{},
	}
	for name, value := range map[string]string{
		"site": o.Site, "outcome": o.Outcome, "kind": o.Kind, "release": o.Release, "epoch": strconv.FormatInt(o.Epoch, 10),
	} {
		if value != "" { // SNS refuses empty ones
			in.MessageAttributes[name] = types.MessageAttributeValue{DataType: aws.String("String"), StringValue: aws.String(value)}
		}
	}
	if strings.HasSuffix(topic, ".fifo") {
		in.MessageGroupId = aws.String(o.Site)
		in.MessageDeduplicationId = aws.String(fmt.Sprintf("%s-%d", o.Site, o.Epoch))
	}
	if _, err := client.Publish(ctx, in); err != nil {
		return fmt.Errorf("publish to %s: %w", topic, brief(err))
	}
	return nil
}

// brief is an SDK's error without the layers that it went through.
func brief(err error) error {
	var api smithy.APIError
	if errors.As(err, &api) {
		return fmt.Errorf("%s: %s", api.ErrorCode(), api.ErrorMessage())
	}
	return err
}

// post sends to the webhook; a server that is busy or does not answer is asked again.
func (n *Notifier) post(ctx context.Context, o Outcome) error {
	body, err := json.Marshal(map[string]string{"text": slack(o.Text())})
	if err != nil {
		return fmt.Errorf("post to webhook: %w", err)
	}
	for try := 1; ; try++ {
		again, err := n.postOnce(ctx, body)
		if err == nil {
			return nil
		}
		if !again || try == tries {
			return fmt.Errorf("post to webhook: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("post to webhook: %w", err)
		case <-time.After(n.pause):
		}
	}
}

func (n *Notifier) postOnce(ctx context.Context, body []byte) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, n.o.Webhook, bytes.NewReader(body))
	if err != nil {
		return false, errors.New("the URL is not valid") // the error would show it
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := n.client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return true, err
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(resp.Body, 100))
	if resp.StatusCode/100 == 2 {
		return false, nil
	}
	again = resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500
	return again, fmt.Errorf("status %d: %q", resp.StatusCode, said)
}
