/* SPDX-License-Identifier: MIT */
/*
 * engine_model.c - random requests on two disks against what they must read as, in memory: all kinds, all
 * alignments, many in flight, snapshots in the midst of them, rolls, detach and attach, the store closed
 * and opened, the process gone. What was submitted to a disk's own queue is applied in that order (RL-2),
 * so that a snapshot is the state after some prefix of all that was submitted - the same prefix on all
 * disks (P1).
 *
 * VMIMG_SEED takes back the seed that a failure prints; VMIMG_TEST_SECONDS: a quarter of it is spent.
 */
#include <time.h>

#include "tests/unit/engine_store.h"

#define MODEL_DISKS 2u
#define SNAPS       12u
#define HISTORY     64u /* requests while one snapshot is being made */

struct change {
	unsigned disk;
	uint64_t n, offset, length; /* n 0: zeros */
};

struct snap {
	char name[16];
	uint8_t *content[MODEL_DISKS];
};

static uint64_t seed, rng, next_n;
static uint64_t size[MODEL_DISKS];
static uint8_t *model[MODEL_DISKS], *scratch;
static struct snap snaps[SNAPS];
static unsigned snap_count;
static struct change history[HISTORY];
static unsigned history_count;

static uint64_t rnd(uint64_t below)
{
	rng = rng * 6364136223846793005ull + 1442695040888963407ull;
	return (rng >> 20) % below;
}

static void where(unsigned d, uint64_t *offset, uint64_t *length)
{
	uint64_t unit = rnd(3) ? 512 : rnd(2) ? 4096 : 1;

	*length = rnd(16) ? rnd(20) * unit + unit : rnd(size[d] / 4) / unit * unit + unit;
	*offset = rnd(size[d]) / unit * unit;
	if (rnd(20) == 0)
		*offset = size[d] - (*length < size[d] ? *length : size[d]);
	if (*length > size[d] - *offset)
		*length = size[d] - *offset;
}

static void apply(uint8_t *const content[MODEL_DISKS], const struct change *c)
{
	fill(content[c->disk] + c->offset, c->n, c->offset, c->length);
}

/* One request; the model is changed at once: those of one disk take effect in this order. */
static struct ask *submit_one(void)
{
	struct change c = {.disk = (unsigned)rnd(MODEL_DISKS)};
	unsigned k = (unsigned)rnd(100);
	uint8_t flags = rnd(12) ? 0 : ENG_REQ_FUA;

	where(c.disk, &c.offset, &c.length);
	if (k >= 90)
		return ask_flush(c.disk);
	if (k < 75)
		c.n = ++next_n;
	apply(model, &c);
	if (history_count < HISTORY)
		history[history_count++] = c;
	return ask(c.disk % 2, c.disk,
		   c.n     ? ENG_WRITE
		   : k % 2 ? ENG_DISCARD
			   : ENG_WRITE_ZEROES,
		   flags, c.n, c.offset, c.length);
}

static void burst(unsigned most)
{
	struct ask *asks[16];
	unsigned n = 1 + (unsigned)rnd(most < 16 ? most : 16);

	for (unsigned i = 0; i < n; i++)
		asks[i] = submit_one();
	for (unsigned i = 0; i < n; i++)
		cr_assert_eq(ask_end(asks[i]), 0, "VMIMG_SEED=%lu", seed);
}

static void compare(struct eng_disk *which, const uint8_t *want, uint64_t offset, uint64_t length)
{
	cr_assert_eq(read_into(which, scratch, offset, length), 0, "VMIMG_SEED=%lu", seed);
	for (uint64_t i = 0; memcmp(scratch, want + offset, length) && i < length; i++)
		cr_assert_eq(scratch[i], want[offset + i], "VMIMG_SEED=%lu: byte %lu", seed,
			     offset + i);
}

static void compare_some(void)
{
	unsigned d = (unsigned)rnd(MODEL_DISKS);
	uint64_t offset, length;

	where(d, &offset, &length);
	compare(disk[d], model[d], offset, length);
}

static void compare_all(void)
{
	for (unsigned d = 0; d < MODEL_DISKS; d++)
		compare(disk[d], model[d], 0, size[d]);
}

static void read_view(const struct snap *s, unsigned d, uint8_t *content)
{
	struct eng_disk *view;
	char path[48];

	snprintf(path, sizeof(path), "c@%s/a/d%u", s->name, d);
	must(eng_store_attach(store, queue[0], path, ENG_ATTACH_READ_ONLY, &err, &view) == 0);
	cr_assert_eq(read_into(view, content, 0, size[d]), 0, "VMIMG_SEED=%lu", seed);
	must(eng_store_detach(view) == 0);
}

static bool same(uint8_t *const a[MODEL_DISKS], uint8_t *const b[MODEL_DISKS])
{
	for (unsigned d = 0; d < MODEL_DISKS; d++)
		if (memcmp(a[d], b[d], size[d]))
			return false;
	return true;
}

/* What a snapshot holds is @before after some number of the requests. */
static void check_prefix(struct snap *s, uint8_t *const before[MODEL_DISKS])
{
	bool found;

	for (unsigned d = 0; d < MODEL_DISKS; d++)
		read_view(s, d, s->content[d]);
	found = same(before, s->content);
	for (unsigned i = 0; !found && i < history_count; i++) {
		apply(before, &history[i]);
		found = same(before, s->content);
	}
	cr_assert(found, "VMIMG_SEED=%lu: %s is no state that the disks were in", seed, s->name);
}

/* A snapshot among requests in flight; it is one of the states that they went through (P1). */
static void take_snapshot(void)
{
	struct snap *s = &snaps[snap_count++];
	uint8_t *before[MODEL_DISKS];
	struct shot shot;

	for (unsigned d = 0; d < MODEL_DISKS; d++) {
		before[d] = malloc(size[d]);
		s->content[d] = malloc(size[d]);
		memcpy(before[d], model[d], size[d]);
	}
	snprintf(s->name, sizeof(s->name), "s%u", snap_count);
	history_count = 0;
	shot_start(&shot, s->name, -1);
	while (!atomic_load(&shot.done)) {
		if (history_count + 16 <= HISTORY)
			burst(16);
		else
			turn_all();
	}
	if (shot_end(&shot) == -ECANCELED && (options.map_bound || options.log_bound)) {
		snap_count--; /* RO-3: a disk at its bound went first */
		for (unsigned d = 0; d < MODEL_DISKS; d++)
			free(s->content[d]);
	} else {
		cr_assert_eq(shot.result, 0, "VMIMG_SEED=%lu: %s", seed, shot.why.text);
		check_prefix(s, before);
	}
	for (unsigned d = 0; d < MODEL_DISKS; d++)
		free(before[d]);
}

static void check_snapshots(void)
{
	for (unsigned i = 0; i < snap_count; i++)
		for (unsigned d = 0; d < MODEL_DISKS; d++) {
			read_view(&snaps[i], d, scratch);
			cr_assert_eq(memcmp(scratch, snaps[i].content[d], size[d]), 0,
				     "VMIMG_SEED=%lu: %s of disk %u changed", seed, snaps[i].name,
				     d);
		}
}

static void reattach(unsigned d)
{
	detach(d);
	attach(d, d % 2);
}

static void reopen(void)
{
	for (unsigned d = 0; d < MODEL_DISKS; d++)
		detach(d);
	close_store();
	open_store();
	for (unsigned d = 0; d < MODEL_DISKS; d++)
		attach(d, d % 2);
}

static void start_load(void)
{
	static const uint64_t bounds[] = {0, 150, 400, 3000};
	uint32_t bits;

	rng = seed;
	bits = 12 + (uint32_t)rnd(5);
	snap_count = 0;
	begin_in(rnd(2) ? "/dev/shm" : NULL);
	options.buffered = rnd(2);
	options.standby = rnd(2);
	options.map_bound = bounds[rnd(4)];
	options.log_bound = rnd(2) ? 0 : 600 << 10;
	open_store();
	make_collection("c", "a");
	for (unsigned d = 0; d < MODEL_DISKS; d++) {
		size[d] = ((1 + rnd(3)) << 20) + rnd(9) * 512;
		make_disk(d, size[d], bits);
		model[d] = calloc(1, size[d]);
		attach(d, d % 2);
	}
	scratch = aligned(8 << 20);
}

static void run_load(unsigned steps)
{
	for (unsigned i = 0; i < steps; i++) {
		unsigned k = (unsigned)rnd(200);

		if (k < 120)
			burst(16);
		else if (k < 190)
			compare_some();
		else if (k < 194)
			reattach((unsigned)rnd(MODEL_DISKS));
		else if (k < 196)
			reopen();
		else if (snap_count < SNAPS)
			take_snapshot();
	}
	compare_all();
	check_snapshots();
	reopen();
	compare_all();
	check_snapshots();
}

static void end_load(void)
{
	for (unsigned d = 0; d < MODEL_DISKS; d++) {
		detach(d);
		free(model[d]);
	}
	for (unsigned i = 0; i < snap_count; i++)
		for (unsigned d = 0; d < MODEL_DISKS; d++)
			free(snaps[i].content[d]);
	free(scratch);
	close_store();
	finish();
}

/* P1, P4, P6 */
Test(engine_model, disks_and_snapshots_read_as_the_model_says, .timeout = 7200)
{
	const char *seconds = getenv("VMIMG_TEST_SECONDS"), *given = getenv("VMIMG_SEED");
	time_t end = time(NULL) + (seconds ? atoi(seconds) / 4 : 5);
	unsigned loads = 0;

	do {
		seed = given ? strtoul(given, NULL, 0)
			     : (uint64_t)time(NULL) * 1000 + (uint64_t)getpid() + loads;
		start_load();
		run_load(250);
		end_load();
		loads++;
	} while (time(NULL) < end && !given);
	fprintf(stderr, "engine_model: %u loads, the last one VMIMG_SEED=%lu\n", loads, seed);
}
