/* SPDX-License-Identifier: MIT */
/*
 * snapshot.c - CreateSnapshot, and CreateReferencePoint, which is the same cut with another outcome:
 * every check in the order of CSN-2, then the job (CSN-1..CSN-13, RP-22). Any thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "api/create.h"
#include "api/quiesce.h"

#define NS_PER_MS     1000000ull
#define FREEZE_MAX_NS (10000 * NS_PER_MS) /* QU-9 */

struct request {
	struct eng_snapshot_spec spec;
	bool synchronous;
	struct api_quiesce *quiesce; /* level 1; else NULL */
};

static struct eng_catalog *catalog_of(const struct vmimg_service *svc)
{
	return svc->store->catalog;
}

/* --- checks 1 to 7, in order: parameters first, the store's state last --- */

/* *@poisoned: the catalog cannot tell; reported in its turn (check 7). */
static uint32_t check_collection(struct vmimg_service *svc, const char *collection,
				 struct vmimg_error *err, struct cat_collection *ret,
				 bool *poisoned)
{
	int r;

	if (!svc)
		return api_answer(err, VMIMG_INVALID_PARAMETER, "create: no service given");
	if (!api_name_is_valid(collection))
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "collection: '%.80s' is no name, expected COLLECTION",
				  collection ? collection : "");
	r = eng_catalog_get_collection(catalog_of(svc), collection, ret);
	if (r == -ENOENT)
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "collection %s: there is none of this name", collection);
	*poisoned = r < 0;
	return 0;
}

/* What a cut leaves. */
struct product {
	bool refpoint;
	char sep;
	const char *noun, *prefix; /* of a name that is made */
	uint16_t job_type;
	uint32_t (*check_type)(uint16_t type, struct vmimg_error *err);
};

static uint32_t check_type(uint16_t type, struct vmimg_error *err)
{
	if (type == VMIMG_SNAPSHOT_STANDARD || type == VMIMG_SNAPSHOT_RECOVERY)
		return 0;
	if (type >= 32768)
		return api_answer(
			err, VMIMG_NOT_SUPPORTED,
			"SnapshotType %u is a vendor's, supported are 1 (Standard), 2 (Recovery)",
			type);
	return api_answer(err, VMIMG_INVALID_TYPE,
			  "SnapshotType is %u, expected 1 (Standard) or 2 (Recovery)", type);
}

/* RP-22: no log is kept, so there is no point of one. */
static uint32_t check_refpoint_type(uint16_t type, struct vmimg_error *err)
{
	if (type == VMIMG_REFPOINT_RCT)
		return 0;
	if (type == VMIMG_REFPOINT_LOG || type >= 32768)
		return api_answer(err, VMIMG_NOT_SUPPORTED,
				  "ReferencePointType %u is not supported, expected 2 (RCT)", type);
	return api_answer(err, VMIMG_INVALID_TYPE, "ReferencePointType is %u, expected 2 (RCT)",
			  type);
}

static const struct product a_snapshot = {
	.sep = '@',
	.noun = "snapshot",
	.prefix = "s",
	.job_type = VMIMG_JOB_TYPE_SNAPSHOT_COLLECTION,
	.check_type = check_type,
};
static const struct product a_refpoint = {
	.refpoint = true,
	.sep = '#',
	.noun = "reference point",
	.prefix = "p",
	.job_type = VMIMG_JOB_TYPE_CREATE_REFPOINT_COLLECTION,
	.check_type = check_refpoint_type,
};

/* *@creating: by a snapshot that is being created. */
static bool name_is_taken(struct vmimg_service *svc, const struct product *product,
			  const char *collection, const char *name, bool *creating)
{
	struct cat_snapshot snap;
	struct cat_refpoint point;

	*creating = false;
	if (product->refpoint)
		return eng_catalog_get_refpoint(catalog_of(svc), collection, name, &point) == 0;
	if (eng_catalog_get_snapshot(catalog_of(svc), collection, name, &snap) < 0)
		return false;
	*creating = snap.state == CAT_SNAPSHOT_INTENT;
	return true;
}

/* PREFIX-YYYYMMDD-HHMMSS, UTC; while taken, -2, -3 ... is appended (CSN-5). */
static void name_by_time(struct vmimg_service *svc, const struct product *product,
			 const char *collection, const char *prefix, char ret[CAT_NAME_MAX])
{
	time_t now = (time_t)(eng_io_wall_ns(svc->io) / 1000000000);
	char date[24], stem[48];
	bool creating;
	struct tm tm;

	gmtime_r(&now, &tm);
	strftime(date, sizeof(date), "%Y%m%d-%H%M%S", &tm);
	snprintf(stem, sizeof(stem), "%.16s-%s", prefix, date);
	snprintf(ret, CAT_NAME_MAX, "%s", stem);
	for (unsigned n = 2; name_is_taken(svc, product, collection, ret, &creating); n++)
		snprintf(ret, CAT_NAME_MAX, "%s-%u", stem, n);
}

void api_name_by_time(struct vmimg_service *svc, const char *collection, const char *prefix,
		      char ret[CAT_NAME_MAX])
{
	name_by_time(svc, &a_snapshot, collection, prefix, ret);
}

static uint32_t check_name(struct vmimg_service *svc, const struct product *product,
			   const char *collection, const char *wanted, bool poisoned,
			   struct vmimg_error *err, char ret[CAT_NAME_MAX])
{
	uint32_t code = api_wanted_name(wanted, product->sep, collection, err, ret);
	bool creating;

	if (code)
		return code;
	/* What is being created counts as a running create, not as a taken name. */
	if (!poisoned && ret[0] && name_is_taken(svc, product, collection, ret, &creating) &&
	    !creating)
		return api_answer(err, VMIMG_INVALID_PARAMETER, "%s %s%c%s: exists already",
				  product->noun, collection, product->sep, ret);
	/* check 7 */
	if (poisoned || eng_catalog_poisoned(catalog_of(svc)))
		return api_answer(
			err, VMIMG_INVALID_STATE,
			"collection %s: the catalog is unusable after an I/O error; reopen the store",
			collection);
	return 0;
}

static void fill_job(struct vmimg_service *svc, const struct product *product,
		     const struct eng_snapshot_spec *spec, struct cat_job *ret)
{
	memset(ret, 0, sizeof(*ret));
	eng_store_new_id(svc->store, &ret->id);
	ret->state = VMIMG_JOB_COMPLETED;
	ret->type = product->job_type;
	ret->percent = 100;
	api_name_join(ret->name, spec->collection.name, product->sep, spec->name);
	snprintf(ret->status_text, sizeof(ret->status_text), "completed");
	ret->affected = spec->id;
	ret->submitted_ns = eng_io_wall_ns(svc->io);
	ret->started_ns = ret->submitted_ns;
}

static uint32_t add_quiesce(struct vmimg_service *svc, const struct api_settings *s,
			    struct vmimg_error *err, struct request *req)
{
	struct eng_snapshot_spec *spec = &req->spec;
	int r;

	if (!spec->max_stall_ns)
		spec->max_stall_ns = FREEZE_MAX_NS;
	r = api_quiesce_create(svc, spec, s->fallback_to_crash, &req->quiesce);
	if (r < 0)
		return api_answer(err, VMIMG_INVALID_STATE, "collection %s: %s",
				  spec->collection.name, strerror(-r));
	spec->guests = api_quiesce_hooks(req->quiesce);
	return 0;
}

static uint32_t read_request(struct vmimg_service *svc, const struct product *product,
			     const char *collection, const char *settings, uint16_t type,
			     const char *wanted, struct vmimg_error *err, struct request *ret)
{
	struct eng_snapshot_spec *spec = &ret->spec;
	struct fmt_error why = {""};
	struct api_settings s;
	bool poisoned = false;
	uint32_t code;

	memset(ret, 0, sizeof(*ret));
	code = check_collection(svc, collection, err, &spec->collection, &poisoned);
	if (code)
		return code;
	if (api_settings_read(settings, &why, &s) < 0)
		return api_answer(err, VMIMG_INVALID_PARAMETER, "%s", why.text);
	code = product->check_type(type, err);
	if (code == 0)
		code = check_name(svc, product, collection, wanted, poisoned, err, spec->name);
	if (code)
		return code;
	if (!spec->name[0])
		name_by_time(svc, product, collection, product->prefix, spec->name);
	eng_store_new_id(svc->store, &spec->id);
	snprintf(spec->element_name, sizeof(spec->element_name), "%s",
		 s.element_name[0] ? s.element_name : spec->name);
	spec->type = type;
	spec->refpoint = product->refpoint;
	spec->consistency = s.consistency == VMIMG_CONSISTENCY_APPLICATION
				    ? VMIMG_CONSISTENCY_APPLICATION
				    : VMIMG_CONSISTENCY_CRASH;
	spec->guest_backup_type = (uint8_t)s.guest_backup_type;
	spec->ignore_independent = s.ignore_non_snapshottable;
	spec->timeout_ns = s.timeout_ms * NS_PER_MS;
	spec->max_stall_ns = s.max_stall_ms * NS_PER_MS;
	fill_job(svc, product, spec, &spec->job);
	ret->synchronous = s.synchronous;
	return spec->consistency == VMIMG_CONSISTENCY_APPLICATION ? add_quiesce(svc, &s, err, ret)
								  : 0;
}

/* --- checks 8 to 12: the members --- */

static uint32_t check_members_locked(struct vmimg_service *svc, const struct request *req,
				     struct vmimg_error *err, struct eng_snapshot **ret)
{
	const struct eng_snapshot_spec *spec = &req->spec;
	struct eng_snapshot *snap = NULL;
	struct fmt_error why = {""};
	int r;

	if (eng_store_collection_in_cut(svc->store, &spec->collection.id))
		return api_answer(
			err, VMIMG_INVALID_STATE,
			"collection %s: another snapshot or reference point of it is being created",
			spec->collection.name);
	r = eng_snapshot_check(svc->store, spec, &why, &snap);
	if (r < 0)
		return api_answer_why(err,
				      r == -EEXIST ? VMIMG_INVALID_PARAMETER : VMIMG_INVALID_STATE,
				      r, &why, spec->collection.name);
	if (req->quiesce)
		r = api_quiesce_find_locked(req->quiesce, &spec->collection.id, &why);
	if (r == 0) {
		*ret = snap;
		return 0;
	}
	eng_snapshot_destroy(snap);
	return api_answer_why(err, r == -EOPNOTSUPP ? VMIMG_NOT_SUPPORTED : VMIMG_INVALID_STATE, r,
			      &why, spec->collection.name);
}

uint32_t vmimg_check_snapshot(struct vmimg_service *svc, const char *collection,
			      const char *settings, uint16_t type, const char *name,
			      struct vmimg_error *err)
{
	struct eng_snapshot *snap = NULL;
	struct request req;
	uint32_t code = read_request(svc, &a_snapshot, collection, settings, type, name, err, &req);

	if (code)
		return code;
	pthread_mutex_lock(&svc->lock);
	code = check_members_locked(svc, &req, err, &snap);
	eng_snapshot_destroy(snap);
	pthread_mutex_unlock(&svc->lock);
	api_quiesce_destroy(svc, req.quiesce);
	return code;
}

/* --- create --- */

static uint32_t start(struct vmimg_service *svc, const struct request *req, struct vmimg_error *err,
		      struct vmimg_job **ret)
{
	struct eng_snapshot *snap = NULL;
	struct fmt_error why = {""};
	uint32_t code;
	int r;

	pthread_mutex_lock(&svc->lock);
	code = check_members_locked(svc, req, err, &snap);
	if (code)
		goto out;
	code = VMIMG_JOB_STARTED;
	r = api_create_start_locked(svc, &req->spec, snap, req->quiesce, &why, ret);
	if (r < 0) {
		eng_snapshot_destroy(snap);
		code = api_answer_why(err, VMIMG_INVALID_STATE, r, &why, req->spec.job.name);
	}
out:
	pthread_mutex_unlock(&svc->lock);
	return code;
}

/* CSN-11 */
static uint32_t wait_for_end(struct vmimg_job *job, struct vmimg_ref *result,
			     struct vmimg_error *err)
{
	struct vmimg_job_info info;
	uint32_t code = api_work_wait(job, err);

	if (code == VMIMG_OK && result) {
		vmimg_job_info(job, &info);
		*result = info.affected;
	}
	if (code != VMIMG_OK && code != VMIMG_TIMEOUT) {
		code = VMIMG_FAILED;
		if (err)
			err->code = VMIMG_FAILED;
	}
	return code;
}

static uint32_t create(struct vmimg_service *svc, const struct product *product,
		       const char *collection, const char *settings, uint16_t type,
		       struct vmimg_ref *result, struct vmimg_job **job, struct vmimg_error *err)
{
	struct vmimg_job *started = NULL;
	struct request req;
	uint32_t code;

	if (job)
		*job = NULL;
	code = read_request(svc, product, collection, settings, type, result ? result->name : NULL,
			    err, &req);
	if (code)
		return code;
	api_work_tidy(svc);
	code = start(svc, &req, err, &started);
	if (code != VMIMG_JOB_STARTED) {
		api_quiesce_destroy(svc, req.quiesce);
		return code;
	}
	if (req.synchronous)
		code = wait_for_end(started, result, err);
	if (job)
		*job = started;
	else
		vmimg_job_put(started);
	return code;
}

uint32_t vmimg_create_snapshot(struct vmimg_service *svc, const char *collection,
			       const char *settings, uint16_t type, struct vmimg_ref *result,
			       struct vmimg_job **job, struct vmimg_error *err)
{
	return create(svc, &a_snapshot, collection, settings, type, result, job, err);
}

int vmimg_snapshot_id(struct vmimg_service *svc, const char *snapshot, struct vmimg_error *err,
		      char id[37])
{
	char collection[CAT_NAME_MAX], name[CAT_NAME_MAX];
	struct fmt_error why = {""};
	struct cat_snapshot snap;
	int r;

	if (!svc || !id || api_name_split(snapshot, '@', collection, name) < 0)
		return api_fail(err, -EINVAL,
				"snapshot: '%.140s' is no name, expected COLLECTION@NAME",
				snapshot ? snapshot : "");
	r = eng_catalog_find_snapshot(catalog_of(svc), collection, name, &why, &snap);
	if (r < 0)
		return api_fail_why(err, r, &why, snapshot);
	fmt_uuid_format(&snap.id, id);
	return 0;
}

uint32_t vmimg_create_reference_point(struct vmimg_service *svc, const char *collection,
				      const char *settings, uint16_t type, struct vmimg_ref *result,
				      struct vmimg_job **job, struct vmimg_error *err)
{
	return create(svc, &a_refpoint, collection, settings, type, result, job, err);
}
