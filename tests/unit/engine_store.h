/* SPDX-License-Identifier: MIT */
/*
 * engine_store.h - a whole store for tests of engine/: VM "a" with disks d0, d1, ... in collection
 * "c", two queues turned by the test's one thread, snapshots on a thread of their own, and every
 * operation in reach of fault rules (engine/io/io_fault.h) and of hold rules (engine_hold.h).
 *
 * With the steps of all threads forced, each test is one interleaving. All of it is static: one
 * program, one store at a time. must() also works in a forked child, which it ends with status 99.
 */
#ifndef TESTS_UNIT_ENGINE_STORE_H
#define TESTS_UNIT_ENGINE_STORE_H

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/io/io_fault.h"
#include "engine/io/io_record.h"
#include "engine/store/overlay.h"
#include "engine/snapshot/snapshot.h"
#include "tests/unit/engine_hold.h"

#define DISKS_MAX 20u
#define BLOCK     4096u
#define MS        1000000ull
#define SECOND    (1000 * MS)

static char root[80], dir[192], shm_dir[96];
static struct eng_io *machine, *io; /* the machine below; what the engine gets */
static struct eng_fault *fault;
static struct eng_store_options options;
static struct eng_store *store;
static struct eng_queue *queue[2];
static struct eng_disk *disk[DISKS_MAX];
static struct fmt_error err;
static bool in_child;

static inline void must_fail(const char *file, int line, const char *what)
{
	if (in_child) {
		fprintf(stderr, "child: %s:%d: %s: %s\n", file, line, what, err.text);
		_exit(99);
	}
	cr_assert_fail("%s:%d: %s: %s", file, line, what, err.text);
}
#define must(cond)                                                                                 \
	do {                                                                                       \
		if (!(cond))                                                                       \
			must_fail(__FILE__, __LINE__, #cond);                                      \
	} while (0)

/* --- the store --- */

/* @inner: what lies below the faults, or NULL for the machine itself. */
static inline void use_io(struct eng_io *inner)
{
	must(eng_fault_create(inner ? inner : machine, &fault) == 0);
	io = eng_fault_io(fault);
	hold_install(io);
}

static inline void open_store(void)
{
	must(eng_store_open(io, dir, &options, &err, &store) == 0);
	for (int i = 0; i < 2; i++)
		must(eng_queue_create(io, 64, store->lock_file, &queue[i]) == 0);
}

static inline void close_store(void)
{
	for (int i = 0; i < 2; i++)
		must(eng_queue_destroy(queue[i]) == 0);
	must(eng_store_close(store) == 0);
	store = NULL;
}

static inline void make_disk(unsigned i, uint64_t size, uint32_t block_bits)
{
	struct eng_disk_make make = {.vm = "a", .size = size, .block_bits = block_bits};
	char name[8];

	snprintf(name, sizeof(name), "d%u", i);
	make.name = name;
	must(eng_store_make_disk(store, &make, &err) == 0);
}

static inline void make_collection(const char *name, const char *vm_name)
{
	struct cat_collection coll = {.created_ns = 1};
	struct cat_vm vm = {.created_ns = 1};

	eng_store_new_id(store, &coll.id);
	strcpy(coll.name, name);
	must(eng_catalog_begin(store->catalog) == 0);
	if (eng_catalog_get_vm(store->catalog, vm_name, &vm) < 0) {
		eng_store_new_id(store, &vm.id);
		strcpy(vm.name, vm_name);
		eng_catalog_put_vm(store->catalog, &vm);
	}
	eng_catalog_put_collection(store->catalog, &coll);
	eng_catalog_put_member(store->catalog, &coll.id, &vm.id);
	must(eng_catalog_commit(store->catalog, &err) == 0);
}

/* A new store below @where (memory: /dev/shm; TMPDIR else), open, without disks. */
static inline void begin_in(const char *where)
{
	const char *tmp = where ? where : getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";

	memset(&err, 0, sizeof(err));
	memset(&options, 0, sizeof(options));
	options.no_folds = true; /* chains keep their layers, but where the test is about that */
	snprintf(root, sizeof(root), "%s/vmimg-engine-XXXXXX", tmp);
	must(mkdtemp(root) != NULL);
	snprintf(dir, sizeof(dir), "%s/store", root);
	snprintf(shm_dir, sizeof(shm_dir), "%s/shm", root);
	must(mkdir(shm_dir, 0700) == 0);
	must(eng_io_posix_create(&machine) == 0);
	must(eng_io_posix_set_shm_dir(machine, shm_dir) == 0);
	use_io(NULL);
	must(eng_store_init(io, dir, &err) == 0);
}

static inline void begin(unsigned disks, uint64_t size)
{
	begin_in("/dev/shm");
	open_store();
	make_collection("c", "a");
	for (unsigned i = 0; i < disks; i++)
		make_disk(i, size, 0);
}

static inline void finish(void)
{
	eng_fault_destroy(fault);
	eng_io_destroy(machine);
	must(eng_record_remove_tree(root) == 0);
}

/* Disk @i on queue @q. */
static inline void attach(unsigned i, unsigned q)
{
	char name[16];

	snprintf(name, sizeof(name), "a/d%u", i);
	must(eng_store_attach(store, queue[q], name, 0, &err, &disk[i]) == 0);
}

static inline void detach(unsigned i)
{
	must(eng_store_detach(disk[i]) == 0);
	disk[i] = NULL;
}

/* --- requests --- */

struct ask {
	struct iovec iov;
	struct eng_disk *disk;
	void *buf;
	bool done;
	int result;
};

static inline void *aligned(size_t len)
{
	void *p = NULL;

	must(posix_memalign(&p, 4096, len ? len : 1) == 0);
	return p;
}

/* What write number @n puts at every byte of @offset...: eight bytes that say where and which. */
static inline void fill(void *buf, uint64_t n, uint64_t offset, size_t len)
{
	uint8_t *p = buf;

	for (size_t i = 0; i < len; i++) {
		uint64_t at = (offset + i) / 8, x = (n << 40 ^ at) * 0x9e3779b97f4a7c15ull;

		p[i] = n ? (uint8_t)(x >> 8 * ((offset + i) % 8)) | 1 : 0;
	}
}

/* Submits; turns nothing. @n: see fill(). Free with ask_end(). */
static inline struct ask *ask(unsigned q, unsigned d, uint8_t op, uint8_t flags, uint64_t n,
			      uint64_t offset, uint64_t len)
{
	struct ask *a = calloc(1, sizeof(*a));
	struct eng_request rq = {.op = op,
				 .flags = flags,
				 .iovcnt = 1,
				 .offset = offset,
				 .length = len,
				 .user_data = (uintptr_t)a};

	must(a != NULL);
	a->disk = rq.disk = disk[d];
	a->buf = aligned(op <= ENG_WRITE ? len : 0);
	a->iov = (struct iovec){a->buf, len};
	rq.iov = &a->iov;
	if (op == ENG_WRITE)
		fill(a->buf, n, offset, len);
	must(eng_queue_submit(queue[q], &rq, 1) == 1);
	return a;
}

static inline struct ask *ask_write(unsigned d, uint64_t n, uint64_t offset, uint64_t len)
{
	return ask(disk[d]->queue == queue[0] ? 0 : 1, d, ENG_WRITE, 0, n, offset, len);
}

static inline struct ask *ask_flush(unsigned d)
{
	return ask(disk[d]->queue == queue[0] ? 0 : 1, d, ENG_FLUSH, 0, 0, 0, 0);
}

/* One turn of queue @q; takes what completed. */
static inline void turn(unsigned q, uint64_t timeout_ns)
{
	struct eng_completion c[16];
	int n = eng_queue_poll(queue[q], c, 16, timeout_ns);

	must(n >= 0);
	for (int i = 0; i < n; i++) {
		struct ask *a = (struct ask *)(uintptr_t)c[i].user_data;

		a->done = true;
		a->result = c[i].result;
	}
}

static inline void turn_all(void)
{
	turn(0, MS / 5);
	turn(1, 0);
}

/* Long enough for whatever can happen to have happened. */
static inline void turn_for(uint64_t ns)
{
	uint64_t end = eng_io_now_ns(machine) + ns;

	do
		turn_all();
	while (eng_io_now_ns(machine) < end);
}

#define turn_until(cond)                                                                           \
	do {                                                                                       \
		uint64_t end_ns = eng_io_now_ns(machine) + 20 * SECOND;                            \
                                                                                                   \
		while (!(cond)) {                                                                  \
			turn_all();                                                                \
			if (eng_io_now_ns(machine) > end_ns)                                       \
				must_fail(__FILE__, __LINE__, "in 20 seconds: " #cond);            \
		}                                                                                  \
	} while (0)

static inline int ask_end(struct ask *a)
{
	int r;

	turn_until(a->done);
	r = a->result;
	free(a->buf);
	free(a);
	return r;
}

/* --- requests, one by one --- */

static inline int do_write(unsigned d, uint64_t n, uint64_t offset, uint64_t len)
{
	return ask_end(ask_write(d, n, offset, len));
}

static inline int do_op(unsigned d, uint8_t op, uint8_t flags, uint64_t offset, uint64_t len)
{
	return ask_end(ask(disk[d]->queue == queue[0] ? 0 : 1, d, op, flags, 99, offset, len));
}

static inline int do_flush(unsigned d)
{
	return ask_end(ask_flush(d));
}

static inline int read_into(struct eng_disk *which, void *buf, uint64_t offset, uint64_t len)
{
	struct ask *a = calloc(1, sizeof(*a));
	struct eng_request rq = {.disk = which,
				 .op = ENG_READ,
				 .iovcnt = 1,
				 .offset = offset,
				 .length = len,
				 .user_data = (uintptr_t)a};

	must(a != NULL);
	a->iov = (struct iovec){buf, len};
	rq.iov = &a->iov;
	memset(buf, 0xee, len);
	must(eng_queue_submit(which->queue, &rq, 1) == 1);
	return ask_end(a);
}

/* Whether a disk (a view, too) holds write @n at [@offset, @offset + @len); 0: zeros. */
static inline bool disk_holds(struct eng_disk *which, uint64_t n, uint64_t offset, uint64_t len)
{
	void *buf = aligned(len), *want = aligned(len);
	bool same;

	must(read_into(which, buf, offset, len) == 0);
	fill(want, n, offset, len);
	same = !memcmp(buf, want, len);
	free(buf);
	free(want);
	return same;
}

static inline bool holds(unsigned d, uint64_t n, uint64_t offset, uint64_t len)
{
	return disk_holds(disk[d], n, offset, len);
}

/* The same of disk @d in snapshot @name of collection "c". */
static inline bool view_holds(const char *name, unsigned d, uint64_t n, uint64_t offset,
			      uint64_t len)
{
	struct eng_disk *view;
	char path[64];
	bool same;

	snprintf(path, sizeof(path), "c@%s/a/d%u", name, d);
	must(eng_store_attach(store, queue[0], path, ENG_ATTACH_READ_ONLY, &err, &view) == 0);
	same = disk_holds(view, n, offset, len);
	must(eng_store_detach(view) == 0);
	return same;
}

/* --- what a layer's log says on disk --- */

struct log_seek {
	uint64_t block;
	int found; /* 0: not there, 1: data, 2: zero */
};

static inline int log_seek_run(void *arg, const struct fmt_run *run)
{
	struct log_seek *s = arg;

	if (run->block <= s->block && s->block - run->block < run->count)
		s->found = run->kind == FMT_RUN_ZERO ? 2 : 1;
	return 0;
}

/* What the records of the layer's file say of @block, past all memory of the engine. */
static inline int logged(const struct eng_layer *layer, uint64_t block)
{
	struct eng_layer_open how = {.path = layer->path, .kind = FMT_KIND_OVERLAY};
	struct log_seek s = {.block = block};
	struct eng_layer *own;

	must(eng_layer_open(machine, &how, &err, &own) == 0);
	must(eng_log_replay(own, log_seek_run, &s, &err) == 0);
	eng_layer_put(own);
	return s.found;
}

/* --- snapshots on a thread of their own --- */

struct shot {
	pthread_t thread;
	struct eng_snapshot *snap;
	int stop_at;       /* waits when told this phase, until shot_go(); -1: never */
	_Atomic int phase; /* told last; -1 */
	_Atomic bool done;
	sem_t go;
	int result;
	struct fmt_error why;
	struct eng_snapshot_times times;
	struct fmt_uuid id;
};

static inline void shot_phase(void *arg, int phase)
{
	struct shot *s = arg;

	atomic_store(&s->phase, phase);
	while (phase == s->stop_at && sem_wait(&s->go) < 0)
		;
}

static inline void *shot_main(void *arg)
{
	struct shot *s = arg;

	s->result = eng_snapshot_run(s->snap, shot_phase, s, &s->why, &s->times);
	eng_snapshot_destroy(s->snap);
	atomic_store(&s->done, true);
	return NULL;
}

static const struct eng_snapshot_guests *shot_guests; /* of the next shot_check() */

static inline int shot_check(const char *collection, const char *name, uint64_t timeout_ns,
			     struct shot *s)
{
	struct eng_snapshot_spec spec = {.type = 1,
					 .consistency = 2,
					 .timeout_ns = timeout_ns,
					 .guests = shot_guests};

	memset(s, 0, sizeof(*s));
	must(eng_catalog_get_collection(store->catalog, collection, &spec.collection) == 0);
	eng_store_new_id(store, &spec.id);
	snprintf(spec.name, sizeof(spec.name), "%s", name);
	s->id = spec.id;
	s->stop_at = -1;
	atomic_store(&s->phase, -1);
	sem_init(&s->go, 0, 0);
	return eng_snapshot_check(store, &spec, &s->why, &s->snap);
}

static inline void shot_launch(struct shot *s)
{
	must(pthread_create(&s->thread, NULL, shot_main, s) == 0);
}

/* Snapshot @name of "c"; stops at phase @stop_at unless that is -1. */
static inline void shot_start(struct shot *s, const char *name, int stop_at)
{
	int r = shot_check("c", name, 10 * SECOND, s);

	if (r < 0)
		err = s->why;
	must(r == 0);
	s->stop_at = stop_at;
	shot_launch(s);
}

static inline void shot_go(struct shot *s)
{
	sem_post(&s->go);
}

static inline int shot_end(struct shot *s)
{
	turn_until(atomic_load(&s->done));
	pthread_join(s->thread, NULL);
	sem_destroy(&s->go);
	return s->result;
}

static inline int snapshot(const char *name)
{
	struct shot s;

	shot_start(&s, name, -1);
	return shot_end(&s);
}

/* --- the death of the process --- */

/* The status with which @child ended in a process of its own, which inherits no open store. */
static inline int in_process(void (*child)(void *arg), void *arg)
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		in_child = true;
		child(arg);
		_exit(0);
	}
	must(pid > 0);
	must(waitpid(pid, &status, 0) == pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static inline void die(void *arg)
{
	(void)arg;
	_exit(7);
}

/* Opens a store whose owner has just died: the kernel may still be ending its requests. */
static inline void open_after_death(void)
{
	int r = -EBUSY;

	for (int i = 0; i < 1000 && r == -EBUSY; i++) {
		r = eng_store_open(io, dir, &options, &err, &store);
		if (r == -EBUSY)
			usleep(10000);
	}
	must(r == 0);
	for (int i = 0; i < 2; i++)
		must(eng_queue_create(io, 64, store->lock_file, &queue[i]) == 0);
}

/* --- the death of the host --- */

/* Opens what a power loss left, as another boot of the machine. */
static inline void enter_power_loss(struct eng_record *rec, uint64_t index, uint64_t seed,
				    char store_dir[192])
{
	char tree[160], memory[160];
	uint8_t boot[16];

	memset(boot, (int)(1 + index % 200), sizeof(boot));
	snprintf(tree, sizeof(tree), "%s/tree", root);
	snprintf(memory, sizeof(memory), "%s/memory", root);
	strcpy(store_dir, dir);
	must(eng_record_crash(rec, index, seed, tree) == 0);
	must(mkdir(memory, 0700) == 0);
	must(eng_io_posix_create(&machine) == 0);
	must(eng_io_posix_set_shm_dir(machine, memory) == 0);
	eng_io_posix_set_boot_id(machine, boot);
	use_io(NULL);
	snprintf(dir, sizeof(dir), "%s", tree);
	open_store();
}

static inline void leave_power_loss(const char *store_dir)
{
	char path[160];

	close_store();
	eng_fault_destroy(fault);
	eng_io_destroy(machine);
	strcpy(dir, store_dir);
	snprintf(path, sizeof(path), "%s/tree", root);
	must(eng_record_remove_tree(path) == 0);
	snprintf(path, sizeof(path), "%s/memory", root);
	must(eng_record_remove_tree(path) == 0);
}

/* --- power lost at every event --- */

static struct eng_record *recording;
static struct eng_io *recorded_machine;
static struct eng_fault *recorded_fault;

/* The store is opened anew, and all that is written to it recorded from here on. No disk is attached. */
static inline void record_from_here(void)
{
	close_store();
	eng_fault_destroy(fault);
	must(eng_record_create(machine, dir, &recording) == 0);
	use_io(eng_record_io(recording));
	open_store();
	recorded_machine = machine;
	recorded_fault = fault;
}

/* Instead of finish(): the store is closed. */
static inline void record_end(void)
{
	machine = recorded_machine;
	fault = recorded_fault;
	eng_fault_destroy(fault);
	eng_record_destroy(recording);
	eng_io_destroy(machine);
	must(eng_record_remove_tree(root) == 0);
}

/* The store is closed. @expect looks at what each event from @first to @last leaves, open; then it ends. */
static inline void lose_power(uint64_t first, uint64_t last,
			      void (*expect)(uint64_t index, void *arg), void *arg)
{
	for (uint64_t index = first; index <= last; index++) {
		char store_dir[192];

		options.no_folds = true;
		enter_power_loss(recording, index, index * 7, store_dir);
		expect(index, arg);
		leave_power_loss(store_dir);
	}
	record_end();
}

#endif
