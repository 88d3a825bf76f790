package table

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"s3pulldeploy/internal/fleet"
)

// Bounds of making a table. Amazon takes some 10 s, and for a while after that refuses to switch
// backups on ("backups are being enabled for the table").
const (
	activeTimeout  = 3 * time.Minute
	settingTimeout = 90 * time.Second
	settingTries   = 15
	settingBackoff = 5 * time.Second
	pollFirst      = 500 * time.Millisecond
	pollLast       = 5 * time.Second
)

// Step is one thing that Init looked after.
type Step struct {
	What   string // "table", "expiry", "backups"
	State  string // one of the states below
	Detail string // for a person: what there is, and for a difference what to do; may be empty
}

// The states of a step.
const (
	OK          = "ok"          // it was there, as it should be
	Created     = "created"     // it is there now
	Differs     = "differs"     // it is there otherwise, and was left so
	Unsupported = "unsupported" // the server has no such thing
)

// keys is the table's layout.
var keys = []types.KeySchemaElement{
	{AttributeName: aws.String(partitionAttribute), KeyType: types.KeyTypeHash},
	{AttributeName: aws.String(sortAttribute), KeyType: types.KeyTypeRange},
}

// Exists says whether the table can be used: it is there and has the right keys. It fails with
// [fleet.ErrNoTable], with [fleet.ErrUnavailable] (also while the table is being made), and as every
// request does. It needs the permission dynamodb:DescribeTable.
func (d *Dynamo) Exists(ctx context.Context) error {
	t, err := d.describe(ctx)
	if err != nil {
		return fmt.Errorf("check table %q: %w", d.name, err)
	}
	switch t.TableStatus {
	case types.TableStatusCreating:
		return fmt.Errorf("check table %q: %w: it is being created", d.name, fleet.ErrUnavailable)
	case types.TableStatusDeleting:
		return fmt.Errorf("check table %q: %w: it is being deleted", d.name, fleet.ErrNoTable)
	}
	if err := checkLayout(t); err != nil {
		return fmt.Errorf("check table %q: %w", d.name, err)
	}
	return nil
}

// Init makes the table if there is none: on-demand billing, expiry of items by the attribute `ttl`, and
// point-in-time recovery. It returns when the table can be used, which takes seconds. A table that was
// there keeps its settings, and the steps report what differs.
//
// It fails where the table has other keys, and as every request does; the steps up to there are
// returned too. An Init that was cut short may leave the settings to report as differences.
func (d *Dynamo) Init(ctx context.Context) ([]Step, error) {
	t, created, err := d.initTable(ctx)
	if err != nil {
		return nil, fmt.Errorf("set up table %q: %w", d.name, err)
	}
	steps := []Step{tableStep(t, created)}
	for _, set := range []func(context.Context, bool) (Step, error){d.initExpiry, d.initBackups} {
		s, err := set(ctx, created)
		if err != nil {
			return steps, fmt.Errorf("set up table %q: %w", d.name, err)
		}
		steps = append(steps, s)
	}
	return steps, nil
}

func tableStep(t *types.TableDescription, created bool) Step {
	onDemand := t.BillingModeSummary != nil && t.BillingModeSummary.BillingMode == types.BillingModePayPerRequest
	switch {
	case created:
		return Step{"table", Created, "on-demand"}
	case !onDemand:
		return Step{"table", Differs, "billing is provisioned capacity, which throttles a large fleet; on-demand is meant"}
	}
	return Step{"table", OK, "on-demand"}
}

// initTable returns the table once it is active, and whether this call made it.
func (d *Dynamo) initTable(ctx context.Context) (t *types.TableDescription, created bool, err error) {
	_, err = d.describe(ctx)
	if errors.Is(err, fleet.ErrNoTable) {
		created, err = d.create(ctx)
	}
	if err == nil {
		t, err = d.active(ctx)
	}
	if err == nil {
		err = checkLayout(t)
	}
	return t, created, err
}

func (d *Dynamo) describe(caller context.Context) (*types.TableDescription, error) {
	ctx, cancel := context.WithTimeout(caller, d.timeout)
	defer cancel()
	out, err := d.client.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &d.name})
	if err != nil {
		return nil, fmt.Errorf("describe table: %w", explain(caller, err))
	}
	return out.Table, nil
}

// create says whether this call made the table; another one may have been faster.
func (d *Dynamo) create(caller context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(caller, settingTimeout)
	defer cancel()
	_, err := d.client.CreateTable(ctx, &dynamodb.CreateTableInput{
		TableName:   &d.name,
		BillingMode: types.BillingModePayPerRequest,
		KeySchema:   keys,
		AttributeDefinitions: []types.AttributeDefinition{
			{AttributeName: aws.String(partitionAttribute), AttributeType: types.ScalarAttributeTypeS},
			{AttributeName: aws.String(sortAttribute), AttributeType: types.ScalarAttributeTypeS},
		},
	}, d.carefully)
	var there *types.ResourceInUseException
	if errors.As(err, &there) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("create table: %w", explain(caller, err))
	}
	return true, nil
}

// active waits until the table can be used.
func (d *Dynamo) active(caller context.Context) (*types.TableDescription, error) {
	waiter := dynamodb.NewTableExistsWaiter(d.client, func(o *dynamodb.TableExistsWaiterOptions) {
		o.MinDelay, o.MaxDelay = pollFirst, pollLast
	})
	out, err := waiter.WaitForOutput(caller, &dynamodb.DescribeTableInput{TableName: &d.name}, activeTimeout)
	if err != nil {
		return nil, fmt.Errorf("wait for the table: %w", explain(caller, err))
	}
	return out.Table, nil
}

// checkLayout compares the table's keys with ours.
func checkLayout(t *types.TableDescription) error {
	kinds := make(map[string]types.ScalarAttributeType)
	for _, a := range t.AttributeDefinitions {
		kinds[aws.ToString(a.AttributeName)] = a.AttributeType
	}
	layout := func(schema []types.KeySchemaElement, kind func(string) types.ScalarAttributeType) string {
		var parts []string
		for _, k := range schema {
			name := aws.ToString(k.AttributeName)
			parts = append(parts, fmt.Sprintf("%s (%s, %s)", name, kind(name), k.KeyType))
		}
		slices.Sort(parts)
		return strings.Join(parts, " and ")
	}
	has := layout(t.KeySchema, func(name string) types.ScalarAttributeType { return kinds[name] })
	needs := layout(keys, func(string) types.ScalarAttributeType { return types.ScalarAttributeTypeS })
	if has != needs {
		return fmt.Errorf("its keys are %s, needed are %s; choose another `table`", has, needs)
	}
	return nil
}

// initExpiry looks after the expiry of items.
func (d *Dynamo) initExpiry(caller context.Context, created bool) (Step, error) {
	const what = "expiry"
	ctx, cancel := context.WithTimeout(caller, settingTimeout)
	defer cancel()
	if created {
		_, err := d.client.UpdateTimeToLive(ctx, &dynamodb.UpdateTimeToLiveInput{
			TableName: &d.name,
			TimeToLiveSpecification: &types.TimeToLiveSpecification{
				AttributeName: aws.String(ttlAttribute), Enabled: aws.Bool(true),
			},
		}, patiently)
		return setting(caller, what, "by the attribute "+ttlAttribute, err)
	}
	out, err := d.client.DescribeTimeToLive(ctx, &dynamodb.DescribeTimeToLiveInput{TableName: &d.name})
	if err != nil {
		return setting(caller, what, "", err)
	}
	ttl := cmp.Or(out.TimeToLiveDescription, &types.TimeToLiveDescription{})
	switch attr := aws.ToString(ttl.AttributeName); ttl.TimeToLiveStatus {
	case types.TimeToLiveStatusEnabled, types.TimeToLiveStatusEnabling:
		if attr == ttlAttribute {
			return Step{what, OK, "by the attribute " + ttlAttribute}, nil
		}
		return Step{what, Differs, fmt.Sprintf("goes by the attribute %s, not %s: old items stay", attr, ttlAttribute)}, nil
	}
	return Step{what, Differs, "is off, old items stay; to switch it on: aws dynamodb update-time-to-live --table-name " + d.name +
		" --time-to-live-specification Enabled=true,AttributeName=" + ttlAttribute}, nil
}

// initBackups looks after point-in-time recovery.
func (d *Dynamo) initBackups(caller context.Context, created bool) (Step, error) {
	const what = "backups"
	ctx, cancel := context.WithTimeout(caller, settingTimeout)
	defer cancel()
	if created {
		_, err := d.client.UpdateContinuousBackups(ctx, &dynamodb.UpdateContinuousBackupsInput{
			TableName: &d.name,
			PointInTimeRecoverySpecification: &types.PointInTimeRecoverySpecification{
				PointInTimeRecoveryEnabled: aws.Bool(true),
			},
		}, patiently)
		return setting(caller, what, "point-in-time recovery", err)
	}
	out, err := d.client.DescribeContinuousBackups(ctx, &dynamodb.DescribeContinuousBackupsInput{TableName: &d.name})
	if err != nil {
		return setting(caller, what, "", err)
	}
	if b := out.ContinuousBackupsDescription; b != nil && b.PointInTimeRecoveryDescription != nil &&
		b.PointInTimeRecoveryDescription.PointInTimeRecoveryStatus == types.PointInTimeRecoveryStatusEnabled {
		return Step{what, OK, "point-in-time recovery"}, nil
	}
	return Step{what, Differs, "point-in-time recovery is off; to switch it on: aws dynamodb update-continuous-backups --table-name " +
		d.name + " --point-in-time-recovery-specification PointInTimeRecoveryEnabled=true"}, nil
}

// setting is the step of a setting that was just made, or could not be.
func setting(caller context.Context, what, detail string, err error) (Step, error) {
	switch {
	case err == nil:
		return Step{what, Created, detail}, nil
	case unknownOperation(err):
		return Step{what, Unsupported, "the server does not know the request"}, nil
	}
	return Step{}, fmt.Errorf("%s: %w", what, explain(caller, err))
}

// patiently is for settings of a table that is only just there. They may be repeated.
func patiently(o *dynamodb.Options) {
	o.Retryer = retry.NewStandard(func(r *retry.StandardOptions) {
		r.MaxAttempts = settingTries
		r.Backoff = retry.NewExponentialJitterBackoff(settingBackoff)
		r.RateLimiter = ratelimit.None
		r.Retryables = append(r.Retryables, retry.RetryableErrorCode{Codes: map[string]struct{}{
			"ContinuousBackupsUnavailableException": {},
			"ResourceInUseException":                {},
			"ResourceNotFoundException":             {}, // not everywhere known yet
		}})
	})
}
