/* SPDX-License-Identifier: MIT */
/* life_store.c - the store of life.h: made, opened, closed, checked, and in the end emptied. */
#include "tests/sim/life.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/fold/fold.h"
#include "fsck/fsck.h"

static struct vmimg_error err;

/* --- opening and closing --- */

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void pick_options(struct vmimg_options *o)
{
	static const uint64_t bounds[] = {0, 0, 300, 3000};
	static const uint64_t rates[] = {0, UINT64_MAX, 4 << 20, UINT64_MAX};

	memset(o, 0, sizeof(*o));
	o->size = sizeof(*o);
	o->buffered = life_chance(2);
	o->standby = life_chance(2);
	o->map_bound = bounds[life_pick(4)];
	o->log_bound = life_chance(3) ? 600 << 10 : 0;
	o->map_memory = life_chance(3) ? 1 << 20 : 0;
	o->fold_rate = rates[life_pick(4)];
	o->seal_rate = UINT64_MAX;
}

static void init_slots(void)
{
	memset(&life, 0, sizeof(life));
	for (uint32_t i = 0; i < LIFE_WRITES; i++) {
		life.slot[i].buf = malloc(LIFE_WRITE * LIFE_UNIT);
		life.slot[i].iov = malloc(sizeof(*life.slot[i].iov));
		life_must(life.slot[i].buf && life.slot[i].iov, "no memory");
	}
}

/* The kernel may still be ending the last requests of the one that died. */
void life_open(struct eng_io *machine)
{
	struct vmimg_options options;
	double end = now() + 60;
	int r;

	init_slots();
	pick_options(&options);
	snprintf(world->doing, sizeof(world->doing), "open");
	while ((r = api_open(machine, world->store, &options, &err, &life.svc)) == -EBUSY &&
	       now() < end)
		usleep(1000);
	life_must(r == 0, "open: %d, %s", r, err.message);
	/* Small enough to happen: disks are small, and a look comes before most folds are due. */
	eng_folder_set_punch_run(life.svc->store->folder, 4096u << life_pick(3));
	r = vmimg_queue_create(life.svc, 64, &err, &life.queue);
	life_must(r == 0, "queue: %d, %s", r, err.message);
}

void life_close(void)
{
	struct eng_folder_stats stats;
	int r;

	eng_folder_stats(life.svc->store->folder, &stats);
	world->punches += stats.punches;
	world->folds += stats.folds;
	snprintf(world->doing, sizeof(world->doing), "close");
	life_jobs_end(life_chance(4));
	snprintf(world->doing, sizeof(world->doing), "close");
	for (uint32_t i = 0; i < LIFE_DISKS; i++)
		if (life.disk[i])
			life_detach(i);
	r = vmimg_queue_destroy(life.queue);
	life_must(r == 0, "destroy the queue: %d", r);
	r = vmimg_close(life.svc);
	life_must(r == 0, "close: %d", r);
	if (world->backup.pending) /* the close waited for it */
		life_recover_backup();
	for (uint32_t i = 0; i < LIFE_WRITES; i++) {
		free(life.slot[i].buf);
		free(life.slot[i].iov);
	}
}

/* --- making the store --- */

/* An image whose every sector is of one write, here and there. */
static void make_image(const char *path, uint64_t size, uint32_t state)
{
	uint32_t *unit = world->state[state].unit;
	uint8_t buf[LIFE_UNIT];
	FILE *f = fopen(path, "we");

	life_must(f != NULL, "%s: cannot be made", path);
	for (uint32_t i = 0; i < life_units(size); i++) {
		if (i % 64 == 0)
			world->number++;
		unit[i] = i / 64 % 3 ? world->number : 0;
		life_fill(buf, unit[i], (uint64_t)i * LIFE_UNIT, LIFE_UNIT);
		life_must(fwrite(buf, LIFE_UNIT, 1, f) == 1, "%s: cannot be written", path);
	}
	life_must(fclose(f) == 0, "%s: cannot be written", path);
}

static void make_disk(uint32_t i, const char *vm, const char *name, uint64_t size, uint32_t bits,
		      const char *from)
{
	struct life_disk *d = &world->disk[i];
	struct vmimg_disk_spec spec = {.size_of = sizeof(spec), .size = size, .block_bits = bits};
	char raw[160], qcow2[160];
	int r;

	*d = (struct life_disk){.size = size, .state = life_state_new()};
	if (world->loss)
		d->durable = life_state_new();
	snprintf(d->vm, sizeof(d->vm), "%s", vm);
	snprintf(d->name, sizeof(d->name), "%s", name);
	snprintf(raw, sizeof(raw), "%s/%s.raw", world->dir, name);
	snprintf(qcow2, sizeof(qcow2), "%s/%s.qcow2", world->dir, name);
	if (from) {
		struct vmimg_convert how = {.dst_format = "qcow2", .compressed = life_chance(2)};

		make_image(raw, size, d->state);
		spec.from = raw;
		spec.format = from;
		/* A tree that a power loss left knows the path of the original. */
		spec.in_place = life_chance(2) && !world->loss;
		if (!strcmp(from, "qcow2")) {
			r = vmimg_image_convert(raw, qcow2, &how, &err);
			life_must(r == 0, "%s: %d, %s", qcow2, r, err.message);
			spec.from = qcow2;
		}
	}
	r = vmimg_disk_create(life.svc, life_disk_name(i), &spec, &err);
	life_must(r == 0, "make %s: %d, %s", life_disk_name(i), r, err.message);
	d->there = true;
	life_all_durable(i);
}

void life_make(struct eng_io *machine)
{
	static const char *const vms[] = {"a", "b"};
	int r = vmimg_store_init(world->store, &err);

	life_must(r == 0, "init: %d, %s", r, err.message);
	life_open(machine);
	life_must(!vmimg_define_collection(life.svc, "c", NULL, 0, NULL, &err), "%s", err.message);
	world->group[0].there = true;
	strcpy(world->group[0].name, "c");
	for (int i = 0; i < 2; i++) {
		life_must(!vmimg_vm_create(life.svc, vms[i], &err), "%s", err.message);
		life_must(!vmimg_add_member(life.svc, vms[i], "c", &err), "%s", err.message);
	}
	make_disk(0, "a", "d0", world->size_max - world->size_max / 8, 12, NULL);
	make_disk(1, "a", "d1", world->size_max / 16 + 5 * LIFE_UNIT, 12 + life_pick(5), "raw");
	make_disk(2, "b", "d2", world->size_max / 8, 16, NULL);
	make_disk(3, "b", "d3", world->size_max / 10 / LIFE_UNIT * LIFE_UNIT, 12, "qcow2");
	life_close();
}

/* --- the end of a store --- */

static void note_finding(void *arg, const struct fsck_finding *f)
{
	bool leaks_too = *(bool *)arg;

	if (f->severity == FSCK_CORRUPT || (leaks_too && f->severity == FSCK_LEAK))
		life_fail("check: %s: %s: %s", f->rule, f->where, f->message);
}

void life_sound(struct eng_io *machine, bool leaks_too)
{
	struct fsck_summary sum = {0};
	struct fmt_error why = {""};
	double end = now() + 60;
	struct eng_io *io = machine;
	int r = io ? 0 : eng_io_posix_create(&io);

	snprintf(world->doing, sizeof(world->doing),
		 world->died ? "check before the recovery" : "check");
	life_must(r == 0, "no machine");
	while ((r = fsck_run(io, world->store, note_finding, &leaks_too, &why, &sum)) == -EBUSY &&
	       now() < end)
		usleep(1000);
	life_must(r == 0, "check: %d, %s", r, why.text);
	if (!machine)
		eng_io_destroy(io);
}

/* Layers of all disks that are no base. */
static uint32_t count_layers(uint32_t *most)
{
	struct eng_catalog *cat = life.svc->store->catalog;
	struct cat_disk *disks = NULL;
	uint32_t count = 0;
	size_t n = 0;

	*most = 0;
	life_must(eng_catalog_list_disks(cat, NULL, &disks, &n) == 0, "cannot list the disks");
	for (size_t i = 0; i < n; i++) {
		struct cat_layer *rows = NULL;
		size_t layers = 0;

		life_must(eng_catalog_list_layers(cat, &disks[i].id, &rows, &layers) == 0,
			  "cannot list the layers");
		free(rows);
		count += (uint32_t)layers;
		*most = layers > *most ? (uint32_t)layers : *most;
	}
	free(disks);
	return count;
}

/* Left in peace, a disk comes to its base, what was folded, and its head. */
static void wait_for_folds(void)
{
	double end = now() + 120;
	uint32_t most;

	snprintf(world->doing, sizeof(world->doing), "fold everything");
	eng_folder_set_rate(life.svc->store->folder, 0);
	while (count_layers(&most), most > 3) {
		life_must(now() < end, "folds have not come to an end: %u layers of a disk", most);
		life_turn(2000000);
	}
}

void life_let_go(void)
{
	life_backup_finish();
	for (uint32_t i = 0; i < LIFE_SNAPS; i++)
		if (world->snap[i].there && world->snap[i].held)
			life_release(&world->snap[i]);
	while (life_some_snap() >= 0)
		life_delete();
	while (life_some_point() >= 0)
		life_unpoint();
	life_uncopy_all();
	life_quiet();
	wait_for_folds();
}
