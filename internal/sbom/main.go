// Command sbom writes the list of materials of Go binaries, as CycloneDX 1.5 in JSON, from what the toolchain has noted in them: so
// it names what is really linked, not what go.mod allows. The same binaries give the same bytes.
//
//	go run ./internal/sbom VERSION BINARY…
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"s3pulldeploy/internal/version"
)

// document is the part of CycloneDX that we fill.
type document struct {
	Format       string       `json:"bomFormat"`
	Spec         string       `json:"specVersion"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Component component `json:"component"`
}

type component struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref"`
	Name       string     `json:"name"`
	Version    string     `json:"version"`
	PURL       string     `json:"purl,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn"`
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: sbom VERSION BINARY…")
		os.Exit(2)
	}
	if err := write(os.Stdout, os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func write(w io.Writer, name string, binaries []string) error {
	doc := document{
		Format: "CycloneDX", Spec: "1.5", Version: 1,
		Metadata: metadata{component{Type: "application", Ref: "s3-pull-deploy", Name: "s3-pull-deploy", Version: name}},
	}
	seen := map[string]bool{}
	for _, path := range binaries {
		b, err := version.File(name, path)
		if err != nil {
			return err
		}
		command := component{Type: "application", Ref: filepath.Base(path), Name: filepath.Base(path), Version: name}
		if b.Revision != "" {
			command.Properties = []property{{"vcs.revision", b.Revision}}
		}
		doc.Components = append(doc.Components, command)
		uses := dependency{Ref: command.Ref, DependsOn: []string{}}
		std := version.Module{Path: "std", Version: b.Go}
		for _, m := range append([]version.Module{std}, b.Modules...) {
			purl := "pkg:golang/" + m.Path + "@" + m.Version
			uses.DependsOn = append(uses.DependsOn, purl)
			if seen[purl] {
				continue
			}
			seen[purl] = true
			c := component{Type: "library", Ref: purl, Name: m.Path, Version: m.Version, PURL: purl}
			if m.Sum != "" {
				c.Properties = []property{{"go.sum", m.Sum}}
			}
			doc.Components = append(doc.Components, c)
		}
		doc.Dependencies = append(doc.Dependencies, uses)
	}
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	return out.Encode(doc)
}
