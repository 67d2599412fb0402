/* SPDX-License-Identifier: MIT */
/*
 * ring.c - tells the thread sanitizer when the memory of an io_uring has gone. liburing maps and unmaps
 * rings by system calls of its own, which the sanitizer does not see: a ring at the address of an earlier
 * one would look like a race with that one's owner. Linked into every program that is built with TSAN=1.
 */
#include <dlfcn.h>
#include <liburing.h>
#include <sys/mman.h>

/* Maps it and unmaps it again, where nobody else has it by now; both are seen. */
static void forget(void *at, size_t len)
{
	void *p = mmap(at, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
		       0);

	if (p != MAP_FAILED)
		munmap(p, len);
}

void io_uring_queue_exit(struct io_uring *ring)
{
	void (*real)(struct io_uring * ring) = dlsym(RTLD_NEXT, "io_uring_queue_exit");
	struct io_uring was = *ring;

	real(ring);
	forget(was.sq.sqes, was.sq.ring_entries * sizeof(*was.sq.sqes));
	forget(was.sq.ring_ptr, was.sq.ring_sz);
	if (was.cq.ring_ptr != was.sq.ring_ptr)
		forget(was.cq.ring_ptr, was.cq.ring_sz);
}
