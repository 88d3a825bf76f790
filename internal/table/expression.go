package table

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"s3pulldeploy/internal/fleet"
)

// expression collects the placeholders of one request. Every name and every value goes through one,
// so that neither DynamoDB's 500 reserved words nor what a value contains can change a meaning.
type expression struct {
	names  map[string]string               // placeholder -> attribute
	values map[string]types.AttributeValue // placeholder -> value; nil while there are none, as DynamoDB demands
	known  map[string]string               // attribute -> placeholder
}

func newExpression() *expression {
	return &expression{known: make(map[string]string)}
}

func (e *expression) name(attr string) string {
	if p, ok := e.known[attr]; ok {
		return p
	}
	if e.names == nil {
		e.names = make(map[string]string)
	}
	p := "#" + strconv.Itoa(len(e.names))
	e.names[p], e.known[attr] = attr, p
	return p
}

func (e *expression) value(v fleet.Value) string {
	if e.values == nil {
		e.values = make(map[string]types.AttributeValue)
	}
	p := ":" + strconv.Itoa(len(e.values))
	e.values[p] = encode(v)
	return p
}

// update is the UpdateExpression of a write, nil when it changes no attribute. The order is fixed, so
// that the same write is the same request.
func (e *expression) update(w fleet.Write) *string {
	var clauses []string
	if len(w.Set) > 0 {
		sets := make([]string, 0, len(w.Set))
		for _, attr := range slices.Sorted(maps.Keys(w.Set)) {
			sets = append(sets, e.name(attr)+" = "+e.value(w.Set[attr]))
		}
		clauses = append(clauses, "SET "+strings.Join(sets, ", "))
	}
	if len(w.Remove) > 0 {
		removes := make([]string, 0, len(w.Remove))
		for _, attr := range slices.Compact(slices.Sorted(slices.Values(w.Remove))) {
			removes = append(removes, e.name(attr))
		}
		clauses = append(clauses, "REMOVE "+strings.Join(removes, ", "))
	}
	if clauses == nil {
		return nil
	}
	s := strings.Join(clauses, " ")
	return &s
}

// condition is the ConditionExpression of a condition that checkCond has passed; nil for none.
func (e *expression) condition(c fleet.Cond) *string {
	if c == nil {
		return nil
	}
	s := e.clause(c)
	return &s
}

func (e *expression) clause(c fleet.Cond) string {
	switch c := c.(type) {
	case fleet.Exists:
		return "attribute_exists(" + e.name(c.Attr) + ")"
	case fleet.Absent:
		return "attribute_not_exists(" + e.name(c.Attr) + ")"
	case fleet.Compare:
		return e.comparison(c)
	case fleet.In:
		values := make([]string, len(c.Values))
		for i, v := range c.Values {
			values[i] = e.value(v)
		}
		return e.name(c.Attr) + " IN (" + strings.Join(values, ", ") + ")"
	case fleet.And:
		return e.join(c, " AND ")
	case fleet.Or:
		return e.join(c, " OR ")
	}
	panic("table: unchecked condition")
}

// comparison asks for the type too where that matters: DynamoDB's <> is true for an attribute that is
// absent or of another type; its = and < are false.
func (e *expression) comparison(c fleet.Compare) string {
	s := e.name(c.Attr) + " " + string(c.Op) + " " + e.value(c.Value)
	if c.Op != fleet.Ne {
		return s
	}
	kind := "S"
	if _, ok := c.Value.(int64); ok {
		kind = "N"
	}
	return "(attribute_type(" + e.name(c.Attr) + ", " + e.value(kind) + ") AND " + s + ")"
}

// join puts parentheses around more than one clause only: DynamoDB refuses redundant ones.
func (e *expression) join(conds []fleet.Cond, op string) string {
	if len(conds) == 1 {
		return e.clause(conds[0])
	}
	parts := make([]string, len(conds))
	for i, c := range conds {
		parts[i] = e.clause(c)
	}
	return "(" + strings.Join(parts, op) + ")"
}
