/* SPDX-License-Identifier: MIT */
/*
 * io_fault.h - an eng_io that passes everything on to another one, except where a rule makes an
 * operation fail: for tests of what an error at any place leaves behind (P4, P6, T15, T16, T23).
 *
 * The io may be used as io.h says; the other calls may be made from any thread at any time.
 */
#ifndef ENGINE_IO_FAULT_H
#define ENGINE_IO_FAULT_H

#include "engine/io/io.h"

struct eng_fault;

/* Operations, to be or'ed. Those of a ring have a file's path as the others do. */
enum eng_fault_op {
	ENG_FAULT_OPEN = 1 << 0, /* not creating */
	ENG_FAULT_CREATE = 1 << 1,
	ENG_FAULT_PREAD = 1 << 2,
	ENG_FAULT_PWRITE = 1 << 3,
	ENG_FAULT_FDATASYNC = 1 << 4,
	ENG_FAULT_TRUNCATE = 1 << 5,
	ENG_FAULT_ALLOCATE = 1 << 6,
	ENG_FAULT_PUNCH = 1 << 7,
	ENG_FAULT_STAT = 1 << 8, /* fstat and stat */
	ENG_FAULT_NEXT_DATA = 1 << 9,
	ENG_FAULT_LOCK = 1 << 10,
	ENG_FAULT_MKDIR = 1 << 11,
	ENG_FAULT_RENAME = 1 << 12, /* matches by either path */
	ENG_FAULT_UNLINK = 1 << 13,
	ENG_FAULT_SYNC_DIR = 1 << 14,
	ENG_FAULT_LIST = 1 << 15,
	ENG_FAULT_SHM_CREATE = 1 << 16,
	ENG_FAULT_SHM_OPEN = 1 << 17,
	ENG_FAULT_SHM_UNLINK = 1 << 18,
	ENG_FAULT_SPAWN = 1 << 19, /* matches by the thread's name */
	ENG_FAULT_RING_CREATE = 1 << 20,
	ENG_FAULT_RING_READ = 1 << 21,
	ENG_FAULT_RING_WRITE = 1 << 22,
	ENG_FAULT_RING_FDATASYNC = 1 << 23,

	ENG_FAULT_OPS = 24, /* how many there are */
	ENG_FAULT_ANY_READ = ENG_FAULT_PREAD | ENG_FAULT_RING_READ,
	ENG_FAULT_ANY_WRITE = ENG_FAULT_PWRITE | ENG_FAULT_RING_WRITE,
	ENG_FAULT_ANY_FDATASYNC = ENG_FAULT_FDATASYNC | ENG_FAULT_RING_FDATASYNC,
};

struct eng_fault_rule {
	uint32_t ops;     /* enum eng_fault_op, or'ed */
	const char *path; /* part of the path; NULL: any */
	uint64_t skip;    /* let so many matching operations pass */
	bool sticky;      /* then every one fails; else only the first */
	int error;        /* negative errno; 0: none, the rule only watches or shortens */
	/* Transfers move the first short_len bytes before the error; a read without an error ends
	 * there as if the file did. */
	bool shorten;
	uint64_t short_len;
	/* Called, when not NULL, each time the rule strikes, before anything is done. Any thread. */
	void (*strike)(void *arg);
	void *arg;
};

int eng_fault_create(struct eng_io *inner, struct eng_fault **ret); /* @inner is borrowed */
/* The same as eng_io_destroy() of its io. NULL is fine. */
void eng_fault_destroy(struct eng_fault *fault);
struct eng_io *eng_fault_io(struct eng_fault *fault);

/* Adds a rule (copied) and returns its number; of several that match, the oldest strikes. -EINVAL
 * for a rule that would lose the end of a write in silence. */
int eng_fault_add(struct eng_fault *fault, const struct eng_fault_rule *rule);
/* Ends all rules; their numbers stay valid for the two calls below. */
void eng_fault_clear(struct eng_fault *fault);
uint64_t eng_fault_matched(struct eng_fault *fault, int rule); /* operations, skipped ones too */
uint64_t eng_fault_struck(struct eng_fault *fault, int rule);
/* Operations of one kind so far, struck or not: how far a test that tries each has to go. */
uint64_t eng_fault_count(struct eng_fault *fault, enum eng_fault_op op);

#endif
