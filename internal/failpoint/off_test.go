//go:build !failpoints

package failpoint

import (
	"bytes"
	"os"
	"testing"

	"s3pulldeploy/internal/testenv"
)

// What is installed must not have a switch that kills it. The test looks into the built commands, with the tag and without,
// so that it would notice when it looked for the wrong thing.
func TestOnlyABuildWithTheTagHasFailpoints(t *testing.T) {
	for _, command := range []string{"agent", "push"} {
		for _, built := range []struct {
			tags []string
			want bool
		}{{nil, false}, {[]string{"failpoints"}, true}} {
			binary, err := os.ReadFile(testenv.Bin(t, command, built.tags...))
			if err != nil {
				t.Fatal(err)
			}
			for _, trace := range []string{"S3PULLDEPLOY_FAILPOINTS", "s3pulldeploy/internal/failpoint."} {
				if got := bytes.Contains(binary, []byte(trace)); got != built.want {
					t.Errorf("%s built with tags %v: %q is in it: %v, want %v", command, built.tags, trace, got, built.want)
				}
			}
		}
	}
}

func TestWithoutTheTagAHitCostsNothing(t *testing.T) {
	if n := testing.AllocsPerRun(100, func() {
		if err := Hit("A1"); err != nil {
			t.Error(err)
		}
		Landed("A1")
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func TestMain(m *testing.M) { testenv.Main(m) }
