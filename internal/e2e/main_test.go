// Package e2e tests the built commands from outside, as people and systemd run them: agents as processes, each
// with a root, a state directory and a status socket of its own, a push command, versitygw for S3 and DynamoDB
// Local for the table.
//
// Nothing of the commands' insides is called. What a test knows comes from exit codes, `-json`, the status
// socket, the service manager's socket, the disk and the bucket; an agent's log is only counted and shown.
//
// The fleet that times are taken of runs alone. The other scenarios mostly wait (polls, leases, the ten seconds
// until an agent calls itself isolated), so they run side by side, each on a bucket of its own and in one table.
// Every wait has a bound, and a scenario that fails shows the logs of its agents.
package e2e

import (
	"flag"
	"testing"

	"s3pulldeploy/internal/testenv"
)

// sideBySide is how many scenarios run at once, whatever the number of cores: they wait more than they work.
const sideBySide = "6"

func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", sideBySide); err != nil {
		panic(err)
	}
	testenv.Main(m)
}

// TestFleet is all scenarios. The first has the machine to itself.
func TestFleet(t *testing.T) {
	w := newWorld(t)
	t.Run("a fleet of three deploys, grows, shrinks and goes back", func(t *testing.T) { fleetOfThree(t, w) })
	for _, s := range []struct {
		name string
		run  func(*testing.T, *world)
	}{ // those that wait longest come first
		{"the coordinator dies between votes and decision", coordinatorDies},
		{"a release that is not complete yet", missingObject},
		{"a restart without AWS serves on", restartIsolated},
		{"systemd is told the truth", notifies},
		{"a deploy goes on over a settings reload", reloads},
		{"a single pass", onePass},
		{"a stop in the middle of a hook", stopsInHook},
		{"the older tool's releases come down", deploysOldTool},
		{"the older tool pulls ours", oldToolPulls},
		{"a pointer that is garbage", garbagePointer},
		{"an object that is shorter than listed", shortObject},
		{"releases that no push would publish", hostileReleases},
		{"machines that cannot take a release step out", unfitMachines},
		{"a failing before_flip hook", hookRefuses},
		{"a health check that fails after the flip", unhealthy},
		{"a bad deploy rolls itself back", rollsItselfBack},
		{"a canary is approved, aborted, and fails", waves},
		{"fleet_once runs once, before anybody flips", fleetOnce},
		{"a freeze refuses and ends", freezes},
		{"hooks and what surrounds a release", hooksAndTree},
		{"opcache serves the new release", opcache},
		{"the packed layout", packedLayout},
		{"nothing but what keys signed goes live", signedReleases},
		{"secrets stay where they are", secretsStay},
		{"the policies allow what is done, and no more", policies},
		{"two pushes at once", twoPushes},
		{"two pushes of the same second", sameID},
		{"both commands say the same version", versions},
	} {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			s.run(t, w)
		})
	}
}
