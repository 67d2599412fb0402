/* SPDX-License-Identifier: MIT */
/*
 * catalog_holds.c - the catalog's calls of holds (HD-*): tags that keep a snapshot from being
 * deleted. Rules as in catalog_rows.c.
 */
#include "engine/catalog/catalog.h"
#include "engine/catalog/catalog_impl.h"

int eng_catalog_put_hold(struct eng_catalog *cat, const struct cat_hold *hold)
{
	return eng_catalog_run_put(cat, PUT_HOLD, hold);
}

int eng_catalog_remove_hold(struct eng_catalog *cat, const struct fmt_uuid *snapshot,
			    const char *tag)
{
	return eng_catalog_run_remove(cat, REMOVE_HOLD,
				      (struct cat_key){.id = snapshot, .name2 = tag});
}

int eng_catalog_list_holds(struct eng_catalog *cat, const struct fmt_uuid *snapshot,
			   struct cat_hold **ret, size_t *count)
{
	return eng_catalog_run_list(cat, snapshot ? LIST_SNAPSHOT_HOLDS : LIST_HOLDS,
				    (struct cat_key){.id = snapshot}, ret, count);
}
