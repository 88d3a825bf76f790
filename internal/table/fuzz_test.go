package table

import (
	"reflect"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// FuzzItem: whoever may write to the table (T8) puts attributes of any type there, nested at will. What is read of them is of the six
// types that the protocol has, and means the same when it is written again; anything else is an error.
func FuzzItem(f *testing.F) {
	f.Add([]byte("\x00\x02-7\x01\x03abc\x03\x01"))                                   // a number, a string, a boolean
	f.Add([]byte("\x05\x03\x01a\x04\x02\x00\x0120\x02\x03xyz"))                      // a list in a map
	f.Add([]byte("\x00\x1399999999999999999999"))                                    // no 64 bits
	f.Add([]byte("\x06\x07\x08\x09\x00\x041.50"))                                    // null, sets, nothing, a fraction
	f.Add([]byte(strings.Repeat("\x04\x01", 40)))                                    // lists in lists
	f.Add([]byte("\x05\x02\x00\x00\x0212\x02pk\x00\x011\x02sk\x01\x04text\x05\x00")) // names that are empty, or the key's
	f.Fuzz(func(t *testing.T, data []byte) {
		g := grower{data: data}
		m := map[string]types.AttributeValue{}
		for len(g.data) > 0 && len(m) < 20 {
			m[g.text()] = g.value(0)
		}
		it, err := decodeItem(m)
		if err != nil || it == nil {
			return
		}
		if err := checkValue(it); err != nil && !strings.Contains(err.Error(), "is empty") { // which no table gives out
			t.Fatalf("%#v is read as %#v: %v", m, it, err)
		}
		again, err := decodeMap(encode(it).(*types.AttributeValueMemberM).Value)
		if err != nil || !reflect.DeepEqual(again, it) {
			t.Fatalf("%#v is written and read as %#v, %v", it, again, err)
		}
	})
}

// grower makes attributes out of bytes: of all types of DynamoDB, of some that are none.
type grower struct{ data []byte }

func (g *grower) byte() int {
	if len(g.data) == 0 {
		return 0
	}
	b := g.data[0]
	g.data = g.data[1:]
	return int(b)
}

func (g *grower) text() string {
	n := min(g.byte()%32, len(g.data))
	s := string(g.data[:n])
	g.data = g.data[n:]
	return s
}

func (g *grower) value(depth int) types.AttributeValue {
	switch kind := g.byte() % 10; {
	case kind == 0:
		return &types.AttributeValueMemberN{Value: g.text()}
	case kind == 1 || depth == 32: // as deep as DynamoDB nests
		return &types.AttributeValueMemberS{Value: g.text()}
	case kind == 2:
		return &types.AttributeValueMemberB{Value: []byte(g.text())}
	case kind == 3:
		return &types.AttributeValueMemberBOOL{Value: g.byte()%2 == 0}
	case kind == 4:
		l := make([]types.AttributeValue, g.byte()%4)
		for i := range l {
			l[i] = g.value(depth + 1)
		}
		return &types.AttributeValueMemberL{Value: l}
	case kind == 5:
		m := map[string]types.AttributeValue{}
		for range g.byte() % 4 {
			name := g.text()
			m[name] = g.value(depth + 1)
		}
		return &types.AttributeValueMemberM{Value: m}
	case kind == 6:
		return &types.AttributeValueMemberNULL{Value: true}
	case kind == 7:
		return &types.AttributeValueMemberNS{Value: []string{g.text()}}
	case kind == 8:
		return nil
	}
	return &types.UnknownUnionMember{Tag: g.text()}
}
