# Every target does its own set-up. Run as root on Debian 12 with Go installed.

SHELL       := /bin/bash
GO          ?= go
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GUEST       := internal/guestbin/bin/smolvm-guest
IMAGES      := /var/lib/smolvm/images
TOOL        := $(GO) tool -modfile=tools/go.mod

export CGO_ENABLED := 0

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: setup build ## start a VM, serve a page from it on localhost, show it, remove it (STAY=1 waits)
	@bin/demo $(if $(STAY),-stay)

.PHONY: build
build: ## build the command at bin/smolvm, with the guest program inside
	@mkdir -p bin $(dir $(GUEST))
	$(GO) build -trimpath -ldflags '-s -w' -o $(GUEST) ./cmd/smolvm-guest
	$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/smolvm ./cmd/smolvm
	$(GO) build -trimpath -ldflags '-s -w' -o bin/demo ./examples/demo

.PHONY: man
man: build ## write the man pages to bin/man and the shells' completions to bin/completions
	@rm -rf bin/man bin/completions && mkdir -p bin/completions
	bin/smolvm man bin/man
	@for shell in bash zsh fish; do bin/smolvm completion $$shell >bin/completions/smolvm.$$shell || exit; done

.PHONY: image
image: setup build ## make the default image, unless it is there
	@bin/smolvm --data-dir $(dir $(IMAGES)) pull

.PHONY: test
test: setup image ## run all tests with the race detector, on real VMs
	CGO_ENABLED=1 SMOLVM_TEST_IMAGES=$(IMAGES) $(GO) test -race -count=1 -timeout 20m $(TESTFLAGS) ./...

.PHONY: fuzz
fuzz: ## fuzz every parser for FUZZTIME each (default 10s)
	@scripts/fuzz.sh $(or $(FUZZTIME),10s)

.PHONY: bench
bench: setup image ## measure, beside peers, and write bench/RESULTS.md (BENCHFLAGS: -only, -rounds, -seconds)
	peers=$$(scripts/peers.sh) && SMOLVM_TEST_IMAGES=$(IMAGES) $(GO) run ./bench -peers "$$peers" $(BENCHFLAGS)

.PHONY: lint
lint: build ## gofmt, go vet, staticcheck, golangci-lint
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo 'run gofmt -w on these files'; exit 1; }
	$(GO) vet ./...
	$(TOOL) staticcheck ./...
	$(TOOL) golangci-lint run ./...

.PHONY: setup
setup:
	@scripts/setup.sh

.PHONY: clean
clean: ## remove what was built here; images stay (smolvm doctor tells where)
	rm -rf bin $(GUEST)
