/* SPDX-License-Identifier: MIT */
/*
 * fixture.h - a new store for each test, and the steps that most of them begin with. Everything here
 * ends the test when it fails; the test's own thread only.
 */
#ifndef TESTS_API_FIXTURE_H
#define TESTS_API_FIXTURE_H

#include <criterion/criterion.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "api/vmimg.h"

#define MIB    (1024u * 1024u)
#define SECOND 1000000000ull

extern struct vmimg_service *svc;
extern struct vmimg_error err; /* of the last step */
extern char scratch[256];      /* a directory of this test */
extern char store_dir[300];

void fixture_init(void); /* scratch, store, service */
void fixture_fini(void); /* all closed and removed */
void fixture_close(void);
void fixture_reopen(void);

/* A VM with @disks disks of 8 MiB named d0, d1, ... */
void make_vm(const char *vm, unsigned disks);
void make_disk(const char *disk, uint64_t size, bool independent);
/* A collection of the VMs named, NULL-ended. */
void make_collection(const char *name, ...) __attribute__((sentinel));

/* The document of one element, or of all; json_decref(). */
json_t *describe(enum vmimg_kind kind, const char *name);
json_t *list(enum vmimg_kind kind, const char *filter);
size_t count_of(enum vmimg_kind kind);
int64_t number(const json_t *object, const char *key);
const char *text(const json_t *object, const char *key);

/* Requests one at a time, waited for. */
struct vmimg_queue *new_queue(void);
struct vmimg_disk *attach(struct vmimg_queue *queue, const char *disk, unsigned flags);
int transfer(struct vmimg_queue *queue, struct vmimg_disk *disk, uint8_t op, void *buf, size_t len,
	     uint64_t offset);
int flush(struct vmimg_queue *queue, struct vmimg_disk *disk);
/* Writes, or expects to read, @len bytes of value @byte. Attaches and detaches. */
void fill(const char *disk, uint64_t offset, size_t len, uint8_t byte);
void expect_filled(const char *disk, uint64_t offset, size_t len, uint8_t byte);

/*
 * A guest whose thread has stopped: a write to @disk is submitted, and the queue not polled until
 * stuck_end(). A create of that disk does not come to its cut meanwhile.
 */
struct stuck {
	struct vmimg_queue *queue;
	struct vmimg_disk *disk;
	struct iovec iov;
};
void stuck_begin(struct stuck *stuck, const char *disk);
void stuck_end(struct stuck *stuck);

/* Creates and waits; the job is released. */
uint32_t create(const char *collection, const char *name);
/* A job of "COLLECTION@NAME" that cannot come to its cut as long as its guest is stuck. */
struct vmimg_job *start_job(const char *collection, const char *name);
void expect_state(struct vmimg_job *job, uint16_t state);

/* The last step failed with @code and said why. */
#define expect_error(call, expected)                                                               \
	do {                                                                                       \
		int64_t code_ = (int64_t)(call);                                                   \
		cr_expect_eq(code_, (int64_t)(expected), "%s is %lld, expected %lld: %s", #call,   \
			     (long long)code_, (long long)(expected), err.message);                \
		cr_expect_neq(err.message[0], 0, "%s: no message", #call);                         \
		cr_expect_eq((int64_t)err.code, (int64_t)(int32_t)(expected), "%s: code %d",       \
			     #call, (int)err.code);                                                \
		err = (struct vmimg_error){0};                                                     \
	} while (0)

#define expect_ok(call)                                                                            \
	do {                                                                                       \
		int64_t code_ = (int64_t)(call);                                                   \
		cr_assert_eq(code_, 0, "%s is %lld: %s", #call, (long long)code_, err.message);    \
	} while (0)

#endif
