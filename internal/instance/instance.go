// Package instance says which machine this is, whether it is about to go, and tells its Auto Scaling Group when it serves.
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
//
// # Lifecycle
//
// [Look] reads what the group wants of the machine, and whether there is a spot notice. One that goes, and one in a warm
// pool, is no member of a fleet. [Launch] keeps a new machine out of service, by heartbeats of its launch hook, until it serves.
package instance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
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

// patience is for all requests of one call. On EC2 an answer takes milliseconds. A variable for tests.
var patience = time.Second

const (
	// backoff is the most between two tries. Soon after the boot a first request may be lost; a second one must fit into our patience.
	backoff = 200 * time.Millisecond
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
		Retryer:                  retry.NewStandard(func(o *retry.StandardOptions) { o.MaxBackoff = backoff }),
		DisableDefaultMaxBackoff: true, // which puts a second in the place of ours
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
