# The real guests: QEMU's and User-mode Linux's. BACKEND, GUEST_ACCEL and LIMIT are explained in
# tests/guest/start.sh and run.sh.

GUEST := $(abspath $(TARGET))/guest

.PHONY: tools guest guest-test uml uml-test guest-posix guest-apps guest-survive uml-sqlite guest-models guest-rootfs bench-guest run

build: | tools

tools:
	@tests/guest/tools.sh

guest: ## Prepare QEMU and a small Linux guest, once
	@tests/guest/prepare.sh $(GUEST)

guest-test: $(if $(BACKEND),,build) guest ## The checks in a real Linux under QEMU
	@GUEST=$(GUEST) tests/guest/run.sh qemu checks

uml: ## Build the User-mode Linux kernel, once
	@tests/guest/uml-kernel.sh

uml-test: $(if $(BACKEND),,build) guest uml ## The checks in User-mode Linux
	@tests/guest/apps-tree.sh $(GUEST)/apps
	@GUEST=$(GUEST) tests/guest/run.sh uml checks
	@GUEST=$(GUEST) MODES=none,mmap OBJECTS=400 tests/guest/run.sh uml apps
	@GUEST=$(GUEST) MODES=mmap ROUNDS=3 WATCH=yes tests/guest/run.sh uml sqlite
	@GUEST=$(GUEST) MODES=none,mmap KILL=0.2 KILLS=3 tests/guest/run.sh uml survive
	@GUEST=$(GUEST) MODES=mmap KILL=0.2 KILLS=3 HOW=upgrade tests/guest/run.sh uml survive

guest-posix: $(if $(BACKEND),,build) guest uml ## pjdfstest, fsx, attributes, locks and more beside the host's own; OPERATIONS=N for fsx
	@tests/guest/posix-tools.sh $(GUEST)/posix
	@tests/guest/apps-tree.sh $(GUEST)/apps
	@export GUEST=$(GUEST); status=0; \
	tests/guest/run.sh uml posix || status=$$?; \
	failed=$$(paste -s -d, $(GUEST)/uml-posix.failed); \
	[ -z "$$failed" ] || TESTS=$$failed tests/guest/run.sh qemu posix || status=$$?; \
	exit $$status

guest-apps: $(if $(BACKEND),,build) guest uml ## SQLite, git, make, rsync in User-mode Linux
	@tests/guest/apps-tree.sh $(GUEST)/apps
	@GUEST=$(GUEST) tests/guest/run.sh uml apps

guest-survive: build guest uml ## Programs that must not notice that the server is killed, five times a second, or upgraded; OPERATIONS=N for fsx
	@tests/guest/posix-tools.sh $(GUEST)/posix
	@tests/guest/apps-tree.sh $(GUEST)/apps
	@GUEST=$(GUEST) KILL=0.2 tests/guest/run.sh uml survive
	@GUEST=$(GUEST) KILL=0.2 HOW=upgrade tests/guest/run.sh uml survive
	@GUEST=$(GUEST) KILL=0.2 MODES=none tests/guest/run.sh qemu survive
	@GUEST=$(GUEST) KILL=0.2 TESTS=fsx tests/guest/run.sh uml posix
	@GUEST=$(GUEST) KILL=0.2 tests/guest/run.sh uml apps

uml-sqlite: $(if $(BACKEND),,build) guest uml ## Two SQLite writers, round after round; ROUNDS=N, MODES=..., LOAD=N, SERVERS=2, WATCH=yes
	@tests/guest/apps-tree.sh $(GUEST)/apps
	@GUEST=$(GUEST) MODES=$${MODES:-none,readahead,mmap,loose} tests/guest/run.sh uml sqlite

guest-models: build guest ## Our server and QEMU's own on one directory, in the mapped models
	@GUEST=$(GUEST) tests/guest/models-run.sh

guest-rootfs: $(if $(BACKEND),,build) guest ## A Debian whose root directory is the share, under QEMU: dpkg, gcc, git, Python, PostgreSQL; MODES=none,...
	@tests/guest/rootfs-tree.sh $(GUEST)/rootfs
	@for mode in $$(echo $${MODES:-none,loose} | tr , ' '); do \
	    GUEST=$(GUEST) MODES=$$mode tests/guest/run.sh qemu rootfs || exit 1; \
	done

bench-guest: build guest uml ## A real client on ours and its peers; ROUNDS=N, MODES=none,...
	@tests/guest/apps-tree.sh $(GUEST)/apps
	@GUEST=$(GUEST) tests/guest/bench-guest.sh uml
	@GUEST=$(GUEST) tests/guest/bench-guest.sh qemu

run: $(if $(BACKEND),,build) guest ## Boot the guest on SHARE: a shell, or a tour without a terminal
	@GUEST=$(GUEST) SHARE="$(SHARE)" tests/guest/run.sh qemu
