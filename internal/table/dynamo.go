package table

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go/middleware"

	"s3pulldeploy/internal/fleet"
)

// Bounds of a request. DynamoDB answers in some 5 ms.
const (
	requestTimeout = 2 * time.Second        // see Options
	attempts       = 2                      // the first one included
	backoff        = 100 * time.Millisecond // at most, before the second attempt
)

// Options says where the table is.
type Options struct {
	Config   aws.Config // credentials, region and HTTP client; its retry settings are not used
	Endpoint string     // empty: Amazon's own for the region
	Name     string     // the table's name

	Timeout time.Duration // of one request with its second attempt; 0: two seconds, since the agent's loop may not stand still
}

// Dynamo is a DynamoDB table as [fleet.Table]. It is safe for concurrent use.
type Dynamo struct {
	name    string
	client  *dynamodb.Client
	timeout time.Duration
	careful aws.Retryer // for writes
	perPage int32       // at most so many items in a page of a query; 0: DynamoDB's own 1 MB. Tests have small pages

	reads, writes         atomic.Int64
	readHalfs, writeHalfs atomic.Int64 // capacity in half units, the smallest that DynamoDB counts
	clock                 atomic.Pointer[serverTime]
}

// serverTime is what a Date header said and when it was received.
type serverTime struct{ date, received time.Time }

// NewDynamo returns the table of the given name. It sends nothing: whether the table is there shows at
// the first request, or by [Dynamo.Exists].
func NewDynamo(o Options) *Dynamo {
	cfg := o.Config
	cfg.Credentials = account{o.Config.Credentials}
	cfg.RetryMaxAttempts = 0 // would override the retryer's
	client := dynamodb.NewFromConfig(cfg, func(d *dynamodb.Options) {
		d.Retryer = retryer(retry.DefaultRetryables...)
		// The SDK only logs a checksum that is wrong, and takes a missing one for that: then each refused
		// condition is a line on stderr. TLS guards the bytes.
		d.DisableValidateResponseChecksum = true
		if o.Endpoint != "" {
			d.BaseEndpoint = &o.Endpoint
		}
	})
	return &Dynamo{name: o.Name, client: client, timeout: cmp.Or(o.Timeout, requestTimeout), careful: retryer(
		retry.NoRetryCanceledError{},
		retry.RetryableError{}, // the SDK's word for a signature that was refused for its time
		retry.RetryableErrorCode{Codes: retry.DefaultThrottleErrorCodes},
	)}
}

// retryer tries a second time, soon, after one of the given errors.
func retryer(retryables ...retry.IsErrorRetryable) aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = attempts
		o.Backoff = retry.NewExponentialJitterBackoff(backoff)
		o.Retryables = retryables
		// The attempts are bounded already; an empty bucket of tokens would only hide the real error.
		o.RateLimiter = ratelimit.None
	})
}

// carefully makes a call repeat only what certainly did nothing.
func (d *Dynamo) carefully(o *dynamodb.Options) { o.Retryer = d.careful }

// Get implements [fleet.Table].
func (d *Dynamo) Get(ctx context.Context, key fleet.Key, consistent bool) (fleet.Item, error) {
	it, err := d.get(ctx, key, consistent)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", text(key), err)
	}
	return it, nil
}

func (d *Dynamo) get(caller context.Context, key fleet.Key, consistent bool) (fleet.Item, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(caller, d.timeout)
	defer cancel()
	d.reads.Add(1)
	out, err := d.client.GetItem(ctx, &dynamodb.GetItemInput{
		TableName:              &d.name,
		Key:                    encodeKey(key),
		ConsistentRead:         &consistent,
		ReturnConsumedCapacity: types.ReturnConsumedCapacityTotal,
	})
	if err != nil {
		return nil, fmt.Errorf("get item: %w", explain(caller, err))
	}
	d.answered(out.ResultMetadata, &d.readHalfs, out.ConsumedCapacity)
	return decodeItem(out.Item)
}

// Query implements [fleet.Table].
func (d *Dynamo) Query(ctx context.Context, partition, prefix string, consistent bool) ([]fleet.Item, error) {
	if partition == "" {
		return nil, errors.New("read items: a query needs a partition")
	}
	e := newExpression()
	where := e.name(partitionAttribute) + " = " + e.value(partition)
	if prefix != "" { // DynamoDB refuses an empty one
		where += " AND begins_with(" + e.name(sortAttribute) + ", " + e.value(prefix) + ")"
	}
	in := &dynamodb.QueryInput{
		TableName:                 &d.name,
		KeyConditionExpression:    &where,
		ExpressionAttributeNames:  e.names,
		ExpressionAttributeValues: e.values,
		ConsistentRead:            &consistent,
		ReturnConsumedCapacity:    types.ReturnConsumedCapacityTotal,
	}
	if d.perPage > 0 {
		in.Limit = &d.perPage
	}
	var items []fleet.Item
	for {
		page, next, err := d.page(ctx, in)
		if err != nil {
			return nil, fmt.Errorf("read items %s/%s*: %w", partition, prefix, err)
		}
		items = append(items, page...)
		if len(next) == 0 {
			return items, nil
		}
		in.ExclusiveStartKey = next
	}
}

// page reads one page of a query and where the next one starts. A page may be empty and not the last.
func (d *Dynamo) page(caller context.Context, in *dynamodb.QueryInput) ([]fleet.Item, map[string]types.AttributeValue, error) {
	ctx, cancel := context.WithTimeout(caller, d.timeout)
	defer cancel()
	d.reads.Add(1)
	out, err := d.client.Query(ctx, in)
	if err != nil {
		return nil, nil, fmt.Errorf("query: %w", explain(caller, err))
	}
	d.answered(out.ResultMetadata, &d.readHalfs, out.ConsumedCapacity)
	items := make([]fleet.Item, len(out.Items))
	for i, m := range out.Items {
		if items[i], err = decodeItem(m); err != nil {
			return nil, nil, err
		}
	}
	return items, out.LastEvaluatedKey, nil
}

// Write implements [fleet.Table].
func (d *Dynamo) Write(ctx context.Context, key fleet.Key, w fleet.Write) (fleet.Item, error) {
	it, err := d.write(ctx, key, w)
	return it, refused(key, "write", err)
}

func (d *Dynamo) write(caller context.Context, key fleet.Key, w fleet.Write) (fleet.Item, error) {
	if err := checkWrite(key, w); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(caller, d.timeout)
	defer cancel()
	e := newExpression()
	in := &dynamodb.UpdateItemInput{
		TableName:                           &d.name,
		Key:                                 encodeKey(key),
		UpdateExpression:                    e.update(w),
		ConditionExpression:                 e.condition(w.If),
		ReturnValues:                        types.ReturnValueAllNew,
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
		ReturnConsumedCapacity:              types.ReturnConsumedCapacityTotal,
	}
	in.ExpressionAttributeNames, in.ExpressionAttributeValues = e.names, e.values
	d.writes.Add(1)
	out, err := d.client.UpdateItem(ctx, in, d.carefully)
	if err != nil {
		return nil, conditionOr(caller, key, "update item", err)
	}
	d.answered(out.ResultMetadata, &d.writeHalfs, out.ConsumedCapacity)
	return decodeItem(out.Attributes)
}

// Delete implements [fleet.Table].
func (d *Dynamo) Delete(ctx context.Context, key fleet.Key, cond fleet.Cond) error {
	return refused(key, "delete", d.delete(ctx, key, cond))
}

func (d *Dynamo) delete(caller context.Context, key fleet.Key, cond fleet.Cond) error {
	if err := cmp.Or(checkKey(key), checkCond(cond)); err != nil {
		return err
	}
	if cond != nil {
		cond = fleet.And{fleet.Exists{Attr: partitionAttribute}, cond}
	}
	ctx, cancel := context.WithTimeout(caller, d.timeout)
	defer cancel()
	e := newExpression()
	in := &dynamodb.DeleteItemInput{
		TableName:                           &d.name,
		Key:                                 encodeKey(key),
		ConditionExpression:                 e.condition(cond),
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
		ReturnConsumedCapacity:              types.ReturnConsumedCapacityTotal,
	}
	in.ExpressionAttributeNames, in.ExpressionAttributeValues = e.names, e.values
	d.writes.Add(1)
	out, err := d.client.DeleteItem(ctx, in, d.carefully)
	if err != nil {
		return conditionOr(caller, key, "delete item", err)
	}
	d.answered(out.ResultMetadata, &d.writeHalfs, out.ConsumedCapacity)
	return nil
}

// conditionOr is a *fleet.ConditionError where the condition did not hold, else the error explained.
func conditionOr(caller context.Context, key fleet.Key, op string, err error) error {
	var failed *types.ConditionalCheckFailedException
	if !errors.As(err, &failed) {
		return fmt.Errorf("%s: %w", op, explain(caller, err))
	}
	it, err := decodeItem(failed.Item)
	if err != nil {
		return fmt.Errorf("%s: condition failed: %w", op, err)
	}
	return &fleet.ConditionError{Key: key, Item: it}
}

// refused names the item in an error, unless the error does so itself.
func refused(key fleet.Key, op string, err error) error {
	var condition *fleet.ConditionError
	if err == nil || errors.As(err, &condition) {
		return err
	}
	return fmt.Errorf("%s %s: %w", op, text(key), err)
}

// answered takes note of what a request cost and of the server's time.
func (d *Dynamo) answered(m middleware.Metadata, halfs *atomic.Int64, used *types.ConsumedCapacity) {
	if used != nil && used.CapacityUnits != nil {
		halfs.Add(int64(math.Round(*used.CapacityUnits * 2)))
	}
	date, ok := awsmiddleware.GetServerTime(m)
	if received, ok2 := awsmiddleware.GetResponseAt(m); ok && ok2 && !date.IsZero() {
		d.clock.Store(&serverTime{date, received})
	}
}

// Date is what time it is by the table's clock: the Date header of the last good answer and what has
// passed since on this machine's monotonic clock. It is exact to a second, and zero before the first.
func (d *Dynamo) Date() time.Time {
	t := d.clock.Load()
	if t == nil {
		return time.Time{}
	}
	return t.date.Add(time.Since(t.received))
}

// Counts is what a table was asked since it was made. A page of a query is a read, a delete is a write;
// a second attempt is not counted again. Units are what DynamoDB said that it charged (0.5 for an
// eventually consistent read of up to 4 KB); failed requests, refused conditions too, report none.
type Counts struct {
	Reads, Writes         int64
	ReadUnits, WriteUnits float64
}

// Counts returns the requests and capacity units so far.
func (d *Dynamo) Counts() Counts {
	return Counts{
		Reads: d.reads.Load(), Writes: d.writes.Load(),
		ReadUnits: float64(d.readHalfs.Load()) / 2, WriteUnits: float64(d.writeHalfs.Load()) / 2,
	}
}
