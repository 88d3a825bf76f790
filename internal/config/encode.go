package config

import (
	"bytes"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// YAML is the settings as they are in force, defaults included, in the order of the schema; it reads back to the same
// settings, except that secrets print as <secret>.
func (c *Config) YAML() []byte {
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(node("", reflect.ValueOf(c).Elem())); err != nil {
		panic("config: encode own nodes: " + err.Error()) // a buffer does not fail, nor do nodes that we made
	}
	return out.Bytes()
}

// node is the counterpart of decoder.value.
func node(path string, v reflect.Value) *yaml.Node {
	switch {
	case v.Kind() == reflect.Struct:
		n := &yaml.Node{Kind: yaml.MappingNode}
		for f, field := range v.Fields() {
			if name := f.Tag.Get("yaml"); name != "-" {
				n.Content = append(n.Content, text(name), node(join(path, name), field))
			}
		}
		return n
	case v.Kind() == reflect.Map:
		n := &yaml.Node{Kind: yaml.MappingNode}
		m := v.Interface().(map[string]string)
		for _, key := range slices.Sorted(maps.Keys(m)) {
			n.Content = append(n.Content, text(key), text(escape(m[key])))
		}
		return n
	case v.Type() == urlsType && v.Len() < 2:
		return text(escape(strings.Join(v.Interface().(URLs), "")))
	case v.Kind() == reflect.Slice:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range v.Len() {
			n.Content = append(n.Content, text(escape(v.Index(i).String())))
		}
		return n
	case v.Type() == durationType:
		return plain(short(time.Duration(v.Int())))
	case v.Type() == secretType:
		return text(v.Interface().(Secret).String())
	case v.Kind() == reflect.Int:
		return plain(strconv.FormatInt(v.Int(), 10))
	case v.Kind() == reflect.Bool:
		return plain(strconv.FormatBool(v.Bool()))
	case strings.HasPrefix(path, hooksPath):
		return text(v.String())
	}
	return text(escape(v.String()))
}

// text is a string as YAML, quoted where it could be read as something else.
func text(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	return n
}

// plain is a number, true or false, or a duration.
func plain(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: s} }

// escape undoes what reading does to dollars.
func escape(s string) string { return strings.ReplaceAll(s, "$", "$$") }

// short is a duration without units of zero: 10m, not 10m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
