# Everything a developer, CI or a packager runs. `make` alone lists the targets.

# The one place where tool versions are pinned. They are built from source by
# the Go toolchain into .bin, and again only when a version here changes.
MINIO_VERSION         := v0.0.0-20260212201848-7aac2a2c5b7c
GOLANGCI_LINT_VERSION := v2.15.0
GOVULNCHECK_VERSION   := v1.9.0
RCLONE_VERSION        := v1.76.0
MC_VERSION            := v0.0.0-20250313080218-cf909e1063a9
AXE_VERSION           := 4.14.1
DUCKDB_VERSION        := 1.5.6-r.1
NFPM_VERSION          := v2.45.2
CYCLONEDX_VERSION     := v1.10.0

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

GO  ?= go
BIN := $(CURDIR)/.bin

# The version is git's, the commit is Go's VCS stamp. Where git cannot read the
# checkout (a source archive, another owner's files) both are left out.
export GOFLAGS := $(strip -buildvcs=false $(filter-out -buildvcs=%,$(GOFLAGS)))
# Both are asked for once: what is built twice is to be of one version.
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
VERSION  := $(VERSION)
BUILDVCS := $(if $(shell git rev-parse HEAD 2>/dev/null),true,false)
LDFLAGS  := -s -w -X main.version=$(VERSION)

# MINIO=/path and GOLANGCI_LINT=/path use a tool that is already built.
MINIO         ?= $(BIN)/minio
GOLANGCI_LINT ?= $(BIN)/golangci-lint
GOVULNCHECK   ?= $(BIN)/govulncheck
RCLONE        ?= $(BIN)/rclone
MC            ?= $(BIN)/mc
# Checks the accessibility of the status page; left out where there is no npm.
AXE           ?= $(if $(shell command -v npm),$(BIN)/axe.min.js)
# From npm, where that is installed: a directory with node_modules.
DUCKDB        ?= $(if $(shell command -v npm),$(BIN)/duckdb)
NFPM          ?= $(BIN)/nfpm
CYCLONEDX     ?= $(BIN)/cyclonedx-gomod
# Not built here: the one that is installed, if there is one.
RESTIC        ?= $(shell command -v restic)

TESTFLAGS    ?=
TEST_TIMEOUT ?= 45m
E2E_TIMEOUT  ?= 80m
FUZZTIME     ?= 30s
BENCH        ?= .
BENCHFLAGS   ?=
DEMO_SECONDS ?=

# What `make packages` builds, and where to.
DIST    ?= $(CURDIR)/dist
ARCHES  ?= amd64 arm64
FORMATS ?= deb rpm

# Where `make install` puts things; DESTDIR is for packagers.
DESTDIR     ?=
PREFIX      ?= /usr/local
SYSCONFDIR  ?= /etc
BINDIR      := $(PREFIX)/bin
UNITDIR     := $(PREFIX)/lib/systemd/system
SYSUSERSDIR := $(PREFIX)/lib/sysusers.d
TMPFILESDIR := $(PREFIX)/lib/tmpfiles.d
MANDIR      := $(PREFIX)/share/man
DATADIR     := $(PREFIX)/share/s3syncd
DOCDIR      := $(PREFIX)/share/doc/s3syncd
CONFIG      := $(SYSCONFDIR)/s3syncd/s3syncd.yaml

# At most this exposure (tenths) in `systemd-analyze security`.
EXPOSURE := 20

##@ Everyday

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z0-9_-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: build
build: ## Build .bin/s3syncd: static, -trimpath, version from git
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=$(BUILDVCS) -ldflags '$(LDFLAGS)' -o $(BIN)/s3syncd ./cmd/s3syncd

.PHONY: demo
demo: build $(MINIO) ## Show it at work against a MinIO of its own (DEMO_SECONDS=n ends by itself)
	$(GO) run ./test/demo -minio $(MINIO) -s3syncd $(BIN)/s3syncd $(if $(DEMO_SECONDS),-seconds $(DEMO_SECONDS))

.PHONY: test
test: $(MINIO) ## All tests with the race detector, against a real MinIO
	S3SYNCD_TEST_MINIO=$(MINIO) $(GO) test -race -shuffle=on -timeout $(TEST_TIMEOUT) $(TESTFLAGS) ./...

.PHONY: lint
lint: $(GOLANGCI_LINT) ## Formatting, linters, go vet and a tidy go.mod
	$(GOLANGCI_LINT) run ./...
	$(GO) vet ./...
	$(GO) mod tidy -diff

.PHONY: fmt
fmt: $(GOLANGCI_LINT) ## Format every file
	$(GOLANGCI_LINT) fmt ./...

.PHONY: docs
docs: ## Write docs/commands from the help of each command
	$(GO) run ./cmd/s3syncd generate --markdown docs/commands

##@ Deeper

.PHONY: e2e
e2e: $(MINIO) $(AXE) $(DUCKDB) ## Whole-process tests at full size, the page in Chromium if there is one (an hour; GBs of scratch disk)
	S3SYNCD_E2E=1 S3SYNCD_TEST_MINIO=$(MINIO) S3SYNCD_TEST_AXE=$(AXE) S3SYNCD_TEST_DUCKDB=$(DUCKDB) $(GO) test -count=1 -timeout $(E2E_TIMEOUT) $(TESTFLAGS) ./pkg/state ./pkg/manifest ./internal/pipeline ./test/e2e/...

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (30s)
	@{ grep -rlE '^func Fuzz' --include='*_test.go' . || true; } | xargs -r -n1 dirname | sort -u | while read -r dir; do \
	  for name in $$(sed -nE 's/^func (Fuzz[A-Za-z0-9_]*)\(.*/\1/p' "$$dir"/*_test.go); do \
	    echo "$$dir $$name"; \
	    $(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s "$$dir" || exit 1; \
	  done; \
	done

.PHONY: bench
bench: bench-go bench-peers ## Both of the next two: hours

.PHONY: bench-go
bench-go: $(MINIO) ## Go benchmarks, a rescan beside find(1) among them (BENCH=pattern)
	S3SYNCD_TEST_MINIO=$(MINIO) $(GO) test -run '^$$' -bench '$(BENCH)' -benchmem -timeout $(E2E_TIMEOUT) $(TESTFLAGS) ./...

.PHONY: bench-peers
bench-peers: build $(MINIO) $(RCLONE) $(MC) ## The same work beside rclone, mc and what is installed of aws, s3cmd, lsyncd (BENCHFLAGS)
	$(GO) run ./bench -path s3syncd=$(BIN)/s3syncd -path minio=$(MINIO) -path rclone=$(RCLONE) -path mc=$(MC) -path script=/usr/bin/python3 \
	  -results $(BIN)/bench-results.jsonl $(BENCHFLAGS)
	$(GO) run ./bench -results $(BIN)/bench-results.jsonl -report docs/BENCHMARKS.md -plot docs/benchmarks.svg

.PHONY: bench-walkers
bench-walkers: $(RCLONE) ## The rescan beside find, rclone and, where it is installed, restic (RESTIC=/path)
	S3SYNCD_BENCH_RCLONE=$(RCLONE) S3SYNCD_BENCH_RESTIC=$(RESTIC) $(GO) test -run '^$$' -bench '^BenchmarkRescan100kBesidePeers$$' \
	  -benchtime 5x -timeout $(E2E_TIMEOUT) $(TESTFLAGS) ./internal/pipeline

.PHONY: cover
cover: $(MINIO) ## Coverage of all packages by all tests: .bin/cover.html
	@mkdir -p $(BIN)
	S3SYNCD_TEST_MINIO=$(MINIO) $(GO) test -timeout $(TEST_TIMEOUT) -coverpkg=./... -coverprofile=$(BIN)/cover.out $(TESTFLAGS) ./...
	$(GO) tool cover -html=$(BIN)/cover.out -o $(BIN)/cover.html
	$(GO) tool cover -func=$(BIN)/cover.out | tail -n 1

.PHONY: vuln
vuln: $(GOVULNCHECK) ## Known vulnerabilities (needs to reach vuln.go.dev)
	$(GOVULNCHECK) ./...

.PHONY: unit-check
unit-check: build ## systemd-analyze verify and security on the unit, where systemd is installed
	@command -v systemd-analyze >/dev/null || { echo 'unit-check: no systemd-analyze here, nothing checked'; exit 0; }; \
	mkdir -p $(BIN)/unit; \
	sed 's|/usr/bin/s3syncd|$(BIN)/s3syncd|g' deploy/systemd/s3syncd.service >$(BIN)/unit/s3syncd.service; \
	set -x; \
	systemd-analyze verify --man=no $(BIN)/unit/s3syncd.service; \
	systemd-analyze security --no-pager --offline=true --threshold=$(EXPOSURE) deploy/systemd/s3syncd.service | grep -v '✓'

##@ Packages

PACKAGING = GO=$(GO) VERSION=$(VERSION) BUILDVCS=$(BUILDVCS) NFPM=$(NFPM) CYCLONEDX=$(CYCLONEDX) ARCHES='$(ARCHES)' FORMATS='$(FORMATS)'

.PHONY: packages
packages: $(NFPM) $(CYCLONEDX) ## deb, rpm, SBOMs and SHA256SUMS in dist/ (ARCHES, FORMATS, DIST, VERSION)
	rm -rf $(DIST)
	$(PACKAGING) DIST=$(DIST) deploy/package/build.sh

.PHONY: packages-check
packages-check: packages ## Build the packages once more elsewhere: the same bytes?
	@again=$$(mktemp -d); trap 'rm -rf "$$again"' EXIT; \
	$(PACKAGING) DIST="$$again" GOCACHE="$$again/.cache" deploy/package/build.sh; \
	rm -rf "$$again/.cache"; \
	diff -r $(DIST) "$$again"; \
	echo 'packages-check: the same bytes twice'

##@ Tools

.PHONY: tools
tools: $(MINIO) $(GOLANGCI_LINT) ## Build the pinned MinIO and golangci-lint into .bin

# A stamp file per version makes a changed pin rebuild its tool, and nothing else.
$(BIN)/.%:
	@mkdir -p $(BIN)
	@touch $@

$(BIN)/minio: $(BIN)/.minio-$(MINIO_VERSION)
	GOBIN=$(BIN) $(GO) install github.com/minio/minio@$(MINIO_VERSION)
	@touch $@

$(BIN)/golangci-lint: $(BIN)/.golangci-lint-$(GOLANGCI_LINT_VERSION)
	GOBIN=$(BIN) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	@touch $@

$(BIN)/govulncheck: $(BIN)/.govulncheck-$(GOVULNCHECK_VERSION)
	GOBIN=$(BIN) $(GO) install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)
	@touch $@

$(BIN)/duckdb: $(BIN)/.duckdb-$(DUCKDB_VERSION)
	rm -rf $@
	mkdir -p $@
	npm install --prefix $@ --ignore-scripts --no-audit --no-fund --loglevel=error @duckdb/node-api@$(DUCKDB_VERSION)
	@touch $@

$(BIN)/rclone: $(BIN)/.rclone-$(RCLONE_VERSION)
	GOBIN=$(BIN) $(GO) install github.com/rclone/rclone@$(RCLONE_VERSION)
	@touch $@

$(BIN)/mc: $(BIN)/.mc-$(MC_VERSION)
	GOBIN=$(BIN) $(GO) install github.com/minio/mc@$(MC_VERSION)
	@touch $@

$(BIN)/axe.min.js: $(BIN)/.axe-$(AXE_VERSION)
	rm -rf $(BIN)/axe
	npm install --prefix $(BIN)/axe --no-save --no-audit --no-fund --ignore-scripts --loglevel=error axe-core@$(AXE_VERSION)
	cp $(BIN)/axe/node_modules/axe-core/axe.min.js $@
	rm -rf $(BIN)/axe
	@touch $@

$(BIN)/nfpm: $(BIN)/.nfpm-$(NFPM_VERSION)
	GOBIN=$(BIN) $(GO) install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM_VERSION)
	@touch $@

$(BIN)/cyclonedx-gomod: $(BIN)/.cyclonedx-gomod-$(CYCLONEDX_VERSION)
	GOBIN=$(BIN) $(GO) install github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@$(CYCLONEDX_VERSION)
	@touch $@

##@ Installing

.PHONY: install
install: ## Binary, unit, user, manual, completions, rules, configuration if there is none (PREFIX, SYSCONFDIR, DESTDIR)
	@[ -x $(BIN)/s3syncd ] || { echo 'install: run `make build` first (not as root)' >&2; exit 1; }
	install -Dm755 $(BIN)/s3syncd $(DESTDIR)$(BINDIR)/s3syncd
	install -d $(DESTDIR)$(UNITDIR)
	sed 's|/usr/bin/s3syncd|$(BINDIR)/s3syncd|g; s|/etc/s3syncd/|$(SYSCONFDIR)/s3syncd/|g' deploy/systemd/s3syncd.service \
	  | install -m644 /dev/stdin $(DESTDIR)$(UNITDIR)/s3syncd.service
	install -Dm644 deploy/systemd/s3syncd.sysusers $(DESTDIR)$(SYSUSERSDIR)/s3syncd.conf
	install -d $(DESTDIR)$(TMPFILESDIR)
	sed 's|/etc/s3syncd|$(SYSCONFDIR)/s3syncd|g' deploy/systemd/s3syncd.tmpfiles \
	  | install -m644 /dev/stdin $(DESTDIR)$(TMPFILESDIR)/s3syncd.conf
	$(BIN)/s3syncd generate --man $(DESTDIR)$(MANDIR) --configuration deploy/s3syncd.example.yaml
	@made=$$(mktemp -d); trap 'rm -rf "$$made"' EXIT; \
	$(BIN)/s3syncd generate --completions "$$made" --configuration deploy/s3syncd.example.yaml; set -x; \
	install -Dm644 "$$made/s3syncd" $(DESTDIR)$(PREFIX)/share/bash-completion/completions/s3syncd; \
	install -Dm644 "$$made/s3syncd.fish" $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/s3syncd.fish; \
	install -Dm644 "$$made/_s3syncd" $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_s3syncd
	install -Dm644 -t $(DESTDIR)$(DATADIR)/prometheus deploy/prometheus/*.yml
	install -Dm644 -t $(DESTDIR)$(DATADIR)/grafana deploy/grafana/*.json
	install -Dm644 -t $(DESTDIR)$(DATADIR)/athena deploy/athena/*.sql
	install -Dm644 -t $(DESTDIR)$(DATADIR)/duckdb deploy/duckdb/*.sql
	install -Dm644 -t $(DESTDIR)$(DOCDIR) docs/*.md
	install -d -m750 $(DESTDIR)$(SYSCONFDIR)/s3syncd
	@if [ -e $(DESTDIR)$(CONFIG) ]; then echo '$(DESTDIR)$(CONFIG) is kept'; \
	else install -vm640 deploy/s3syncd.example.yaml $(DESTDIR)$(CONFIG); fi

.PHONY: uninstall
uninstall: ## Remove what install put there; configuration and state stay
	rm -f $(DESTDIR)$(BINDIR)/s3syncd $(DESTDIR)$(UNITDIR)/s3syncd.service \
	  $(DESTDIR)$(SYSUSERSDIR)/s3syncd.conf $(DESTDIR)$(TMPFILESDIR)/s3syncd.conf \
	  $(DESTDIR)$(MANDIR)/man1/s3syncd.1 $(DESTDIR)$(MANDIR)/man1/s3syncd-*.1 $(DESTDIR)$(MANDIR)/man5/s3syncd.yaml.5 \
	  $(DESTDIR)$(PREFIX)/share/bash-completion/completions/s3syncd $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/s3syncd.fish \
	  $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_s3syncd
	rm -rf $(DESTDIR)$(DATADIR) $(DESTDIR)$(DOCDIR)

.PHONY: clean
clean: ## Remove what was built; the tools stay
	rm -rf $(BIN)/s3syncd $(BIN)/unit $(BIN)/cover.out $(BIN)/cover.html $(DIST)
