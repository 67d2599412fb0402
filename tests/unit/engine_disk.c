/* SPDX-License-Identifier: MIT */
/*
 * engine_disk.c - what a request may ask, requests of other queues, and who holds a store and a base:
 * T19, T31, AT-*.
 */
#include "tests/unit/engine_store.h"

TestSuite(engine_disk, .timeout = 120);

static void end(void)
{
	detach(0);
	close_store();
	finish();
}

Test(engine_disk, request_past_the_end_is_refused)
{
	begin(1, (1 << 20) + 512);
	attach(0, 0);
	cr_expect_eq(do_write(0, 1, 1 << 20, 512), 0);
	cr_expect_eq(do_write(0, 1, 1 << 20, 1024), -EINVAL);
	cr_expect_eq(do_write(0, 1, (1 << 20) + 512, 512), -EINVAL);
	cr_expect_eq(do_op(0, ENG_READ, 0, 2 << 20, 512), -EINVAL);
	cr_expect_eq(do_op(0, ENG_DISCARD, 0, UINT64_MAX - 511, 512), -EINVAL);
	cr_expect_eq(do_write(0, 1, 0, 0), 0);
	must(snapshot("s") == 0);
	cr_expect_eq(do_op(0, ENG_DISCARD, 0, (1 << 20) - 512, 1024), 0, "to the very end");
	cr_expect(holds(0, 0, (1 << 20) - 512, 1024));
	cr_expect_eq(do_write(0, 2, 1 << 20, 512), 0);
	cr_expect(holds(0, 2, 1 << 20, 512));
	cr_expect(view_holds("s", 0, 1, 1 << 20, 512));
	end();
}

Test(engine_disk, view_of_a_snapshot_takes_no_writes)
{
	struct eng_disk *view;
	struct ask *a;

	begin(1, 1 << 20);
	attach(0, 0);
	must(do_write(0, 1, 0, BLOCK) == 0 && snapshot("s") == 0);
	cr_expect_eq(eng_store_attach(store, queue[0], "c@s/a/d0", 0, &err, &view), -EROFS);
	must(eng_store_attach(store, queue[0], "c@s/a/d0", ENG_ATTACH_READ_ONLY, &err, &view) == 0);
	disk[1] = view;
	a = ask(0, 1, ENG_WRITE, 0, 2, 0, BLOCK);
	cr_expect_eq(ask_end(a), -EROFS);
	cr_expect_eq(do_op(1, ENG_DISCARD, 0, 0, BLOCK), -EROFS);
	cr_expect_eq(do_flush(1), 0);
	cr_expect(disk_holds(view, 1, 0, BLOCK));
	must(eng_store_detach(view) == 0);
	end();
}

/* AT-4: nothing of a disk attached for reading only keeps others from its head. */
Test(engine_disk, disk_attached_read_only_can_be_snapshotted)
{
	begin(1, 1 << 20);
	attach(0, 0);
	must(do_write(0, 1, 0, BLOCK) == 0);
	for (unsigned i = 0; i < 2; i++) { /* a raw head, an overlay */
		detach(0);
		must(eng_store_attach(store, queue[0], "a/d0", ENG_ATTACH_READ_ONLY, &err,
				      &disk[0]) == 0);
		cr_expect_eq(snapshot(i ? "s1" : "s0"), 0);
		cr_expect(holds(0, 1, 0, BLOCK));
		must(eng_store_detach(disk[0]) == 0);
		cr_expect_eq(snapshot(i ? "s3" : "s2"), 0, "and after it");
		attach(0, 0);
		must(do_write(0, 2, BLOCK, BLOCK) == 0);
		cr_expect(view_holds(i ? "s3" : "s2", 0, 1, 0, BLOCK));
	}
	end();
}

/* T2, Q-2: requests of another queue: all kinds come back, to the queue they came through. */
Test(engine_disk, forwarded_requests_end_on_their_own_queue)
{
	struct ask *a[6];

	begin(1, 1 << 20);
	attach(0, 0);
	a[0] = ask(1, 0, ENG_WRITE, 0, 1, 0, 3 * BLOCK);
	a[1] = ask(1, 0, ENG_WRITE, ENG_REQ_FUA, 2, BLOCK, 512);
	a[2] = ask(1, 0, ENG_DISCARD, 0, 0, 2 * BLOCK, BLOCK);
	a[3] = ask(1, 0, ENG_FLUSH, 0, 0, 0, 0);
	a[4] = ask(1, 0, ENG_WRITE, 0, 3, 4 << 20, BLOCK);
	for (unsigned i = 0; i < 5; i++) {
		struct eng_completion none;

		while (!a[i]->done) {
			cr_expect_eq(eng_queue_poll(queue[0], &none, 1, MS), 0);
			turn(1, MS);
		}
	}
	for (unsigned i = 0; i < 5; i++)
		cr_expect_eq(ask_end(a[i]), i == 4 ? -EINVAL : 0, "request %u", i);
	cr_expect(holds(0, 2, BLOCK, 512) && holds(0, 0, 2 * BLOCK, BLOCK));
	cr_expect_eq(eng_queue_destroy(queue[0]), -EBUSY, "a disk is attached");
	a[5] = ask(1, 0, ENG_WRITE, 0, 4, 0, 512);
	cr_expect_eq(eng_store_detach(disk[0]), -EBUSY, "one is on its way");
	must(ask_end(a[5]) == 0);
	end();
}

/* T19: every ring of a store keeps its lock: those of queues and those of the jobs. */
Test(engine_disk, every_ring_holds_the_lock_of_the_store)
{
	struct eng_store *other;

	begin(2, 1 << 20);
	attach(0, 0);
	must(do_write(0, 1, 0, BLOCK) == 0);
	hold.rings = hold.rings_without_hold = 0;
	must(snapshot("s") == 0);
	cr_expect_geq(hold.rings, 1u);
	cr_expect_eq(hold.rings_without_hold, 0u, "a ring outlives the lock");
	cr_expect_eq(eng_store_open(io, dir, NULL, &err, &other), -EBUSY);
	end();
}

/* AT-2, JN-9: attached once. */
Test(engine_disk, disk_is_attached_once)
{
	struct eng_disk *again;

	begin(1, 1 << 20);
	attach(0, 0);
	cr_expect_eq(eng_store_attach(store, queue[1], "a/d0", 0, &err, &again), -EBUSY);
	cr_expect_eq(eng_store_close(store), -EBUSY);
	end();
}

/* AT-1, I18: detach during a cut waits and turns its own ring, since the drain may need it. */
Test(engine_disk, detach_waits_for_the_cut_and_turns_its_ring)
{
	struct ask *write;
	struct shot s;
	int rule;

	begin(2, 1 << 20);
	attach(0, 0);
	attach(1, 0);
	must(do_write(0, 1, 0, BLOCK) == 0 && do_write(1, 1, 0, BLOCK) == 0);
	must(snapshot("s0") == 0);
	rule = hold_add((struct hold_rule){.kind = ENG_OP_WRITE, .path = ".vmo", .mine = true});
	write = ask_write(1, 2, 0, BLOCK);
	turn_until(hold_held(rule) == 1);
	shot_start(&s, "s", -1);
	turn_until(atomic_load(&s.phase) >= ENG_SNAPSHOT_CUT);
	hold_release(rule); /* the drain now needs this thread to turn queue 0 */
	cr_expect_eq(eng_store_detach(disk[0]), 0);
	must(shot_end(&s) == 0);
	must(ask_end(write) == 0);
	cr_expect(view_holds("s", 1, 2, 0, BLOCK));
	detach(1);
	close_store();
	finish();
}

/* --- T31 --- */

static char image[192];

static void make_image(void)
{
	void *buf = aligned(1 << 20);
	int fd;

	snprintf(image, sizeof(image), "%s/base.raw", root);
	fill(buf, 5, 0, 1 << 20);
	fd = open(image, O_CREAT | O_RDWR, 0600);
	must(fd >= 0 && write(fd, buf, 1 << 20) == 1 << 20);
	close(fd);
	free(buf);
}

static int import(const char *name)
{
	struct eng_disk_make make = {
		.vm = "a", .name = name, .from = image, .format = "raw", .in_place = true};

	return eng_store_make_disk(store, &make, &err);
}

/* T31, IB-2 */
Test(engine_disk, base_in_place_is_claimed_once)
{
	struct eng_file *file;

	begin(0, 0);
	make_image();
	must(import("d0") == 0);
	cr_expect_eq(import("d1"), -EEXIST, "%s", err.text);
	attach(0, 0);
	must(eng_io_open(machine, image, ENG_OPEN_WRITE, &file) == 0);
	cr_expect_eq(eng_io_lock(machine, file), -EWOULDBLOCK, "and locked while it is in use");
	eng_io_close(machine, file);
	cr_expect(holds(0, 5, 0, 1 << 20));
	end();
}

/* T31, IB-1: a head's times mean nothing. */
Test(engine_disk, base_that_is_a_head_may_have_new_times)
{
	begin(0, 0);
	make_image();
	must(import("d0") == 0);
	attach(0, 0);
	must(do_write(0, 6, 0, BLOCK) == 0);
	detach(0);
	usleep(10000);
	attach(0, 0);
	cr_expect(holds(0, 6, 0, BLOCK) && holds(0, 5, BLOCK, BLOCK));
	end();
}

/* T31, IB-1, IB-3 */
Test(engine_disk, frozen_base_that_changed_is_refused)
{
	struct timespec now[2] = {{.tv_nsec = UTIME_NOW}, {.tv_nsec = UTIME_NOW}};

	begin(0, 0);
	make_image();
	must(import("d0") == 0);
	attach(0, 0);
	must(do_write(0, 6, 0, BLOCK) == 0 && snapshot("s") == 0);
	must(do_write(0, 7, 0, BLOCK) == 0);
	detach(0);
	attach(0, 0);
	cr_expect(holds(0, 7, 0, BLOCK) && view_holds("s", 0, 6, 0, BLOCK));
	detach(0);
	usleep(10000);
	must(utimensat(AT_FDCWD, image, now, 0) == 0);
	cr_expect_eq(eng_store_attach(store, queue[0], "a/d0", 0, &err, &disk[0]), -EUCLEAN);
	cr_expect_eq(eng_store_attach(store, queue[0], "c@s/a/d0", ENG_ATTACH_READ_ONLY, &err,
				      &disk[0]),
		     -EUCLEAN);
	close_store();
	finish();
}
