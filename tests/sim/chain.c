/* SPDX-License-Identifier: MIT */
/*
 * chain.c - a long chain of snapshots of several disks, deleted down to one in any order while the
 * disks are written to: every snapshot that is left and every head keep their content, a disk's
 * layers stay bounded and come down to what its one snapshot needs, and no file, row or block of
 * what was deleted is left.
 *
 * Environment: VMIMG_TEST_SECONDS (1,000 snapshots from ten minutes on, else 120); SNAPSHOTS for
 * another number; SEED. On a real file system: TMPDIR.
 * tests/run: -j1
 */
#include "engine/fold/fold.h"
#include "fsck/fsck.h"
#include "tests/lib/random.h"
#include "tests/unit/engine_store.h"

#include <dirent.h>

#define DISKS      3u
#define LOAD       8u /* writes in flight */
#define WRITE_MAX  8u /* blocks */
#define SIZE_MAX_  (32u << 20)
#define BLOCKS_MAX (SIZE_MAX_ / BLOCK)
#define SLACK      (4u << 20) /* of a layer: headers, log, index, space allocated ahead */

static const struct {
	uint64_t size;
	uint32_t block_bits;
	uint32_t hot; /* blocks that most writes go to */
} shapes[DISKS] = {{SIZE_MAX_, 12, 500}, {8u << 20, 16, 300}, {(4u << 20) + 5 * BLOCK, 12, 64}};

struct held {
	bool there;
	uint32_t *blocks[DISKS]; /* number of the write that each holds */
};

struct writing {
	struct ask *ask;
	uint32_t number, disk, at, count;
};

static uint64_t seed, writes, checks;
static uint32_t now[DISKS][BLOCKS_MAX];
static bool under_way[DISKS][BLOCKS_MAX];
static struct writing load[LOAD];
static struct held *shots;

static uint32_t pick(uint32_t below)
{
	return (uint32_t)(test_random(&seed) % below);
}

static uint32_t blocks_of(unsigned d)
{
	return (uint32_t)(shapes[d].size / BLOCK);
}

/* --- the load --- */

static bool is_free(const struct writing *w)
{
	for (uint32_t i = 0; i < w->count; i++)
		if (under_way[w->disk][w->at + i])
			return false;
	return true;
}

static void mark(const struct writing *w, bool busy)
{
	for (uint32_t i = 0; i < w->count; i++)
		under_way[w->disk][w->at + i] = busy;
}

static void reap(struct writing *w)
{
	must(ask_end(w->ask) == 0);
	for (uint32_t i = 0; i < w->count; i++)
		now[w->disk][w->at + i] = w->number;
	mark(w, false);
	w->ask = NULL;
}

/* One turn of the guests: what is done is noted, and others begin. */
static void guests(void)
{
	for (unsigned i = 0; i < LOAD; i++) {
		struct writing *w = &load[i];

		if (w->ask && w->ask->done)
			reap(w);
		if (w->ask)
			continue;
		w->disk = pick(DISKS);
		w->count = 1 + pick(WRITE_MAX);
		w->at = pick(pick(8) ? shapes[w->disk].hot
				     : blocks_of(w->disk) - WRITE_MAX); /* mostly the same ones */
		w->number = (uint32_t)++writes;
		if (!is_free(w))
			continue;
		mark(w, true);
		w->ask = ask_write(w->disk, w->number, (uint64_t)w->at * BLOCK,
				   (uint64_t)w->count * BLOCK);
	}
	turn_all();
}

static void quiet(void)
{
	for (unsigned i = 0; i < LOAD; i++)
		if (load[i].ask)
			reap(&load[i]);
}

#define guests_until(cond, seconds)                                                                \
	do {                                                                                       \
		uint64_t end_ns = eng_io_now_ns(machine) + (seconds)*SECOND;                       \
                                                                                                   \
		while (!(cond)) {                                                                  \
			guests();                                                                  \
			cr_assert(eng_io_now_ns(machine) < end_ns, "in %d seconds: %s", (seconds), \
				  #cond);                                                          \
		}                                                                                  \
	} while (0)

/* --- what must hold --- */

static void compare(struct eng_disk *which, const char *where, const uint32_t *want, uint32_t from,
		    uint32_t count)
{
	uint8_t *buf = aligned((size_t)count * BLOCK), block[BLOCK];

	must(read_into(which, buf, (uint64_t)from * BLOCK, (uint64_t)count * BLOCK) == 0);
	for (uint32_t i = 0; i < count; i++) {
		fill(block, want[from + i], (uint64_t)(from + i) * BLOCK, BLOCK);
		cr_assert(!memcmp(block, buf + (size_t)i * BLOCK, BLOCK),
			  "%s: block %u does not hold write %u", where, from + i, want[from + i]);
	}
	checks += count;
	free(buf);
}

static void check_shot(unsigned n)
{
	for (unsigned d = 0; d < DISKS; d++) {
		struct eng_disk *view;
		char path[64];

		snprintf(path, sizeof(path), "c@s%u/a/d%u", n, d);
		must(eng_store_attach(store, queue[1], path, ENG_ATTACH_READ_ONLY, &err, &view) ==
		     0);
		compare(view, path, shots[n].blocks[d], 0, blocks_of(d));
		must(eng_store_detach(view) == 0);
	}
}

static void check_heads(void)
{
	quiet();
	for (unsigned d = 0; d < DISKS; d++)
		compare(disk[d], "the head", now[d], 0, blocks_of(d));
}

static unsigned layers_of(unsigned d)
{
	struct cat_layer *rows = NULL;
	struct cat_disk row;
	char name[8];
	size_t n = 0;

	snprintf(name, sizeof(name), "d%u", d);
	must(eng_catalog_get_disk(store->catalog, "a", name, &row) == 0);
	must(eng_catalog_list_layers(store->catalog, &row.id, &rows, &n) == 0);
	free(rows);
	return (unsigned)n;
}

static unsigned most_layers(void)
{
	unsigned most = 0;

	for (unsigned d = 0; d < DISKS; d++)
		most = layers_of(d) > most ? layers_of(d) : most;
	return most;
}

/* Files of layers, and the bytes that they take. */
static unsigned count_files(uint64_t *bytes)
{
	char path[512];
	struct dirent *e;
	struct stat st;
	unsigned n = 0;
	DIR *d;

	snprintf(path, sizeof(path), "%s/layers", dir);
	d = opendir(path);
	must(d != NULL);
	*bytes = 0;
	while ((e = readdir(d))) {
		snprintf(path, sizeof(path), "%s/layers/%s", dir, e->d_name);
		if (lstat(path, &st) < 0 || !S_ISREG(st.st_mode))
			continue;
		n += strstr(e->d_name, ".vmo") != NULL;
		*bytes += (uint64_t)st.st_blocks * 512;
	}
	closedir(d);
	return n;
}

static void note_finding(void *arg, const struct fsck_finding *f)
{
	(void)arg;
	cr_expect_eq(f->severity, FSCK_NOTE, "%s: %s: %s", f->rule, f->where, f->message);
}

/* --- the chain's life --- */

static void take_shot(unsigned n)
{
	char name[16];

	quiet();
	snprintf(name, sizeof(name), "s%u", n);
	must(snapshot(name) == 0);
	shots[n].there = true;
	for (unsigned d = 0; d < DISKS; d++) {
		size_t size = blocks_of(d) * sizeof(uint32_t);

		shots[n].blocks[d] = malloc(size);
		must(shots[n].blocks[d] != NULL);
		memcpy(shots[n].blocks[d], now[d], size);
	}
}

struct deletion {
	pthread_t thread;
	char name[16];
	_Atomic bool done;
	int result;
	struct fmt_error why;
};

static void *deletion_main(void *arg)
{
	struct deletion *d = arg;
	struct cat_job none = {.state = 0};
	bool marked;

	d->result = eng_store_delete_snapshot(store, "c", d->name, &none, &marked, &d->why);
	atomic_store(&d->done, true);
	return NULL;
}

static void delete_shot(unsigned n)
{
	struct deletion d = {.result = 0};

	snprintf(d.name, sizeof(d.name), "s%u", n);
	must(pthread_create(&d.thread, NULL, deletion_main, &d) == 0);
	guests_until(atomic_load(&d.done), 60);
	pthread_join(d.thread, NULL);
	cr_assert_eq(d.result, 0, "%s: %s", d.name, d.why.text);
	shots[n].there = false;
	for (unsigned i = 0; i < DISKS; i++)
		free(shots[n].blocks[i]);
}

/* Any one of the @left that are there. */
static unsigned one_of(unsigned total, unsigned left)
{
	unsigned nth = pick(left);

	for (unsigned i = 0; i < total; i++)
		if (shots[i].there && nth-- == 0)
			return i;
	must(false);
	return 0;
}

static void shrink(unsigned total)
{
	for (unsigned left = total; left > 1; left--) {
		delete_shot(one_of(total, left));
		for (unsigned i = pick(20); i > 0; i--)
			guests();
		if (left % (total / 20) == 0) {
			check_shot(one_of(total, left - 1));
			check_heads();
		}
		if (left == total / 2) /* folds keep up: about one layer a snapshot */
			guests_until(most_layers() <= left + left / 4 + 4, 60);
	}
}

/* What one snapshot needs: its base, what lies beneath it in one, and the head. */
static void expect_little(unsigned last)
{
	uint64_t bytes, bound = 0;
	unsigned files, rows = 0;

	for (unsigned d = 0; d < DISKS; d++) {
		rows += layers_of(d) - 1; /* the base is no overlay */
		bound += 3 * (shapes[d].size + SLACK);
	}
	files = count_files(&bytes);
	cr_expect_eq(files, rows, "%u files of layers, %u rows", files, rows);
	cr_expect_leq(bytes, bound, "layers take %llu bytes, expected %llu at most",
		      (unsigned long long)bytes, (unsigned long long)bound);
	check_shot(last);
	check_heads();
}

static unsigned how_many(void)
{
	const char *given = getenv("SNAPSHOTS"), *seconds = getenv("VMIMG_TEST_SECONDS");

	if (given)
		return (unsigned)strtoul(given, NULL, 0);
	return seconds && strtod(seconds, NULL) >= 600 ? 1000 : 120;
}

static void start(unsigned total)
{
	const char *given = getenv("SEED");

	begin_in(NULL);
	options.no_folds = false;
	options.fold_rate = UINT64_MAX;
	open_store();
	make_collection("c", "a");
	for (unsigned d = 0; d < DISKS; d++) {
		make_disk(d, shapes[d].size, shapes[d].block_bits);
		attach(d, d % 2);
	}
	seed = given ? strtoull(given, NULL, 0) : eng_io_now_ns(machine);
	fprintf(stderr, "chain: SEED=%llu\n", (unsigned long long)seed);
	shots = calloc(total, sizeof(*shots));
	must(shots != NULL);
}

/* P7, T25, T27, T28, DL-1..DL-4, FO-1, FO-9 */
Test(sim_chain, a_long_chain_is_deleted_down_to_one_under_load, .timeout = 3600)
{
	unsigned total = how_many(), last;
	struct fsck_summary sum = {0};
	uint64_t from, made, gone, folded;

	start(total);
	from = eng_io_now_ns(machine);
	eng_folder_pause(store->folder, true); /* so that all of them are there */
	for (unsigned i = 0; i < total; i++) {
		for (unsigned j = 2 + pick(10); j > 0; j--)
			guests();
		take_shot(i);
	}
	cr_expect_gt(most_layers(), total);
	eng_folder_pause(store->folder, false);
	made = eng_io_now_ns(machine);
	shrink(total);
	gone = eng_io_now_ns(machine);
	/* Under load too: only sealed layers are folded, and a disk's are two or three in the end. */
	guests_until(most_layers() <= 4, 60);
	folded = eng_io_now_ns(machine);
	last = one_of(total, 1);
	quiet();
	turn_until(atomic_load(&disk[0]->swaps) + atomic_load(&disk[1]->swaps) +
			   atomic_load(&disk[2]->swaps) ==
		   0);
	for (unsigned d = 0; d < DISKS; d++)
		detach(d);
	close_store(); /* which waits for the removals of what was folded */
	must(fsck_run(machine, dir, note_finding, NULL, &err, &sum) == 0);
	cr_expect_eq(sum.leaks + sum.corruptions, 0u);
	open_store();
	for (unsigned d = 0; d < DISKS; d++)
		attach(d, d % 2);
	expect_little(last);
	for (unsigned d = 0; d < DISKS; d++)
		detach(d);
	close_store();
	fprintf(stderr,
		"chain: %u snapshots of %u disks made in %.1f s, deleted to one in %.1f s, folded %.1f s "
		"later; %llu writes, %llu blocks compared\n",
		total, DISKS, (double)(made - from) / SECOND, (double)(gone - made) / SECOND,
		(double)(folded - gone) / SECOND, (unsigned long long)writes,
		(unsigned long long)checks);
	for (unsigned d = 0; d < DISKS; d++)
		free(shots[last].blocks[d]);
	free(shots);
	finish();
}
