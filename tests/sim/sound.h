/* SPDX-License-Identifier: MIT */
/*
 * sound.h - what model tests look at when all is done: layers and files counted, and what check says of
 * the store. Beside engine_store.h, whose store it is about.
 */
#ifndef TESTS_SIM_SOUND_H
#define TESTS_SIM_SOUND_H

#include <dirent.h>

#include "fsck/fsck.h"
#include "tests/unit/engine_store.h"

static inline int delete_snapshot(const char *name)
{
	struct cat_job none = {.state = 0};
	bool marked;

	return eng_store_delete_snapshot(store, "c", name, &none, &marked, &err);
}

static inline size_t count_layers(void)
{
	struct cat_layer *rows = NULL;
	size_t n = 0;

	must(eng_catalog_list_layers(store->catalog, NULL, &rows, &n) == 0);
	free(rows);
	return n;
}

/* Files of layers with data: overlays and bases. */
static inline size_t count_files(void)
{
	char path[256];
	struct dirent *e;
	size_t n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "%s/layers", dir);
	d = opendir(path);
	must(d != NULL);
	while ((e = readdir(d)))
		n += strstr(e->d_name, ".vmo") != NULL || strstr(e->d_name, ".raw") != NULL;
	closedir(d);
	return n;
}

static inline void note_finding(void *arg, const struct fsck_finding *f)
{
	bool leaks = arg != NULL;

	cr_expect(f->severity == FSCK_NOTE || (leaks && f->severity != FSCK_CORRUPT), "%s: %s: %s",
		  f->rule, f->where, f->message);
}

/* The store is closed: no damage; leaks there may be. */
static inline void expect_undamaged(void)
{
	struct fsck_summary sum = {0};

	must(fsck_run(machine, dir, note_finding, &sum, &err, &sum) == 0);
	cr_expect_eq(sum.corruptions, 0u);
}

/* The store is closed: neither damage nor a leak. */
static inline void expect_sound(void)
{
	struct fsck_summary sum = {0};

	must(fsck_run(machine, dir, note_finding, NULL, &err, &sum) == 0);
	cr_expect_eq(sum.corruptions + sum.leaks, 0u);
}

static inline void end(void)
{
	close_store();
	expect_sound();
	finish();
}

#endif
