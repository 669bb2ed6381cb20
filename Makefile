# virt-ft. `make` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

GOFLAGS_BUILD := -trimpath
PKG ?= ./...
RUN ?= .
# Packages with labs run one after the other: each lab wants the machine for itself.
# Vet is a matter of check.
GOTEST := go run ./test/gotest -count=1 -vet=off -run='$(RUN)' $(if $(V),-v)
FUZZTIME ?= 10s

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

.PHONY: deps
deps: ## install what building and testing need (Debian; quick when all is there)
	@test/scripts/deps.sh

.PHONY: kernel
kernel: ## fetch a guest kernel into build/kernel
	@test/scripts/kernel.sh

.PHONY: promtool
promtool: ## fetch what checks the alert rules into build/tools
	@test/scripts/promtool.sh

.PHONY: build
build: ## build build/virt-ft, and build/virt-ft-hook for libvirt
	go build $(GOFLAGS_BUILD) -o build/virt-ft ./cmd/virt-ft
	CGO_ENABLED=0 go build $(GOFLAGS_BUILD) -ldflags='-s -w' -o build/virt-ft-hook ./hooks

.PHONY: guest
guest: ## build the init of the lab's guest
	@CGO_ENABLED=0 go build $(GOFLAGS_BUILD) -ldflags='-s -w' -o build/guest/init ./test/guest

.PHONY: check
check: ## gofmt and vet
	@bad=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); if [ -n "$$bad" ]; then echo "gofmt wants: $$bad" >&2; exit 1; fi
	go vet ./...

.PHONY: test
test: deps kernel promtool guest check ## everything CI runs (PKG=./x RUN=TestY V=1 narrow it)
	@$(GOTEST) $(PKG)

.PHONY: demo
demo: deps kernel guest build ## two hosts, one guest, its clients, one failure
	@go build $(GOFLAGS_BUILD) -o build/lab-demo ./test/demo
	@exec build/lab-demo $(DEMO)

KILLS ?= 200
SEED ?= 0

.PHONY: chaos
chaos: deps kernel guest build ## faults at random moments under load (KILLS=200 SEED=7 CHAOS='-only freeze,link -arbiter etcd')
	@go build $(GOFLAGS_BUILD) -o build/lab-chaos ./test/chaos
	@exec build/lab-chaos -kills $(KILLS) -seed $(SEED) $(CHAOS)

.PHONY: chaos-mutants
chaos-mutants: deps kernel guest ## prove that chaos finds a loss: programs that forget (MUTANTS='-only drop-a-page')
	@go build $(GOFLAGS_BUILD) -o build/lab-chaos ./test/chaos
	@go run ./test/chaos/mutants $(MUTANTS)

# The measuring programs: build/lab-NAME is made of test/NAME, but for the disk's.
LABS := pause disk load stream today clock many virtmanager
build/lab-%: FORCE
	@go build $(GOFLAGS_BUILD) -o $@ ./test/$(if $(filter disk,$*),diskbench,$*)
.PHONY: FORCE
FORCE:

.PHONY: bench
bench: deps kernel guest build $(filter-out %-clock %-many %-virtmanager,$(LABS:%=build/lab-%)) ## everything measured in one run, into bench.json (BENCH='-only pause,stream')
	@go build $(GOFLAGS_BUILD) -o build/lab-bench ./test/bench
	@exec build/lab-bench $(BENCH)

.PHONY: plots
plots: ## draw bench.json into docs/plots
	@go run ./test/plots $(PLOTS)

.PHONY: pause
pause: deps kernel guest build/lab-pause ## how long a checkpoint stops a guest, beside two floors (PAUSE='-rounds 20')
	@exec build/lab-pause $(PAUSE)

.PHONY: clock
clock: deps build/lab-clock ## what pauses do to the clock of a guest under KVM, with and without us (CLOCK='-long', '-kills 500')
	@exec build/lab-clock $(CLOCK)

.PHONY: many
many: deps kernel guest build build/lab-many ## many guests on one host, protected at once, and its power cut (MANY='-guests 20')
	@exec build/lab-many $(MANY)

.PHONY: record
record: deps kernel guest build ## record the session of README into docs/pictures
	@go build -o build/lab-record ./test/record
	@exec build/lab-record

.PHONY: install
install: ## build virt-ft and put all of its files below DESTDIR
	@DESTDIR='$(DESTDIR)' packaging/install.sh

.PHONY: dist
dist: ## a source tarball with all Go modules in it, into build/packages
	@packaging/build.sh dist

.PHONY: deb
deb: packaging-deps ## a package for Debian, into build/packages
	@packaging/build.sh deb

.PHONY: rpm
rpm: packaging-deps ## the same for RPM
	@packaging/build.sh rpm

.PHONY: packaging-deps
packaging-deps: deps ## install what building packages needs, too
	@test/scripts/deps.sh packages

.PHONY: package-test
package-test: packaging-deps kernel guest ## install, use, upgrade and remove the packages on machines made for it (RUN=TestY)
	@VIRT_FT_LONG=1 $(GOTEST) ./test/packages

FAULTS ?= 3
.PHONY: explore
explore: ## every interleaving of FAULTS faults in the protocol of who may run
	go test -count=1 -timeout 60m -run TestExplore -v ./internal/explore -explore.faults $(FAULTS)

.PHONY: disk
disk: deps kernel guest build build/lab-disk ## what replication costs a guest's writes to disk, beside two floors (DISK='-rounds 2')
	@exec build/lab-disk $(DISK)

SUITE ?= trixie
.PHONY: compat
compat: deps kernel guest ## the newest Debian's QEMU and libvirt: both hosts, and one of them (SUITE=sid)
	@root=$$(test/compat/root.sh $(SUITE)) || { [ $$? = 3 ] && exit 0; exit 1; }; \
	VIRT_FT_NEW_ROOT=$$root go test -count=1 -timeout 25m -v -run '^TestCompat$$' ./test/e2e

.PHONY: pictures
pictures: deps kernel guest build build/lab-virtmanager ## what virt-manager shows of both hosts, into docs/pictures (needs virt-manager and Xvfb)
	@exec build/lab-virtmanager $(PICTURES)

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME
	@test/scripts/fuzz.sh $(FUZZTIME)

.PHONY: clean
clean: ## remove what was built, kernel included
	rm -rf build
