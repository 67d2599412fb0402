/* SPDX-License-Identifier: MIT */
/*
 * engine_catalog_refpoints.c - the catalog's rows of reference points, and that no layer goes while one
 * refers to it. Rules RP-*: spec/refpoint.md; CT-*: spec/catalog.md.
 */
#include "tests/unit/catalog.h"

TestSuite(engine_catalog_refpoints, .init = setup, .fini = teardown, .timeout = 60);

enum { POINT = 20, RCT };

static struct cat_refpoint make_point(unsigned n, unsigned coll)
{
	struct cat_refpoint point = {
		.id = id_of(POINT, n),
		.collection = id_of(COLL, coll),
		.type = 2,
		.consistency = 1 + n % 2,
		.disks = 3,
		.snapshot = id_of(SNAP, n),
		.created_ns = 1000 - (int)n,
		.cut_wall_ns = -1,
	};

	snprintf(point.name, sizeof(point.name), "p%u", n);
	snprintf(point.collection_name, sizeof(point.collection_name), "coll%u", coll);
	memset(point.element_name, 'e', sizeof(point.element_name) - 1);
	memset(point.snapshot_name, 's', sizeof(point.snapshot_name) - 1);
	return point;
}

static struct cat_refpoint_disk make_member(unsigned point, unsigned disk)
{
	struct cat_refpoint_disk row = {
		.refpoint = id_of(POINT, point),
		.disk = id_of(DISK, disk),
		.layer = id_of(LAYER, disk),
		.rct = id_of(RCT, point * 100 + disk),
		.vm = id_of(VM, 0),
		.vm_name = "old-vm",
		.size = INT64_MAX,
		.index = 1000 - disk,
	};

	snprintf(row.disk_name, sizeof(row.disk_name), "old%u", disk);
	return row;
}

/* Collection 0; disks 1 and 2; point @n of both. */
static void put_point(unsigned n)
{
	struct cat_refpoint point = make_point(n, 0);

	cr_assert_eq(eng_catalog_put_refpoint(cat, &point), 0);
	for (unsigned d = 1; d <= 2; d++) {
		struct cat_refpoint_disk row = make_member(n, d);

		cr_assert_eq(eng_catalog_put_refpoint_disk(cat, &row), 0);
	}
}

static void put_store(void)
{
	put_vm(0);
	put_disk(1, 0);
	put_disk(2, 0);
	put_collection(0);
}

/* CT-10, RP-5 */
Test(engine_catalog_refpoints, rows_come_back_as_they_were_put_in_their_order)
{
	struct cat_refpoint point = make_point(7, 0), got, *points;
	struct cat_refpoint_disk second = make_member(7, 2), row, *rows;
	size_t n;

	begin();
	put_store();
	put_point(7);
	put_point(8);
	commit();
	cr_assert_eq(open_again(), 0, "%s", err.text);

	cr_assert_eq(eng_catalog_get_refpoint(cat, "coll0", "p7", &got), 0);
	cr_expect_eq(memcmp(&got, &point, sizeof(got)), 0);
	cr_assert_eq(eng_catalog_get_refpoint_id(cat, &point.id, &got), 0);
	cr_expect_eq(memcmp(&got, &point, sizeof(got)), 0);
	cr_expect_eq(eng_catalog_get_refpoint(cat, "coll0", "p9", &got), -ENOENT);
	cr_assert_eq(eng_catalog_get_refpoint_rct(cat, &second.rct, &row), 0);
	cr_expect_eq(memcmp(&row, &second, sizeof(row)), 0);
	cr_expect_eq(eng_catalog_get_refpoint_rct(cat, &point.id, &row), -ENOENT);

	cr_assert_eq(eng_catalog_list_refpoints(cat, NULL, &points, &n), 0);
	cr_assert_eq(n, 2);
	cr_expect_str_eq(points[0].name, "p8", "by creation");
	free(points);
	cr_assert_eq(eng_catalog_list_refpoint_disks(cat, &point.id, &rows, &n), 0);
	cr_assert_eq(n, 2);
	cr_expect_eq(memcmp(&rows[0], &second, sizeof(second)), 0, "by position");
	free(rows);
	cr_assert_eq(eng_catalog_list_layer_refpoints(cat, idp(LAYER, 1), &rows, &n), 0);
	cr_expect_eq(n, 2);
	free(rows);
}

/* RP-16, T29: a set and the layer that it belongs to change together, or not at all. */
Test(engine_catalog_refpoints, a_set_is_kept_with_its_layer)
{
	struct cat_refpoint_disk row;
	struct cat_layer other = make_layer(9, 1);
	static uint8_t blob[3 << 20];
	void *set = &row;
	size_t len = 1;

	for (size_t i = 0; i < sizeof(blob); i++)
		blob[i] = (uint8_t)(i * 31);
	begin();
	put_store();
	put_point(0);
	cr_assert_eq(eng_catalog_put_layer(cat, &other), 0);
	commit();
	cr_assert_eq(eng_catalog_get_refpoint_disk(cat, idp(POINT, 0), idp(DISK, 1), &row, &set,
						   &len),
		     0);
	cr_expect(!set && !len && row.saved_bytes == 0);

	begin();
	cr_assert_eq(eng_catalog_set_refpoint_state(cat, idp(POINT, 0), idp(DISK, 1), &other.id,
						    blob, sizeof(blob)),
		     0);
	eng_catalog_rollback(cat);
	cr_assert_eq(eng_catalog_get_refpoint_disk(cat, idp(POINT, 0), idp(DISK, 1), &row, &set,
						   &len),
		     0);
	cr_expect(!set && fmt_uuid_equal(&row.layer, idp(LAYER, 1)));

	begin();
	cr_assert_eq(eng_catalog_set_refpoint_state(cat, idp(POINT, 0), idp(DISK, 1), &other.id,
						    blob, sizeof(blob)),
		     0);
	commit();
	cr_assert_eq(open_again(), 0, "%s", err.text);
	cr_assert_eq(eng_catalog_get_refpoint_disk(cat, idp(POINT, 0), idp(DISK, 1), &row, &set,
						   &len),
		     0);
	cr_assert_eq(len, sizeof(blob));
	cr_expect_eq(memcmp(set, blob, len), 0);
	cr_expect(fmt_uuid_equal(&row.layer, &other.id) && row.saved_bytes == len);
	free(set);
	cr_expect_eq(eng_catalog_get_refpoint_disk(cat, idp(POINT, 0), idp(DISK, 3), &row, &set,
						   &len),
		     -ENOENT);
}

/* T29, CT-5 */
Test(engine_catalog_refpoints, a_layer_that_a_point_refers_to_does_not_go)
{
	struct cat_refpoint_disk row;
	void *set;
	size_t len;

	begin();
	put_store();
	put_point(0);
	commit();
	begin();
	cr_assert_eq(eng_catalog_remove_disk(cat, idp(DISK, 1)), 0);
	cr_assert_eq(eng_catalog_remove_layer(cat, idp(LAYER, 1)), 0);
	cr_expect_eq(eng_catalog_commit(cat, &err), -EBUSY);
	begin();
	cr_assert_eq(eng_catalog_remove_collection(cat, idp(COLL, 0)), 0);
	cr_expect_eq(eng_catalog_commit(cat, &err), -EBUSY, "RP-10");

	/* RP-10: a deleted disk is lost to its points. */
	begin();
	cr_assert_eq(eng_catalog_lose_refpoints(cat, idp(DISK, 1)), 0);
	cr_assert_eq(eng_catalog_remove_disk(cat, idp(DISK, 1)), 0);
	cr_assert_eq(eng_catalog_remove_layer(cat, idp(LAYER, 1)), 0);
	commit();
	cr_assert_eq(eng_catalog_get_refpoint_disk(cat, idp(POINT, 0), idp(DISK, 1), &row, &set,
						   &len),
		     0);
	cr_expect(fmt_uuid_is_none(&row.layer) && !set);

	/* RP-9: its disks go with it. */
	begin();
	cr_assert_eq(eng_catalog_remove_refpoint(cat, idp(POINT, 0)), 0);
	cr_assert_eq(eng_catalog_remove_collection(cat, idp(COLL, 0)), 0);
	commit();
	cr_expect_eq(eng_catalog_get_refpoint_rct(cat, idp(RCT, 2), &row), -ENOENT);
}

/* RP-5; and a name is one point's in its collection. */
Test(engine_catalog_refpoints, names_and_tracking_ids_are_unique)
{
	struct cat_refpoint point = make_point(1, 0);
	struct cat_refpoint_disk row = make_member(1, 1);

	begin();
	put_store();
	put_point(0);
	commit();
	strcpy(point.name, "p0");
	begin();
	cr_expect_eq(eng_catalog_put_refpoint(cat, &point), -EEXIST);
	eng_catalog_rollback(cat);
	begin();
	row.refpoint = id_of(POINT, 0);
	row.disk = id_of(DISK, 5);
	row.rct = id_of(RCT, 1);
	cr_expect_eq(eng_catalog_put_refpoint_disk(cat, &row), -EEXIST);
	eng_catalog_rollback(cat);
	point = make_point(1, 0);
	point.type = 1; /* no log is kept */
	begin();
	cr_expect_eq(eng_catalog_put_refpoint(cat, &point), -EINVAL);
	eng_catalog_rollback(cat);
}
