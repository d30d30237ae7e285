# Sampan. `make help` lists what can be done.
SHELL    := /bin/bash
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT   ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
# The time of the commit, not of the build: the same source makes the same programs.
BUILT    ?= $(shell git show -s --format=%cI HEAD 2>/dev/null)
LDFLAGS  := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.built=$(BUILT)
# Compose, which sampan carries, tells its own version.
COMPOSE  := -X github.com/docker/compose/v5/internal.Version=$(shell go list -m -f '{{.Version}}' github.com/docker/compose/v5 2>/dev/null)
STATIC   := seccomp osusergo netgo
# What building and running takes beside Go, on Debian. Set DEPS=0 to leave the machine's packages alone.
PACKAGES := gcc libc6-dev libseccomp-dev pkg-config
DEPS     ?= 1

.PHONY: help build deps install demo test vm bench lint generate check-generated fuzz clean
help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "%-16s %s\n", $$1, $$2}'

deps: ## install the Debian packages that are missing (says which)
	@scripts/deps $(DEPS) $(PACKAGES)

build: deps ## build bin/sampand, bin/sampan, bin/sampan-builder, bin/sampan-keeper and bin/sampan-init
	@mkdir -p bin
	CGO_ENABLED=0 go build -ldflags '$(LDFLAGS) $(COMPOSE)' -o bin/ ./cmd/sampand ./cmd/sampan ./cmd/sampan-builder
	CGO_ENABLED=1 go build -tags '$(STATIC)' -ldflags '$(LDFLAGS) -extldflags "-static"' -o bin/sampan-keeper ./cmd/sampan-keeper
	gcc -static -Os -s -Wall -Wextra -Werror -o bin/sampan-init cmd/sampan-init/init.c

install: build ## put the programs into /usr/local/bin and the unit where systemd finds it
	install -D -m 755 -t $(DESTDIR)/usr/local/bin bin/sampand bin/sampan bin/sampan-builder bin/sampan-keeper bin/sampan-init
	install -D -m 644 -t $(DESTDIR)/etc/systemd/system packaging/systemd/sampand.service

demo: build ## three hosts on this machine, one cloud, the shop on it; KEEP=1 leaves it running
	@mkdir -p bin && CGO_ENABLED=0 go build -o bin/demo ./cmd/demo
	@bin/demo $(if $(KEEP),-keep)

test: build ## every test; says what it skips without root
	@DEPS=$(DEPS) scripts/test

bench: build ## measure beside docker.io's dockerd, write docs/performance.md
	@scripts/bench

vm: build ## whole hosts in virtual machines: other kernels, cgroup version 2 alone; KERNELS= and RUN= choose (scripts/vm)
	@KERNELS="$(KERNELS)" RUN="$(RUN)" scripts/vm

lint: ## gofmt, go vet and golangci-lint when it is installed
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo "run gofmt -w on these"; exit 1; }
	CGO_ENABLED=0 go vet -tags vm $$(go list ./... | grep -v '/sampan-keeper$$\|/internal/keeper') # as build compiles them, so nothing is compiled twice
	CGO_ENABLED=1 go vet -tags '$(STATIC)' ./cmd/sampan-keeper ./internal/keeper/...
	@if command -v golangci-lint >/dev/null; then golangci-lint run; else echo "golangci-lint is not installed: only gofmt and go vet ran"; fi

generate: ## make the generated Go code anew
	@scripts/generate

check-generated: ## fail if the generated code is not current
	@scripts/generate --check

clean: ## remove what build made
	rm -rf bin
