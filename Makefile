# SPDX-License-Identifier: MIT
#
# The only Makefile. `make` builds build/vmimg and the library; `make test` tests them; `make demo` shows
# the main job. Every folder is compiled against its own view of the tree (VIEW_*): a wrong include
# does not compile. B= is the build directory, V=1 prints commands, SAN=1 adds the address and
# undefined-behaviour sanitizers, TSAN=1 the thread sanitizer, T=PREFIX selects tests.

B ?= build
PREFIX ?= /usr/local
VERSION := 0.1.0
SOVERSION := 0
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

ifeq ($(origin CC),default)
CC := gcc
endif
CLANG ?= clang
CFLAGS ?= -O2 -g
ALL_CFLAGS := -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Wshadow -Wstrict-prototypes \
	-Wmissing-prototypes -fvisibility=hidden -fPIC -pthread $(CFLAGS)
ALL_LDFLAGS := -pthread $(LDFLAGS)
LIBS := -luring -lxxhash -lz -ldeflate -lsqlite3 -ljansson -lroaring
# The command's, beyond the library's.
TOOL_LIBS := -lgnutls -lsystemd -lnbd

ifdef SAN
ALL_CFLAGS += -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
ALL_LDFLAGS += -fsanitize=address,undefined
endif
ifdef TSAN
ALL_CFLAGS += -fsanitize=thread -Itests/tsan
ALL_LDFLAGS += -fsanitize=thread
endif
ifdef WERROR
ALL_CFLAGS += -Werror
endif

Q := @
say = @printf '  %-7s %s\n' $(1) $(2)
ifdef V
Q :=
say = @:
endif

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SECONDEXPANSION:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules --no-print-directory

# ---- who may include what -------------------------------------------------------------------------
# A view is a directory of links, one for each folder or single header that its sources may include.

VIEW_format := format
VIEW_engine := engine format
VIEW_engine/io := engine/io format
VIEW_engine/catalog := engine/catalog engine/io format
VIEW_engine/layer := engine/layer engine/io format
VIEW_engine/disk := engine/disk engine/layer engine/io format
VIEW_engine/image := engine/image engine/disk engine/layer engine/io format
VIEW_fsck := fsck format engine/io/io.h engine/catalog/catalog.h
VIEW_api := api engine fsck format
VIEW_serve := serve api
VIEW_cli := cli bench api serve/serve.h
VIEW_bench := bench api
VIEW_examples := examples api
VIEW_tests := tests api
VIEW_all := format engine fsck api serve cli bench tests
VIEWS := format engine engine/io engine/catalog engine/layer engine/disk engine/image fsck api serve cli bench examples tests all

# Tests that may look inside; all others see the public header only.
INSIDERS := tests/unit tests/sim tests/fault tests/fuzz tests/crash

dirname = $(patsubst %/,%,$(dir $(1)))
folder = $(firstword $(subst /, ,$(1)))
view = $(B)/inc/$(if $(filter $(INSIDERS),$(dirname)),all,$(or $(filter $(dirname),$(VIEWS)),$(folder)))

# ---- sources --------------------------------------------------------------------------------------

sources = $(sort $(wildcard $(addsuffix /*.c,$(1)) $(addsuffix /*/*.c,$(1))))
objects = $(patsubst %.c,$(B)/obj/%.o,$(1))
paren := (
with_main = $(if $(1),$(shell grep -l '^int main$(paren)' $(1)))
# In tests/ a file with a test or a main is a program; the other files of its folder are its helpers.
with_tests = $(if $(1),$(shell grep -l -e '^\(Parameterized\)\?Test$(paren)' -e '^int main$(paren)' $(1)))

LIB_FOLDERS := format engine fsck api
LIB_SRCS := $(call sources,$(LIB_FOLDERS))
TOOL_SRCS := $(call sources,cli bench serve)
MAIN_SRCS := $(call with_main,$(TOOL_SRCS))
PROGRAMS := $(patsubst %.c,$(B)/%,$(filter-out cli/%,$(MAIN_SRCS)))
EXAMPLE_SRCS := $(call sources,$(wildcard examples/*))
# What runs inside the VMs of examples/demo-vm is linked for itself; no sanitizer lives in there.
GUEST := $(B)/examples/demo-vm/guest
EXAMPLES := $(filter-out $(GUEST),$(patsubst %.c,$(B)/%,$(call with_main,$(EXAMPLE_SRCS))))

TEST_FOLDERS := $(filter-out %/fuzz %/lib %/mutants %/static %/tsan,$(patsubst %/,%,$(sort $(wildcard tests/*/))))
TEST_SRCS := $(call sources,$(TEST_FOLDERS))
TEST_LIB_SRCS := $(call sources,tests/lib)
TEST_MAINS := $(call with_tests,$(TEST_SRCS))
TESTS := $(patsubst tests/%.c,%,$(TEST_MAINS))
TEST_SCRIPTS := $(patsubst tests/%,%,$(sort $(wildcard $(addsuffix /*.sh,$(TEST_FOLDERS)))))
FUZZ_SRCS := $(call sources,tests/fuzz)
FUZZERS := $(patsubst %.c,$(B)/%,$(if $(FUZZ_SRCS),$(shell grep -l LLVMFuzzerTestOneInput $(FUZZ_SRCS))))
ALL_SRCS := $(LIB_SRCS) $(TOOL_SRCS) $(EXAMPLE_SRCS) $(TEST_LIB_SRCS) $(TEST_SRCS) $(FUZZ_SRCS) $(sort $(wildcard tests/tsan/*.c))
HEADERS := $(sort $(wildcard $(addsuffix /*.h,$(LIB_FOLDERS) engine/* serve/* cli bench serve tests tests/* tests/tsan/criterion examples/*)))

# ---- what is built --------------------------------------------------------------------------------

.PHONY: all examples objects FORCE
all: $(B)/vmimg $(B)/libvmimg.a $(B)/libvmimg.so $(B)/vmimg.pc $(PROGRAMS)
examples: $(EXAMPLES) $(GUEST)
objects: $(call objects,$(filter-out $(FUZZ_SRCS),$(ALL_SRCS)))
FORCE:

# Rewritten only when it changes, so that other flags rebuild everything.
$(B)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS)' | cmp -s - $@ || \
		echo '$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS)' >$@

$(B)/inc/views: Makefile
	@rm -rf $(@D) && mkdir -p $(@D)
	@$(foreach v,$(VIEWS),$(foreach h,$(VIEW_$(v)),\
		mkdir -p $(@D)/$(v)/$(patsubst ./,,$(dir $(h))) && \
		ln -sfn $(CURDIR)/$(h) $(@D)/$(v)/$(h) && )) touch $@

$(B)/obj/%.o: %.c $(B)/flags $(B)/inc/views
	@mkdir -p $(@D)
	$(call say,CC,$<)
	$(Q)$(CC) $(ALL_CFLAGS) -I$(call view,$<) -MMD -MP -c -o $@ $<

# One archive a folder: a test is linked with the folders it may use and no others.
$(foreach f,$(LIB_FOLDERS),$(eval $(B)/$(f).a: $(call objects,$(call sources,$(f)))))
$(B)/tools.a: $(call objects,$(filter-out $(MAIN_SRCS),$(TOOL_SRCS)))
$(B)/tests.a: $(call objects,$(TEST_LIB_SRCS))
$(B)/libvmimg.a: $(call objects,$(LIB_SRCS))
ARCHIVES := $(LIB_FOLDERS:%=$(B)/%.a) $(B)/tools.a $(B)/tests.a $(B)/libvmimg.a
$(ARCHIVES): $(B)/flags
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $(filter %.o,$^)

# What every program built with TSAN=1 has besides.
RING := $(if $(TSAN),$(B)/obj/tests/tsan/ring.o)
link = $(CC) $(ALL_LDFLAGS) -o $@ $(filter %.o,$^) -Wl,--start-group $(filter %.a,$^) -Wl,--end-group

$(B)/libvmimg.so.$(SOVERSION): $(call objects,$(LIB_SRCS)) api/libvmimg.map $(B)/flags
	$(call say,LD,$@)
	$(Q)$(CC) -shared $(ALL_LDFLAGS) -Wl,-soname,$(@F) -Wl,--version-script=api/libvmimg.map \
		$(if $(SAN)$(TSAN),,-Wl,-z,defs) -o $@ $(filter %.o,$^) $(LIBS)

$(B)/libvmimg.so: $(B)/libvmimg.so.$(SOVERSION)
	@ln -sfn $(<F) $@

$(B)/vmimg: $(call objects,$(filter cli/%,$(MAIN_SRCS))) $(B)/tools.a $(B)/libvmimg.a $(RING)
	$(call say,LD,$@)
	$(Q)$(link) $(TOOL_LIBS) $(LIBS)

$(PROGRAMS): $(B)/%: $(B)/obj/%.o $(B)/tools.a $(B)/libvmimg.a $(RING)
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(link) $(TOOL_LIBS) $(LIBS)

helpers = $(call objects,$(filter-out $(call with_main,$(EXAMPLE_SRCS)),$(call sources,$(patsubst %/,%,$(1)))))
$(EXAMPLES): $(B)/%: $(B)/obj/%.o $$(call helpers,$$(dir $$*)) $(B)/libvmimg.a
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(link) $(LIBS)

$(GUEST): $(GUEST:$(B)/%=%.c) examples/demo-vm/record.c examples/demo-vm/record.h $(B)/flags $(B)/inc/views
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(CC) -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -O2 -static -I$(B)/inc/examples -o $@ $(filter %.c,$^)

$(B)/vmimg.pc: vmimg.pc.in FORCE
	@mkdir -p $(@D)
	$(Q)sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@VERSION@|$(VERSION)|' $< >$@

# ---- tests ----------------------------------------------------------------------------------------

# unit/<folder>_<topic> is linked with <folder> and what lies below it; the others with everything.
archives_format := format
archives_engine := engine format
archives_fsck := fsck engine format
archives_api := $(LIB_FOLDERS)
archives_serve := $(LIB_FOLDERS) tools
archives = $(patsubst %,$(B)/%.a,$(if $(TEST_LIB_SRCS),tests) $(or \
	$(if $(filter unit/%,$(1)),$(archives_$(firstword $(subst _, ,$(patsubst unit/%,%,$(1)))))),\
	$(LIB_FOLDERS) tools))
test_helpers = $(call objects,$(filter-out $(TEST_MAINS),$(filter $(dir tests/$(1))%,$(TEST_SRCS))))

# Criterion and the thread sanitizer exclude each other: tests/tsan stands in (its header says how).
CRITERION := $(if $(TSAN),$(B)/obj/tests/tsan/main.o)

$(TESTS:%=$(B)/tests/%): $(B)/tests/%: $(B)/obj/tests/%.o $$(call test_helpers,$$*) $$(call archives,$$*) \
		$(CRITERION) $(RING)
	@mkdir -p $(@D)
	$(call say,LD,$@)
	$(Q)$(link) $(if $(TSAN),-lm,-lcriterion) $(TOOL_LIBS) $(LIBS)

# Seconds that a program which can run for any length of time may spend: folder or program, in `make
# test`, in `make soak`. The program reads VMIMG_TEST_SECONDS; the runner kills it at twice that and
# five minutes more.
BUDGETS := \
	unit:20:60 \
	api:30:300 \
	cli:60:300 \
	interop:60:300 \
	serve:60:300 \
	stress:60:3600 \
	fault:60:1800 \
	guest:50:600 \
	sim:30:3600 \
	sim/life:30:10800 \
	sim/life_loss:30:7200 \
	crash:90:3600

T ?=
# The journal's test leaves an atomic access by a signal, under the sanitizer with its lock held.
SELECTED := $(filter-out $(if $(TSAN),unit/engine_journal),$(filter $(T)%,$(TESTS)))
SELECTED_SCRIPTS := $(filter $(T)%,$(TEST_SCRIPTS))
run_tests = VMIMG='$(abspath $(B))/vmimg' VMIMG_BUILD='$(abspath $(B))' BUDGETS='$(BUDGETS)' \
	TSAN='$(TSAN)' TSAN_OPTIONS='suppressions=$(CURDIR)/tests/tsan/suppressions' bash tests/run $(1) $(B) $(SELECTED) $(SELECTED_SCRIPTS)
submake = +$(Q)$(MAKE) $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(JOBS))

.PHONY: test soak test-san test-tsan tests run-tests run-soak
tests: $(SELECTED:%=$(B)/tests/%) $(if $(filter-out unit/%,$(SELECTED) $(SELECTED_SCRIPTS)),all examples)
run-tests: tests
	$(Q)$(call run_tests,test)
run-soak: tests
	$(Q)$(call run_tests,soak)
test: deps
	$(submake) tests
	$(Q)$(call run_tests,test)
soak: deps
	$(submake) tests
	$(Q)$(call run_tests,soak)
test-san: deps
	$(submake) B=$(B)/san SAN=1 tests
	$(Q)$(MAKE) B=$(B)/san SAN=1 run-tests
test-tsan: deps
	$(submake) B=$(B)/tsan TSAN=1 tests
	$(Q)$(MAKE) B=$(B)/tsan TSAN=1 run-tests

# One unit test with what it needs, built and run: make unit-format_layer
unit-%: FORCE
	$(submake) T=unit/$* run-tests

# ---- checks beyond the tests ----------------------------------------------------------------------

.PHONY: mutants fuzz check-static format bench bench-nbd demo demo-vm
mutants: deps
	$(Q)bash tests/mutants/run $(M)

FUZZ_SECONDS ?= 60
FUZZ_CFLAGS = -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined
SERVE_SRCS := $(filter serve/%,$(TOOL_SRCS))
$(FUZZERS): $(B)/%: %.c $(LIB_SRCS) $(SERVE_SRCS) $(HEADERS) $(B)/inc/views
	@mkdir -p $(@D)
	$(call say,FUZZ,$@)
	$(Q)$(CLANG) $(filter-out -fvisibility=hidden,$(ALL_CFLAGS)) $(FUZZ_CFLAGS) -I$(B)/inc/all \
		-o $@ $< $(filter-out $<,$(filter $(LIB_SRCS) $(SERVE_SRCS),$^)) $(TOOL_LIBS) $(LIBS)
fuzz: deps-static
	$(submake) $(FUZZERS)
	$(Q)set -e; for f in $(FUZZERS); do \
		echo "== $$f"; mkdir -p $$f.corpus; \
		seeds=tests/fuzz/corpus/$$(basename $$f); [ -d $$seeds ] || seeds=; \
		$$f -max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 -artifact_prefix=$$f- \
			$$f.corpus $$seeds 2>$$f.log || { tail -n 40 $$f.log; exit 1; }; \
		tail -n 7 $$f.log; done

# Formatting, warnings as errors with both compilers, clang-tidy, and the house's own rules: all of
# them, also after one has failed.
STATIC := static-format static-gcc static-clang tidy static-house
.PHONY: $(STATIC)
check-static: deps-static
	$(submake) -k $(STATIC)
	@echo "static checks passed"
static-format:
	$(Q)clang-format --dry-run -Werror $(ALL_SRCS) $(HEADERS)
static-gcc:
	$(Q)$(MAKE) -k B=$(B)/static-gcc CC=gcc WERROR=1 objects
static-clang:
	$(Q)$(MAKE) -k B=$(B)/static-clang CC=$(CLANG) WERROR=1 objects
static-house: all
	$(Q)bash tests/static/check $(B)

TIDY_SRCS := $(LIB_SRCS) $(TOOL_SRCS) $(EXAMPLE_SRCS)
tidy: $(TIDY_SRCS:%.c=$(B)/tidy/%)
$(B)/tidy/%: %.c $(HEADERS) .clang-tidy $(B)/inc/views
	@mkdir -p $(@D)
	$(call say,TIDY,$<)
	$(Q)clang-tidy --quiet $< -- $(ALL_CFLAGS) -I$(call view,$<) 2>$@.log || { cat $@.log >&2; exit 1; }
	@touch $@

format:
	$(Q)clang-format -i $(ALL_SRCS) $(HEADERS)

run_bench = VMIMG='$(abspath $(B))/vmimg' VMIMG_BUILD='$(abspath $(B))' bash bench/run
bench: deps-bench
	$(submake) all examples
	$(Q)$(run_bench)
bench-nbd: deps-bench
	$(submake) all examples
	$(Q)$(run_bench) nbd

demo: deps
	$(submake) all examples
	$(Q)VMIMG='$(abspath $(B))/vmimg' VMIMG_BUILD='$(abspath $(B))' bash examples/demo/demo.sh

# Real guests on served disks (examples/demo-vm/README.md).
demo-vm: deps
	$(submake) all examples
	$(Q)VMIMG='$(abspath $(B))/vmimg' VMIMG_BUILD='$(abspath $(B))' bash examples/demo-vm/demo-vm.sh

# ---- packages, install, clean ---------------------------------------------------------------------

DEPS := gcc libc6-dev liburing-dev libxxhash-dev zlib1g-dev libdeflate-dev libsqlite3-dev libjansson-dev libroaring-dev \
	libgnutls28-dev libsystemd-dev libnbd-dev systemd python3 \
	libcriterion-dev pkg-config util-linux qemu-utils qemu-system-common e2fsprogs xfsprogs fuse2fs fuse3 \
	libnbd-bin python3-libnbd fio gnutls-bin qemu-system-x86 cpio kmod
DEPS_STATIC := $(DEPS) clang clang-tidy clang-format
DEPS_BENCH := $(DEPS) nbdkit
install_missing = $(Q)bash .ci/deps $(1)

.PHONY: deps deps-static deps-bench install clean
deps:
	$(call install_missing,$(DEPS))
deps-static:
	$(call install_missing,$(DEPS_STATIC))
deps-bench:
	$(call install_missing,$(DEPS_BENCH))

MAN_PAGES := $(sort $(wildcard cli/*.1))
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/lib/pkgconfig
	install -m 755 $(B)/vmimg $(DESTDIR)$(PREFIX)/bin/
	install -m 644 api/vmimg.h $(DESTDIR)$(PREFIX)/include/
	install -m 644 $(B)/libvmimg.a $(DESTDIR)$(PREFIX)/lib/
	install -m 755 $(B)/libvmimg.so.$(SOVERSION) $(DESTDIR)$(PREFIX)/lib/
	ln -sfn libvmimg.so.$(SOVERSION) $(DESTDIR)$(PREFIX)/lib/libvmimg.so
	install -m 644 $(B)/vmimg.pc $(DESTDIR)$(PREFIX)/lib/pkgconfig/
	$(if $(MAN_PAGES),install -d $(DESTDIR)$(PREFIX)/share/man/man1)
	$(if $(MAN_PAGES),install -m 644 $(MAN_PAGES) $(DESTDIR)$(PREFIX)/share/man/man1/)
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/lib/sysusers.d
	for unit in packaging/systemd/*@*; do \
		sed 's|/usr/local|$(PREFIX)|' $$unit >$(DESTDIR)$(PREFIX)/lib/systemd/system/$${unit##*/}; done
	install -m 644 packaging/systemd/vmimg.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/

clean:
	rm -rf $(B)

-include $(patsubst %.o,%.d,$(call objects,$(ALL_SRCS)))
