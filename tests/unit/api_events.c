/* SPDX-License-Identifier: MIT */
/*
 * api_events.c - subscriptions: what is told, in which order, to whom, and when no longer (EV-*). Free
 * space and poison are played.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/event.h"
#include "engine/io/io_record.h"

static char dir[80];
static struct vmimg_service *svc;
static struct vmimg_error err;

static void setup(void)
{
	strcpy(dir, "/dev/shm/vmimg-events-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	cr_assert_eq(vmimg_store_init(dir, &err), 0, "%s", err.message);
	cr_assert_eq(vmimg_open(dir, NULL, &err, &svc), 0, "%s", err.message);
}

static void teardown(void)
{
	cr_assert_eq(vmimg_close(svc), 0);
	cr_assert_eq(eng_record_remove_tree(dir), 0);
}

TestSuite(api_events, .init = setup, .fini = teardown, .timeout = 60);

/* A subscriber that keeps what it is told. */
struct ear {
	pthread_mutex_t lock;
	struct vmimg_subscription *sub;
	json_t *heard; /* array */
	_Atomic bool busy, hold;
	int inner; /* of an unsubscribe in a callback */
	bool tries;
};

static void on_event(void *arg, const char *json)
{
	struct ear *ear = arg;
	json_t *event = json_loads(json, 0, NULL);

	atomic_store(&ear->busy, true);
	while (atomic_load(&ear->hold))
		usleep(1000);
	if (ear->tries)
		ear->inner = vmimg_unsubscribe(ear->sub);
	pthread_mutex_lock(&ear->lock);
	json_array_append_new(ear->heard, event);
	pthread_mutex_unlock(&ear->lock);
	atomic_store(&ear->busy, false);
}

static void listen_to(struct ear *ear)
{
	memset(ear, 0, sizeof(*ear));
	pthread_mutex_init(&ear->lock, NULL);
	ear->heard = json_array();
	cr_assert_eq(vmimg_subscribe(svc, on_event, ear, &err, &ear->sub), 0, "%s", err.message);
}

static void unlisten(struct ear *ear)
{
	cr_assert_eq(vmimg_unsubscribe(ear->sub), 0);
	cr_assert_not(atomic_load(&ear->busy));
	json_decref(ear->heard);
	pthread_mutex_destroy(&ear->lock);
}

static size_t heard(struct ear *ear)
{
	size_t n;

	pthread_mutex_lock(&ear->lock);
	n = json_array_size(ear->heard);
	pthread_mutex_unlock(&ear->lock);
	return n;
}

static void wait_for(struct ear *ear, size_t n)
{
	for (unsigned i = 0; heard(ear) < n; i++) {
		cr_assert_lt(i, 10000u, "%zu events of %zu", heard(ear), n);
		usleep(1000);
	}
}

static const char *field(struct ear *ear, size_t n, const char *key)
{
	return json_string_value(json_object_get(json_array_get(ear->heard, n), key));
}

static json_int_t value(struct ear *ear, size_t n, const char *key)
{
	return json_integer_value(json_object_get(json_array_get(ear->heard, n), key));
}

static void expect_change(struct ear *ear, size_t n, const char *event, const char *change,
			  const char *name)
{
	wait_for(ear, n + 1);
	cr_expect_str_eq(field(ear, n, "event"), event, "event %zu", n);
	cr_expect_str_eq(field(ear, n, "change"), change, "event %zu", n);
	cr_expect_str_eq(field(ear, n, "name"), name, "event %zu", n);
}

static void make_disk(const char *disk)
{
	const struct vmimg_disk_spec spec = {.size_of = sizeof(spec), .size = 1 << 20};

	cr_assert_eq(vmimg_disk_create(svc, disk, &spec, &err), 0, "%s", err.message);
}

/* EV-1, EV-2, EV-5 */
Test(api_events, changes_are_told_in_their_order_to_all)
{
	struct ear a, b;

	listen_to(&a);
	listen_to(&b);
	cr_assert_eq(vmimg_vm_create(svc, "web", &err), 0);
	cr_assert_neq(vmimg_vm_create(svc, "web", &err), 0, "what fails is no event");
	make_disk("web/root");
	cr_assert_eq(vmimg_disk_resize(svc, "web/root", 2 << 20, &err), 0);
	cr_assert_eq(vmimg_define_collection(svc, "prod", NULL, 0, NULL, &err), 0);
	cr_assert_eq(vmimg_add_member(svc, "web", "prod", &err), 0);
	cr_assert_eq(vmimg_rename_collection(svc, "prod", "blue", &err), 0);
	cr_assert_eq(vmimg_remove_member(svc, "web", "blue", &err), 0);
	cr_assert_eq(vmimg_destroy_collection(svc, "blue", &err), 0);
	cr_assert_eq(vmimg_disk_delete(svc, "web/root", &err), 0);
	cr_assert_eq(vmimg_vm_delete(svc, "web", &err), 0);
	for (struct ear *ear = &a; ear; ear = ear == &a ? &b : NULL) {
		expect_change(ear, 0, "vm", "created", "web");
		expect_change(ear, 1, "disk", "created", "web/root");
		expect_change(ear, 2, "disk", "resized", "web/root");
		cr_expect_eq(value(ear, 2, "size"), 2 << 20);
		expect_change(ear, 3, "collection", "created", "prod");
		expect_change(ear, 4, "collection", "changed", "prod");
		expect_change(ear, 5, "collection", "renamed", "blue");
		cr_expect_str_eq(field(ear, 5, "old_name"), "prod");
		expect_change(ear, 6, "collection", "changed", "blue");
		expect_change(ear, 7, "collection", "deleted", "blue");
		expect_change(ear, 8, "disk", "deleted", "web/root");
		expect_change(ear, 9, "vm", "deleted", "web");
	}
	cr_expect_eq(heard(&a), 10u);
	unlisten(&a);
	unlisten(&b);
}

/* EV-5: what a job says goes forward, its snapshot comes before its end, and the end last. */
Test(api_events, a_job_is_told_from_its_start_to_its_end)
{
	struct vmimg_ref result = {0};
	json_int_t percent = -1;
	bool snapshot = false;
	struct ear ear;
	size_t n;

	cr_assert_eq(vmimg_vm_create(svc, "web", &err), 0);
	make_disk("web/root");
	cr_assert_eq(vmimg_define_collection(svc, "prod", NULL, 0, NULL, &err), 0);
	cr_assert_eq(vmimg_add_member(svc, "web", "prod", &err), 0);
	listen_to(&ear);
	snprintf(result.name, sizeof(result.name), "s1");
	cr_assert_eq(vmimg_create_snapshot(svc, "prod", "{\"Synchronous\": true}", 1, &result, NULL,
					   &err),
		     0, "%s", err.message);
	for (n = 0; percent < 100; n++) {
		wait_for(&ear, n + 1);
		if (!strcmp(field(&ear, n, "event"), "snapshot")) {
			cr_expect_str_eq(field(&ear, n, "snapshot"), "prod@s1");
			cr_expect_str_eq(field(&ear, n, "snapshot_id"), result.id);
			snapshot = true;
			continue;
		}
		cr_expect_str_eq(field(&ear, n, "event"), "job");
		cr_expect_str_eq(field(&ear, n, "name"), "prod@s1");
		cr_expect_geq(value(&ear, n, "percent_complete"), percent);
		percent = value(&ear, n, "percent_complete");
	}
	cr_expect(snapshot, "before the end");
	cr_expect_geq(n, 5u, "several steps");
	cr_expect_eq(value(&ear, n - 1, "job_state"), 7);
	usleep(20000);
	cr_expect_eq(heard(&ear), n, "the end is the last");
	unlisten(&ear);
}

static void *unsubscribe_main(void *arg)
{
	struct ear *ear = arg;

	return (void *)(intptr_t)vmimg_unsubscribe(ear->sub);
}

/* EV-1 */
Test(api_events, unsubscribe_waits_for_the_callback_and_no_other_comes)
{
	struct ear ear, other;
	pthread_t thread;
	void *result;

	listen_to(&ear);
	listen_to(&other);
	cr_expect_eq(vmimg_close(svc), -EBUSY);
	atomic_store(&ear.hold, true);
	cr_assert_eq(vmimg_vm_create(svc, "a", &err), 0);
	cr_assert_eq(vmimg_vm_create(svc, "b", &err), 0);
	while (!atomic_load(&ear.busy))
		usleep(1000);
	pthread_create(&thread, NULL, unsubscribe_main, &ear);
	usleep(50000);
	cr_expect_eq(pthread_tryjoin_np(thread, &result), EBUSY, "the callback runs");
	atomic_store(&ear.hold, false);
	pthread_join(thread, &result);
	cr_expect_eq((intptr_t)result, 0);
	wait_for(&other, 2);
	cr_expect_eq(heard(&ear), 1u, "the one that ran");
	json_decref(ear.heard);
	other.tries = true;
	cr_assert_eq(vmimg_vm_create(svc, "c", &err), 0);
	wait_for(&other, 3);
	cr_expect_eq(other.inner, -EDEADLK);
	unlisten(&other);
	listen_to(&ear); /* and again */
	cr_assert_eq(vmimg_vm_create(svc, "d", &err), 0);
	expect_change(&ear, 0, "vm", "created", "d");
	unlisten(&ear);
	cr_expect_eq(vmimg_unsubscribe(NULL), 0);
	cr_expect_eq(vmimg_subscribe(NULL, on_event, NULL, &err, &ear.sub), -EINVAL);
	cr_expect_eq(vmimg_subscribe(svc, NULL, NULL, &err, &ear.sub), -EINVAL);
	cr_expect_eq(vmimg_subscribe(svc, on_event, NULL, &err, NULL), -EINVAL);
}

/* EV-3 */
Test(api_events, what_does_not_fit_is_counted)
{
	struct ear ear;

	listen_to(&ear);
	atomic_store(&ear.hold, true);
	api_event_change(svc, "vm", "created", "first");
	while (!atomic_load(&ear.busy))
		usleep(1000);
	for (unsigned i = 0; i < 1024 + 7; i++)
		api_event_change(svc, "vm", "created", "more");
	api_event_post(svc->events, "vm", NULL); /* no memory */
	atomic_store(&ear.hold, false);
	wait_for(&ear, 1026);
	cr_expect_str_eq(field(&ear, 1025, "event"), "lost");
	cr_expect_eq(value(&ear, 1025, "count"), 8);
	unlisten(&ear);
}

static const struct eng_io_ops *real_ops;
static struct eng_io_ops played_ops;
static _Atomic uint64_t played_free;

static int played_space(struct eng_io *io, const char *path, uint64_t *free_bytes,
			uint64_t *all_bytes)
{
	int r = real_ops->space(io, path, free_bytes, all_bytes);

	cr_assert_eq(r, 0);
	cr_assert_leq(*free_bytes, *all_bytes);
	if (atomic_load(&played_free) == UINT64_MAX)
		return 0;
	*free_bytes = atomic_load(&played_free);
	*all_bytes = 1000;
	return 0;
}

/* The service's threads find the played one from their beginning. */
static struct eng_io *open_played(void)
{
	struct eng_io *io;

	cr_assert_eq(vmimg_close(svc), 0);
	cr_assert_eq(eng_io_posix_create(&io), 0);
	real_ops = io->ops;
	played_ops = *real_ops;
	played_ops.space = played_space;
	io->ops = &played_ops;
	atomic_store(&played_free, UINT64_MAX);
	cr_assert_eq(api_open(io, dir, NULL, &err, &svc), 0, "%s", err.message);
	return io;
}

/* EV-6 */
Test(api_events, space_is_told_when_it_passes_a_threshold)
{
	struct eng_io *io = open_played();
	struct ear ear;

	atomic_store(&played_free, 99);
	listen_to(&ear);
	wait_for(&ear, 1);
	cr_expect_str_eq(field(&ear, 0, "event"), "space");
	cr_expect_eq(value(&ear, 0, "free"), 99);
	cr_expect_eq(value(&ear, 0, "size"), 1000);
	cr_expect_eq(value(&ear, 0, "below_percent"), 10);
	cr_expect_eq(value(&ear, 0, "reserve"), 4 << 20);
	atomic_store(&played_free, 5);
	wait_for(&ear, 2);
	cr_expect_eq(value(&ear, 1, "below_percent"), 1);
	atomic_store(&played_free, 500);
	wait_for(&ear, 3);
	cr_expect_eq(value(&ear, 2, "below_percent"), 100);
	unlisten(&ear);
	cr_assert_eq(vmimg_close(svc), 0);
	svc = NULL;
	eng_io_destroy(io);
}

/* EV-6 */
Test(api_events, thresholds_have_a_margin_upwards)
{
	cr_expect_eq(api_space_level(1000, 1000, 0), 0u);
	cr_expect_eq(api_space_level(100, 1000, 0), 0u);
	cr_expect_eq(api_space_level(99, 1000, 0), 1u);
	cr_expect_eq(api_space_level(109, 1000, 1), 1u);
	cr_expect_eq(api_space_level(110, 1000, 1), 0u);
	cr_expect_eq(api_space_level(49, 1000, 1), 2u);
	cr_expect_eq(api_space_level(54, 1000, 2), 2u);
	cr_expect_eq(api_space_level(54, 1000, 1), 1u);
	cr_expect_eq(api_space_level(0, 1000, 0), 3u);
	cr_expect_eq(api_space_level(10, 1000, 3), 3u);
	cr_expect_eq(api_space_level(11, 1000, 3), 2u);
	cr_expect_eq(api_space_level(0, 0, 0), 0u, "a file system that does not tell");
}

/* EV-7 */
Test(api_events, a_poisoned_disk_is_told_once)
{
	struct vmimg_queue *queue;
	struct vmimg_disk *disk;
	struct ear ear;

	cr_assert_eq(vmimg_vm_create(svc, "web", &err), 0);
	make_disk("web/root");
	cr_assert_eq(vmimg_queue_create(svc, 4, &err, &queue), 0);
	cr_assert_eq(vmimg_disk_attach(queue, "web/root", 0, &err, &disk), 0, "%s", err.message);
	listen_to(&ear);
	eng_layer_poison(((struct eng_disk *)disk)->head, -EIO);
	wait_for(&ear, 1);
	cr_expect_str_eq(field(&ear, 0, "event"), "poisoned");
	cr_expect_str_eq(field(&ear, 0, "disk"), "web/root");
	usleep(1200000);
	cr_expect_eq(heard(&ear), 1u);
	unlisten(&ear);
	cr_expect_eq(vmimg_disk_detach(disk), -ENOTRECOVERABLE);
	cr_assert_eq(vmimg_queue_destroy(queue), 0);
}
