// Package version says what a binary was built from, as the toolchain noted it: the same in the commands' -version and in the list
// of materials of a release.
package version

import (
	"debug/buildinfo"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// Module is a module that is linked in.
type Module struct {
	Path    string `json:"path"`
	Version string `json:"version"`
	Sum     string `json:"sum"` // as in go.sum; empty where the toolchain does not know it
}

// Build is what one binary was built from.
type Build struct {
	Version  string   `json:"version"` // of the release, or "dev"
	Go       string   `json:"go"`
	Revision string   `json:"revision"` // commit of the source, with "+changes" where that was edited; empty where it is not known
	Modules  []Module `json:"modules"`  // all but the main one
}

// This is the running binary; version is what the linker was told to call it.
func This(version string) Build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return Build{Version: version, Go: runtime.Version()}
	}
	return of(version, info)
}

// File is a binary on disk.
func File(version, path string) (Build, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return Build{}, fmt.Errorf("read build of %q: %w", path, err)
	}
	return of(version, info), nil
}

func of(version string, info *debug.BuildInfo) Build {
	b := Build{Version: version, Go: info.GoVersion}
	changed := ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			b.Revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = "+changes"
		}
	}
	b.Revision += changed
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		b.Modules = append(b.Modules, Module{m.Path, m.Version, m.Sum})
	}
	return b
}

// Text is for people: a line for the command, and one for each module.
func (b Build) Text(command string) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s %s %s", command, b.Version, b.Go)
	if b.Revision != "" {
		fmt.Fprintf(&out, " revision %s", b.Revision)
	}
	out.WriteByte('\n')
	for _, m := range b.Modules {
		fmt.Fprintf(&out, "  %s %s\n", m.Path, m.Version)
	}
	return out.String()
}
