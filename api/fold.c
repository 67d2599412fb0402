/* SPDX-License-Identifier: MIT */
/*
 * fold.c - folds as jobs (FO-15), their rate, and waiting for them (Settle). Every fold under way is a job of
 * type 50; it runs on the engine's thread, which tells when it begins and ends.
 */
#include "engine/fold/fold.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/fold.h"
#include "api/work.h"

#define NS_PER_MS UINT64_C(1000000)

/* --- a fold's job: on the folds' thread --- */

static void set_rate(struct vmimg_service *svc, uint64_t rate)
{
	eng_folder_set_rate(svc->store->folder, rate);
}

static struct eng_progress *on_begin(void *arg, const struct fmt_uuid *disk, uint32_t layers)
{
	struct api_work work = {.type = VMIMG_JOB_TYPE_MERGE,
				.cancellable = true,
				.set_rate = set_rate};
	struct vmimg_service *svc = arg;
	struct vmimg_job *job = NULL;
	struct cat_disk row;
	char status[64];

	if (eng_catalog_get_disk_id(svc->store->catalog, disk, &row) < 0)
		return NULL;
	api_name_join(work.name, row.vm_name, '/', row.name);
	if (api_work_begin(svc, &work, &job) < 0)
		return NULL; /* folded all the same */
	snprintf(status, sizeof(status), "joining %u layers", layers);
	api_work_status(&job->progress, 0, status);
	return &job->progress;
}

static void on_end(void *arg, struct eng_progress *progress, int r, const struct fmt_error *err)
{
	struct vmimg_job *job = (struct vmimg_job *)((char *)progress -
						     offsetof(struct vmimg_job, progress));
	struct fmt_error why = *err;

	(void)arg;
	if (r == -ECANCELED)
		fmt_fail(&why, r, "stopped, because the store needed the disk or is being closed");
	else if (r == -ESTALE) /* nothing was claimed until its commit, and nothing is wrong */
		r = fmt_fail(&why, -ECANCELED,
			     "stopped, because the disk's layers are others by now; begun anew");
	api_work_end(job, r, &why);
}

void api_folds_watch(struct vmimg_service *svc)
{
	const struct eng_fold_watch watch = {.arg = svc, .begin = on_begin, .end = on_end};

	eng_folder_watch(svc->store->folder, &watch);
}

int vmimg_set_fold_rate(struct vmimg_service *svc, uint64_t bytes_per_second,
			struct vmimg_error *err)
{
	if (!svc)
		return api_fail(err, -EINVAL, "folds: no service given");
	set_rate(svc, bytes_per_second);
	return 0;
}

/* --- Settle --- */

struct settle {
	struct fmt_uuid *disks;
	size_t count;
	bool whole, none;
	uint64_t deadline_ns;
};

static void settle_free(void *arg)
{
	struct settle *s = arg;

	if (s)
		free(s->disks);
	free(s);
}

static int settle_run(struct vmimg_service *svc, void *arg, struct eng_progress *progress,
		      struct fmt_error *err, struct fmt_uuid *affected)
{
	struct settle *s = arg;

	(void)affected;
	api_work_status(progress, 0, "giving space back: sealing and joining layers");
	return s->none ? 0
		       : eng_store_settle(svc->store, s->disks, s->count, s->whole, s->deadline_ns,
					  progress, err);
}

static int add_disks(struct settle *s, const struct cat_disk *rows, size_t n)
{
	struct fmt_uuid *p = realloc(s->disks, (s->count + n) * sizeof(*p) + 1);

	if (!p)
		return -ENOMEM;
	s->disks = p;
	for (size_t i = 0; i < n; i++)
		s->disks[s->count++] = rows[i].id;
	return 0;
}

static int add_vm(struct vmimg_service *svc, struct settle *s, const struct fmt_uuid *vm)
{
	struct cat_disk *rows = NULL;
	size_t n = 0;
	int r = eng_catalog_list_disks(svc->store->catalog, vm, &rows, &n);

	if (r == 0)
		r = add_disks(s, rows, n);
	free(rows);
	return r;
}

/* "VM/DISK", or a collection with all its members' disks. */
static int find_disks(struct vmimg_service *svc, const char *name, struct settle *s)
{
	struct eng_catalog *cat = svc->store->catalog;
	char vm[CAT_NAME_MAX], disk[CAT_NAME_MAX];
	struct cat_vm *members = NULL;
	struct cat_collection coll;
	struct cat_disk row;
	size_t n = 0;
	int r;

	if (strchr(name, '/')) {
		r = api_name_split(name, '/', vm, disk);
		if (r == 0)
			r = eng_catalog_get_disk(cat, vm, disk, &row);
		return r < 0 ? r : add_disks(s, &row, 1);
	}
	if (!api_name_is_valid(name))
		return -EINVAL;
	r = eng_catalog_get_collection(cat, name, &coll);
	if (r == 0)
		r = eng_catalog_list_members(cat, &coll.id, &members, &n);
	for (size_t i = 0; r == 0 && i < n; i++)
		r = add_vm(svc, s, &members[i].id);
	free(members);
	s->none = r == 0 && !s->count;
	return r;
}

uint32_t vmimg_settle(struct vmimg_service *svc, const char *name, unsigned flags,
		      uint64_t timeout_ns, struct vmimg_job **job, struct vmimg_error *err)
{
	struct api_work work = {.type = VMIMG_JOB_TYPE_SETTLE,
				.cancellable = true,
				.run = settle_run,
				.destroy = settle_free};
	struct settle *s;
	int r;

	if (job)
		*job = NULL;
	if (!svc || flags & ~(unsigned)(VMIMG_SETTLE_WHOLE | VMIMG_SETTLE_WAIT))
		return api_answer(err, VMIMG_INVALID_PARAMETER, "settle: %s",
				  svc ? "unknown flags" : "no service given");
	s = calloc(1, sizeof(*s));
	r = s ? 0 : -ENOMEM;
	if (r == 0 && name)
		r = find_disks(svc, name, s);
	if (r < 0) {
		settle_free(s);
		return api_answer(err,
				  r == -ENOENT || r == -EINVAL ? VMIMG_INVALID_PARAMETER
							       : VMIMG_FAILED,
				  "settle: '%.140s': %s", name,
				  r == -ENOENT || r == -EINVAL
					  ? "no disk or collection of this name"
					  : strerror(-r));
	}
	s->whole = flags & VMIMG_SETTLE_WHOLE;
	if (__builtin_add_overflow(eng_io_now_ns(svc->io), timeout_ns, &s->deadline_ns))
		s->deadline_ns = UINT64_MAX;
	work.arg = s;
	snprintf(work.name, sizeof(work.name), "%s", name ? name : "store");
	return api_work_start(svc, &work, flags & VMIMG_SETTLE_WAIT, job, err);
}
