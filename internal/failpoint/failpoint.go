// Package failpoint breaks the built commands at named steps, so that a test can kill, delay, hang or fail them there and see
// whether what they left is right.
//
// Only a build with the tag failpoints has it. In every other one [Hit] and [Landed] are empty, the compiler inlines them, and
// nothing of this package is left in the binary: no name of a step, no environment variable.
//
// # Steps
//
// The steps of a push: PU1 packs (each; in the plain layout each file), PU2 manifest, PU3 the pointer's text, PU4 pointer,
// PU5 hint, PU6 clean-up of the bucket.
// The steps of an agent: A1 poll, A2 verify pointer, A3 register, A4 read head, A5 open, A6 get manifest or list, A7 get pack
// (each range; in the plain layout each object), A8 write files (each), A9 syncfs, A10 index, A11 rename to the release's name,
// A12 send vote, A13 wait for the moment, A14 decide, A15 read decision, A16 persist decision, A17 recheck, A18 temporary link,
// A19 rename over active, A20 fsync of the root, A21 opcache, A22 health check, A23 report, A24 remove what nobody needs.
//
// A step is hit just before it does its work. A12, say, with a plus sign, A12+, is the moment at which the vote has landed at
// the server and nobody here has looked at the answer.
//
// # Arming
//
// S3PULLDEPLOY_FAILPOINTS lists what is to happen, STEP=ACTION separated by commas:
//
//	A12=kill              SIGKILL to this very process: nothing deferred runs
//	A8=sleep:5s           waits
//	A9=error:EIO          the step fails, as a file operation does with that error number; any other text is the error's
//	A4=hang               never goes on
//	A14=wait              waits until the list is another one
//	A11=kill@2            at the second hit only; without a number, at every hit
//
// Where the variable begins with a slash it names a file with that list, read anew at each hit: a test arms a process that
// runs. Hits are counted from the last change on. What happens is a line on stderr, "failpoint: STEP ACTION". A list that
// cannot be read as one ends the process, for the test would test nothing.
package failpoint
