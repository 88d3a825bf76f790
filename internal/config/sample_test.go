package config

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

const samplePath = "../../config.sample.yml"

func sample(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile(samplePath)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestSampleIsTheDefaults(t *testing.T) {
	got := mustParse(t, string(sample(t)))
	want := mustParse(t, "site: promo-production\nbucket: my-deploy-bucket\nroot: /var/www/promo.example.com\n")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the sample differs from the defaults:\n got %+v\nwant %+v", got, want)
	}
}

func TestSampleHasEveryKeyInTheSchemasOrder(t *testing.T) {
	var doc yaml.Node
	if err := yaml.Unmarshal(sample(t), &doc); err != nil {
		t.Fatal(err)
	}
	var got []string
	var walk func(path string, n *yaml.Node)
	walk = func(path string, n *yaml.Node) {
		if n.Kind != yaml.MappingNode || path == "shared" {
			got = append(got, path)
			return
		}
		for i := 0; i < len(n.Content); i += 2 {
			walk(join(path, n.Content[i].Value), n.Content[i+1])
		}
	}
	walk("", doc.Content[0])
	if want := keys(reflect.TypeFor[Config](), ""); !slices.Equal(got, want) {
		t.Errorf("sample: %q\nschema: %q", got, want)
	}
}

func TestSampleExplainsEveryTopLevelKey(t *testing.T) {
	lines := strings.Split(string(sample(t)), "\n")
	for i, l := range lines {
		// profile and keep_for and the like share the comment of the line above.
		if l != "" && l[0] != ' ' && l[0] != '#' && lines[i-1] == "" {
			t.Errorf("no comment above %q", l)
		}
	}
}
