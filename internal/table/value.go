package table

import (
	"fmt"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"s3pulldeploy/internal/fleet"
)

// encode translates a value that checkValue has passed.
func encode(v fleet.Value) types.AttributeValue {
	switch v := v.(type) {
	case int64:
		return &types.AttributeValueMemberN{Value: strconv.FormatInt(v, 10)}
	case string:
		return &types.AttributeValueMemberS{Value: v}
	case []byte:
		return &types.AttributeValueMemberB{Value: append([]byte{}, v...)} // nil is an empty one, not a missing one
	case bool:
		return &types.AttributeValueMemberBOOL{Value: v}
	case []fleet.Value:
		l := make([]types.AttributeValue, len(v))
		for i, e := range v {
			l[i] = encode(e)
		}
		return &types.AttributeValueMemberL{Value: l}
	case fleet.Item:
		m := make(map[string]types.AttributeValue, len(v))
		for name, e := range v {
			m[name] = encode(e)
		}
		return &types.AttributeValueMemberM{Value: m}
	}
	panic(fmt.Sprintf("table: unchecked value of type %T", v))
}

// decode translates an attribute that was read. Somebody else may have written it, so it can be of a
// type or a number that the protocol does not know.
func decode(av types.AttributeValue) (fleet.Value, error) {
	switch av := av.(type) {
	case *types.AttributeValueMemberN:
		n, err := strconv.ParseInt(av.Value, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("number %s is not a 64-bit integer", av.Value)
		}
		return n, nil
	case *types.AttributeValueMemberS:
		return av.Value, nil
	case *types.AttributeValueMemberB:
		return append([]byte{}, av.Value...), nil
	case *types.AttributeValueMemberBOOL:
		return av.Value, nil
	case *types.AttributeValueMemberL:
		l := make([]fleet.Value, len(av.Value))
		for i, e := range av.Value {
			v, err := decode(e)
			if err != nil {
				return nil, fmt.Errorf("[%d]: %w", i, err)
			}
			l[i] = v
		}
		return l, nil
	case *types.AttributeValueMemberM:
		return decodeMap(av.Value)
	}
	return nil, fmt.Errorf("unknown type %T", av)
}

func decodeMap(m map[string]types.AttributeValue) (fleet.Item, error) {
	it := make(fleet.Item, len(m))
	for name, av := range m {
		v, err := decode(av)
		if err != nil {
			return nil, fmt.Errorf("attribute %q: %w", name, err)
		}
		it[name] = v
	}
	return it, nil
}

// decodeItem translates a whole item, without its key; no attributes at all mean that there is none.
func decodeItem(m map[string]types.AttributeValue) (fleet.Item, error) {
	if len(m) == 0 {
		return nil, nil
	}
	it, err := decodeMap(m)
	if err != nil {
		return nil, fmt.Errorf("item %s: %w", text(keyOf(m)), err)
	}
	delete(it, partitionAttribute)
	delete(it, sortAttribute)
	return it, nil
}

func encodeKey(k fleet.Key) map[string]types.AttributeValue {
	return map[string]types.AttributeValue{
		partitionAttribute: encode(k.Partition),
		sortAttribute:      encode(k.Sort),
	}
}

func keyOf(m map[string]types.AttributeValue) (k fleet.Key) {
	if s, ok := m[partitionAttribute].(*types.AttributeValueMemberS); ok {
		k.Partition = s.Value
	}
	if s, ok := m[sortAttribute].(*types.AttributeValueMemberS); ok {
		k.Sort = s.Value
	}
	return k
}
