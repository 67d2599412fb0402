/* SPDX-License-Identifier: MIT */
/*
 * prune.c - retention (RT-*): the plan's facts are gathered, the decision is prune_plan.c's, and
 * what goes is deleted as DestroySnapshot does it, oldest first. Any thread but a queue's.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/describe.h"
#include "api/destroy.h"
#include "api/prune_plan.h"
#include "engine/store/hold.h"

struct prune {
	struct vmimg_service *svc;
	struct api_prune_rules rules;
	struct cat_collection collection;
	struct cat_snapshot *snaps; /* COMPLETE ones, in order of creation */
	struct api_prune_item *items;
	bool *deleted;
	size_t count, gone;
	bool dry_run;
};

/* RT-3 */
static int64_t time_of(const struct cat_snapshot *snap)
{
	return snap->cut_wall_ns ? snap->cut_wall_ns : snap->created_ns;
}

static int is_held(const struct prune *p, const struct fmt_uuid *snapshot, bool *ret)
{
	struct cat_hold *holds = NULL;
	size_t n = 0;
	int r = eng_catalog_list_holds(p->svc->store->catalog, snapshot, &holds, &n);

	free(holds);
	*ret = n > 0;
	return r;
}

static int gather(struct prune *p)
{
	struct eng_store *store = p->svc->store;
	size_t n = 0;
	int r = eng_catalog_list_snapshots(store->catalog, &p->collection.id, &p->snaps, &n);

	if (r < 0)
		return r;
	p->items = calloc(n + 1, sizeof(*p->items));
	p->deleted = calloc(n + 1, sizeof(*p->deleted));
	if (!p->items || !p->deleted)
		return -ENOMEM;
	for (size_t i = 0; r == 0 && i < n; i++) {
		struct api_prune_item *item = &p->items[p->count];

		if (p->snaps[i].state != CAT_SNAPSHOT_COMPLETE)
			continue;
		p->snaps[p->count] = p->snaps[i];
		item->time_ns = time_of(&p->snaps[i]);
		item->automatic = p->snaps[i].automatic;
		item->in_use = eng_store_is_read(store, &p->snaps[i].id);
		r = is_held(p, &p->snaps[i].id, &item->held);
		p->count++;
	}
	return r < 0 ? r : api_prune_plan(&p->rules, p->items, p->count);
}

/* --- what goes --- */

/*
 * RT-7: what changed since the decision is looked at again; a hold that comes later than that wins,
 * too (HD-2). What has got the name of one that is gone was not decided on.
 */
static uint32_t delete_one(struct prune *p, size_t i, struct vmimg_error *err)
{
	char name[CAT_NS_MAX];
	struct cat_snapshot now;
	uint32_t code;

	if (eng_store_is_read(p->svc->store, &p->snaps[i].id)) {
		p->items[i].in_use = p->items[i].keep = true;
		return VMIMG_OK;
	}
	api_name_join(name, p->snaps[i].collection_name, '@', p->snaps[i].name);
	code = api_destroy_snapshot(p->svc, name, &p->snaps[i].id, NULL, err);
	if (code == VMIMG_INVALID_STATE && is_held(p, &p->snaps[i].id, &p->items[i].held) == 0 &&
	    p->items[i].held) {
		p->items[i].keep = true;
		return VMIMG_OK;
	}
	if (code == VMIMG_INVALID_PARAMETER) { /* unless somebody else did, or is at it */
		int r = eng_catalog_get_snapshot_id(p->svc->store->catalog, &p->snaps[i].id, &now);

		if (r == -ENOENT || (r == 0 && now.state != CAT_SNAPSHOT_COMPLETE))
			code = VMIMG_OK;
	}
	if (code == VMIMG_OK) {
		p->deleted[i] = true;
		p->gone++;
	}
	return code;
}

/* Of two with one time the one made first goes first, too: items are in that order. */
static bool next_to_go(const struct prune *p, size_t *ret)
{
	bool found = false;

	for (size_t i = 0; i < p->count; i++) {
		if (p->items[i].keep || p->deleted[i])
			continue;
		if (!found || p->items[i].time_ns < p->items[*ret].time_ns)
			*ret = i;
		found = true;
	}
	return found;
}

static uint32_t delete_all(struct prune *p, struct vmimg_error *err)
{
	uint32_t code = VMIMG_OK;
	size_t i = 0, len;

	while (code == VMIMG_OK && next_to_go(p, &i))
		code = delete_one(p, i, err);
	len = err ? strlen(err->message) : 0;
	if (code && err)
		snprintf(err->message + len, sizeof(err->message) - len,
			 "; %zu snapshots were deleted before it", p->gone);
	return code;
}

/* --- the answer --- */

static int hold_reason(const struct prune *p, size_t i, json_t *reasons)
{
	struct cat_hold *holds = NULL;
	char text[256] = "held: ";
	size_t n = 0, len = strlen(text);
	int r = eng_catalog_list_holds(p->svc->store->catalog, &p->snaps[i].id, &holds, &n);

	for (size_t h = 0; h < n && len < sizeof(text); h++)
		len += (size_t)snprintf(text + len, sizeof(text) - len, "%s%s", h ? ", " : "",
					holds[h].tag);
	free(holds);
	return r < 0 ? r : json_array_append_new(reasons, json_string(text));
}

/* RT-6 */
static int add_reasons(const struct prune *p, size_t i, json_t *reasons)
{
	const struct api_prune_item *item = &p->items[i];
	char text[32];
	int r = 0;

	for (int rule = 0; rule < API_KEEP_RULES; rule++) {
		if (!item->by[rule])
			continue;
		snprintf(text, sizeof(text), "%s #%" PRIu32,
			 api_prune_rule_name((enum api_prune_rule)rule), item->by[rule]);
		json_array_append_new(reasons, json_string(text));
	}
	if (item->held)
		r = hold_reason(p, i, reasons);
	if (item->in_use)
		json_array_append_new(reasons, json_string("in use"));
	if (item->automatic && !p->rules.automatic)
		json_array_append_new(reasons, json_string("automatic"));
	return r;
}

static int item_document(const struct prune *p, size_t i, json_t **ret)
{
	const struct cat_snapshot *snap = &p->snaps[i];
	json_t *reasons = json_array();
	int r = add_reasons(p, i, reasons);

	if (r < 0) {
		json_decref(reasons);
		return r;
	}
	*ret = json_pack("{s:o, s:o, s:o, s:b, s:o, s:b}", "snapshot",
			 api_json_name(snap->collection_name, '@', snap->name), "snapshot_id",
			 api_json_id(&snap->id), "created", api_json_time(p->items[i].time_ns),
			 "keep", (int)p->items[i].keep, "reasons", reasons, "deleted",
			 (int)p->deleted[i]);
	return *ret ? 0 : -ENOMEM;
}

struct place {
	int64_t time_ns;
	size_t index;
};

static int compare_places(const void *a, const void *b)
{
	const struct place *x = a, *y = b;

	if (x->time_ns != y->time_ns)
		return x->time_ns < y->time_ns ? 1 : -1;
	return x->index < y->index ? 1 : -1;
}

static int write_answer(const struct prune *p, char **ret)
{
	struct place *places = calloc(p->count + 1, sizeof(*places));
	json_t *array = json_array(), *doc = NULL, *item = NULL;
	size_t kept = 0;
	int r = places ? 0 : -ENOMEM;

	for (size_t i = 0; r == 0 && i < p->count; i++) {
		places[i] = (struct place){p->items[i].time_ns, i};
		kept += p->items[i].keep;
	}
	if (r == 0)
		qsort(places, p->count, sizeof(*places), compare_places);
	for (size_t i = 0; r == 0 && i < p->count; i++) {
		r = item_document(p, places[i].index, &item);
		if (r == 0)
			r = json_array_append_new(array, item);
	}
	free(places);
	if (r == 0)
		doc = json_pack("{s:s, s:b, s:I, s:I, s:O}", "collection", p->collection.name,
				"dry_run", (int)p->dry_run, "kept", (json_int_t)kept, "deleted",
				(json_int_t)p->gone, "snapshots", array);
	json_decref(array);
	if (doc)
		*ret = json_dumps(doc, JSON_COMPACT);
	json_decref(doc);
	return r < 0 ? r : doc && *ret ? 0 : -ENOMEM;
}

/* --- the call --- */

static uint32_t read_rules(const struct vmimg_prune *how, struct vmimg_error *err,
			   struct api_prune_rules *ret)
{
	const uint32_t keep[API_KEEP_RULES] = {how->keep_last,    how->keep_hourly,
					       how->keep_daily,   how->keep_weekly,
					       how->keep_monthly, how->keep_yearly};
	bool any = false;

	for (int rule = 0; rule < API_KEEP_RULES; rule++) {
		if (keep[rule] > API_PRUNE_MAX)
			return api_answer(err, VMIMG_INVALID_PARAMETER,
					  "keep %s: %u, expected at most %u",
					  api_prune_rule_name((enum api_prune_rule)rule),
					  keep[rule], API_PRUNE_MAX);
		any = any || keep[rule];
		ret->keep[rule] = keep[rule];
	}
	ret->automatic = how->automatic;
	return any ? VMIMG_OK
		   : api_answer(err, VMIMG_INVALID_PARAMETER,
				"prune: no rule says what to keep, expected at least one (RT-4)");
}

uint32_t vmimg_prune_snapshots(struct vmimg_service *svc, const char *collection,
			       const struct vmimg_prune *how, struct vmimg_error *err, char **json)
{
	static const struct fmt_error none;
	struct prune p = {.svc = svc};
	uint32_t code;
	int r;

	if (!svc || !how || how->size_of < sizeof(*how) || !json)
		return api_answer(err, VMIMG_INVALID_PARAMETER, "prune: no %s given",
				  !svc    ? "service"
				  : !json ? "result"
					  : "rules");
	if (!api_name_is_valid(collection))
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "collection: '%.80s' is no name, expected COLLECTION",
				  collection ? collection : "");
	code = read_rules(how, err, &p.rules);
	if (code)
		return code;
	p.dry_run = how->dry_run;
	r = eng_catalog_get_collection(svc->store->catalog, collection, &p.collection);
	if (r == -ENOENT)
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "collection %s: there is none of this name", collection);
	if (r == 0)
		r = gather(&p);
	if (r == 0 && !p.dry_run)
		code = delete_all(&p, err);
	if (r == 0 && !code)
		r = write_answer(&p, json);
	if (r < 0)
		code = api_answer_why(err,
				      r == -ENOTRECOVERABLE ? VMIMG_INVALID_STATE : VMIMG_FAILED, r,
				      &none, collection);
	free(p.snaps);
	free(p.items);
	free(p.deleted);
	return code;
}
