// Package instance says which machine this is, and whether it is about to go.
//
// Only version 2 of EC2's metadata service (IMDSv2, with a token) is spoken, never the first one, and no
// proxy is used. Every function asks for at most a second in all, because most machines that have no such
// service do not refuse the connection: they say nothing.
//
// # Identity
//
// An id must be the same at every start, or the fleet sees a new member and waits for the old one to be
// silent. So on EC2 an outage of the metadata service must not make the hostname the id: machines of
// the Nitro generation also find it in their firmware's tables, which need no network. Elsewhere, an id
// comes from the settings or is the hostname.
package instance

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
)

// Where an id came from.
const (
	SourceConfig   = "config"
	SourceEC2      = "ec2"
	SourceHostname = "hostname"
)

const (
	// patience is for all requests of one call. On EC2 an answer takes milliseconds.
	patience = time.Second
	// answerSize is the most that is read of one value.
	answerSize = 4 << 10
	// assetTag is where the firmware of Nitro instances has the id.
	assetTag = "/sys/devices/virtual/dmi/id/board_asset_tag"
)

// Identity is what a machine is called in the fleet.
type Identity struct {
	ID     string // [A-Za-z0-9][A-Za-z0-9._-]{0,127}
	Zone   string // availability zone, e.g. eu-central-1a; empty: unknown
	Source string // one of the Source constants
}

var (
	validID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	ec2ID   = regexp.MustCompile(`^i-[0-9a-f]{8,17}$`)
)

// Identify finds out which machine this is: the configured id, else EC2's, else the hostname. The zone
// is EC2's, whatever the id, if the metadata service answers. imdsEndpoint replaces the service's
// address, e.g. http://127.0.0.1:1338; empty: the SDK's own, with its environment variables.
//
// It fails when the id is not valid, which only settings can cure, and when the context ends.
func Identify(ctx context.Context, configured, imdsEndpoint string) (Identity, error) {
	return identify(ctx, configured, newMetadata(imdsEndpoint), assetTag)
}

func identify(ctx context.Context, configured string, m *metadata, tagFile string) (Identity, error) {
	if configured != "" && !validID.MatchString(configured) {
		return Identity{}, fmt.Errorf("instance_id: %q is not [A-Za-z0-9][A-Za-z0-9._-]{0,127}", configured)
	}
	found, err := m.identity(ctx)
	if ctx.Err() != nil {
		return Identity{}, fmt.Errorf("identify instance: %w", context.Cause(ctx))
	}
	switch {
	case configured != "":
		found.ID, found.Source = configured, SourceConfig
	case found.ID != "":
		found.Source = SourceEC2
	case tagged(tagFile) != "":
		found.ID, found.Source = tagged(tagFile), SourceEC2
	default:
		name, nameErr := os.Hostname()
		if nameErr != nil {
			return Identity{}, fmt.Errorf("identify instance: %w", errors.Join(err, nameErr))
		}
		found.ID, found.Source = name, SourceHostname
	}
	if !validID.MatchString(found.ID) {
		return Identity{}, fmt.Errorf("identify instance: %s says %q, which is no id: set instance_id", found.Source, found.ID)
	}
	return found, nil
}

// tagged is the id in the firmware's tables, empty where it is something else: other makers put
// anything there.
func tagged(file string) string {
	text, err := os.ReadFile(file)
	if id := strings.TrimSpace(string(text)); err == nil && ec2ID.MatchString(id) {
		return id
	}
	return ""
}

// Going says whether this machine is about to be terminated, stopped or hibernated, and why: its Auto
// Scaling Group wants it terminated, or there is a spot notice. A machine that merely restarts its agent
// is not going, nor is one without a metadata service, but there the error says that nobody answered.
//
// One of the two is enough to be going, even when asking for the other failed.
func Going(ctx context.Context, imdsEndpoint string) (going bool, reason string, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m := newMetadata(imdsEndpoint)
	var state, notice string
	var stateErr, noticeErr error
	var wg sync.WaitGroup // both at once: one that hangs must not use up the other's time
	wg.Go(func() { state, stateErr = m.get(ctx, "autoscaling/target-lifecycle-state") })
	wg.Go(func() { notice, noticeErr = m.get(ctx, "spot/instance-action") })
	wg.Wait()
	if state == "Terminated" || state == "Warmed:Terminated" {
		return true, "auto scaling: target state " + state, nil
	}
	if notice != "" {
		return true, spotReason(notice), nil
	}
	if err := cmp.Or(stateErr, noticeErr); err != nil {
		return false, "", fmt.Errorf("ask whether the instance is going: %w", err)
	}
	return false, "", nil
}

// spotReason reads a notice like {"action": "terminate", "time": "2026-11-20T20:17:00Z"}. Whatever it
// says, that it is there means the machine goes.
func spotReason(notice string) string {
	var n struct {
		Action string `json:"action"`
		Time   string `json:"time"`
	}
	if err := json.Unmarshal([]byte(notice), &n); err != nil || n.Action == "" {
		return "spot notice"
	}
	return strings.TrimSpace(fmt.Sprintf("spot notice: %s %s", n.Action, n.Time))
}

// metadata is the metadata service.
type metadata struct{ client *imds.Client }

func newMetadata(endpoint string) *metadata {
	o := imds.Options{
		Endpoint:       endpoint,
		EnableFallback: aws.FalseTernary, // version 1 answers whoever can make PHP fetch a URL
		HTTPClient: awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
			t.Proxy = nil
			t.DisableKeepAlives = true
		}),
		// Soon after the boot a first request may be lost; a second one must fit into our patience.
		Retryer: retry.NewStandard(func(o *retry.StandardOptions) { o.MaxBackoff = patience / 5 }),
	}
	if endpoint != "" {
		o.ClientEnableState = imds.ClientEnabled // an address in the settings overrides the environment
	}
	return &metadata{client: imds.New(o)}
}

// identity asks for id and zone; what is not answered is empty.
func (m *metadata) identity(ctx context.Context) (Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	id, err := m.get(ctx, "instance-id")
	if err != nil {
		return Identity{}, err
	}
	zone, err := m.get(ctx, "placement/availability-zone")
	return Identity{ID: id, Zone: zone}, err
}

// get returns a value of the service, empty where it has none of that name (404).
func (m *metadata) get(ctx context.Context, path string) (string, error) {
	out, err := m.client.GetMetadata(ctx, &imds.GetMetadataInput{Path: path})
	if err != nil {
		var status interface{ HTTPStatusCode() int }
		if errors.As(err, &status) && status.HTTPStatusCode() == http.StatusNotFound {
			return "", nil
		}
		return "", fmt.Errorf("read metadata %s: %w", path, err)
	}
	defer out.Content.Close()
	text, err := io.ReadAll(io.LimitReader(out.Content, answerSize))
	if err != nil {
		return "", fmt.Errorf("read metadata %s: %w", path, err)
	}
	return strings.TrimSpace(string(text)), nil
}
