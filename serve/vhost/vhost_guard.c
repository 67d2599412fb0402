/* SPDX-License-Identifier: MIT */
/*
 * vhost_guard.c - guest memory that goes away under us. Its file belongs to another process, which can
 * truncate it, or its file system can be full: then touching it raises SIGBUS. The handler puts zeroed
 * private memory in place of the whole mapping and marks it lost; the access goes on, and the device
 * ends at its next turn (VU-34). Requests that the kernel carries out fail with EFAULT instead.
 *
 * The handler runs in the middle of anything: it takes no lock and allocates nothing. Slots are never
 * freed, only used again; a slot in use is looked at by the thread that uses its memory, which is
 * between add and drop. Any other SIGBUS goes to the handler that was there before.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "serve/vhost/vhost.h"

#define SLOTS 256u

struct srv_vhost_guard {
	_Atomic uintptr_t start;
	_Atomic size_t len; /* 0: free; written last */
	_Atomic(_Atomic bool *) hit;
};

struct chunk {
	_Atomic(struct chunk *) next;
	struct srv_vhost_guard slots[SLOTS];
};

static struct chunk first;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* who adds */
static struct sigaction before;

static bool replace(uintptr_t at)
{
	for (struct chunk *c = &first; c; c = atomic_load_explicit(&c->next, memory_order_acquire))
		for (unsigned i = 0; i < SLOTS; i++) {
			struct srv_vhost_guard *g = &c->slots[i];
			size_t len = atomic_load_explicit(&g->len, memory_order_acquire);
			uintptr_t start = atomic_load_explicit(&g->start, memory_order_relaxed);

			if (!len || at < start || at - start >= len)
				continue;
			if (mmap((void *)start, len, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1,
				 0) == MAP_FAILED)
				return false;
			atomic_store(atomic_load(&g->hit), true);
			return true;
		}
	return false;
}

static void on_sigbus(int number, siginfo_t *info, void *context)
{
	int saved = errno;

	if (!replace((uintptr_t)info->si_addr)) {
		/* Not ours: as if we had never been here. The access is repeated, and handled so. */
		if (before.sa_flags & SA_SIGINFO && before.sa_sigaction)
			before.sa_sigaction(number, info, context);
		else
			sigaction(SIGBUS, &before, NULL);
	}
	errno = saved;
}

int srv_vhost_guard_install(void)
{
	struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER};

	sigemptyset(&action.sa_mask);
	return sigaction(SIGBUS, &action, &before) < 0 ? -errno : 0;
}

void srv_vhost_guard_remove(void)
{
	sigaction(SIGBUS, &before, NULL);
}

static struct srv_vhost_guard *find_free_locked(void)
{
	struct chunk *c = &first;

	for (;;) {
		struct chunk *next = atomic_load(&c->next);

		for (unsigned i = 0; i < SLOTS; i++)
			if (!atomic_load(&c->slots[i].len))
				return &c->slots[i];
		if (!next) {
			next = calloc(1, sizeof(*next));
			if (!next)
				return NULL;
			atomic_store_explicit(&c->next, next, memory_order_release);
		}
		c = next;
	}
}

int srv_vhost_guard_add(void *start, size_t len, _Atomic bool *hit, struct srv_vhost_guard **ret)
{
	struct srv_vhost_guard *g;

	pthread_mutex_lock(&lock);
	g = find_free_locked();
	if (g) {
		atomic_store(&g->hit, hit);
		atomic_store(&g->start, (uintptr_t)start);
		atomic_store_explicit(&g->len, len, memory_order_release);
		*ret = g;
	}
	pthread_mutex_unlock(&lock);
	return g ? 0 : -ENOMEM;
}

void srv_vhost_guard_drop(struct srv_vhost_guard *g)
{
	if (g)
		atomic_store(&g->len, 0);
}
