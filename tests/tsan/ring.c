/* SPDX-License-Identifier: MIT */
/*
 * ring.c - tells the thread sanitizer that an io_uring's memory changes hands. liburing maps and unmaps
 * rings by system calls of its own, which the sanitizer does not see: a ring at the address of an earlier
 * one would look like a race with that one's owner. So whoever makes a ring comes after all who let go of
 * one. Linked into every program that is built with TSAN=1.
 */
#include <dlfcn.h>
#include <liburing.h>
#include <sanitizer/tsan_interface.h>

static char memory; /* stands for all that rings were ever mapped to */

int io_uring_queue_init_params(unsigned entries, struct io_uring *ring, struct io_uring_params *p)
{
	int (*real)(unsigned entries, struct io_uring *ring,
		    struct io_uring_params *p) = dlsym(RTLD_NEXT, "io_uring_queue_init_params");
	int r = real(entries, ring, p);

	__tsan_acquire(&memory);
	return r;
}

void io_uring_queue_exit(struct io_uring *ring)
{
	void (*real)(struct io_uring * ring) = dlsym(RTLD_NEXT, "io_uring_queue_exit");

	__tsan_release(&memory);
	real(ring);
}
