/* SPDX-License-Identifier: MIT */
/* serve_nbd_proto.c - what a request may say, and errors on the wire (NB-30, NB-32, NB-36). */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "serve/nbd/nbd_buffer.h"
#include "serve/nbd/nbd_proto.h"

#define SIZE UINT64_C(1000000)
#define MAX  65536u

static struct nbd_bounds bounds;

static void setup(void)
{
	bounds = (struct nbd_bounds){.size = SIZE,
				     .max_request = MAX,
				     .structured = true,
				     .contexts = true};
}

TestSuite(serve_nbd_proto, .init = setup, .timeout = 30);

static uint32_t check(uint16_t type, uint16_t flags, uint64_t offset, uint32_t length)
{
	const struct nbd_request r = {flags, type, 1, offset, length};

	return nbd_request_check(&r, &bounds);
}

/* NB-30 */
Test(serve_nbd_proto, decodes_what_has_the_magic)
{
	uint8_t bytes[NBD_REQUEST_LEN] = "\x25\x60\x95\x13\0\1\0\6abcdefgh\0\0\0\0\0\0\1\0\0\0\2";
	struct nbd_request r;

	bytes[27] = 9;
	cr_assert_eq(nbd_request_decode(bytes, &r), 0);
	cr_expect_eq(r.flags, 1);
	cr_expect_eq(r.type, NBD_CMD_WRITE_ZEROES);
	cr_expect_eq(r.cookie, UINT64_C(0x6162636465666768));
	cr_expect_eq(r.offset, 256);
	cr_expect_eq(r.length, 0x209);
	for (int i = 0; i < 4; i++) {
		bytes[i] ^= 1;
		cr_expect_eq(nbd_request_decode(bytes, &r), -EPROTO, "byte %d", i);
		bytes[i] ^= 1;
	}
}

/* NB-32 */
Test(serve_nbd_proto, every_type_and_flag)
{
	static const uint16_t own[] = {
		[NBD_CMD_READ] = NBD_CMD_FLAG_DF,
		[NBD_CMD_WRITE_ZEROES] = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
		[NBD_CMD_BLOCK_STATUS] = NBD_CMD_FLAG_REQ_ONE,
	};

	for (uint32_t type = 0; type <= UINT16_MAX; type++)
		for (uint32_t bit = 0; bit < 16; bit++) {
			uint16_t flag = (uint16_t)(1u << bit);
			bool ok = type < 8 && (flag == NBD_CMD_FLAG_FUA || (own[type] & flag));
			uint32_t length = type == NBD_CMD_FLUSH ? 0 : 512;

			cr_assert_eq(check((uint16_t)type, flag, 0, length), ok ? 0 : NBD_EINVAL,
				     "type %u flag %x", type, flag);
		}
}

/* NB-32: no sum of a client's numbers wraps. */
Test(serve_nbd_proto, ranges)
{
	static const uint16_t writes[] = {NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES};
	static const uint16_t reads[] = {NBD_CMD_READ, NBD_CMD_CACHE, NBD_CMD_BLOCK_STATUS};
	static const struct {
		uint64_t offset;
		uint32_t length;
		bool ok;
	} cases[] = {
		{SIZE - 1, 1, true},
		{0, MAX, true},
		{SIZE - 1, 2, false},
		{SIZE, 1, false},
		{SIZE + 1, 1, false},
		{UINT64_MAX, 1, false},
		{UINT64_MAX - 510, 512, false},
		{UINT64_C(1) << 63, MAX, false},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		for (int k = 0; k < 3; k++) {
			cr_expect_eq(check(writes[k], 0, cases[i].offset, cases[i].length),
				     cases[i].ok ? 0 : NBD_ENOSPC, "%zu %d", i, k);
			cr_expect_eq(check(reads[k], 0, cases[i].offset, cases[i].length),
				     cases[i].ok ? 0 : NBD_EINVAL, "%zu %d", i, k);
		}
	cr_expect_eq(check(NBD_CMD_READ, 0, SIZE, 0), 0, "nothing, at the end");
	cr_expect_eq(check(NBD_CMD_READ, 0, SIZE + 1, 0), NBD_EINVAL);
}

/* NB-5, NB-32 */
Test(serve_nbd_proto, the_largest_request)
{
	cr_expect_eq(check(NBD_CMD_READ, 0, 0, MAX), 0);
	cr_expect_eq(check(NBD_CMD_READ, 0, 0, MAX + 1), NBD_EINVAL);
	cr_expect_eq(check(NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, MAX + 1), NBD_EOVERFLOW);
	cr_expect_eq(check(NBD_CMD_WRITE, 0, 0, MAX + 1), NBD_EINVAL);
	cr_expect_eq(check(NBD_CMD_WRITE, 0, 0, UINT32_MAX), NBD_EINVAL);
	cr_expect_eq(check(NBD_CMD_TRIM, 0, 0, MAX + 1), 0, "no payload, no bound");
	cr_expect_eq(check(NBD_CMD_WRITE_ZEROES, 0, 0, MAX + 1), 0);
	cr_expect_eq(check(NBD_CMD_BLOCK_STATUS, 0, 0, MAX + 1), 0);
}

/* NB-32 */
Test(serve_nbd_proto, read_only_exports_refuse_writes)
{
	bounds.read_only = true;
	cr_expect_eq(check(NBD_CMD_WRITE, 0, 0, 512), NBD_EPERM);
	cr_expect_eq(check(NBD_CMD_TRIM, 0, 0, 512), NBD_EPERM);
	cr_expect_eq(check(NBD_CMD_WRITE_ZEROES, 0, 0, 512), NBD_EPERM);
	cr_expect_eq(check(NBD_CMD_READ, 0, 0, 512), 0);
	cr_expect_eq(check(NBD_CMD_FLUSH, 0, 0, 0), 0);
}

/* NB-32 */
Test(serve_nbd_proto, what_needs_negotiation)
{
	cr_expect_eq(check(NBD_CMD_BLOCK_STATUS, 0, 0, 0), NBD_EINVAL, "length 0");
	cr_expect_eq(check(NBD_CMD_FLUSH, 0, 0, 1), NBD_EINVAL);
	cr_expect_eq(check(NBD_CMD_FLUSH, 0, 1, 0), NBD_EINVAL);
	bounds.contexts = false;
	cr_expect_eq(check(NBD_CMD_BLOCK_STATUS, 0, 0, 512), NBD_EINVAL);
	bounds.contexts = true;
	bounds.structured = false;
	cr_expect_eq(check(NBD_CMD_BLOCK_STATUS, 0, 0, 512), NBD_EINVAL);
	cr_expect_eq(check(NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, 512), NBD_EINVAL);
	cr_expect_eq(check(NBD_CMD_READ, 0, 0, 512), 0);
}

/* NB-30: whatever is wrong with it, a write's payload is there. */
Test(serve_nbd_proto, payload_follows_writes_only)
{
	for (uint32_t type = 0; type <= UINT16_MAX; type++) {
		const struct nbd_request r = {0xffff, (uint16_t)type, 0, UINT64_MAX, UINT32_MAX};

		cr_expect_eq(nbd_request_payload(&r), type == NBD_CMD_WRITE ? UINT32_MAX : 0);
	}
}

/* NB-36 */
Test(serve_nbd_proto, errors_on_the_wire)
{
	static const struct {
		int result;
		uint32_t error;
	} cases[] = {
		{0, 0},
		{-EROFS, NBD_EPERM},
		{-EACCES, NBD_EPERM},
		{-ENOSPC, NBD_ENOSPC},
		{-EDQUOT, NBD_ENOSPC},
		{-EFBIG, NBD_ENOSPC},
		{-EINVAL, NBD_EINVAL},
		{-ENOMEM, NBD_ENOMEM},
		{-EOVERFLOW, NBD_EOVERFLOW},
		{-EOPNOTSUPP, NBD_ENOTSUP},
		{-ESHUTDOWN, NBD_ESHUTDOWN},
		{-EIO, NBD_EIO},
		{-EBADMSG, NBD_EIO},
		{-EUCLEAN, NBD_EIO},
		{-ENOTRECOVERABLE, NBD_EIO},
		{-4095, NBD_EIO},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		cr_expect_eq(nbd_error_of(cases[i].result), cases[i].error, "%d", cases[i].result);
}

/* NB-43: what is not needed goes, what is needed stays, and never more than the bound. */
Test(serve_nbd_proto, buffers_are_kept_while_needed)
{
	static const uint32_t lengths[] = {1, 4096, 4097, 8192, 65536, 65537, 2u << 20, 64u << 20};
	struct nbd_buffers b = {0};
	void *many[40], *p;

	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		p = nbd_buffer_get(&b, lengths[i]);
		cr_assert_not_null(p);
		cr_expect_eq((uintptr_t)p % NBD_BUFFER_ALIGN, 0);
		memset(p, 1, lengths[i]);
		nbd_buffer_put(&b, p, lengths[i]);
	}
	nbd_buffers_fini(&b);
	cr_expect_eq(b.kept_bytes, 0);
	for (int i = 0; i < 40; i++)
		many[i] = nbd_buffer_get(&b, 1u << 20);
	for (int i = 0; i < 40; i++)
		nbd_buffer_put(&b, many[i], 1u << 20);
	cr_expect_eq(b.kept_bytes, NBD_BUFFER_KEEP);
	nbd_buffers_trim(&b); /* from here on: what is not needed */
	p = nbd_buffer_get(&b, 1u << 20);
	nbd_buffer_put(&b, p, 1u << 20);
	nbd_buffers_trim(&b);
	cr_expect_eq(b.kept_bytes, 1u << 20);
	nbd_buffers_trim(&b);
	cr_expect_eq(b.kept_bytes, 0);
}
