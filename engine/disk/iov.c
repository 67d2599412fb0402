/* SPDX-License-Identifier: MIT */
/* iov.c - the caller's scattered buffers: slices, copies, alignment. Pure; any thread. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/disk/part.h"

/* Calls @fn for each contiguous piece of [skip, skip + len). */
static void each_piece(const struct iovec *iov, unsigned count, uint64_t skip, uint64_t len,
		       void (*fn)(void *arg, char *p, size_t n), void *arg)
{
	for (unsigned i = 0; i < count && len; i++) {
		size_t n = iov[i].iov_len;

		if (skip >= n) {
			skip -= n;
			continue;
		}
		n -= skip;
		n = n < len ? n : len;
		fn(arg, (char *)iov[i].iov_base + skip, n);
		skip = 0;
		len -= n;
	}
}

struct slice {
	struct iovec *out;
	unsigned count;
};

static void slice_piece(void *arg, char *p, size_t n)
{
	struct slice *s = arg;

	if (s->out)
		s->out[s->count] = (struct iovec){p, n};
	s->count++;
}

unsigned eng_iov_slice(const struct iovec *iov, unsigned count, uint64_t skip, uint64_t len,
		       struct iovec *out)
{
	struct slice s = {.out = out};

	each_piece(iov, count, skip, len, slice_piece, &s);
	return s.count;
}

static void zero_piece(void *arg, char *p, size_t n)
{
	(void)arg;
	memset(p, 0, n);
}

void eng_iov_zero(const struct iovec *iov, unsigned count, uint64_t skip, uint64_t len)
{
	each_piece(iov, count, skip, len, zero_piece, NULL);
}

static void in_piece(void *arg, char *p, size_t n)
{
	const char **src = arg;

	memcpy(p, *src, n);
	*src += n;
}

void eng_iov_copy_in(const struct iovec *iov, unsigned count, uint64_t skip, const void *src,
		     uint64_t len)
{
	each_piece(iov, count, skip, len, in_piece, &src);
}

static void out_piece(void *arg, char *p, size_t n)
{
	char **dst = arg;

	memcpy(*dst, p, n);
	*dst += n;
}

void eng_iov_copy_out(const struct iovec *iov, unsigned count, uint64_t skip, void *dst,
		      uint64_t len)
{
	each_piece(iov, count, skip, len, out_piece, &dst);
}

struct alignment {
	uintptr_t mem, len;
	bool ok;
};

static void align_piece(void *arg, char *p, size_t n)
{
	struct alignment *a = arg;

	a->ok = a->ok && (uintptr_t)p % a->mem == 0 && n % a->len == 0;
}

bool eng_iov_aligned(const struct iovec *iov, unsigned count, uint64_t skip, uint64_t len,
		     uint32_t mem_align, uint32_t len_align)
{
	struct alignment a = {.mem = mem_align, .len = len_align, .ok = true};

	if (mem_align > 1 || len_align > 1)
		each_piece(iov, count, skip, len, align_piece, &a);
	return a.ok;
}

int eng_part_set_iov(struct eng_part *part, const struct iovec *iov, unsigned count, uint64_t skip,
		     uint64_t len)
{
	part->iov = part->iov_inline;
	if (count > 8) {
		unsigned n = eng_iov_slice(iov, count, skip, len, NULL);

		if (n > 8) {
			part->iov = malloc(n * sizeof(*part->iov));
			if (!part->iov)
				return -ENOMEM;
		}
	}
	part->op.iov = part->iov;
	part->op.iovcnt = eng_iov_slice(iov, count, skip, len, part->iov);
	return 0;
}
