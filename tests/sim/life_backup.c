/* SPDX-License-Identifier: MIT */
/*
 * life_backup.c - a chain of exports in life.h (spec/stream.md EX-*): a full one, and increments against the
 * snapshot before, or the reference point that it has become, while everything else goes on. One under way
 * is a job among others; cut short by a cancel or a death, it is gone on with or begun anew. What has been
 * exported stays beside the store until life_restore.c makes another store of it.
 */
#include "tests/sim/life.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "engine/io/io_record.h"

static struct vmimg_error err;

void life_clear(const char *path)
{
	if (access(path, F_OK) == 0)
		life_must(eng_record_remove_tree(path) == 0, "%s: cannot be removed", path);
}

void life_link_dir(uint32_t link, char dir[160])
{
	snprintf(dir, 160, "%s/backup%u.%u", world->dir, world->backup.number, link);
}

/* Also of one that a death cut short. */
static void link_forget(struct life_link *link)
{
	for (uint32_t m = 0; m < link->snap.count; m++)
		life_state_free(link->snap.member[m].state);
	memset(link, 0, sizeof(*link));
}

static void link_draw(struct life_link *link, const struct life_snap *snap)
{
	struct life_snap *to = &link->snap;

	link_forget(link);
	*to = *snap;
	to->count = 0;
	memcpy(link->collection, world->group[snap->group].name, sizeof(link->collection));
	for (uint32_t m = 0; m < snap->count; m++) {
		to->member[m].state = life_state_copy(snap->member[m].state);
		to->count++;
	}
}

static void clear_link(uint32_t link)
{
	char dir[160], part[170];

	life_link_dir(link, dir);
	snprintf(part, sizeof(part), "%s.part", dir);
	life_clear(dir);
	life_clear(part);
}

void life_backup_drop(void)
{
	struct life_backup *b = &world->backup;

	b->count = 0;
	b->imported = 0;
	b->pending = false;
	b->again = false;
	for (uint32_t i = 0; i < LIFE_LINKS; i++) {
		clear_link(i);
		link_forget(&b->link[i]);
	}
	b->number++;
}

/* --- the one under way --- */

void life_backup_ended(bool done)
{
	struct life_backup *b = &world->backup;
	char dir[160], part[170];

	life_link_dir(b->count, dir);
	snprintf(part, sizeof(part), "%s.part", dir);
	life_must(done == !access(dir, F_OK), "export of %s: %s, and the directory is %sthere",
		  b->link[b->count].snap.name, done ? "done" : "it failed", done ? "not " : "");
	life_must(!done || access(part, F_OK) != 0, "%s is left", part);
	life_must(done || b->link[b->count].resume || access(part, F_OK) != 0,
		  "%s is left of an export that failed", part);
	b->again = !done && b->link[b->count].resume && access(part, F_OK) == 0;
	b->pending = false;
	b->count += done;
	world->exported += done;
}

/* EX-2: under the final name there is all of it. */
void life_recover_backup(void)
{
	struct life_backup *b = &world->backup;
	char dir[160], part[170];

	life_link_dir(b->count, dir);
	snprintf(part, sizeof(part), "%s.part", dir);
	if (b->pending) {
		if (access(dir, F_OK) == 0) {
			b->pending = false;
			b->count++;
			world->exported++;
		} else {
			b->again = b->link[b->count].resume && access(part, F_OK) == 0;
			b->pending = false;
		}
	}
	for (uint32_t i = 0; i < b->count; i++) {
		life_link_dir(i, dir);
		life_must(access(dir, F_OK) == 0, "export %s is lost", dir);
		life_must(*b->link[i].format != 's' ||
				  vmimg_verify_stream(dir, NULL, &err, NULL) == 0,
			  "%s: %s", dir, err.message);
	}
}

/* --- what comes next --- */

/* The last link's snapshot, or what has become of it, as a base is named. */
static bool name_base(char base[2 * LIFE_NAME])
{
	const struct life_snap *last = &world->backup.link[world->backup.count - 1].snap;

	for (uint32_t i = 0; i < LIFE_SNAPS + LIFE_POINTS; i++) {
		bool point = i >= LIFE_SNAPS;
		const struct life_snap *s = point ? &world->point[i - LIFE_SNAPS] : &world->snap[i];

		if (!s->there || s->born != last->born)
			continue;
		snprintf(base, 2 * LIFE_NAME, "%s%c%s", world->group[s->group].name,
			 point ? '#' : '@', s->name);
		return true;
	}
	return false;
}

static bool is_in_chain(const struct life_snap *snap)
{
	for (uint32_t i = 0; i < world->backup.count; i++)
		if (world->backup.link[i].snap.born == snap->born)
			return true;
	return false;
}

/* Any snapshot of the collection will do, also an older one; -1: none. */
static int pick_next(void)
{
	const struct life_backup *b = &world->backup;
	uint32_t start = life_pick(LIFE_SNAPS);

	for (uint32_t i = 0; i < LIFE_SNAPS; i++) {
		uint32_t n = (start + i) % LIFE_SNAPS;
		const struct life_snap *s = &world->snap[n];

		if (s->there && !is_in_chain(s) && (!b->count || s->group == b->link[0].snap.group))
			return (int)n;
	}
	return -1;
}

static int find_born(uint32_t born)
{
	for (uint32_t i = 0; i < LIFE_SNAPS; i++)
		if (world->snap[i].there && world->snap[i].born == born)
			return (int)i;
	return -1;
}

static void start(const struct life_snap *snap)
{
	struct life_backup *b = &world->backup;
	struct life_link *link = &b->link[b->count];
	struct vmimg_job *job = NULL;
	char dir[160], settings[300], base[2 * LIFE_NAME + 40] = "";
	uint32_t r;

	if (link->base[0])
		snprintf(base, sizeof(base), ", \"DifferentialBackupBase\": \"%s\"", link->base);
	snprintf(settings, sizeof(settings),
		 "{\"Format\": \"%s\", \"Compress\": %s, \"Resume\": %s, \"BackupIntent\": %d, "
		 "\"RateLimit\": %u%s}",
		 link->format, link->compress ? "true" : "false", link->resume ? "true" : "false",
		 link->merge ? 2 : 1, life_chance(2) ? 0 : 1u << (20 + life_pick(8)), base);
	life_link_dir(b->count, dir);
	snprintf(world->doing, sizeof(world->doing), "export %s against %s", life_snap_name(snap),
		 link->base[0] ? link->base : "nothing");
	b->again = false;
	b->pending = true;
	r = vmimg_export_snapshot(life.svc, life_snap_name(snap), dir, settings, &job, &err);
	life_must(r == VMIMG_JOB_STARTED, "%s: %u, %s", world->doing, r, err.message);
	life_job_begin(LIFE_JOB_EXPORT, job, snap, snap->group);
}

/* EX-6 */
static bool go_on(void)
{
	struct life_backup *b = &world->backup;
	struct life_link *link = &b->link[b->count];
	char base[2 * LIFE_NAME] = "";
	int i = find_born(link->snap.born);

	if (i < 0 || (b->count && !name_base(base)) || strcmp(base, link->base) != 0)
		return false;
	start(&world->snap[i]);
	world->resumed++;
	return true;
}

void life_backup(void)
{
	struct life_backup *b = &world->backup;
	struct life_link *link = &b->link[b->count % LIFE_LINKS];
	char base[2 * LIFE_NAME] = "";
	int i;

	if (b->pending)
		return;
	if (b->store || b->count == LIFE_LINKS || (b->count && !name_base(base)) ||
	    (b->count > 1 && life_chance(8))) {
		life_restore();
		return;
	}
	if (b->again && go_on())
		return;
	i = pick_next();
	if (i < 0)
		return;
	b->again = false;
	clear_link(b->count);
	link_draw(link, &world->snap[i]);
	snprintf(link->base, sizeof(link->base), "%s", base);
	link->merge = b->count && life_chance(4);
	snprintf(link->format, sizeof(link->format), "%s", life_some_format(b->count));
	link->compress = *link->format != 'r' && life_chance(2);
	link->resume = *link->format == 's' && life_chance(2);
	start(&world->snap[i]);
}

void life_backup_finish(void)
{
	life_jobs_end(false);
	if (world->backup.count)
		life_restore();
}
