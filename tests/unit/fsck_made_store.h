/* SPDX-License-Identifier: MIT */
/*
 * fsck_made_store.h - a real store for the checker's tests: a VM "a" with the disks "d" and "e" in the
 * collection "c", used through the engine. For one program each: all of it is static.
 */
#ifndef TESTS_UNIT_FSCK_MADE_STORE_H
#define TESTS_UNIT_FSCK_MADE_STORE_H

#include "tests/unit/fsck_findings.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <sys/wait.h>

#include "engine/io/io_record.h"
#include "engine/snapshot/snapshot.h"

#define DISK_SIZE (8u << 20)

static struct eng_io *io;
static struct eng_store *store;
static struct eng_queue *queue;
static struct eng_disk *disks[2];
static struct eng_store_options options;
static struct cat_collection collection;
static struct fmt_error err;
static char dir[256], store_dir[270];

#define ok(call)                                                                                   \
	do {                                                                                       \
		long r_ = (call);                                                                  \
		cr_assert(r_ >= 0, "%s = %ld: %s", #call, r_, err.text);                           \
	} while (0)

static inline void start(void)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(dir, sizeof(dir), "%s/vmimg-fsck-XXXXXX", tmp ? tmp : "/tmp");
	cr_assert_not_null(mkdtemp(dir));
	snprintf(store_dir, sizeof(store_dir), "%s/store", dir);
	ok(eng_io_posix_create(&io));
	ok(eng_store_init(io, store_dir, &err));
}

static inline void finish(void)
{
	eng_io_destroy(io);
	ok(eng_record_remove_tree(dir));
}

static inline void open_store(void)
{
	ok(eng_store_open(io, store_dir, &options, &err, &store));
	ok(eng_queue_create(io, 32, store->lock_file, &queue));
}

static inline void close_store(void)
{
	eng_pool_drain(store->pool); /* seals */
	ok(eng_queue_destroy(queue));
	ok(eng_store_close(store));
	store = NULL;
}

static inline void make_vm(void)
{
	struct cat_vm vm = {.name = "a"};

	eng_store_new_id(store, &vm.id);
	strcpy(collection.name, "c");
	eng_store_new_id(store, &collection.id);
	ok(eng_catalog_begin(store->catalog));
	ok(eng_catalog_put_vm(store->catalog, &vm));
	ok(eng_catalog_put_collection(store->catalog, &collection));
	ok(eng_catalog_put_member(store->catalog, &collection.id, &vm.id));
	ok(eng_catalog_commit(store->catalog, &err));
}

static inline void make_disk(const char *name, const char *from, bool in_place)
{
	struct eng_disk_make make = {.vm = "a",
				     .name = name,
				     .size = from ? 0 : DISK_SIZE,
				     .from = from,
				     .in_place = in_place};

	ok(eng_store_make_disk(store, &make, &err));
}

static inline void attach(void)
{
	ok(eng_store_attach(store, queue, "a/d", 0, &err, &disks[0]));
	ok(eng_store_attach(store, queue, "a/e", 0, &err, &disks[1]));
}

static inline void detach(void)
{
	ok(eng_store_detach(disks[0]));
	ok(eng_store_detach(disks[1]));
}

static inline void request(struct eng_disk *disk, int op, uint64_t offset, uint64_t len)
{
	static uint8_t *buf;
	struct iovec iov;
	struct eng_request rq = {.disk = disk,
				 .op = (uint8_t)op,
				 .iovcnt = 1,
				 .iov = &iov,
				 .offset = offset,
				 .length = len};
	struct eng_completion c;

	if (!buf)
		cr_assert_eq(posix_memalign((void **)&buf, 4096, 1 << 20), 0);
	for (uint64_t i = 0; i < len; i++)
		buf[i] = (uint8_t)rand();
	iov = (struct iovec){buf, len};
	ok(eng_queue_submit(queue, &rq, 1));
	while (eng_queue_poll(queue, &c, 1, UINT64_MAX) == 0)
		;
	ok(c.result);
}

/* Some writes, zeroes and flushes on both disks. */
static inline void use(unsigned requests)
{
	for (unsigned i = 0; i < requests; i++) {
		uint64_t len = 512u * (1 + (unsigned)rand() % 40);
		uint64_t offset = (unsigned)rand() % ((DISK_SIZE - len) / 512) * 512;
		int k = rand() % 10;

		request(disks[rand() % 2],
			k < 7   ? ENG_WRITE
			: k < 8 ? ENG_DISCARD
				: ENG_FLUSH,
			k < 8 ? offset : 0, k < 8 ? len : 0);
	}
}

static inline void snapshot(const char *name)
{
	struct eng_snapshot_spec spec = {.collection = collection,
					 .type = 1,
					 .consistency = 2,
					 .timeout_ns = 10000000000ull};
	struct eng_snapshot_times times;
	struct eng_snapshot *s;

	eng_store_new_id(store, &spec.id);
	snprintf(spec.name, sizeof(spec.name), "%s", name);
	ok(eng_snapshot_check(store, &spec, &err, &s));
	ok(eng_snapshot_run(s, NULL, NULL, &err, &times));
	eng_snapshot_destroy(s);
}

/* Two disks, two snapshots, everything sealed that can be, closed. */
static inline void make_store(void)
{
	open_store();
	make_vm();
	make_disk("d", NULL, false);
	make_disk("e", NULL, false);
	attach();
	use(30);
	snapshot("s1");
	use(60);
	snapshot("s2");
	use(60);
	detach();
	close_store();
}

/* --- the catalog of a closed store --- */

static inline struct eng_catalog *open_catalog(void)
{
	struct eng_catalog *cat;
	char path[300];

	snprintf(path, sizeof(path), "%s/catalog.db", store_dir);
	ok(eng_catalog_open(io, path, false, &err, &cat));
	ok(eng_catalog_begin(cat));
	return cat;
}

static inline void close_catalog(struct eng_catalog *cat)
{
	ok(eng_catalog_commit(cat, &err));
	eng_catalog_close(cat);
}

static inline void set_clean(bool clean)
{
	struct eng_catalog *cat = open_catalog();

	ok(eng_catalog_commit(cat, &err));
	ok(eng_catalog_fact_set(cat, "clean", clean ? "1" : "0"));
	eng_catalog_close(cat);
}

/* The layers of a/d, base first: raw base, overlay of s2, head. Free with free(). */
static inline struct cat_layer *layers_of_d(struct cat_disk *disk, size_t *count)
{
	struct cat_layer *rows = NULL;
	struct eng_catalog *cat = open_catalog();

	ok(eng_catalog_get_disk(cat, "a", "d", disk));
	ok(eng_catalog_list_layers(cat, &disk->id, &rows, count));
	eng_catalog_rollback(cat);
	eng_catalog_close(cat);
	return rows;
}

/* The @i-th layer's row of a/d, changed by @edit. */
static inline void edit_row(size_t i, void (*edit)(struct cat_layer *row))
{
	struct cat_disk disk;
	size_t count = 0;
	struct cat_layer *rows = layers_of_d(&disk, &count);
	struct eng_catalog *cat;

	cr_assert_lt(i, count);
	edit(&rows[i]);
	cat = open_catalog();
	ok(eng_catalog_put_layer(cat, &rows[i]));
	close_catalog(cat);
	free(rows);
}

/* Makes the @i-th layer of a/d its head, in the catalog only. */
static inline void set_head(size_t i)
{
	struct cat_disk disk;
	size_t count = 0;
	struct cat_layer *rows = layers_of_d(&disk, &count);
	struct eng_catalog *cat = open_catalog();

	cr_assert_lt(i, count);
	ok(eng_catalog_set_disk_head(cat, &disk.id, &rows[i].id));
	close_catalog(cat);
	free(rows);
}

/* The file of the @i-th layer of a/d. */
static inline const char *layer_file(size_t i)
{
	static char path[400];
	char id[FMT_UUID_TEXT];
	struct cat_disk disk;
	size_t count = 0;
	struct cat_layer *rows = layers_of_d(&disk, &count);

	cr_assert_lt(i, count);
	fmt_uuid_format(&rows[i].id, id);
	snprintf(path, sizeof(path), "%s/layers/%s.%s", store_dir, id,
		 rows[i].kind == FMT_KIND_OVERLAY ? "vmo" : "vmr");
	free(rows);
	return path;
}

/* The same, of the base's data. */
static inline const char *base_file(void)
{
	static char path[400];

	snprintf(path, sizeof(path), "%s", layer_file(0));
	strcpy(strrchr(path, '.'), ".raw");
	return path;
}

#endif
