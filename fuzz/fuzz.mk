# Fuzzing: libFuzzer under AddressSanitizer, by cargo-fuzz, which is installed if it is missing.
# RUSTC_BOOTSTRAP lets the stable compiler take the flags of a nightly one.

FUZZ_TARGETS ?= decoder session ring control state
FUZZ_SECONDS ?= 60

FUZZ        = PATH="$(TOOLS)/bin:$$PATH" RUSTC_BOOTSTRAP=1 $(CARGO) fuzz
FUZZ_DIRS   = --fuzz-dir fuzz/libfuzzer --target-dir $(abspath $(TARGET))/libfuzzer
# A function's name takes a process to find, whose pipes would look like a leak of descriptors.
FUZZ_FLAGS  = -print_funcs=0 -max_len=2048 -timeout=30 -rss_limit_mb=3000

.PHONY: fuzz fuzz-corpus fuzz-tool

fuzz-tool:
	@PATH="$(TOOLS)/bin:$$PATH" $(CARGO) fuzz --version >/dev/null 2>&1 || \
	    $(CARGO) install --locked --quiet --root $(TOOLS) cargo-fuzz

# What is new is kept in the build folder.
fuzz: fuzz-tool ## Fuzz each target of FUZZ_TARGETS for FUZZ_SECONDS (60)
	@for target in $(FUZZ_TARGETS); do \
	    mkdir -p $(TARGET)/corpus/$$target; \
	    $(FUZZ) run $(FUZZ_DIRS) $$target $(TARGET)/corpus/$$target fuzz/corpus/$$target -- \
	        $(FUZZ_FLAGS) -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

fuzz-corpus: fuzz-tool ## Put what fuzzing has found into the checked-in corpus, the smallest that covers it all
	@for target in $(FUZZ_TARGETS); do \
	    new=$(abspath $(TARGET))/corpus/$$target.new; rm -rf $$new; mkdir -p $$new; \
	    mkdir -p $(TARGET)/corpus/$$target; \
	    $(FUZZ) run $(FUZZ_DIRS) $$target $$new fuzz/corpus/$$target $(TARGET)/corpus/$$target -- \
	        $(FUZZ_FLAGS) -set_cover_merge=1 || exit 1; \
	    rm -rf fuzz/corpus/$$target; mv $$new fuzz/corpus/$$target; \
	done
