# What is installed, and the packages of it.

PREFIX  ?= /usr/local
DESTDIR ?=
STRIP   ?= strip
SUITES  ?= trixie bookworm

# Linked with musl: for hosts with another C library, or an older one.
STATIC  ?= $(shell uname -m)-unknown-linux-musl

GENERATED := $(TARGET)/generated

bindir   = $(PREFIX)/bin
sbindir  = $(PREFIX)/sbin
mandir   = $(PREFIX)/share/man
qemudir  = $(PREFIX)/share/qemu/vhost-user
unitdir  = $(PREFIX)/lib/systemd/system
docdir   = $(PREFIX)/share/doc/vhost-user-9p
bashdir  = $(PREFIX)/share/bash-completion/completions
zshdir   = $(PREFIX)/share/zsh/site-functions
fishdir  = $(PREFIX)/share/fish/vendor_completions.d

UNITS := vhost-user-9p@.service vhost-user-9p@.socket
DOCS  := README.md SECURITY.md docs/semantics.md docs/performance.md LICENSE-APACHE LICENSE-MIT

.PHONY: generated static install uninstall deb test-packaging

generated: build
	$(CARGO) run --release --locked --quiet --example manual $(GENERATED)
	CARGO=$(CARGO) packaging/licences.sh >$(GENERATED)/third-party-licences

static: | tools ## Build a daemon that needs no library, target/static/vhost-user-9p; needs rustup's musl target
	@[ -d "$$(rustc --print target-libdir --target $(STATIC) 2>/dev/null)" ] || { \
	    echo "the standard library for $(STATIC) is missing: rustup target add $(STATIC)" >&2; exit 1; }
	$(CARGO) build --release --locked --target $(STATIC) --bin vhost-user-9p
	install -D -m 755 $(TARGET)/$(STATIC)/release/vhost-user-9p $(TARGET)/static/vhost-user-9p
	$(STRIP) $(TARGET)/static/vhost-user-9p

# Root may have no cargo: then what somebody else has built is installed.
install: $(if $(shell command -v $(CARGO)),generated) ## Install below PREFIX (default /usr/local), in DESTDIR
	@[ -x $(BINARY) ] && [ -e $(GENERATED)/vhost-user-9p.1 ] || { \
	    echo "nothing is built, and there is no $(CARGO) in the PATH: run make as who has it, then make install" >&2; exit 1; }
	install -D -m 755 $(BINARY) $(DESTDIR)$(bindir)/vhost-user-9p
	$(STRIP) $(DESTDIR)$(bindir)/vhost-user-9p
	install -D -m 755 packaging/vhost-user-9p-share $(DESTDIR)$(sbindir)/vhost-user-9p-share
	install -D -m 644 $(GENERATED)/vhost-user-9p.1 $(DESTDIR)$(mandir)/man1/vhost-user-9p.1
	install -D -m 644 packaging/vhost-user-9p-share.8 $(DESTDIR)$(mandir)/man8/vhost-user-9p-share.8
	install -d $(DESTDIR)$(qemudir) $(DESTDIR)$(unitdir) $(DESTDIR)$(docdir)/examples
	for file in $(UNITS:%=$(unitdir)/%) $(qemudir)/50-vhost-user-9p.json; do \
	    sed 's|@BINARY@|$(bindir)/vhost-user-9p|' packaging/$${file##*/}.in >$(DESTDIR)$$file && \
	    chmod 644 $(DESTDIR)$$file || exit 1; \
	done
	install -D -m 644 $(GENERATED)/vhost-user-9p.bash $(DESTDIR)$(bashdir)/vhost-user-9p
	install -D -m 644 $(GENERATED)/_vhost-user-9p $(DESTDIR)$(zshdir)/_vhost-user-9p
	install -D -m 644 $(GENERATED)/vhost-user-9p.fish $(DESTDIR)$(fishdir)/vhost-user-9p.fish
	install -m 644 $(DOCS) $(GENERATED)/third-party-licences $(DESTDIR)$(docdir)
	install -m 644 packaging/example.conf $(DESTDIR)$(docdir)/examples/NAME.conf

uninstall: ## Remove what install has installed
	rm -f $(DESTDIR)$(bindir)/vhost-user-9p $(DESTDIR)$(sbindir)/vhost-user-9p-share \
	    $(DESTDIR)$(mandir)/man1/vhost-user-9p.1 $(DESTDIR)$(mandir)/man8/vhost-user-9p-share.8 \
	    $(UNITS:%=$(DESTDIR)$(unitdir)/%) $(DESTDIR)$(qemudir)/50-vhost-user-9p.json \
	    $(DESTDIR)$(bashdir)/vhost-user-9p $(DESTDIR)$(zshdir)/_vhost-user-9p $(DESTDIR)$(fishdir)/vhost-user-9p.fish
	rm -rf $(DESTDIR)$(docdir)

deb: generated ## Build a Debian package, target/vhost-user-9p_VERSION_ARCHITECTURE.deb
	packaging/deb.sh $(TARGET)

test-packaging: deb guest ## Install, use and purge that package in fresh Debian machines; SUITES="trixie bookworm"
	GUEST=$(GUEST) packaging/test/run.sh $(TARGET)/vhost-user-9p_*.deb $(SUITES)
