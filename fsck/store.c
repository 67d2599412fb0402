/* SPDX-License-Identifier: MIT */
/*
 * store.c - a whole store: its lock, its catalog, every layer with its files, then what they say of each
 * other. A catalog that cannot be read leaves the layers' files, each by itself. One thread a check.
 */
#include "fsck/store.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fsck/image.h"
#include "fsck/layer.h"

/* "DIR/NAME"; free(). NULL: no memory, reported. */
static char *join(struct fsck_store *s, const char *name)
{
	char *path;

	if (asprintf(&path, "%s/%s", s->dir, name) >= 0)
		return path;
	fsck_cannot(s->f, -ENOMEM, "%s: no memory", s->dir);
	return NULL;
}

char *fsck_layer_path(struct fsck_store *s, const struct fmt_uuid *id, const char *suffix)
{
	char name[FMT_UUID_TEXT + 32], text[FMT_UUID_TEXT];

	fmt_uuid_format(id, text);
	snprintf(name, sizeof(name), "layers/%s.%s", text, suffix);
	return join(s, name);
}

/* --- nodes --- */

static int by_id(const void *a, const void *b)
{
	const struct fsck_node *x = a, *y = b;

	return memcmp(x->id.b, y->id.b, sizeof(x->id.b));
}

struct fsck_node *fsck_node_find(const struct fsck_store *s, const struct fmt_uuid *id)
{
	struct fsck_node key = {.id = *id};

	return s->count ? bsearch(&key, s->nodes, s->count, sizeof(key), by_id) : NULL;
}

static struct fsck_node *add_node(struct fsck_store *s, const struct cat_layer *row)
{
	struct fsck_node *n;

	if (s->count == s->cap) {
		size_t cap = s->cap ? s->cap * 2 : 64;

		n = realloc(s->nodes, cap * sizeof(*n));
		if (!n) {
			fsck_cannot(s->f, -ENOMEM, "%s: no memory for %zu layers", s->dir, cap);
			return NULL;
		}
		s->nodes = n;
		s->cap = cap;
	}
	n = &s->nodes[s->count++];
	memset(n, 0, sizeof(*n));
	n->id = row->id;
	n->disk = row->disk;
	n->parent = row->parent;
	n->snapshot = row->snapshot;
	n->kind = row->kind;
	n->state = row->state;
	n->generation = row->generation;
	n->in_place = row->path[0] != 0;
	return n;
}

static int check_layers_of(struct fsck_store *s, const struct cat_disk *disk)
{
	struct cat_layer *rows = NULL;
	size_t count = 0;
	int r = eng_catalog_list_layers(s->cat, &disk->id, &rows, &count);

	for (size_t i = 0; r == 0 && i < count; i++) {
		struct fsck_node *n = add_node(s, &rows[i]);

		if (!n)
			r = -ENOMEM;
		else
			fsck_node_check(s, n, &rows[i], disk);
	}
	free(rows);
	return r;
}

static int check_layers(struct fsck_store *s)
{
	struct cat_disk *disks = NULL;
	size_t count = 0;
	int r = eng_catalog_list_disks(s->cat, NULL, &disks, &count);

	for (size_t i = 0; r == 0 && i < count; i++)
		r = check_layers_of(s, &disks[i]);
	if (s->count)
		qsort(s->nodes, s->count, sizeof(*s->nodes), by_id);
	for (size_t i = 0; r == 0 && i < s->count; i++)
		if (!s->nodes[i].name)
			r = fsck_cannot(s->f, -ENOMEM, "%s: no memory", s->dir);
	free(disks);
	return r;
}

/* --- names in layers/ --- */

struct names {
	char **name;
	size_t count, cap;
};

static int take_name(void *arg, const char *name)
{
	struct names *names = arg;

	if (names->count == names->cap) {
		size_t cap = names->cap ? names->cap * 2 : 64;
		char **p = realloc(names->name, cap * sizeof(*p));

		if (!p)
			return -ENOMEM;
		names->name = p;
		names->cap = cap;
	}
	names->name[names->count] = strdup(name);
	return names->name[names->count++] ? 0 : -ENOMEM;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void names_free(struct names *names)
{
	for (size_t i = 0; i < names->count; i++)
		free(names->name[i]);
	free(names->name);
}

/* All names, sorted, so that two checks of one store say the same. */
static int list_names(struct fsck_store *s, struct names *ret)
{
	char *dir = join(s, "layers");
	int r = dir ? eng_io_list(s->f->io, dir, take_name, ret) : -ENOMEM;

	fsck_at(s->f, "layers");
	if (r == -ENOENT)
		fsck_found(s->f, PR_FILE_MISSING, "there is no directory %s", dir);
	else if (r < 0)
		fsck_cannot(s->f, r, "%s: %s", dir ? dir : s->dir, strerror(-r));
	if (ret->count)
		qsort(ret->name, ret->count, sizeof(*ret->name), by_name);
	free(dir);
	return r;
}

/* Is the file @name one that its row needs? */
static bool is_wanted(const struct fsck_store *s, const char *name)
{
	char text[FMT_UUID_TEXT];
	const struct fsck_node *n;
	const char *suffix;
	struct fmt_uuid id;

	if (strlen(name) < sizeof(text) || name[sizeof(text) - 1] != '.')
		return false;
	memcpy(text, name, sizeof(text) - 1);
	text[sizeof(text) - 1] = 0;
	suffix = name + sizeof(text);
	if (fmt_uuid_parse(text, &id) < 0)
		return false;
	n = fsck_node_find(s, &id);
	if (!n)
		return false;
	if (n->kind == FMT_KIND_OVERLAY)
		return strcmp(suffix, "vmo") == 0;
	return strcmp(suffix, "vmr") == 0 ||
	       (!n->in_place && strcmp(suffix, n->kind == FMT_KIND_RAW ? "raw" : "qcow2") == 0);
}

static void check_orphan(struct fsck_store *s, const char *name)
{
	struct eng_stat st = {0};
	char *path = NULL;

	if (asprintf(&path, "%s/layers/%s", s->dir, name) < 0)
		path = NULL;
	if (path)
		eng_io_stat(s->f->io, path, &st);
	free(path);
	fsck_at(s->f, "layers/%s", name);
	fsck_leaked(s->f, PR_FILE_ORPHAN, st.allocated, "%" PRIu64 " bytes allocated",
		    st.allocated);
}

/* RV-9 */
static void check_names(struct fsck_store *s)
{
	struct names names = {0};
	int r = list_names(s, &names);

	for (size_t i = 0; r == 0 && i < names.count; i++)
		if (!is_wanted(s, names.name[i]))
			check_orphan(s, names.name[i]);
	names_free(&names);
}

/* Without a catalog: what the files say alone. */
static void check_files_alone(struct fsck_store *s)
{
	struct names names = {0};
	int r = list_names(s, &names);

	for (size_t i = 0; r == 0 && i < names.count; i++) {
		const char *suffix = strrchr(names.name[i], '.');
		struct fmt_header hdr;
		char *path = NULL;

		if (!suffix || (strcmp(suffix, ".vmo") != 0 && strcmp(suffix, ".vmr") != 0) ||
		    asprintf(&path, "%s/layers/%s", s->dir, names.name[i]) < 0)
			continue;
		fsck_at(s->f, "layers/%s", names.name[i]);
		fsck_layer(s->f, path, 0, &hdr);
		free(path);
	}
	names_free(&names);
}

/* --- the catalog --- */

static int read_facts(struct fsck_store *s)
{
	char text[CAT_TEXT_MAX];
	int r = eng_catalog_fact_get(s->cat, "store_id", text);

	if (r == 0 || r == -ENOENT) {
		if (r < 0 || fmt_uuid_parse(text, &s->id) < 0)
			fsck_found(s->f, PR_FACTS, "store_id is %s", r < 0 ? "missing" : "no id");
		r = eng_catalog_fact_get(s->cat, "clean", text);
	}
	if (r < 0 && r != -ENOENT)
		return r;
	s->f->clean = r == 0 && strcmp(text, "1") == 0;
	if (!s->f->clean)
		fsck_found(s->f, PR_UNCLEAN, "the next open recovers it");
	return 0;
}

/* 0: usable. What a damaged one says of its rows is damage, not a reason to give up the layers. */
static int open_catalog(struct fsck_store *s)
{
	char *path = join(s, "catalog.db");
	struct fmt_error why = {""};
	int r = path ? eng_catalog_open(s->f->io, path, false, &why, &s->cat) : -ENOMEM;

	fsck_at(s->f, "catalog.db");
	if (r == -ENOENT)
		fsck_found(s->f, PR_CATALOG_MISSING, "%s", why.text);
	else if (r == -EUCLEAN || r == -EBADMSG)
		fsck_found(s->f, PR_CATALOG_DAMAGED, "%s", why.text);
	else if (r < 0)
		fsck_cannot(s->f, r, "%s: %s", s->dir, why.text[0] ? why.text : strerror(-r));
	free(path);
	if (r < 0)
		return r;
	r = read_facts(s);
	if (r == 0)
		r = eng_catalog_check(s->cat, &why);
	if (r == -EUCLEAN)
		fsck_found(s->f, PR_CATALOG_ROWS, "%s", why.text);
	else if (r < 0)
		fsck_cannot(s->f, r, "%s: %s", s->dir, why.text[0] ? why.text : strerror(-r));
	return r;
}

/* -EBUSY, or -ENOENT where no store is. */
static int lock_store(struct fsck_store *s, struct eng_file **ret)
{
	char *path = join(s, "lock");
	int r = path ? eng_io_open(s->f->io, path, ENG_OPEN_WRITE, ret) : -ENOMEM;

	if (r == -EACCES || r == -EROFS)
		r = eng_io_open(s->f->io, path, 0, ret);
	if (r < 0) {
		fsck_cannot(s->f, r, "%s: not a store: %s", s->dir, strerror(-r));
	} else {
		r = eng_io_lock(s->f->io, *ret);
		if (r == -EWOULDBLOCK)
			r = fsck_cannot(s->f, -EBUSY, "%s: the store is in use", s->dir);
		else if (r < 0)
			fsck_cannot(s->f, r, "%s: cannot lock: %s", path, strerror(-r));
	}
	free(path);
	return r;
}

static void check_store(struct fsck_store *s)
{
	int r = check_layers(s);

	if (r == 0)
		r = fsck_chains(s);
	if (r == 0)
		r = fsck_snapshots(s);
	if (r == 0)
		r = fsck_refpoints(s);
	if (r == 0)
		r = fsck_gone_masks(s);
	if (r == 0) {
		fsck_unreached(s);
		check_names(s);
	}
	if (r == -EUCLEAN || r == -EBADMSG) {
		fsck_at(s->f, "catalog.db");
		fsck_found(s->f, PR_CATALOG_ROWS, "a row is not what it should be");
	} else if (r < 0) {
		fsck_cannot(s->f, r, "%s: cannot read the catalog: %s", s->dir, strerror(-r));
	}
}

int fsck_store(struct fsck *f, const char *dir)
{
	struct fsck_store s = {.f = f, .dir = dir};
	struct eng_file *lock = NULL;
	int r = lock_store(&s, &lock);

	if (r < 0)
		goto out;
	r = open_catalog(&s);
	if (r == 0)
		check_store(&s);
	else if (r == -ENOENT || r == -EUCLEAN || r == -EBADMSG)
		check_files_alone(&s);
out:
	eng_catalog_close(s.cat);
	eng_io_close(f->io, lock);
	for (size_t i = 0; i < s.count; i++)
		free(s.nodes[i].name);
	free(s.nodes);
	return r;
}
