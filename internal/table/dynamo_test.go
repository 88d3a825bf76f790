package table

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	login "s3pulldeploy/internal/account"
	"s3pulldeploy/internal/fleet"
	"s3pulldeploy/internal/table/tabletest"
	"s3pulldeploy/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// local is a table of DynamoDB Local with a name of its own; it is not made yet. The time limit is for
// a machine that runs everything at once.
func local(t *testing.T) *Dynamo {
	t.Helper()
	endpoint := testenv.DynamoDB(t)
	cfg, err := login.Load(t.Context(), login.Options{OwnEndpoints: true})
	if err != nil {
		t.Fatal(err)
	}
	d := NewDynamo(Options{Config: cfg, Endpoint: endpoint, Name: testenv.Name(t)})
	d.timeout = 30 * time.Second
	return d
}

// made is a table that Init has made.
func made(t *testing.T) *Dynamo {
	t.Helper()
	d := local(t)
	if _, err := d.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDynamoDBKeepsTheContract(t *testing.T) {
	tabletest.Run(t, func(t *testing.T) fleet.Table { return made(t) })
}

func TestInitMakesTheTableOnceAndThenReportsIt(t *testing.T) {
	d := local(t)
	if err := d.Exists(t.Context()); !errors.Is(err, fleet.ErrNoTable) {
		t.Fatalf("before: got error %v, want %v", err, fleet.ErrNoTable)
	}
	if _, err := d.Get(t.Context(), key, true); !errors.Is(err, fleet.ErrNoTable) {
		t.Errorf("read before: got error %v, want %v", err, fleet.ErrNoTable)
	}
	if got, want := states(d.Init(t.Context())), "table created, expiry created, backups unsupported"; got != want {
		t.Errorf("first: got %s, want %s", got, want)
	}
	if err := d.Exists(t.Context()); err != nil {
		t.Errorf("after: %v", err)
	}
	set(t, d, 1)
	if got, want := states(d.Init(t.Context())), "table ok, expiry ok, backups unsupported"; got != want {
		t.Errorf("second: got %s, want %s", got, want)
	}
	if got := get(t, d, true); got != int64(1) {
		t.Errorf("the second Init changed an item: %v", got)
	}
}

func states(steps []Step, err error) string {
	var s []string
	for _, step := range steps {
		s = append(s, step.What+" "+step.State)
	}
	if err != nil {
		s = append(s, err.Error())
	}
	return strings.Join(s, ", ")
}

// foreign makes a table as somebody else would.
func foreign(t *testing.T, d *Dynamo, hash string, kind types.ScalarAttributeType, rest ...string) {
	t.Helper()
	in := &dynamodb.CreateTableInput{
		TableName:             &d.name,
		KeySchema:             []types.KeySchemaElement{{AttributeName: &hash, KeyType: types.KeyTypeHash}},
		AttributeDefinitions:  []types.AttributeDefinition{{AttributeName: &hash, AttributeType: kind}},
		ProvisionedThroughput: &types.ProvisionedThroughput{ReadCapacityUnits: aws.Int64(5), WriteCapacityUnits: aws.Int64(5)},
	}
	for _, r := range rest {
		in.KeySchema = append(in.KeySchema, types.KeySchemaElement{AttributeName: &r, KeyType: types.KeyTypeRange})
		in.AttributeDefinitions = append(in.AttributeDefinitions, types.AttributeDefinition{AttributeName: &r, AttributeType: kind})
	}
	if _, err := d.client.CreateTable(t.Context(), in); err != nil {
		t.Fatal(err)
	}
}

func TestInitLeavesAForeignTableAsItIsAndSaysWhatDiffers(t *testing.T) {
	d := local(t)
	foreign(t, d, "pk", types.ScalarAttributeTypeS, "sk")
	for range 2 { // the first must not have changed what the second sees
		steps, err := d.Init(t.Context())
		if got, want := states(steps, err), "table differs, expiry differs, backups unsupported"; got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
		if !strings.Contains(steps[1].Detail, "aws dynamodb update-time-to-live --table-name "+d.name) {
			t.Errorf("no advice in %q", steps[1].Detail)
		}
	}
	_, err := d.client.UpdateTimeToLive(t.Context(), &dynamodb.UpdateTimeToLiveInput{
		TableName:               &d.name,
		TimeToLiveSpecification: &types.TimeToLiveSpecification{AttributeName: aws.String("expires"), Enabled: aws.Bool(true)},
	})
	if err != nil {
		t.Fatal(err)
	}
	steps, err := d.Init(t.Context())
	if err != nil || steps[1].State != Differs || !strings.Contains(steps[1].Detail, "expires") {
		t.Errorf("other attribute: got %+v, %v", steps, err)
	}
}

func TestATableWithOtherKeysIsRefused(t *testing.T) {
	for _, c := range []struct {
		name, hash string
		kind       types.ScalarAttributeType
		rest       []string
		want       string
	}{
		{"other names", "id", types.ScalarAttributeTypeS, nil, "its keys are id (S, HASH), needed are pk (S, HASH) and sk (S, RANGE)"},
		{"no range", "pk", types.ScalarAttributeTypeS, nil, "its keys are pk (S, HASH), needed"},
		{"numbers", "pk", types.ScalarAttributeTypeN, []string{"sk"}, "its keys are pk (N, HASH) and sk (N, RANGE), needed"},
		{"exchanged", "sk", types.ScalarAttributeTypeS, []string{"pk"}, "its keys are pk (S, RANGE) and sk (S, HASH), needed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := local(t)
			foreign(t, d, c.hash, c.kind, c.rest...)
			steps, err := d.Init(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) || len(steps) != 0 {
				t.Errorf("init: got %v, %v, want %q", steps, err, c.want)
			}
			if err := d.Exists(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("exists: got error %v, want %q", err, c.want)
			}
		})
	}
}

func TestForeignAttributesAreAnErrorThatNamesThem(t *testing.T) {
	d := made(t)
	for name, av := range map[string]types.AttributeValue{
		"fraction": &types.AttributeValueMemberN{Value: "1.5"},
		"huge":     &types.AttributeValueMemberN{Value: "9223372036854775808"},
		"null":     &types.AttributeValueMemberNULL{Value: true},
		"set":      &types.AttributeValueMemberSS{Value: []string{"a"}},
		"inside":   &types.AttributeValueMemberL{Value: []types.AttributeValue{&types.AttributeValueMemberN{Value: "0.1"}}},
	} {
		k := fleet.Key{Partition: "scope", Sort: name}
		item := encodeKey(k)
		item["bad"] = av
		if _, err := d.client.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &d.name, Item: item}); err != nil {
			t.Fatal(err)
		}
		_, got := d.Get(t.Context(), k, true)
		_, queried := d.Query(t.Context(), "scope", name, true)
		_, refused := d.Write(t.Context(), k, fleet.Write{If: fleet.Absent{Attr: "pk"}})
		for op, err := range map[string]error{"get": got, "query": queried, "refused write": refused} {
			if err == nil || !strings.Contains(err.Error(), `item scope/`+name+`: attribute "bad"`) {
				t.Errorf("%s, %s: got error %v, want one that names item and attribute", name, op, err)
			}
		}
	}
}

func TestAnIntegerThatAnotherToolWroteItsOwnWayIsRead(t *testing.T) {
	d := made(t)
	item := encodeKey(key)
	item["n"] = &types.AttributeValueMemberN{Value: "+12e2"}
	if _, err := d.client.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &d.name, Item: item}); err != nil {
		t.Fatal(err)
	}
	if got := get(t, d, true); got != int64(1200) {
		t.Errorf("got %v, want 1200", got)
	}
}

func TestCountsAreWhatWasAskedAndCharged(t *testing.T) {
	d := made(t)
	set(t, d, 1) // 1 write unit
	get(t, d, true)
	get(t, d, false)
	if _, err := d.Query(t.Context(), "nothing", "", true); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Write(t.Context(), key, fleet.Write{If: fleet.Absent{Attr: "pk"}}); err == nil {
		t.Fatal("condition held")
	}
	got := d.Counts()
	if got.Reads != 3 || got.Writes != 2 || got.WriteUnits != 1 {
		t.Errorf("got %+v, want 3 reads, 2 writes, 1 write unit", got)
	}
	if got.ReadUnits < 1.5 || got.ReadUnits > 2.5 {
		t.Errorf("got %v read units, want 1 and 0.5 and what an empty query costs", got.ReadUnits)
	}
}

func TestAQueryOfManyPagesCountsEachPage(t *testing.T) {
	d := made(t)
	big := make([]byte, 300_000)
	for _, sort := range []string{"a", "b", "c", "d", "e"} {
		if _, err := d.Write(t.Context(), fleet.Key{Partition: "p", Sort: sort}, fleet.Write{Set: fleet.Item{"big": big}}); err != nil {
			t.Fatal(err)
		}
	}
	before := d.Counts()
	items, err := d.Query(t.Context(), "p", "", true)
	if err != nil || len(items) != 5 {
		t.Fatalf("got %d items, %v", len(items), err)
	}
	if pages := d.Counts().Reads - before.Reads; pages < 2 {
		t.Errorf("1.5 MB came in %d page: the test shows nothing about pages", pages)
	}
}

func TestAnItemThatIsTooLargeIsAnErrorOfItsOwn(t *testing.T) {
	d := made(t)
	_, err := d.Write(t.Context(), key, fleet.Write{Set: fleet.Item{"big": make([]byte, 500_000)}})
	if err == nil || !strings.Contains(err.Error(), "write scope/head: update item: ValidationException: ") {
		t.Errorf("got error %v", err)
	}
	for _, not := range []error{fleet.ErrThrottled, fleet.ErrUnavailable, fleet.ErrDenied, fleet.ErrNoTable} {
		if errors.Is(err, not) {
			t.Errorf("%v is %v", err, not)
		}
	}
}

func TestPushAndAgentMayMakeTheTableAtOnce(t *testing.T) {
	d := local(t)
	results := make(chan error, 4)
	for range cap(results) {
		go func() {
			_, err := d.Init(context.WithoutCancel(t.Context()))
			results <- err
		}()
	}
	var errs []error
	for range cap(results) {
		errs = append(errs, <-results)
	}
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		t.Error(errs[i])
	}
}
