/* SPDX-License-Identifier: MIT */
/*
 * baseline.c - block status against a snapshot or reference point (DF-14): a vmimg_baseline is an
 * eng_baseline, made from names. Any thread makes one; the disk's worker uses it.
 */
#include <errno.h>
#include <string.h>

#include "api/changes.h"
#include "engine/diff/baseline.h"

#define TRIES 20u /* of a look at a state that a fold moves */

static int create(struct vmimg_service *svc, const struct fmt_uuid *disk,
		  const struct api_point *from, const struct api_point *at, struct fmt_error *err,
		  struct eng_baseline **ret, bool *found)
{
	struct api_state state = {.extra = NULL}, top = {.extra = NULL};
	struct eng_baseline *made = NULL;
	struct cat_disk row;
	int r = eng_catalog_get_disk_id(svc->store->catalog, disk, &row);

	if (r == 0)
		r = api_point_state(svc, from, disk, err, &state);
	if (r == 0)
		r = api_point_state(svc, at, disk, err, &top);
	*found = r == 0;
	if (r == 0)
		r = eng_baseline_create(svc->store, &row, &state.eng, &top.eng.layer, err, &made);
	if (r == 0) /* no fold commits any more: what is still so stays so */
		r = api_point_unmoved(svc, from, disk, &state);
	if (r == 0)
		r = api_point_unmoved(svc, at, disk, &top);
	if (r == 0)
		*ret = made;
	else
		eng_baseline_destroy(made);
	eng_blocks_destroy(state.extra);
	eng_blocks_destroy(top.extra);
	return r;
}

int vmimg_baseline_create(struct vmimg_service *svc, const char *disk, const char *point,
			  struct vmimg_error *err, struct vmimg_baseline **ret)
{
	struct eng_baseline *made = NULL;
	struct fmt_error why = {""};
	struct api_point from, at;
	struct fmt_uuid id;
	bool found = true;
	int r;

	if (!svc || !ret || !point)
		return api_fail(err, -EINVAL, "baseline: no %s given",
				!svc    ? "service"
				: point ? "result"
					: "point");
	if (api_point_path(svc, disk, err, &id, &at))
		return api_fail(err, -ENOENT, "baseline: %.140s: no such disk", disk ? disk : "");
	r = api_point_find(svc, point, &from);
	if (r < 0)
		return api_fail(err, r, "baseline: %.140s: %s", point, strerror(-r));
	r = -ENOENT;
	for (unsigned i = 0; i < TRIES && found && r == -ENOENT; i++)
		r = create(svc, &id, &from, &at, &why, &made, &found);
	if (r < 0)
		return api_fail_why(err, r, &why, point);
	*ret = (struct vmimg_baseline *)made;
	return 0;
}

void vmimg_baseline_destroy(struct vmimg_baseline *baseline)
{
	eng_baseline_destroy((struct eng_baseline *)baseline);
}

void vmimg_baseline_attach(struct vmimg_baseline *baseline, struct vmimg_disk *disk)
{
	eng_baseline_attach((struct eng_baseline *)baseline, (struct eng_disk *)disk);
}

uint64_t vmimg_baseline_extent(const struct vmimg_baseline *baseline, struct vmimg_disk *disk,
			       uint64_t offset, const struct vmimg_disk_extent *extent,
			       bool *changed)
{
	return eng_baseline_extent((const struct eng_baseline *)baseline, (struct eng_disk *)disk,
				   offset, (const struct eng_disk_extent *)extent, changed);
}
