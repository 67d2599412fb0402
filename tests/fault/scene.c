/* SPDX-License-Identifier: MIT */
/*
 * scene.c - see scene.h. One thread but for the store's own: requests are made one by one, so that the
 * history is simple and a fault's place in it is always the same.
 */
#include "tests/fault/scene.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/snapshot/snapshot.h"
#include "fsck/fsck.h"

int __lsan_do_recoverable_leak_check(void) __attribute__((weak));

#define DISKS  3u
#define SECOND 1000000000ull
#define SIZE   (1ull << 20)

struct scene {
	struct scene_shared *sh;
	const struct fault *fault; /* NULL: none */
	int rule;
	struct eng_io *plain, *io;
	struct eng_fault *faults;
	char dir[64], store_dir[80], shm[80];
	struct eng_store *store;
	struct eng_queue *queue;
	struct eng_disk *disk[DISKS];
	bool poisoned[DISKS];
};

static const struct {
	const char *vm, *name, *path;
	uint32_t block_bits;
} disks[DISKS] = {{"a", "d0", "a/d0", 12}, {"a", "d1", "a/d1", 16}, {"b", "d0", "b/d0", 12}};

/* What ends a case; the parent prints it. */
__attribute__((format(printf, 2, 3), noreturn)) static void fail(struct scene *s, const char *fmt,
								 ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(s->sh->why, sizeof(s->sh->why), fmt, args);
	va_end(args);
	_exit(1);
}

static bool struck(struct scene *s)
{
	return s->rule >= 0 && eng_fault_struck(s->faults, s->rule);
}

/* An error is right only after a fault, and says what it is about. */
static void check_error(struct scene *s, int r, const char *what, const char *text)
{
	if (!struck(s))
		fail(s, "%s: %d (%s) without a fault", what, r, text ? text : "");
	if (text && !text[0])
		fail(s, "%s: %d without a text", what, r);
}

/* --- requests --- */

static int request(struct scene *s, unsigned d, uint8_t op, uint8_t flags, void *buf,
		   uint64_t offset, uint64_t len)
{
	struct iovec iov = {buf, len};
	struct eng_request rq = {
		.disk = s->disk[d],
		.op = op,
		.flags = flags,
		.iovcnt = buf ? 1 : 0,
		.iov = buf ? &iov : NULL,
		.offset = offset,
		.length = len,
	};
	struct eng_completion c;
	int r = eng_queue_submit(s->queue, &rq, 1);

	if (r != 1)
		fail(s, "%s: submit: %d", disks[d].path, r);
	r = eng_queue_poll(s->queue, &c, 1, 20 * SECOND);
	if (r != 1)
		fail(s, "%s: operation %u does not end: %d", disks[d].path, op, r);
	return c.result;
}

static void put(struct scene *s, unsigned d, uint8_t code, bool fua, uint64_t offset, uint32_t len)
{
	static uint8_t buf[256 << 10];
	struct hist_op *op;
	int r;

	if (!s->disk[d])
		return;
	op = hist_add(&s->sh->history, (struct hist_op){
					       .kind = code == ENG_WRITE ? HIST_WRITE : HIST_ZERO,
					       .disk = (uint8_t)d,
					       .offset = offset,
					       .length = len,
					       .fua = fua,
				       });
	if (!op)
		fail(s, "the history is full");
	hist_fill(buf, d, hist_id(&s->sh->history, op), offset, len);
	r = request(s, d, code, fua ? ENG_REQ_FUA : 0, code == ENG_WRITE ? buf : NULL, offset, len);
	if (r == 0)
		hist_ack(&s->sh->history, op);
	else
		hist_fail(op);
	if (r < 0)
		check_error(s, r, "write", NULL);
	if (s->poisoned[d] && r != -ENOTRECOVERABLE)
		fail(s, "%s: write%s after a failed flush: %d, expected -ENOTRECOVERABLE (FL-9)",
		     disks[d].path, fua ? " with FUA" : "", r);
}

/* Reads go on, whatever failed: right bytes, or the error of a read that a rule fails. */
static void look(struct scene *s, unsigned d)
{
	static uint8_t data[SIZE];
	struct hist_index *ix;
	char why[HIST_WHY] = "";
	int r;

	if (!s->disk[d])
		return;
	r = request(s, d, ENG_READ, 0, data, 0, SIZE);
	if (r < 0 && s->fault &&
	    s->fault->op & (ENG_FAULT_ANY_READ | ENG_FAULT_OPEN | ENG_FAULT_STAT))
		return;
	if (r < 0)
		fail(s, "%s: read: %d", disks[d].path, r);
	ix = hist_index_create(&s->sh->history, NULL);
	if (!hist_check_disk(ix, d, data, HIST_KILLED, HIST_NEVER, NULL, why))
		fail(s, "%s: %s", disks[d].path, why);
	hist_index_destroy(ix);
}

static void flush(struct scene *s, unsigned d)
{
	struct hist_op *op;
	int r;

	if (!s->disk[d])
		return;
	op = hist_add(&s->sh->history, (struct hist_op){.kind = HIST_FLUSH, .disk = (uint8_t)d});
	if (!op)
		fail(s, "the history is full");
	r = request(s, d, ENG_FLUSH, 0, NULL, 0, 0);
	if (s->poisoned[d] && r != -ENOTRECOVERABLE)
		fail(s, "%s: flush after a failed one: %d, expected -ENOTRECOVERABLE (FL-9)",
		     disks[d].path, r);
	if (r == 0) {
		hist_ack(&s->sh->history, op);
		return;
	}
	check_error(s, r, "flush", NULL);
	/* T15: what a full disk fails is the write that needs space. */
	if (s->fault->op == ENG_FAULT_ALLOCATE)
		fail(s, "%s: flush: %d, for want of space", disks[d].path, r);
	if (s->poisoned[d])
		return;
	s->poisoned[d] = true;
	put(s, d, ENG_WRITE, false, 8192, 4096);
	put(s, d, ENG_WRITE, true, 8192, 512);
	flush(s, d);
	look(s, d);
}

/* --- control --- */

static void rule_begin(struct scene *s, enum step step)
{
	struct eng_fault_rule rule;

	for (unsigned i = 0; !s->fault && i < ENG_FAULT_OPS; i++)
		s->sh->counts[step][i] -= eng_fault_count(s->faults, (enum eng_fault_op)(1u << i));
	if (!s->fault || s->fault->step != step)
		return;
	rule = (struct eng_fault_rule){
		.ops = s->fault->op,
		.skip = s->fault->nth,
		.sticky = s->fault->sticky,
		.error = s->fault->error,
	};
	s->rule = eng_fault_add(s->faults, &rule);
}

/* A sticky fault lasts until the faults are over. */
static void rule_end(struct scene *s, enum step step)
{
	for (unsigned i = 0; !s->fault && i < ENG_FAULT_OPS; i++)
		s->sh->counts[step][i] += eng_fault_count(s->faults, (enum eng_fault_op)(1u << i));
	if (s->fault && s->fault->step == step && !s->fault->sticky)
		eng_fault_clear(s->faults);
}

static int open_store(struct scene *s, struct eng_io *io)
{
	struct eng_store_options options = {.threads = 2};
	struct fmt_error err = {{0}};
	uint64_t end = eng_io_now_ns(s->plain) + 10 * SECOND;
	int r;

	/* T19: until the last request of a dead owner is done. */
	while ((r = eng_store_open(io, s->store_dir, &options, &err, &s->store)) == -EBUSY &&
	       eng_io_now_ns(s->plain) < end)
		usleep(1000);
	if (r == 0) {
		r = eng_queue_create(io, 16, s->store->lock_file, &s->queue);
		if (r == 0)
			return 0;
		check_error(s, r, "queue", NULL);
		if (eng_store_close(s->store) < 0)
			fail(s, "cannot close a store in which nothing was done");
	} else {
		check_error(s, r, "open", err.text);
	}
	s->store = NULL;
	return r;
}

static void attach(struct scene *s)
{
	struct fmt_error err = {{0}};
	int r;

	for (unsigned d = 0; s->store && d < DISKS; d++) {
		if (s->disk[d])
			continue;
		err.text[0] = 0;
		r = eng_store_attach(s->store, s->queue, disks[d].path, 0, &err, &s->disk[d]);
		if (r < 0) {
			check_error(s, r, "attach", err.text);
			s->disk[d] = NULL;
		}
	}
}

static void make_disk(struct scene *s)
{
	struct eng_disk_make make = {.vm = "b", .name = "new", .size = SIZE};
	struct fmt_error err = {{0}};
	int r;

	if (!s->store)
		return;
	r = eng_store_make_disk(s->store, &make, &err);
	s->sh->made = r == 0;
	if (r < 0) {
		check_error(s, r, "make disk", err.text);
		s->sh->made_unknown = eng_catalog_poisoned(s->store->catalog);
	}
}

static void snapshot(struct scene *s)
{
	struct scene_snap *snap = &s->sh->snaps[s->sh->snap_count];
	struct eng_snapshot_spec spec = {.type = 1, .consistency = 2, .timeout_ns = 20 * SECOND};
	struct eng_snapshot_times times;
	struct fmt_error err = {{0}};
	struct eng_snapshot *run;
	int r;

	if (!s->store)
		return;
	r = eng_catalog_get_collection(s->store->catalog, "c", &spec.collection);
	if (r < 0) {
		check_error(s, r, "get collection", NULL);
		return;
	}
	s->sh->snap_count++;
	snprintf(snap->name, sizeof(snap->name), "s%u", s->sh->snap_count);
	snprintf(spec.name, sizeof(spec.name), "%s", snap->name);
	eng_store_new_id(s->store, &spec.id);
	snap->called = hist_tick(&s->sh->history);
	r = eng_snapshot_check(s->store, &spec, &err, &run);
	if (r == 0) {
		r = eng_snapshot_run(run, NULL, NULL, &err, &times);
		eng_snapshot_destroy(run);
	}
	if (r == 0)
		snap->done = hist_tick(&s->sh->history);
	else
		check_error(s, r, "snapshot", err.text);
	snap->unknown = r < 0 && eng_catalog_poisoned(s->store->catalog);
}

static void roll(struct scene *s)
{
	struct fmt_error err = {{0}};
	struct eng_entry *entry;
	struct cat_disk row;
	int r;

	if (!s->store || !s->disk[0])
		return;
	r = eng_catalog_get_disk(s->store->catalog, "a", "d0", &row);
	if (r == 0)
		r = eng_entry_claim(s->store, &row.id, eng_io_now_ns(s->plain) + SECOND, &entry);
	if (r < 0) {
		check_error(s, r, "claim", NULL);
		return;
	}
	r = eng_roll_run(entry, &err);
	eng_entry_release(entry);
	if (r < 0)
		check_error(s, r, "roll", err.text);
}

static void detach(struct scene *s)
{
	for (unsigned d = 0; d < DISKS; d++) {
		struct hist_op *op;
		int r;

		if (!s->disk[d])
			continue;
		op = hist_add(&s->sh->history,
			      (struct hist_op){.kind = HIST_FLUSH, .disk = (uint8_t)d});
		r = eng_store_detach(s->disk[d]);
		if (r == 0 && op)
			hist_ack(&s->sh->history, op);
		if (r < 0)
			check_error(s, r, "detach", NULL);
		if (r == -EBUSY)
			continue; /* tried again when the faults are over */
		if (r < 0 && r != -ENOTRECOVERABLE)
			fail(s, "%s: detach: %d", disks[d].path, r);
		s->disk[d] = NULL;
	}
}

static void close_store(struct scene *s, bool must)
{
	int r;

	if (!s->store)
		return;
	r = s->queue ? eng_queue_destroy(s->queue) : 0;
	if (r == 0) {
		s->queue = NULL;
		r = eng_store_close(s->store);
	}
	if (r == 0)
		s->store = NULL;
	else if (must)
		fail(s, "close when the faults are over: %d", r);
	else
		check_error(s, r, "close", NULL);
}

/* --- the story --- */

static void writes(struct scene *s, bool fua)
{
	for (unsigned d = 0; d < DISKS; d++) {
		put(s, d, ENG_WRITE, false, 0, 16384);
		put(s, d, ENG_WRITE, false, 65536 + 512, 9 * 512);
		put(s, d, ENG_WRITE_ZEROES, false, 4096, 8192);
		put(s, d, ENG_WRITE, fua, 131072, 4096);
		put(s, d, ENG_DISCARD, false, 200 * 512, 300 * 512);
		put(s, d, ENG_WRITE, false, SIZE - 40960, 40960);
		put(s, d, ENG_WRITE, fua, 1024, 512);
	}
}

static void flushes(struct scene *s)
{
	for (unsigned d = 0; d < DISKS; d++)
		flush(s, d);
}

static void looks(struct scene *s)
{
	for (unsigned d = 0; d < DISKS; d++)
		look(s, d);
}

static void overlay_writes(struct scene *s)
{
	writes(s, true);
	flushes(s);
	for (unsigned i = 0; i < 50; i++) { /* the log's first segment gets full */
		put(s, 0, ENG_WRITE, true, (300 + 7 * i % 150) * 4096ull % (SIZE - 4096), 4096);
		if (i % 5 == 0)
			put(s, 2, ENG_WRITE, false, i * 8192, 65536);
	}
	flushes(s);
	looks(s);
}

static void run_step(struct scene *s, enum step step)
{
	rule_begin(s, step);
	switch (step) {
	case STEP_OPEN:
	case STEP_RECOVER: open_store(s, s->io); break;
	case STEP_MAKE: make_disk(s); break;
	case STEP_ATTACH: attach(s); break;
	case STEP_WRITE: writes(s, false); break;
	case STEP_FLUSH:
		flushes(s);
		looks(s);
		writes(s, true);
		break;
	case STEP_SNAPSHOT:
	case STEP_AGAIN:
		snapshot(s);
		put(s, 2, ENG_WRITE, false, 12288, 8192);
		flush(s, 2);
		break;
	case STEP_OVERLAY: overlay_writes(s); break;
	case STEP_ROLL:
		roll(s);
		writes(s, true);
		break;
	case STEP_SEAL:
		if (s->store)
			eng_pool_drain(s->store->pool);
		looks(s);
		break;
	case STEP_DETACH: detach(s); break;
	case STEP_CLOSE: close_store(s, false); break;
	case STEPS: break;
	}
	rule_end(s, step);
}

/* What faults left open, without them; poisoned disks and a poisoned catalog stay so. */
static void wind_up(struct scene *s)
{
	if (s->rule >= 0)
		s->sh->struck = eng_fault_struck(s->faults, s->rule);
	eng_fault_clear(s->faults);
	detach(s);
	for (unsigned d = 0; d < DISKS; d++)
		if (s->disk[d])
			fail(s, "%s: cannot be detached when the faults are over", disks[d].path);
	close_store(s, true);
}

/* --- afterwards --- */

static void check_disks(struct scene *s, const struct hist_index *ix)
{
	static uint8_t data[SIZE];
	char why[HIST_WHY] = "";
	int r;

	for (unsigned d = 0; d < DISKS; d++) {
		if (!s->disk[d])
			fail(s, "%s: cannot be attached", disks[d].path);
		r = request(s, d, ENG_READ, 0, data, 0, SIZE);
		if (r < 0)
			fail(s, "%s: read: %d", disks[d].path, r);
		if (!hist_check_disk(ix, d, data, HIST_KILLED, HIST_NEVER, NULL, why))
			fail(s, "%s: %s", disks[d].path, why);
	}
}

static void check_snapshot(struct scene *s, const struct hist_index *ix,
			   const struct scene_snap *snap)
{
	uint8_t *data[HIST_DISKS] = {0};
	struct fmt_error err = {{0}};
	char name[64], why[HIST_WHY] = "";
	struct cat_snapshot row;
	int r = eng_catalog_get_snapshot(s->store->catalog, "c", snap->name, &row);

	if (r < 0 && snap->done)
		fail(s, "snapshot %s completed and is gone", snap->name);
	if (r == 0 && !snap->done && !snap->unknown)
		fail(s, "snapshot %s failed and is there", snap->name);
	if (r < 0)
		return;
	for (unsigned d = 0; d < DISKS; d++) {
		struct eng_disk *keep = s->disk[d];

		data[d] = malloc(SIZE);
		snprintf(name, sizeof(name), "c@%s/%s", snap->name, disks[d].path);
		r = eng_store_attach(s->store, s->queue, name, ENG_ATTACH_READ_ONLY, &err,
				     &s->disk[d]);
		if (r < 0)
			fail(s, "%s: %s", name, err.text);
		r = request(s, d, ENG_READ, 0, data[d], 0, SIZE);
		if (r < 0 || eng_store_detach(s->disk[d]) < 0)
			fail(s, "%s: read: %d", name, r);
		s->disk[d] = keep;
	}
	if (!hist_check_cut(ix, data, snap->called, snap->done ? snap->done : HIST_NEVER, NULL,
			    why))
		fail(s, "snapshot %s: %s", snap->name, why);
	for (unsigned d = 0; d < DISKS; d++)
		free(data[d]);
}

static void note_finding(void *arg, const struct fsck_finding *f)
{
	struct scene *s = arg;

	if (f->severity == FSCK_CORRUPT && !s->sh->why[0])
		snprintf(s->sh->why, sizeof(s->sh->why), "check: %s: %s: %s", f->rule, f->where,
			 f->message);
}

static void check_sound(struct scene *s)
{
	struct fsck_summary sum;
	struct fmt_error err = {{0}};
	int r = fsck_run(s->plain, s->store_dir, note_finding, s, &err, &sum);

	if (r < 0)
		fail(s, "check: %d, %s", r, err.text);
	if (sum.corruptions)
		_exit(1);
}

/* The next owner finds everything that was acknowledged, and can go on. */
static void check_after(struct scene *s)
{
	struct hist_index *ix;
	struct fmt_error err = {{0}};
	struct cat_disk row;
	int r;

	s->rule = -1;
	memset(s->poisoned, 0, sizeof(s->poisoned));
	if (open_store(s, s->plain) < 0)
		fail(s, "no store when the faults are over");
	attach(s);
	ix = hist_index_create(&s->sh->history, NULL);
	check_disks(s, ix);
	for (unsigned i = 0; i < s->sh->snap_count; i++)
		check_snapshot(s, ix, &s->sh->snaps[i]);
	hist_index_destroy(ix);
	r = eng_catalog_get_disk(s->store->catalog, "b", "new", &row);
	if ((r == 0) != s->sh->made && !s->sh->made_unknown)
		fail(s, "disk b/new is %sthere", r == 0 ? "" : "not ");
	if (r == 0 && eng_store_delete_disk(s->store, "b", "new", &err) < 0 &&
	    s->sh->snap_count == 0)
		fail(s, "deleting b/new: %s", err.text);
	writes(s, true);
	flushes(s);
	snapshot(s);
	if (!s->sh->snaps[s->sh->snap_count - 1].done)
		fail(s, "no snapshot when the faults are over");
	looks(s);
	detach(s);
	close_store(s, true);
	check_sound(s);
}

/* --- a case --- */

static void make_store(struct scene *s)
{
	static const char *const vms[] = {"a", "b"};
	struct cat_collection c = {.name = "c"};
	struct cat_vm vm = {0};
	struct fmt_error err = {{0}};
	int r = eng_store_init(s->plain, s->store_dir, &err);

	if (r < 0 || eng_store_open(s->plain, s->store_dir, NULL, &err, &s->store) < 0)
		fail(s, "making the store: %s", err.text);
	r = eng_catalog_begin(s->store->catalog);
	eng_store_new_id(s->store, &c.id);
	eng_catalog_put_collection(s->store->catalog, &c);
	for (unsigned i = 0; i < 2; i++) {
		eng_store_new_id(s->store, &vm.id);
		strcpy(vm.name, vms[i]);
		eng_catalog_put_vm(s->store->catalog, &vm);
		eng_catalog_put_member(s->store->catalog, &c.id, &vm.id);
	}
	if (r == 0)
		r = eng_catalog_commit(s->store->catalog, &err);
	for (unsigned d = 0; r == 0 && d < DISKS; d++) {
		struct eng_disk_make make = {.vm = disks[d].vm,
					     .name = disks[d].name,
					     .size = SIZE,
					     .block_bits = disks[d].block_bits};

		r = eng_store_make_disk(s->store, &make, &err);
	}
	if (r < 0 || eng_store_close(s->store) < 0)
		fail(s, "making the store: %d %s", r, err.text);
	s->store = NULL;
}

/* Dies with requests acknowledged and not flushed, journals and all. */
static void die_owning(struct scene *s)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		alarm(SCENE_HANG);
		if (open_store(s, s->plain) < 0)
			fail(s, "open before the death");
		attach(s);
		writes(s, true);
		snapshot(s);
		overlay_writes(s);
		writes(s, false);
		_exit(0);
	}
	if (waitpid(pid, &status, 0) != pid || status)
		fail(s, "the owner that should die has failed: %#x", status);
}

static void scene_init(struct scene *s, struct scene_shared *sh, const struct fault *fault,
		       const char *dir)
{
	memset(s, 0, sizeof(*s));
	s->sh = sh;
	s->fault = fault;
	s->rule = -1;
	snprintf(s->store_dir, sizeof(s->store_dir), "%s/store", dir);
	snprintf(s->shm, sizeof(s->shm), "%s/shm", dir);
	sh->snap_count = 0;
	memset(sh->snaps, 0, sizeof(sh->snaps));
	memset(sh->ops, 0, sizeof(sh->ops));
	sh->history =
		(struct history){.disks = DISKS, .first_id = 1, .room = SCENE_OPS, .ops = sh->ops};
	for (unsigned d = 0; d < DISKS; d++)
		sh->history.size[d] = SIZE;
	sh->made = false;
	sh->made_unknown = false;
	if (mkdir(s->shm, 0700) < 0 || eng_io_posix_create(&s->plain) < 0 ||
	    eng_io_posix_set_shm_dir(s->plain, s->shm) < 0 ||
	    eng_fault_create(s->plain, &s->faults) < 0)
		fail(s, "setting up");
	s->io = eng_fault_io(s->faults);
}

void scene_run(struct scene_shared *sh, const struct fault *fault, const char *dir, bool recovery)
{
	struct scene s;

	alarm(SCENE_HANG);
	scene_init(&s, sh, fault, dir);
	make_store(&s);
	if (recovery) {
		die_owning(&s);
		run_step(&s, STEP_RECOVER);
		attach(&s);
	} else {
		for (unsigned step = 0; step < STEP_RECOVER; step++)
			run_step(&s, (enum step)step);
	}
	wind_up(&s);
	check_after(&s);
	eng_fault_destroy(s.faults);
	eng_io_destroy(s.plain);
	/* There with the address sanitizer only: what an error path forgot. */
	if (__lsan_do_recoverable_leak_check && __lsan_do_recoverable_leak_check())
		fail(&s, "memory was lost: see the log");
	_exit(0);
}
