/* SPDX-License-Identifier: MIT */
/*
 * flatten.c - a clone, or all disks of a collection, made independent as a job (CSN-18). Any thread.
 */
#include "engine/snapshot/flatten.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/work.h"

struct flatten {
	struct cat_disk *disks;
	size_t count;
};

static void destroy(void *arg)
{
	struct flatten *f = arg;

	free(f->disks);
	free(f);
}

static int run(struct vmimg_service *svc, void *arg, struct eng_progress *progress,
	       struct fmt_error *err, struct fmt_uuid *affected)
{
	struct flatten *f = arg;
	uint64_t total = 0, bytes, copied;
	int r = 0;

	(void)affected;
	for (size_t i = 0; i < f->count; i++)
		if (eng_store_flatten_bytes(svc->store, &f->disks[i].id, &bytes) == 0)
			total += bytes;
	eng_progress_start(progress, total);
	for (size_t i = 0; r == 0 && i < f->count; i++) {
		char status[CAT_TEXT_MAX];

		snprintf(status, sizeof(status), "flattening %s/%s", f->disks[i].vm_name,
			 f->disks[i].name);
		api_work_status(progress, 0, status);
		r = eng_store_flatten(svc->store, &f->disks[i].id, i + 1 == f->count, progress, err,
				      &copied);
	}
	return r;
}

static int find(struct vmimg_service *svc, const char *name, struct flatten *f)
{
	char vm[CAT_NAME_MAX], disk[CAT_NAME_MAX];
	struct cat_collection coll;
	int r;

	if (!strchr(name, '/')) {
		r = api_name_is_valid(name)
			    ? eng_catalog_get_collection(svc->store->catalog, name, &coll)
			    : -EINVAL;
		return r < 0 ? r
			     : eng_catalog_list_collection_disks(svc->store->catalog, &coll.id,
								 &f->disks, &f->count);
	}
	f->disks = calloc(1, sizeof(*f->disks));
	f->count = 1;
	if (!f->disks)
		return -ENOMEM;
	r = api_name_split(name, '/', vm, disk);
	return r < 0 ? r : eng_catalog_get_disk(svc->store->catalog, vm, disk, &f->disks[0]);
}

uint32_t vmimg_flatten(struct vmimg_service *svc, const char *name, uint64_t rate_limit,
		       unsigned flags, struct vmimg_job **job, struct vmimg_error *err)
{
	struct api_work work = {
		.type = VMIMG_JOB_TYPE_FLATTEN,
		.cancellable = true,
		.run = run,
		.destroy = destroy,
		.rate = rate_limit,
	};
	struct fmt_error why = {""};
	struct flatten *f;
	int r;

	if (job)
		*job = NULL;
	if (!svc || !name || flags & ~(unsigned)VMIMG_FLATTEN_WAIT)
		return api_answer(err, VMIMG_INVALID_PARAMETER, "flatten: %s",
				  !svc    ? "no service given"
				  : !name ? "no name given"
					  : "flags that are not known");
	f = calloc(1, sizeof(*f));
	r = f ? find(svc, name, f) : -ENOMEM;
	if (r < 0) {
		if (f)
			destroy(f);
		if (r == -ENOENT || r == -EINVAL)
			return api_answer(err, VMIMG_INVALID_PARAMETER,
					  "%.140s: no such disk or collection", name);
		return api_answer_why(err,
				      r == -ENOTRECOVERABLE ? VMIMG_INVALID_STATE : VMIMG_FAILED, r,
				      &why, name);
	}
	snprintf(work.name, sizeof(work.name), "%s", name);
	work.arg = f;
	return api_work_start(svc, &work, flags & VMIMG_FLATTEN_WAIT, job, err);
}
