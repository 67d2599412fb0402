/* SPDX-License-Identifier: MIT */
/*
 * engine_extents.c - block status against a model: random writes, zeroes, discards, cuts, seals,
 * attachments; any range, any number of extents (BQ-17 to BQ-21). VMIMG_SEED takes a seed back.
 */
#include <time.h>

#include "tests/unit/engine_store.h"

TestSuite(engine_extents, .timeout = 300);

#define BLOCKS_MAX (20u * 4096u) /* 20 regions */

struct status {
	uint8_t state;
	uint32_t layer;
};

static uint64_t seed, rng, size;
static uint32_t bits;
static struct status model[BLOCKS_MAX];
static struct eng_disk_extent got[BLOCKS_MAX];

static uint64_t rnd(uint64_t below)
{
	rng = rng * 6364136223846793005ull + 1442695040888963407ull;
	return (rng >> 20) % below;
}

static int extents(struct eng_disk *which, uint64_t offset, uint64_t length, uint32_t cap)
{
	struct ask *a = calloc(1, sizeof(*a));
	struct eng_request rq = {.disk = which,
				 .op = ENG_EXTENTS,
				 .iovcnt = 1,
				 .offset = offset,
				 .length = length,
				 .user_data = (uintptr_t)a};

	must(a != NULL);
	a->iov = (struct iovec){got, cap * sizeof(*got)};
	rq.iov = &a->iov;
	must(eng_queue_submit(which->queue, &rq, 1) == 1);
	return ask_end(a);
}

static struct status status_at(uint64_t offset)
{
	return model[offset >> bits];
}

/* The extents of the range are the model's, as far as they go. */
static uint64_t check_range(struct eng_disk *which, uint64_t offset, uint64_t length, uint32_t cap)
{
	int n = extents(which, offset, length, cap);
	uint64_t at = offset;

	cr_assert(n >= 1 && n <= (int)cap, "VMIMG_SEED=%lu: %d extents of %u", seed, n, cap);
	for (int i = 0; i < n; i++) {
		const struct eng_disk_extent *e = &got[i];

		cr_assert(e->length > 0 && e->length <= offset + length - at, "VMIMG_SEED=%lu",
			  seed);
		cr_assert(i == 0 || e->state != e[-1].state || e->layer != e[-1].layer,
			  "VMIMG_SEED=%lu: two of a kind at %lu", seed, at);
		for (uint64_t b = at; b < at + e->length; b = ((b >> bits) + 1) << bits)
			cr_assert(status_at(b).state == e->state && status_at(b).layer == e->layer,
				  "VMIMG_SEED=%lu: block %lu is %u of %u, expected %u of %u", seed,
				  b >> bits, e->state, e->layer, status_at(b).state,
				  status_at(b).layer);
		at += e->length;
	}
	return at;
}

static void check_all(struct eng_disk *which)
{
	for (uint64_t at = 0; at < size;)
		at = check_range(which, at, size - at, BLOCKS_MAX);
}

static void check_some(struct eng_disk *which)
{
	uint64_t offset = rnd(2) ? rnd(size) : rnd(size >> bits) << bits;
	uint64_t length = rnd(2) ? 1 + rnd(size - offset) : 1 + rnd(1 << 20);

	length = length < size - offset ? length : size - offset;
	check_range(which, offset, length, rnd(2) ? 1 + (uint32_t)rnd(4) : 1 + (uint32_t)rnd(999));
}

/* What one request leaves in @layer, which is the head. */
static void note(uint8_t op, uint64_t offset, uint64_t length, uint32_t layer)
{
	uint64_t bs = 1ull << bits, end = offset + length;

	for (uint64_t at = offset / bs * bs; at < end; at += bs) {
		bool whole = at >= offset && (at + bs <= end || end == size);
		struct status *s = &model[at >> bits];

		if (op == ENG_WRITE || (!whole && layer))
			*s = (struct status){ENG_EXTENT_DATA, layer};
		else if (whole) /* a raw head's file has a hole there */
			*s = (struct status){layer ? ENG_EXTENT_ZERO : ENG_EXTENT_HOLE, layer};
	}
}

static void change(uint32_t layer)
{
	static const uint8_t ops[] = {ENG_WRITE, ENG_WRITE, ENG_WRITE, ENG_WRITE_ZEROES,
				      ENG_DISCARD};
	uint8_t op = ops[rnd(5)];
	/* A raw file's holes are its file system's blocks. */
	uint64_t unit = layer && rnd(2) ? 512 : 1ull << bits;
	uint64_t offset = rnd(size) / unit * unit, length = (1 + rnd(40)) * unit;

	if (rnd(10) == 0)
		offset = rnd(size >> 24) << 24; /* to the region's start */
	if (op != ENG_WRITE && rnd(8) == 0)
		length = (1 + rnd(2 << 24)) / unit * unit + unit;
	length = length < size - offset ? length : size - offset;
	must(do_op(0, op, 0, offset, length) == 0);
	note(op, offset, length, layer);
}

static void sealed(void)
{
	struct cat_disk row;
	struct cat_layer *layers;
	size_t n, open;

	must(eng_catalog_get_disk(store->catalog, "a", "d0", &row) == 0);
	do {
		must(eng_catalog_list_layers(store->catalog, &row.id, &layers, &n) == 0);
		open = 0;
		for (size_t i = 0; i < n; i++)
			open += layers[i].kind == FMT_KIND_OVERLAY &&
				layers[i].state == CAT_LAYER_HARDENED;
		free(layers);
		turn_all();
	} while (open);
}

static void run_load(void)
{
	struct status cut[BLOCKS_MAX];
	struct eng_disk *view;
	uint32_t layer = 0, frozen = 0;

	for (unsigned i = 0; i < 600; i++) {
		unsigned k = (unsigned)rnd(100);

		if (k < 60) {
			change(layer);
		} else if (k < 94) {
			check_some(disk[0]);
		} else if (k < 97 && layer < 9) {
			char name[8];

			snprintf(name, sizeof(name), "s%u", layer);
			must(snapshot(name) == 0);
			frozen = layer++;
			memcpy(cut, model, sizeof(cut));
		} else {
			if (rnd(2))
				sealed();
			detach(0);
			attach(0, 0);
		}
	}
	check_all(disk[0]);
	if (layer) { /* a view's extents are those of the cut */
		char path[32];

		snprintf(path, sizeof(path), "c@s%u/a/d0", frozen);
		memcpy(model, cut, sizeof(cut));
		must(eng_store_attach(store, queue[0], path, ENG_ATTACH_READ_ONLY, &err, &view) ==
		     0);
		check_all(view);
		must(eng_store_detach(view) == 0);
	}
}

/* BQ-17, BQ-18, BQ-20 */
Test(engine_extents, extents_are_what_the_model_says)
{
	const char *seconds = getenv("VMIMG_TEST_SECONDS"), *given = getenv("VMIMG_SEED");
	time_t end = time(NULL) + (seconds ? atoi(seconds) / 8 : 3);

	do {
		seed = given ? strtoul(given, NULL, 0)
			     : (uint64_t)time(NULL) * 1000 + (uint64_t)getpid() + rng % 1000;
		rng = seed;
		bits = 12 + (rnd(2) ? 0 : (uint32_t)rnd(4));
		size = ((uint64_t)(17 + rnd(3)) << (12 + bits)) + rnd(9) * 512;
		begin_in("/dev/shm");
		options.map_memory = rnd(2) ? 0 : 1; /* forgets what it may */
		options.seal_rate = 4ull << 30;
		open_store();
		make_collection("c", "a");
		make_disk(0, size, bits);
		for (uint32_t i = 0; i < BLOCKS_MAX; i++)
			model[i] = (struct status){ENG_EXTENT_HOLE, 0};
		attach(0, 0);
		run_load();
		detach(0);
		close_store();
		finish();
	} while (time(NULL) < end && !given);
}

/* BQ-17 */
Test(engine_extents, malformed_ones_are_refused)
{
	struct iovec iov = {got, sizeof(got)};
	struct eng_request rq = {.op = ENG_EXTENTS, .iovcnt = 1, .iov = &iov, .length = 4096};

	begin(1, 1 << 20);
	attach(0, 0);
	rq.disk = disk[0];
	rq.length = 0;
	cr_expect_eq(eng_queue_take(queue[0], &rq, 1), -EINVAL, "an empty range");
	rq.length = 4096;
	rq.iovcnt = 2;
	cr_expect_eq(eng_queue_take(queue[0], &rq, 1), -EINVAL, "two arrays");
	rq.iovcnt = 1;
	rq.iov = NULL;
	cr_expect_eq(eng_queue_take(queue[0], &rq, 1), -EINVAL, "no array");
	rq.iov = &iov;
	iov.iov_len = sizeof(*got) - 1;
	cr_expect_eq(eng_queue_take(queue[0], &rq, 1), -EINVAL, "no room for one");
	iov = (struct iovec){(char *)got + 1, sizeof(*got)};
	cr_expect_eq(eng_queue_take(queue[0], &rq, 1), -EINVAL, "not aligned");
	cr_expect_eq(extents(disk[0], 0, (1 << 20) + 1, 1), -EINVAL, "past the end");
	cr_expect_eq(extents(disk[0], 1 << 20, 1, 1), -EINVAL, "behind the end");
	cr_expect_eq(extents(disk[0], UINT64_MAX - 10, 100, 1), -EINVAL, "wraps");
	cr_expect_eq(extents(disk[0], (1 << 20) - 1, 1, 1), 1);
	cr_expect_eq(got[0].length, 1u);
	detach(0);
	close_store();
	finish();
}

static unsigned calls_for(struct eng_disk *which, uint64_t length)
{
	unsigned calls = 0;

	for (uint64_t at = 0; at < length; calls++) {
		int n = extents(which, at, length - at, 16);

		must(n >= 1);
		for (int i = 0; i < n; i++)
			at += got[i].length;
	}
	return calls;
}

/* BQ-19: what is empty costs nothing, with layers that have indexes too. */
Test(engine_extents, a_large_empty_disk_answers_in_a_few_calls)
{
	uint64_t tib = 1ull << 40, start;

	begin(1, tib);
	attach(0, 0);
	start = eng_io_now_ns(machine);
	cr_expect_eq(calls_for(disk[0], tib), 1u, "raw");
	must(snapshot("s1") == 0);
	must(do_write(0, 1, tib / 2, BLOCK) == 0);
	cr_expect_eq(calls_for(disk[0], tib), 1u, "an overlay");
	must(snapshot("s2") == 0 && do_write(0, 1, tib / 4, BLOCK) == 0 && snapshot("s3") == 0);
	sealed();
	detach(0);
	attach(0, 0);
	cr_expect_eq(calls_for(disk[0], tib), 1u, "sealed layers");
	cr_expect_eq(extents(disk[0], 0, tib, 16), 5);
	cr_expect(got[1].length == BLOCK && got[1].layer == 2 && got[1].state == ENG_EXTENT_DATA);
	cr_expect(got[3].length == BLOCK && got[3].layer == 1 && got[3].state == ENG_EXTENT_DATA);
	must(do_op(0, ENG_DISCARD, 0, 0, tib) == 0);
	cr_expect_eq(calls_for(disk[0], tib), 1u, "all discarded");
	cr_expect_eq(extents(disk[0], 0, tib, 16), 1);
	cr_expect(got[0].length == tib && got[0].layer == 3 && got[0].state == ENG_EXTENT_ZERO);
	cr_expect_lt(eng_io_now_ns(machine) - start, 20 * SECOND);
	detach(0);
	close_store();
	finish();
}

/* BQ-19: a request's work has an end, and each call brings the walk on. */
Test(engine_extents, a_scattered_base_is_told_in_pieces)
{
	unsigned calls;

	begin(1, 128 << 20);
	attach(0, 0);
	for (uint64_t at = 0; at < 128 << 20; at += 4 * BLOCK)
		must(do_write(0, 1, at, BLOCK) == 0);
	for (unsigned layers = 0; layers < 2; layers++) {
		int n = extents(disk[0], 0, 128 << 20, BLOCKS_MAX);

		cr_expect(n > 1000 && n < 4096, "%d in one request", n);
		calls = calls_for(disk[0], 128 << 20);
		cr_expect(calls >= 16384 / 16 && calls < 1200, "%u calls", calls);
		must(snapshot(layers ? "s2" : "s1") == 0);
	}
	detach(0);
	close_store();
	finish();
}

/* BQ-20 */
Test(engine_extents, a_qcow2_base_tells_zeros_from_holes)
{
	struct eng_disk_make make = {.vm = "a", .name = "d0", .format = "qcow2", .in_place = true};
	char command[400], path[120];

	if (system("command -v qemu-img >/dev/null 2>&1 && command -v qemu-io >/dev/null 2>&1"))
		cr_skip_test("no qemu-img or no qemu-io");
	begin(0, 0);
	snprintf(path, sizeof(path), "%s/q", root);
	snprintf(command, sizeof(command),
		 "exec >/dev/null; qemu-img create -f qcow2 %s 64M && qemu-io -f qcow2 "
		 "-c 'write 1M 1M' -c 'write -z 2M 1M' -c 'write 40M 64k' %s",
		 path, path);
	must(system(command) == 0);
	make.from = path;
	must(eng_store_make_disk(store, &make, &err) == 0);
	attach(0, 0);
	must(do_write(0, 1, (1 << 20) + BLOCK, BLOCK) == 0);
	cr_assert_eq(extents(disk[0], 0, 64 << 20, 16), 8);
	for (unsigned i = 0; i < 8; i++) {
		static const struct eng_disk_extent want[] = {
			{1 << 20, ENG_EXTENT_HOLE, 0},
			{BLOCK, ENG_EXTENT_DATA, 0},
			{BLOCK, ENG_EXTENT_DATA, 1},
			{(1 << 20) - 2 * BLOCK, ENG_EXTENT_DATA, 0},
			{1 << 20, ENG_EXTENT_ZERO, 0},
			{37 << 20, ENG_EXTENT_HOLE, 0},
			{64 << 10, ENG_EXTENT_DATA, 0},
			{(24 << 20) - (64 << 10), ENG_EXTENT_HOLE, 0},
		};

		cr_expect(got[i].length == want[i].length && got[i].state == want[i].state &&
				  got[i].layer == want[i].layer,
			  "extent %u: %lu bytes, %u of %u", i, got[i].length, got[i].state,
			  got[i].layer);
	}
	detach(0);
	close_store();
	finish();
}

/* BQ-21 */
Test(engine_extents, snapshots_say_which_layer_they_froze)
{
	struct eng_disk *view;
	uint32_t layer = 77;

	begin(1, 1 << 20);
	attach(0, 0);
	cr_expect_eq(eng_store_frozen_layer(disk[0], "c", "s1", &err, &layer), -ENOENT);
	must(snapshot("s1") == 0 && snapshot("s2") == 0);
	cr_expect_eq(eng_store_frozen_layer(disk[0], "c", "s1", &err, &layer), 0);
	cr_expect_eq(layer, 0u);
	cr_expect_eq(eng_store_frozen_layer(disk[0], "c", "s2", &err, &layer), 0);
	cr_expect_eq(layer, 1u);
	must(eng_store_attach(store, queue[0], "c@s1/a/d0", ENG_ATTACH_READ_ONLY, &err, &view) ==
	     0);
	cr_expect_eq(eng_store_frozen_layer(view, "c", "s1", &err, &layer), 0);
	cr_expect_eq(layer, 0u);
	layer = 77;
	cr_expect_eq(eng_store_frozen_layer(view, "c", "s2", &err, &layer), -ENOENT, "a later one");
	cr_expect_eq(layer, 77u);
	cr_expect_eq(eng_store_frozen_layer(disk[0], "other", "s2", &err, &layer), -ENOENT);
	must(eng_store_detach(view) == 0);
	detach(0);
	close_store();
	finish();
}
