/* SPDX-License-Identifier: MIT */
/*
 * engine_header.c - changes of a layer's header that a death or a failed sync cuts short, and a power loss
 * at every event of the next change (LH-8, LH-13): some header that was written is there, none that a
 * completed change replaced. Between the layer and the recorder a process may die; beneath the recorder
 * a device may fail.
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <unistd.h>

#include "engine/io/io_fault.h"
#include "engine/io/io_record.h"
#include "engine/layer/layer.h"
#include "tests/unit/engine_io_tmp.h"

#define SEEDS 200
#define UNIT  4096ull
#define FIRST                                                                                      \
	(1000 * UNIT) /* size of the disk in the first header: n more units in the n-th after it */

struct shape {
	uint32_t kind;
	bool frozen;
};

static const struct shape shapes[] = {
	{FMT_KIND_OVERLAY, false},
	{FMT_KIND_OVERLAY, true},
	{FMT_KIND_RAW, false},
	{FMT_KIND_RAW, true},
};
#define SHAPES (sizeof(shapes) / sizeof(*shapes))

static struct tmp tmp; /* has store/, which is recorded, and crash/ */
static struct eng_fault *device, *process;
static struct eng_record *rec;
static struct eng_layer *layer;
static char base[4200], sidecar[4200], overlay[4200];
static const struct shape *shape;

static void setup(void)
{
	tmp_init(&tmp, "/dev/shm");
	cr_assert_eq(eng_io_mkdir(tmp.io, tmp_path(&tmp, "store")), 0);
	snprintf(overlay, sizeof(overlay), "%s", tmp_path(&tmp, "store/l.vmo"));
	snprintf(sidecar, sizeof(sidecar), "%s", tmp_path(&tmp, "store/l.vmr"));
	snprintf(base, sizeof(base), "%s", tmp_path(&tmp, "store/l.raw"));
}

static void teardown(void)
{
	tmp_fini(&tmp);
}

TestSuite(engine_header, .init = setup, .fini = teardown, .timeout = 120);

static void edit_size(struct fmt_header *hdr, void *arg)
{
	hdr->size = FIRST + *(uint64_t *)arg * UNIT;
}

/* Header number @n. */
static int change(uint64_t n)
{
	return eng_layer_update(layer, edit_size, &n, NULL);
}

static uint64_t number(const struct eng_layer *l)
{
	return (l->hdr.size - FIRST) / UNIT;
}

static void freeze(struct fmt_header *hdr, void *arg)
{
	(void)arg;
	hdr->state = FMT_STATE_FROZEN;
	hdr->base_bytes = hdr->kind == FMT_KIND_RAW ? FIRST : 0;
}

static int open_at(struct eng_io *io, const char *dir, struct eng_layer **ret)
{
	char path[4300], data[4300];
	struct eng_layer_open how = {.path = path, .kind = shape->kind, .writable = true};
	struct fmt_error err = {{0}};
	int r;

	snprintf(path, sizeof(path), "%s/l.%s", tmp_path(&tmp, dir),
		 shape->kind == FMT_KIND_RAW ? "vmr" : "vmo");
	if (shape->kind == FMT_KIND_RAW) {
		snprintf(data, sizeof(data), "%s/l.raw", tmp_path(&tmp, dir));
		how.data_path = data;
	}
	r = eng_layer_open(io, &how, &err, ret);
	cr_expect_eq(r, 0, "%s, kind %u, frozen %d: %s", dir, shape->kind, shape->frozen, err.text);
	return r;
}

static void make_raw(void)
{
	struct eng_layer_spec spec = {.size = FIRST, .block_bits = 12};
	struct eng_file *file;
	struct fmt_header hdr;

	eng_io_random(tmp.io, &spec.layer, sizeof(spec.layer));
	eng_layer_new_header(tmp.io, &spec, 512, &hdr);
	hdr.kind = FMT_KIND_RAW;
	hdr.log0_len = hdr.log_segments = hdr.log_granule = 0;
	hdr.data_offset = 0;
	cr_assert_eq(eng_sidecar_create(tmp.io, sidecar, &hdr, NULL), 0);
	cr_assert_eq(eng_io_open(tmp.io, base, ENG_OPEN_WRITE | ENG_OPEN_CREATE, &file), 0);
	cr_assert_eq(eng_io_truncate(tmp.io, file, FIRST), 0);
	eng_io_close(tmp.io, file);
	cr_assert_eq(open_at(tmp.io, "store", &layer), 0);
}

/* The layer with header number 0, durable and open, and the recorder. */
static void make(const struct shape *s)
{
	struct eng_layer_spec spec = {.path = overlay, .size = FIRST, .block_bits = 12};

	shape = s;
	if (s->kind == FMT_KIND_RAW) {
		make_raw();
	} else {
		eng_io_random(tmp.io, &spec.layer, sizeof(spec.layer));
		cr_assert_eq(eng_layer_create(tmp.io, &spec, NULL, &layer), 0);
	}
	if (s->frozen)
		cr_assert_eq(eng_layer_update(layer, freeze, NULL, NULL), 0);
	eng_layer_put(layer);
	cr_assert_eq(eng_fault_create(tmp.io, &device), 0);
	cr_assert_eq(eng_record_create(eng_fault_io(device), tmp_path(&tmp, "store"), &rec), 0);
	cr_assert_eq(eng_fault_create(eng_record_io(rec), &process), 0);
	cr_assert_eq(open_at(eng_fault_io(process), "store", &layer), 0);
}

static void unmake(void)
{
	eng_layer_put(layer);
	layer = NULL;
	eng_fault_destroy(process);
	eng_record_destroy(rec);
	eng_fault_destroy(device);
	unlink(overlay);
	unlink(sidecar);
	unlink(base);
}

static void reopen(void)
{
	eng_layer_put(layer);
	cr_assert_eq(open_at(eng_fault_io(process), "store", &layer), 0);
}

/* Header number @n is written; its sync does not come to the device, since the process is dead. */
static void die_in_change(uint64_t n)
{
	struct eng_fault_rule death = {.ops = ENG_FAULT_FDATASYNC,
				       .path = "/l.",
				       .sticky = true,
				       .error = -EIO};
	int rule;

	cr_assert_eq(eng_layer_settle_header(layer, NULL), 0);
	rule = eng_fault_add(process, &death);
	cr_assert_eq(change(n), -EIO);
	cr_assert_eq(eng_fault_struck(process, rule), 1u);
	eng_fault_clear(process);
	reopen();
	cr_assert_eq(number(layer), n, "the successor sees it");
}

/* Power fails at every event from @from on: a header from @least to @most is there. */
static void lose_power(uint64_t from, uint64_t least, uint64_t most)
{
	uint64_t end = eng_record_index(rec);
	struct eng_layer *left;

	for (uint64_t at = from; at <= end; at++)
		for (uint64_t seed = 0; seed < SEEDS; seed++) {
			cr_assert_eq(eng_record_crash(rec, at, seed, tmp_path(&tmp, "crash")), 0);
			cr_assert_eq(open_at(tmp.io, "crash", &left), 0, "event %lu, seed %lu",
				     at - from, seed);
			cr_assert_geq(number(left), at == end ? most : least);
			cr_assert_leq(number(left), most);
			eng_layer_put(left);
			cr_assert_eq(eng_record_remove_tree(tmp_path(&tmp, "crash")), 0);
		}
}

/* A change to @to leaves what was there, or itself. */
static void expect_next(unsigned to)
{
	uint64_t from = eng_record_index(rec);

	cr_assert_eq(change(to), 0);
	lose_power(from, to - 1, to);
}

/* LH-13 */
Test(engine_header, what_a_dead_process_wrote_is_settled_before_the_next_change)
{
	for (size_t i = 0; i < SHAPES; i++) {
		uint64_t from;

		make(&shapes[i]);
		if (shapes[i].kind == FMT_KIND_RAW && shapes[i].frozen)
			cr_assert_eq(layer->hdr.state, FMT_STATE_FROZEN);
		die_in_change(1);
		from = eng_record_index(rec);
		cr_assert_eq(change(2), 0);
		lose_power(from, 0, 2);
		expect_next(3);
		unmake();
	}
}

/* LH-13: dead again and again, in each step of settling */
Test(engine_header, one_death_after_the_other)
{
	for (size_t i = 0; i < SHAPES; i++) {
		uint64_t from;

		make(&shapes[i]);
		from = eng_record_index(rec);
		die_in_change(1);
		for (unsigned deaths = 0; deaths < 3; deaths++) {
			struct eng_fault_rule death = {.ops = ENG_FAULT_FDATASYNC,
						       .path = "/l.",
						       .error = -EIO};

			eng_fault_add(process, &death);
			cr_assert_eq(change(9), -EIO, "settling it");
			eng_fault_clear(process);
			reopen();
			cr_assert_eq(number(layer), 1u, "not written over");
		}
		cr_assert_eq(change(2), 0);
		lose_power(from, 0, 2);
		unmake();
	}
}

/* LH-13, IO-5: what a failed sync should have covered is in the file, and perhaps in it alone */
Test(engine_header, after_a_failed_sync_the_header_is_written_again)
{
	static const uint32_t ops[] = {ENG_FAULT_FDATASYNC, ENG_FAULT_PWRITE};

	for (size_t i = 0; i < SHAPES * 4; i++) {
		struct eng_fault_rule failure = {.ops = ops[i / SHAPES % 2], .error = -EIO};
		bool anew = i / SHAPES / 2;
		uint64_t from;

		make(&shapes[i % SHAPES]);
		cr_assert_eq(change(1), 0);
		from = eng_record_index(rec);
		eng_fault_add(device, &failure);
		cr_assert_eq(change(2), -EIO);
		eng_fault_clear(device);
		if (anew)
			reopen();
		cr_assert_eq(change(2), 0);
		lose_power(from, 1, 2);
		expect_next(3);
		unmake();
	}
}

/* LH-13: who only relies on what it read */
Test(engine_header, a_settled_header_survives)
{
	for (size_t i = 0; i < SHAPES; i++) {
		make(&shapes[i]);
		die_in_change(1);
		cr_assert_eq(eng_layer_settle_header(layer, NULL), 0);
		lose_power(eng_record_index(rec), 1, 1);
		unmake();
	}
}

static uint64_t syncs(void)
{
	return eng_fault_count(process, ENG_FAULT_FDATASYNC);
}

/* LH-13: one sync more, once for each object */
Test(engine_header, a_header_of_ones_own_needs_no_settling)
{
	for (size_t i = 0; i < SHAPES; i++) {
		uint64_t before;

		make(&shapes[i]);
		before = syncs();
		cr_assert_eq(change(1), 0);
		cr_expect_eq(syncs(), before + 2);
		cr_assert_eq(change(2), 0);
		cr_expect_eq(syncs(), before + 3);
		cr_assert_eq(eng_layer_settle_header(layer, NULL), 0);
		cr_expect_eq(syncs(), before + 3);
		reopen();
		cr_assert_eq(eng_layer_settle_header(layer, NULL), 0);
		cr_expect_eq(syncs(), before + 4);
		cr_assert_eq(change(3), 0);
		cr_expect_eq(syncs(), before + 5);
		unmake();
	}
}

/* A frozen layer that is open twice: who comes second sees that the header is not the one it knows */
Test(engine_header, a_change_by_another_object_is_settled_too)
{
	struct eng_fault_rule death = {.ops = ENG_FAULT_FDATASYNC, .path = "/l.", .error = -EIO};
	struct eng_layer *other;
	uint64_t from;

	for (size_t i = 0; i < SHAPES; i++) {
		if (!shapes[i].frozen)
			continue;
		make(&shapes[i]);
		cr_assert_eq(open_at(eng_fault_io(process), "store", &other), 0);
		cr_assert_eq(change(1), 0);
		cr_assert_eq(eng_layer_settle_header(other, NULL), 0);
		from = eng_record_index(rec);
		eng_fault_add(process, &death);
		cr_assert_eq(change(2), -EIO);
		eng_fault_clear(process);
		eng_layer_put(layer);
		layer = other;
		cr_assert_eq(change(3), 0);
		lose_power(from, 1, 3);
		unmake();
	}
}
