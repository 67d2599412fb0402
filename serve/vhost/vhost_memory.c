/* SPDX-License-Identifier: MIT */
/*
 * vhost_memory.c - the guest's memory: files that the front-end gives, mapped, and the way from a
 * guest's or the front-end's addresses to ours. Regions are disjoint in both address spaces, so that an
 * address means one place (VU-31). The device's worker.
 *
 * Only tmpfs (memfd is) and hugetlbfs are taken: a page fault in a file of another kind, of FUSE say,
 * waits as long as somebody likes, and this worker has other disks to serve (VU-32).
 */
#include <errno.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "serve/vhost/vhost.h"

#define MAP_MAX    (UINT64_C(1) << 43) /* bytes of one mapping: address space is finite */
#define UNMAP_HERE (32u << 20)         /* bytes that are unmapped within a turn */

/* --- files --- */

static int check_file(int fd, uint64_t offset, uint64_t len, uint64_t *page,
		      struct vmimg_error *err)
{
	struct statfs fs;
	struct stat st;
	uint64_t end;

	if (fstatfs(fd, &fs) < 0 || fstat(fd, &st) < 0)
		return srv_fail(err, -errno, "memory: %s", strerror(errno));
	if ((fs.f_type != TMPFS_MAGIC && fs.f_type != HUGETLBFS_MAGIC) || !S_ISREG(st.st_mode))
		return srv_fail(err, -EINVAL,
				"memory: a file of file system %lx, expected tmpfs or hugetlbfs",
				(unsigned long)fs.f_type);
	if (!len || len > MAP_MAX || __builtin_add_overflow(offset, len, &end) ||
	    end > (uint64_t)st.st_size)
		return srv_fail(err, -EINVAL, "memory: %llu bytes at %llu of a file of %lld",
				(unsigned long long)len, (unsigned long long)offset,
				(long long)st.st_size);
	*page = fs.f_type == HUGETLBFS_MAGIC ? (uint64_t)fs.f_bsize : 4096;
	return 0;
}

int srv_vhost_map(int fd, uint64_t offset, uint64_t len, _Atomic bool *hit,
		  struct srv_vhost_mapping *ret, struct vmimg_error *err)
{
	struct srv_vhost_mapping m = {0};
	uint64_t page = 0;
	int r = check_file(fd, offset, len, &page, err);

	if (r < 0)
		return r;
	m.skip = offset & (page - 1);
	m.map_len = (m.skip + len + page - 1) & ~(page - 1);
	m.map = mmap(NULL, m.map_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd,
		     (off_t)(offset - m.skip));
	if (m.map == MAP_FAILED)
		return srv_fail(err, -errno, "memory: cannot map: %s", strerror(errno));
	r = srv_vhost_guard_add(m.map, m.map_len, hit, &m.guard);
	if (r < 0) {
		munmap(m.map, m.map_len);
		return srv_fail(err, r, "memory: out of memory");
	}
	*ret = m;
	return 0;
}

struct unmapping {
	void *map;
	size_t len;
};

static void *unmap_main(void *arg)
{
	struct unmapping *u = arg;

	munmap(u->map, u->len);
	free(u);
	return NULL;
}

/* The pages of a large guest take the kernel tenths of a second: not on a worker (W-2). */
static bool unmap_elsewhere(void *map, size_t len)
{
	struct unmapping *u = malloc(sizeof(*u));
	pthread_attr_t attr;
	pthread_t thread;
	int r;

	if (!u)
		return false;
	*u = (struct unmapping){map, len};
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	r = pthread_create(&thread, &attr, unmap_main, u);
	pthread_attr_destroy(&attr);
	if (r)
		free(u);
	return r == 0;
}

void srv_vhost_unmap(struct srv_vhost_mapping *m)
{
	srv_vhost_guard_drop(m->guard);
	if (m->map && (m->map_len < UNMAP_HERE || !unmap_elsewhere(m->map, m->map_len)))
		munmap(m->map, m->map_len);
	*m = (struct srv_vhost_mapping){0};
}

/* --- regions --- */

static bool overlap(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
	return a < b + b_len && b < a + a_len;
}

static int check_region(const struct srv_vhost_memory *mem, const struct vhost_region_desc *d,
			struct vmimg_error *err)
{
	uint64_t end;

	if (mem->count == VHOST_REGIONS_MAX)
		return srv_fail(err, -ENOSPC, "memory: more than %u regions", VHOST_REGIONS_MAX);
	if (!d->size || __builtin_add_overflow(d->guest, d->size, &end) ||
	    __builtin_add_overflow(d->user, d->size, &end))
		return srv_fail(err, -EINVAL, "memory: region of %llu bytes at %llx wraps",
				(unsigned long long)d->size, (unsigned long long)d->guest);
	for (unsigned i = 0; i < mem->count; i++) {
		const struct srv_vhost_region *r = &mem->regions[i];

		if (overlap(d->guest, d->size, r->guest, r->size) ||
		    overlap(d->user, d->size, r->user, r->size))
			return srv_fail(err, -EINVAL, "memory: regions at %llx and %llx overlap",
					(unsigned long long)d->guest, (unsigned long long)r->guest);
	}
	return 0;
}

int srv_vhost_memory_add(struct srv_vhost_memory *mem, const struct vhost_region_desc *d, int fd,
			 struct vmimg_error *err)
{
	struct srv_vhost_mapping m;
	unsigned i;
	int r = check_region(mem, d, err);

	if (r == 0)
		r = srv_vhost_map(fd, d->offset, d->size, &mem->lost, &m, err);
	if (r < 0)
		return r;
	for (i = mem->count; i > 0 && mem->regions[i - 1].guest > d->guest; i--)
		mem->regions[i] = mem->regions[i - 1];
	mem->regions[i] = (struct srv_vhost_region){
		.guest = d->guest,
		.user = d->user,
		.size = d->size,
		.host = (uint8_t *)m.map + m.skip,
		.mapping = m,
	};
	mem->count++;
	return 0;
}

int srv_vhost_memory_remove(struct srv_vhost_memory *mem, const struct vhost_region_desc *d,
			    struct vmimg_error *err)
{
	for (unsigned i = 0; i < mem->count; i++) {
		struct srv_vhost_region *r = &mem->regions[i];

		if (r->guest != d->guest || r->user != d->user || r->size != d->size)
			continue;
		srv_vhost_unmap(&r->mapping);
		mem->count--;
		memmove(r, r + 1, (mem->count - i) * sizeof(*r));
		return 0;
	}
	return srv_fail(err, -ENOENT, "memory: no region of %llu bytes at %llx",
			(unsigned long long)d->size, (unsigned long long)d->guest);
}

void srv_vhost_memory_clear(struct srv_vhost_memory *mem)
{
	while (mem->count)
		srv_vhost_unmap(&mem->regions[--mem->count].mapping);
	atomic_store(&mem->lost, false);
}

/* --- addresses --- */

static const struct srv_vhost_region *find(const struct srv_vhost_memory *mem, uint64_t guest)
{
	unsigned low = 0, high = mem->count;

	while (low < high) {
		unsigned mid = (low + high) / 2;
		const struct srv_vhost_region *r = &mem->regions[mid];

		if (guest < r->guest)
			high = mid;
		else if (guest - r->guest >= r->size)
			low = mid + 1;
		else
			return r;
	}
	return NULL;
}

int srv_vhost_memory_slice(const struct srv_vhost_memory *mem, uint64_t guest, uint64_t len,
			   struct iovec *iov, unsigned max, unsigned *count)
{
	unsigned n = *count;

	while (len) {
		const struct srv_vhost_region *r = find(mem, guest);
		uint64_t skip, piece;

		if (!r)
			return -EFAULT;
		if (n == max)
			return -E2BIG;
		skip = guest - r->guest;
		piece = r->size - skip < len ? r->size - skip : len;
		iov[n++] = (struct iovec){r->host + skip, piece};
		guest += piece; /* cannot wrap: regions do not */
		len -= piece;
	}
	*count = n;
	return 0;
}

void *srv_vhost_memory_user(const struct srv_vhost_memory *mem, uint64_t user, uint64_t len)
{
	for (unsigned i = 0; i < mem->count; i++) {
		const struct srv_vhost_region *r = &mem->regions[i];

		if (user >= r->user && user - r->user < r->size &&
		    len <= r->size - (user - r->user))
			return r->host + (user - r->user);
	}
	return NULL;
}
