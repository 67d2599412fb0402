/* SPDX-License-Identifier: MIT */
/*
 * life_restore.c - what a chain of exports comes to in another store (spec/stream.md IP-*): imported in
 * order, each snapshot must hold there what it held here, bit by bit. An increment out of order is refused;
 * an import that is cancelled, or cut short by a death, has made all of its snapshot or nothing. And files:
 * raw and qcow2 exports are read back, too.
 */
#include "tests/sim/life.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fsck/fsck.h"

static struct vmimg_error err;
static struct vmimg_service *second;

static const char *second_path(void)
{
	static char path[112];

	snprintf(path, sizeof(path), "%s/second", world->dir);
	return path;
}

/* --- opening and closing --- */

/* One that died may have to be waited for. */
static void open_second(void)
{
	struct life_backup *b = &world->backup;
	struct vmimg_options o = {.size = sizeof(o), .buffered = life_chance(2)};
	int r = 0;

	if (!b->store) {
		life_clear(second_path());
		r = vmimg_store_init(second_path(), &err);
		life_must(r == 0, "init of the second store: %d, %s", r, err.message);
		b->imported = 0;
		b->importing = false;
		b->store = true;
	}
	for (uint32_t i = 0; i < 60000; i++) {
		r = vmimg_open(second_path(), &o, &err, &second);
		if (r != -EBUSY)
			break;
		usleep(1000);
	}
	life_must(r == 0, "open the second store: %d, %s", r, err.message);
}

static void note_finding(void *arg, const struct fsck_finding *f)
{
	(void)arg;
	if (f->severity == FSCK_CORRUPT || f->severity == FSCK_LEAK)
		life_fail("check of the second store: %s: %s: %s", f->rule, f->where, f->message);
}

static void close_second(void)
{
	struct fsck_summary sum = {0};
	struct fmt_error why = {""};
	struct eng_io *io = NULL;
	int r = vmimg_close(second);

	life_must(r == 0, "close the second store: %d", r);
	second = NULL;
	life_must(eng_io_posix_create(&io) == 0, "no machine");
	r = fsck_run(io, second_path(), note_finding, NULL, &why, &sum);
	life_must(r == 0, "check of the second store: %d, %s", r, why.text);
	eng_io_destroy(io);
}

/* --- what is in it --- */

static bool is_listed(const struct life_link *link)
{
	struct cat_snapshot row;

	return eng_catalog_get_snapshot(second->store->catalog, link->collection, link->snap.name,
					&row) == 0 &&
	       row.state == CAT_SNAPSHOT_COMPLETE;
}

static void expect_disk(const char *name, const struct life_member *m)
{
	struct vmimg_disk *disk;
	char where[200];
	int r = vmimg_disk_attach(life.queue, name, VMIMG_ATTACH_READ_ONLY, &err, &disk);

	snprintf(where, sizeof(where), "in the second store: %s", name);
	life_must(r == 0, "%s: %d, %s", where, r, err.message);
	life_expect_all(disk, where, m->state, m->size);
	life_must(vmimg_disk_detach(disk) == 0, "%s: detach", where);
}

/* Bit by bit; the disks are as the newest one. */
static void expect_link(const struct life_link *link, bool newest)
{
	char name[2 * LIFE_NAME], of[4 * LIFE_NAME];

	for (uint32_t m = 0; m < link->snap.count; m++) {
		const struct life_member *member = &link->snap.member[m];

		snprintf(name, sizeof(name), "%s/%s", member->vm, member->name);
		snprintf(of, sizeof(of), "%s@%s/%s", link->collection, link->snap.name, name);
		expect_disk(of, member);
		if (newest)
			expect_disk(name, member);
	}
}

/* The queue is the second store's meanwhile. */
static void expect_links(uint32_t from)
{
	struct life_backup *b = &world->backup;
	struct vmimg_queue *queue = life.queue;
	int r;

	life_quiet();
	r = vmimg_queue_create(second, 64, &err, &life.queue);
	life_must(r == 0, "queue: %d, %s", r, err.message);
	for (uint32_t i = 0; i < b->imported; i++) {
		life_must(b->link[i].there == is_listed(&b->link[i]),
			  "in the second store: %s is %sthere", b->link[i].snap.name,
			  b->link[i].there ? "not " : "");
		if (i >= from && b->link[i].there)
			expect_link(&b->link[i], i + 1 == b->imported);
	}
	r = vmimg_queue_destroy(life.queue);
	life_must(r == 0, "destroy the queue: %d", r);
	life.queue = queue;
}

/* --- imports --- */

/* The base goes with it (IP-5). */
static void note_import(void)
{
	struct life_backup *b = &world->backup;
	struct life_link *link = &b->link[b->imported];

	link->there = true;
	if (link->merge)
		b->link[b->imported - 1].there = is_listed(&b->link[b->imported - 1]);
	b->imported++;
	b->importing = false;
}

static struct vmimg_job *begin_import(uint32_t link)
{
	struct vmimg_job *job = NULL;
	char dir[160];
	uint32_t r;

	life_link_dir(link, dir);
	snprintf(world->doing, sizeof(world->doing), "import %s into the second store", dir);
	r = vmimg_import_snapshot(second, dir, NULL, &job, &err);
	life_must(r == VMIMG_JOB_STARTED, "%s: %u, %s", world->doing, r, err.message);
	return job;
}

/* IP-4: what is missing is said, and nothing done. */
static void import_out_of_order(uint32_t link)
{
	struct vmimg_job *job = begin_import(link);
	struct vmimg_job_info info;

	while (vmimg_job_wait(job, 0) == -ETIMEDOUT)
		life_turn(200000);
	vmimg_job_info(job, &info);
	life_must(info.job_state == VMIMG_JOB_EXCEPTION, "%s, whose base is not there: state %u",
		  world->doing, info.job_state);
	vmimg_job_put(job);
	life_must(!is_listed(&world->backup.link[link]), "%s was refused, and is there",
		  world->doing);
}

static void import_next(void)
{
	struct life_backup *b = &world->backup;
	struct vmimg_job *job;
	bool made;

	if (b->imported + 1 < b->count && life_chance(3))
		import_out_of_order(b->imported + 1);
	b->importing = true;
	job = begin_import(b->imported);
	made = life_wait_for_job(job, true, life_chance(6));
	vmimg_job_put(job);
	life_must(made == is_listed(&b->link[b->imported]), "%s: %s", world->doing,
		  made ? "made, and not there" : "cancelled, and there");
	if (!made) {
		b->importing = false;
		return;
	}
	note_import();
	life_must(!b->link[b->imported - 1].merge || !b->link[b->imported - 2].there,
		  "%s: the base is still there", world->doing);
	expect_links(b->imported - 1);
}

void life_restore(void)
{
	struct life_backup *b = &world->backup;

	if (life_touched) { /* what the recorder sees is one store */
		life_backup_drop();
		return;
	}
	open_second();
	if (b->importing && b->imported < b->count && is_listed(&b->link[b->imported]))
		note_import();
	b->importing = false;
	if (b->imported)
		expect_links(0);
	while (b->imported < b->count)
		import_next();
	expect_links(0);
	close_second();
	world->restored += b->count;
	b->store = false;
	life_backup_drop();
	life_clear(second_path());
}

/* --- files --- */

static void expect_file(const char *dir, const char *format, const struct life_member *m)
{
	uint32_t units = life_units(m->size);
	uint8_t *buf = malloc(2048 * LIFE_UNIT), want[LIFE_UNIT];
	struct vmimg_image *image = NULL;
	char path[300];
	int r;

	snprintf(path, sizeof(path), "%s/%s/%s.%s", dir, m->vm, m->name, format);
	r = vmimg_image_open(path, NULL, false, &err, &image);
	life_must(r == 0 && buf, "%s: %d, %s", path, r, err.message);
	life_must(vmimg_image_size(image) == m->size, "%s: size", path);
	for (uint32_t at = 0; at < units; at += 2048) {
		uint32_t n = units - at < 2048 ? units - at : 2048;

		r = vmimg_image_read(image, buf, (size_t)n * LIFE_UNIT, (uint64_t)at * LIFE_UNIT,
				     &err);
		life_must(r == 0, "%s: read: %d, %s", path, r, err.message);
		for (uint32_t i = 0; i < n; i++) {
			uint32_t number = world->state[m->state].unit[at + i];

			life_fill(want, number, (uint64_t)(at + i) * LIFE_UNIT, LIFE_UNIT);
			life_must(!memcmp(want, buf + (size_t)i * LIFE_UNIT, LIFE_UNIT),
				  "%s: sector %u does not hold write %u", path, at + i, number);
		}
	}
	world->compared += units;
	vmimg_image_close(image);
	free(buf);
}

const char *life_some_format(bool increment)
{
	return life_chance(2) ? "stream" : increment || life_chance(2) ? "qcow2" : "raw";
}

void life_files(void)
{
	const char *format = life_chance(2) ? "raw" : "qcow2";
	bool compress = life_chance(2) && *format == 'q', made;
	char dir[160], part[170], settings[100];
	struct vmimg_job *job = NULL;
	int i = life_some_snap();
	uint32_t r;

	if (i < 0)
		return;
	snprintf(dir, sizeof(dir), "%s/files", world->dir);
	snprintf(part, sizeof(part), "%s.part", dir);
	life_clear(dir);
	life_clear(part);
	snprintf(settings, sizeof(settings), "{\"Format\": \"%s\", \"Compress\": %s}", format,
		 compress ? "true" : "false");
	snprintf(world->doing, sizeof(world->doing), "export %s as %s",
		 life_snap_name(&world->snap[i]), format);
	r = vmimg_export_snapshot(life.svc, life_snap_name(&world->snap[i]), dir, settings, &job,
				  &err);
	life_must(r == VMIMG_JOB_STARTED, "%s: %u, %s", world->doing, r, err.message);
	made = life_wait_for_job(job, true, life_chance(3));
	vmimg_job_put(job);
	life_must(made == !access(dir, F_OK) && access(part, F_OK) != 0, "%s: files are %s",
		  world->doing, made ? "missing" : "left");
	for (uint32_t m = 0; made && m < world->snap[i].count; m++)
		expect_file(dir, format, &world->snap[i].member[m]);
	life_clear(dir);
}
