/* SPDX-License-Identifier: MIT */
/*
 * scale.c - many disks in one call, and long chains, through the public header.
 *
 * Every block written carries its disk, its block and the round it was written in, so a block of
 * another disk, of another place or of another time is told at once.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "api/vmimg.h"

#define BLOCK      4096u
#define DISK_SIZE  (16u << 20)
#define MARKS      4u /* blocks that are written on every disk */
#define DEPTH      64u
#define CHAIN      1000u
#define CHAIN_STEP 7u /* blocks between two layers' writes */

struct mark {
	uint64_t disk, block, round, check;
};

static struct vmimg_service *svc;
static struct vmimg_queue *queue;
static struct vmimg_disk *disks[1000];
static char dir[64];
static uint8_t *buffer;

static void open_store(void)
{
	struct vmimg_error err;

	cr_assert_eq(vmimg_open(dir, NULL, &err, &svc), 0, "%s", err.message);
	cr_assert_eq(vmimg_queue_create(svc, DEPTH, &err, &queue), 0, "%s", err.message);
}

static void make_store(void)
{
	struct vmimg_error err;

	strcpy(dir, "/tmp/vmimg-scale-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	cr_assert_eq(vmimg_store_init(dir, &err), 0, "%s", err.message);
	open_store();
	cr_assert_eq(vmimg_define_collection(svc, "all", NULL, 0, NULL, &err), 0, "%s",
		     err.message);
	cr_assert_eq(posix_memalign((void **)&buffer, BLOCK, DEPTH * BLOCK), 0);
}

static void close_store(void)
{
	cr_assert_eq(vmimg_queue_destroy(queue), 0);
	cr_assert_eq(vmimg_close(svc), 0);
}

static void remove_store(void)
{
	char cmd[96];

	free(buffer);
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	cr_assert_eq(system(cmd), 0);
}

static void disk_name(unsigned disk, unsigned per_vm, char name[48])
{
	snprintf(name, 48, "vm%u/d%u", disk / per_vm, disk % per_vm);
}

static void make_disks(unsigned count, unsigned per_vm)
{
	struct vmimg_disk_spec spec = {.size_of = sizeof(spec), .size = DISK_SIZE};
	struct vmimg_error err;
	char name[48];

	for (unsigned i = 0; i < count; i++) {
		disk_name(i, per_vm, name);
		if (i % per_vm == 0) {
			*strchr(name, '/') = 0;
			cr_assert_eq(vmimg_vm_create(svc, name, &err), 0, "%s", err.message);
			cr_assert_eq(vmimg_add_member(svc, name, "all", &err), 0, "%s",
				     err.message);
			disk_name(i, per_vm, name);
		}
		cr_assert_eq(vmimg_disk_create(svc, name, &spec, &err), 0, "%s", err.message);
		cr_assert_eq(vmimg_disk_attach(queue, name, 0, &err, &disks[i]), 0, "%s: %s", name,
			     err.message);
	}
}

static uint64_t mark_block(unsigned m)
{
	return (m * 977u + 1) % (DISK_SIZE / BLOCK);
}

static void fill(uint8_t *block, uint64_t disk, uint64_t number, uint64_t round)
{
	struct mark *marks = (struct mark *)block;

	for (unsigned i = 0; i < BLOCK / sizeof(*marks); i++)
		marks[i] = (struct mark){disk, number, round,
					 disk ^ number * 31 ^ round * 1009 ^ i};
}

static void check(const uint8_t *block, uint64_t disk, uint64_t number, uint64_t round,
		  const char *where)
{
	static uint8_t want[BLOCK];
	const struct mark *found = (const struct mark *)block;

	fill(want, disk, number, round);
	cr_assert_eq(memcmp(block, want, BLOCK), 0,
		     "%s: block %lu holds disk %lu, block %lu, round %lu; expected disk %lu, round "
		     "%lu",
		     where, number, found->disk, found->block, found->round, disk, round);
}

static void wait_for(unsigned in_flight, unsigned at_most)
{
	struct vmimg_completion done[DEPTH];

	while (in_flight > at_most) {
		int n = vmimg_queue_poll(queue, done, DEPTH, UINT64_MAX);

		cr_assert_gt(n, 0);
		for (int i = 0; i < n; i++)
			cr_assert_eq(done[i].result, 0);
		in_flight -= (unsigned)n;
	}
}

/* Writes the marks of @round on every disk, many at a time. */
static void write_round(unsigned count, uint64_t round)
{
	static struct iovec iov[DEPTH];
	unsigned used = 0;

	for (unsigned d = 0; d < count; d++)
		for (unsigned m = 0; m < MARKS; m++) {
			struct vmimg_request rq = {
				.disk = disks[d],
				.op = VMIMG_WRITE,
				.iov = &iov[used],
				.iovcnt = 1,
				.offset = mark_block(m) * BLOCK,
				.length = BLOCK,
			};

			iov[used] = (struct iovec){buffer + (size_t)used * BLOCK, BLOCK};
			fill(iov[used].iov_base, d, mark_block(m), round);
			cr_assert_eq(vmimg_queue_submit(queue, &rq, 1), 1);
			if (++used == DEPTH) {
				wait_for(used, 0);
				used = 0;
			}
		}
	wait_for(used, 0);
}

static void read_block(struct vmimg_disk *disk, uint64_t block)
{
	struct iovec iov = {buffer, BLOCK};
	struct vmimg_request rq = {
		.disk = disk,
		.op = VMIMG_READ,
		.iov = &iov,
		.iovcnt = 1,
		.offset = block * BLOCK,
		.length = BLOCK,
	};

	cr_assert_eq(vmimg_queue_submit(queue, &rq, 1), 1);
	wait_for(1, 0);
}

static struct vmimg_disk *attach_view(const char *snapshot, const char *name, char where[128])
{
	struct vmimg_disk *view;
	struct vmimg_error err;

	snprintf(where, 128, "all@%s/%s", snapshot, name);
	cr_assert_eq(vmimg_disk_attach(queue, where, VMIMG_ATTACH_READ_ONLY, &err, &view), 0,
		     "%s: %s", where, err.message);
	return view;
}

static void check_snapshot(const char *snapshot, unsigned count, unsigned per_vm, uint64_t round)
{
	char name[48], where[128];

	for (unsigned d = 0; d < count; d++) {
		struct vmimg_disk *view;

		disk_name(d, per_vm, name);
		view = attach_view(snapshot, name, where);
		for (unsigned m = 0; m < MARKS; m++) {
			read_block(view, mark_block(m));
			check(buffer, d, mark_block(m), round, where);
		}
		cr_assert_eq(vmimg_disk_detach(view), 0);
	}
}

static void snapshot(const char *name)
{
	struct vmimg_ref ref = {.name = ""};
	struct vmimg_job *job = NULL;
	struct vmimg_job_info info;
	struct vmimg_completion none;
	struct vmimg_error err;
	uint32_t r;

	snprintf(ref.name, sizeof(ref.name), "%s", name);
	r = vmimg_create_snapshot(svc, "all", NULL, VMIMG_SNAPSHOT_STANDARD, &ref, &job, &err);
	cr_assert_eq(r, VMIMG_JOB_STARTED, "%s: %u: %s", name, r, err.message);
	while (vmimg_job_wait(job, 0) == -ETIMEDOUT) /* this thread is the disks' worker */
		cr_assert_eq(vmimg_queue_poll(queue, &none, 1, 1000000), 0);
	vmimg_job_info(job, &info);
	cr_assert_eq(info.job_state, VMIMG_JOB_COMPLETED, "%s: %s", name, info.error_description);
	vmimg_job_put(job);
}

static void many_disks(unsigned count, unsigned per_vm)
{
	make_store();
	make_disks(count, per_vm);
	write_round(count, 1);
	snapshot("one");
	write_round(count, 2);
	snapshot("two");
	write_round(count, 3);
	check_snapshot("one", count, per_vm, 1);
	check_snapshot("two", count, per_vm, 2);
	for (unsigned d = 0; d < count; d++) {
		read_block(disks[d], mark_block(0));
		check(buffer, d, mark_block(0), 3, "live");
		cr_assert_eq(vmimg_disk_detach(disks[d]), 0);
	}
	close_store();
	open_store();
	check_snapshot("one", count, per_vm, 1);
	close_store();
	remove_store();
}

/* P1, P2: 64 VMs with four disks each */
Test(scale, two_hundred_and_fifty_six_disks_in_one_call, .timeout = 600)
{
	many_disks(256, 4);
}

Test(scale, a_thousand_disks_in_one_call, .timeout = 600)
{
	many_disks(1000, 4);
}

/* P7: layer i holds one block of its own and the block that all layers write. */
static void check_depth(struct vmimg_disk *disk, uint64_t rounds, const char *where)
{
	read_block(disk, 0);
	check(buffer, 0, 0, rounds, where);
	for (uint64_t i = rounds; i > 0 && i + 40 > rounds; i--) {
		read_block(disk, i * CHAIN_STEP % (DISK_SIZE / BLOCK));
		check(buffer, 0, i * CHAIN_STEP % (DISK_SIZE / BLOCK), i, where);
	}
	for (uint64_t i = 1; i <= rounds; i += 97) {
		read_block(disk, i * CHAIN_STEP % (DISK_SIZE / BLOCK));
		check(buffer, 0, i * CHAIN_STEP % (DISK_SIZE / BLOCK), i, where);
	}
}

static void write_block(struct vmimg_disk *disk, uint64_t block, uint64_t round)
{
	struct iovec iov = {buffer, BLOCK};
	struct vmimg_request rq = {
		.disk = disk,
		.op = VMIMG_WRITE,
		.iov = &iov,
		.iovcnt = 1,
		.offset = block * BLOCK,
		.length = BLOCK,
	};

	fill(buffer, 0, block, round);
	cr_assert_eq(vmimg_queue_submit(queue, &rq, 1), 1);
	wait_for(1, 0);
}

Test(scale, a_chain_of_a_thousand_layers_reads_and_writes_right, .timeout = 600)
{
	struct vmimg_error err;
	char name[48], where[128];
	struct vmimg_disk *view;

	make_store();
	make_disks(1, 1);
	for (uint64_t i = 1; i <= CHAIN; i++) {
		write_block(disks[0], 0, i);
		write_block(disks[0], i * CHAIN_STEP % (DISK_SIZE / BLOCK), i);
		snprintf(name, sizeof(name), "s%lu", i);
		snapshot(name);
	}
	check_depth(disks[0], CHAIN, "live");
	cr_assert_eq(vmimg_disk_detach(disks[0]), 0);
	close_store();
	open_store();
	cr_assert_eq(vmimg_disk_attach(queue, "vm0/d0", 0, &err, &disks[0]), 0, "%s", err.message);
	check_depth(disks[0], CHAIN, "reopened");
	write_block(disks[0], 0, CHAIN + 1);
	read_block(disks[0], 0);
	check(buffer, 0, 0, CHAIN + 1, "reopened");
	for (uint64_t s = 1; s <= CHAIN; s = s * 3 + 1) {
		snprintf(name, sizeof(name), "s%lu", s);
		view = attach_view(name, "vm0/d0", where);
		check_depth(view, s, where);
		cr_assert_eq(vmimg_disk_detach(view), 0);
	}
	cr_assert_eq(vmimg_disk_detach(disks[0]), 0);
	close_store();
	remove_store();
}
