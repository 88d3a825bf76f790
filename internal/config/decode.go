package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// decoder fills a Config from YAML nodes by reflection over its `yaml` tags. yaml.v3's own strict mode stops at the first
// unknown key, knows no YAML path, and takes values before `${ENV}` is expanded.
type decoder struct {
	problems
	getenv func(string) (string, bool)
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	secretType   = reflect.TypeFor[Secret]()
	urlsType     = reflect.TypeFor[URLs]()
	variable     = regexp.MustCompile(`\$\$|\$\{[^}]*\}?`)
	variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	yamlLine     = regexp.MustCompile(`^yaml: line ([0-9]+): `)
)

// hooksPath begins the paths of values that are left as they are.
const hooksPath = "hooks."

// document decodes the one document of text into cfg.
func (d *decoder) document(text []byte, cfg *Config) {
	if len(text) > MaxFile {
		d.add("", fmt.Sprintf("is larger than %d bytes", MaxFile), "", "")
		return
	}
	reader := yaml.NewDecoder(bytes.NewReader(text))
	var doc, more yaml.Node
	err := reader.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return // empty: what is required will be missed
	}
	if err == nil {
		if err = reader.Decode(&more); err == nil {
			d.lines[""] = more.Line
			d.add("", "must be one YAML document, a second one begins here", "", "")
			return
		}
	}
	if !errors.Is(err, io.EOF) {
		d.syntax(err)
		return
	}
	d.value("", doc.Content[0], reflect.ValueOf(cfg).Elem())
}

// syntax notes what yaml.v3 says of a text that is no YAML.
func (d *decoder) syntax(err error) {
	rule := err.Error()
	if m := yamlLine.FindStringSubmatch(rule); m != nil {
		d.lines[""], _ = strconv.Atoi(m[1])
		rule = rule[len(m[0]):]
	}
	d.add("", "is not YAML: "+strings.TrimPrefix(rule, "yaml: "), "", "")
}

// value decodes one node into v, whose type says what it must be.
func (d *decoder) value(path string, n *yaml.Node, v reflect.Value) {
	if d.lines[path] == 0 {
		d.lines[path] = n.Line
	}
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.add(path, "must not use YAML anchors or aliases", "", "")
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null":
		// nothing after the colon: the default stays
	case v.Kind() == reflect.Struct:
		d.mapping(path, n, func(key, value *yaml.Node) { d.field(path, key, value, v) })
	case v.Kind() == reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		d.mapping(path, n, func(key, value *yaml.Node) {
			item := reflect.New(v.Type().Elem()).Elem()
			d.value(join(path, key.Value), value, item)
			v.SetMapIndex(reflect.ValueOf(key.Value), item)
		})
		if v.Len() == 0 {
			v.SetZero()
		}
	case v.Kind() == reflect.Slice:
		d.list(path, n, v)
	default:
		d.scalar(path, n, v)
	}
}

// mapping calls each for all keys of a mapping, and notes those that are there twice or are not plain text.
func (d *decoder) mapping(path string, n *yaml.Node, each func(key, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		d.add(path, "must be a mapping of keys to values", scalarText(n), "")
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		full := join(path, key.Value)
		switch {
		case key.Kind != yaml.ScalarNode || key.Anchor != "" || key.ShortTag() == "!!merge":
			d.at(key.Line, path, "must have plain keys", "", "")
		case seen[key.Value] > 0:
			d.at(key.Line, full, fmt.Sprintf("is set a second time, first in line %d", seen[key.Value]), "", "")
		default:
			seen[key.Value], d.lines[full] = key.Line, key.Line
			each(key, value)
		}
	}
}

// field decodes a key of a struct.
func (d *decoder) field(path string, key, n *yaml.Node, v reflect.Value) {
	var names []string
	for f := range v.Type().Fields() {
		name := f.Tag.Get("yaml")
		if name == "-" {
			continue
		}
		if name == key.Value {
			d.value(join(path, name), n, v.FieldByIndex(f.Index))
			return
		}
		names = append(names, name)
	}
	meant := elsewhere(key.Value)
	if near := nearest(key.Value, names); near != "" {
		meant = join(path, near)
	}
	if meant != "" {
		meant = "did you mean `" + meant + "`?"
	}
	d.at(key.Line, join(path, key.Value), "unknown key", "", meant)
}

// list decodes a sequence, or for URLs also a single one.
func (d *decoder) list(path string, n *yaml.Node, v reflect.Value) {
	v.SetZero()
	items := n.Content
	switch {
	case n.Kind == yaml.ScalarNode && v.Type() == urlsType:
		if n.Value == "" {
			return
		}
		items = []*yaml.Node{n}
	case n.Kind != yaml.SequenceNode:
		d.add(path, "must be a list", scalarText(n), "write it as [a, b], or a line with a dash for each")
		return
	}
	for i, item := range items {
		at := path
		if n.Kind == yaml.SequenceNode {
			at = fmt.Sprintf("%s[%d]", path, i)
		}
		element := reflect.New(v.Type().Elem()).Elem()
		d.value(at, item, element)
		if item.ShortTag() == "!!null" {
			d.add(at, "must not be empty", "", "")
		}
		v.Set(reflect.Append(v, element))
	}
}

// scalar decodes text, a number, true or false, or a duration.
func (d *decoder) scalar(path string, n *yaml.Node, v reflect.Value) {
	text, rule, hint := "", "", ""
	switch n.ShortTag() {
	case "!!str", "!!int", "!!float", "!!bool", "!!timestamp":
		text, rule = d.expand(path, n.Value)
	default:
		rule = "must be a single value"
	}
	if rule == "" {
		rule, hint = set(v, text)
	}
	if rule == "" {
		return
	}
	if v.Type() == secretType {
		text = ""
	}
	d.add(path, rule, text, hint)
}

// set puts text into v; rule is what it breaks, or "".
func set(v reflect.Value, text string) (rule, hint string) {
	switch {
	case v.Type() == durationType:
		dur, err := time.ParseDuration(text)
		if err != nil {
			return "must be a duration", `a number with a unit, such as "30s" or "5m"`
		}
		v.SetInt(int64(dur))
	case v.Kind() == reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return "must be a whole number", ""
		}
		v.SetInt(int64(n))
	case v.Kind() == reflect.Bool:
		if text != "true" && text != "false" {
			return "must be true or false", ""
		}
		v.SetBool(text == "true")
	default:
		v.SetString(text)
	}
	return "", ""
}

// expand replaces `${NAME}` and `$$`; rule is what the value breaks, or "".
func (d *decoder) expand(path, text string) (expanded, rule string) {
	if strings.HasPrefix(path, hooksPath) {
		return text, ""
	}
	expanded = variable.ReplaceAllStringFunc(text, func(m string) string {
		if m == "$$" {
			return "$"
		}
		name := strings.TrimSuffix(m[2:], "}")
		if !strings.HasSuffix(m, "}") || !variableName.MatchString(name) {
			rule = "must name a variable as ${NAME}; a dollar is $$"
			return m
		}
		value, ok := d.getenv(name)
		if !ok {
			rule = "environment variable " + name + " is not set"
		}
		return value
	})
	if rule != "" {
		return "", rule
	}
	return expanded, ""
}

// scalarText is what a node says when it is a single value; of a list or a mapping nothing is shown.
func scalarText(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode {
		return n.Value
	}
	return ""
}

// join makes a YAML path.
func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// keys is every YAML path of the schema, in its order; of a struct only its fields.
func keys(t reflect.Type, path string) []string {
	var out []string
	for f := range t.Fields() {
		name := f.Tag.Get("yaml")
		switch {
		case name == "-":
		case f.Type.Kind() == reflect.Struct:
			out = append(out, keys(f.Type, join(path, name))...)
		default:
			out = append(out, join(path, name))
		}
	}
	return out
}

// elsewhere is the path of a key that stands in the wrong section, or "".
func elsewhere(key string) string {
	for _, path := range keys(reflect.TypeFor[Config](), "") {
		if strings.TrimPrefix(path, path[:strings.LastIndexByte(path, '.')+1]) == key {
			return path
		}
	}
	return ""
}
