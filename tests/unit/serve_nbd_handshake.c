/* SPDX-License-Identifier: MIT */
/*
 * serve_nbd_handshake.c - the negotiation as a state machine, fed from memory: what it accepts, what it
 * refuses and how, and that a refusal changes nothing (spec/nbd.md 2, 3, 7). Bytes come whole and one
 * by one.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "serve/nbd/nbd_handshake.h"

static struct nbd_handshake h;
static uint8_t in[70000];
static size_t in_len;

static void setup(void)
{
	h = (struct nbd_handshake){.max_request = 1 << 20};
	in_len = 0;
	cr_assert_eq(nbd_handshake_init(&h), 0);
}

static void teardown(void)
{
	nbd_handshake_fini(&h);
}

TestSuite(serve_nbd_handshake, .init = setup, .fini = teardown, .timeout = 30);

/* --- a client's bytes --- */

static void put(const void *bytes, size_t len)
{
	cr_assert_leq(in_len + len, sizeof(in));
	memcpy(in + in_len, bytes, len);
	in_len += len;
}

static void put16(uint16_t v)
{
	uint8_t b[2];

	nbd_put16(b, v);
	put(b, 2);
}

static void put32(uint32_t v)
{
	uint8_t b[4];

	nbd_put32(b, v);
	put(b, 4);
}

static void put_string(const char *s)
{
	put32((uint32_t)strlen(s));
	put(s, strlen(s));
}

static void put_option(uint32_t option, uint32_t len)
{
	uint8_t b[8];

	nbd_put64(b, NBD_OPTION_MAGIC);
	put(b, 8);
	put32(option);
	put32(len);
}

static void put_info(uint32_t option, const char *name, unsigned infos)
{
	put_option(option, (uint32_t)(4 + strlen(name) + 2 + 2 * infos));
	put_string(name);
	put16((uint16_t)infos);
	for (unsigned i = 0; i < infos; i++)
		put16(NBD_INFO_NAME);
}

static void put_contexts(uint32_t option, const char *name, const char *const *queries, unsigned n)
{
	uint32_t len = (uint32_t)(8 + strlen(name));

	for (unsigned i = 0; i < n; i++)
		len += (uint32_t)(4 + strlen(queries[i]));
	put_option(option, len);
	put_string(name);
	put32(n);
	for (unsigned i = 0; i < n; i++)
		put_string(queries[i]);
}

/* Gives the machine what was put; the rest of it stays. */
static enum nbd_decision feed(void)
{
	size_t used = 0;
	enum nbd_decision d = nbd_handshake_feed(&h, in, in_len, &used);

	cr_assert_leq(used, in_len);
	memmove(in, in + used, in_len - used);
	in_len -= used;
	return d;
}

static void greet(uint32_t flags)
{
	put32(flags);
	cr_assert_eq(feed(), NBD_MORE);
	h.out.len = 0;
}

/* --- what came out --- */

struct reply {
	uint32_t option, type, len;
	const uint8_t *data;
};

static size_t taken;

static struct reply next_reply(void)
{
	const uint8_t *p = h.out.bytes + taken;
	struct reply r;

	cr_assert_leq(taken + NBD_OPT_REPLY_LEN, h.out.len);
	cr_assert_eq(nbd_get64(p), NBD_REPLY_MAGIC);
	r = (struct reply){nbd_get32(p + 8), nbd_get32(p + 12), nbd_get32(p + 16), p + 20};
	taken += NBD_OPT_REPLY_LEN + r.len;
	cr_assert_leq(taken, h.out.len);
	return r;
}

static void no_more(void)
{
	cr_expect_eq(taken, h.out.len);
	h.out.len = 0;
	taken = 0;
}

static void expect(uint32_t option, uint32_t type)
{
	struct reply r = next_reply();

	cr_expect_eq(r.option, option, "reply to %u", r.option);
	cr_expect_eq(r.type, type, "option %u: reply %x, expected %x", option, r.type, type);
}

static void expect_only(uint32_t option, uint32_t type)
{
	expect(option, type);
	no_more();
}

/* NB-10 */
Test(serve_nbd_handshake, greets_and_takes_flags)
{
	static const uint8_t hello[] = "NBDMAGICIHAVEOPT\0\3";

	cr_expect_eq(h.out.len, NBD_GREETING_LEN);
	cr_expect_eq(memcmp(h.out.bytes, hello, NBD_GREETING_LEN), 0);
	put32(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
	cr_expect_eq(feed(), NBD_MORE);
	cr_expect(h.no_zeroes);
	cr_expect_eq(in_len, 0);
}

/* NB-10 */
Test(serve_nbd_handshake, unknown_flags_end_it)
{
	put32(NBD_FIXED_NEWSTYLE | 4);
	cr_expect_eq(feed(), NBD_BROKEN);
	cr_expect_not_null(h.why);
}

/* NB-11 */
Test(serve_nbd_handshake, a_wrong_magic_ends_it)
{
	greet(1);
	put("IHAVENOT\0\0\0\1\0\0\0\0", 16);
	cr_expect_eq(feed(), NBD_BROKEN);
}

/* NB-11: at the header; nothing of the data is waited for. */
Test(serve_nbd_handshake, an_option_longer_than_the_buffer_ends_it)
{
	greet(1);
	put_option(NBD_OPT_GO, NBD_OPTION_MAX + 1);
	cr_expect_eq(feed(), NBD_BROKEN);
}

/* NB-11 */
Test(serve_nbd_handshake, the_longest_option_fits_the_buffer)
{
	static uint8_t data[NBD_OPTION_MAX];

	greet(1);
	put_option(77, NBD_OPTION_MAX);
	put(data, NBD_OPTION_MAX - 1);
	cr_expect_eq(feed(), NBD_MORE);
	cr_expect_lt(in_len, NBD_IN_CAP);
	put(data, 1);
	cr_expect_eq(in_len, NBD_IN_CAP);
	cr_expect_eq(feed(), NBD_MORE);
	expect_only(77, NBD_REP_ERR_UNSUP);
}

/* NB-11 */
Test(serve_nbd_handshake, options_without_end_end_it)
{
	greet(1);
	for (unsigned i = 0; i < NBD_OPTIONS_MAX; i++)
		put_option(NBD_OPT_STRUCTURED_REPLY, 0);
	cr_expect_eq(feed(), NBD_MORE);
	put_option(NBD_OPT_STRUCTURED_REPLY, 0);
	cr_expect_eq(feed(), NBD_BROKEN);
}

/* NB-12 */
Test(serve_nbd_handshake, unknown_options_are_skipped)
{
	greet(1);
	put_option(11, 5); /* EXTENDED_HEADERS, as some client may ask */
	put("abcde", 5);
	put_option(NBD_OPT_STRUCTURED_REPLY, 0);
	cr_expect_eq(feed(), NBD_MORE);
	expect(11, NBD_REP_ERR_UNSUP);
	expect_only(NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
	cr_expect(h.structured);
}

/* NB-13 */
Test(serve_nbd_handshake, data_that_does_not_fit_is_invalid)
{
	static const struct {
		uint32_t option, len;
		const char *data;
	} bad[] = {
		{NBD_OPT_LIST, 1, "x"},
		{NBD_OPT_STRUCTURED_REPLY, 1, "x"},
		{NBD_OPT_STARTTLS, 2, "xx"},
		{NBD_OPT_GO, 0, ""},
		{NBD_OPT_GO, 4, "\0\0\0\0"},                     /* no number of infos */
		{NBD_OPT_GO, 5, "\0\0\0\1a"},                    /* the same */
		{NBD_OPT_GO, 6, "\0\0\0\7ab"},                   /* a name past the end */
		{NBD_OPT_GO, 8, "\377\377\377\377abcd"},         /* far past it */
		{NBD_OPT_GO, 9, "\0\0\0\3a\0b\0\0"},             /* a NUL */
		{NBD_OPT_INFO, 7, "\0\0\0\1a\0\1"},              /* an info missing */
		{NBD_OPT_INFO, 10, "\0\0\0\1a\0\1\0\3x"},        /* a byte too many */
		{NBD_OPT_INFO, 7, "\0\0\0\1a\377\377"},          /* 65535 infos */
		{NBD_OPT_SET_META_CONTEXT, 8, "\0\0\0\0\0\0\0"}, /* before structured replies */
	};

	greet(1);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		put_option(bad[i].option, bad[i].len);
		put(bad[i].data, bad[i].len);
		cr_expect_eq(feed(), NBD_MORE, "case %zu", i);
		expect_only(bad[i].option, NBD_REP_ERR_INVALID);
		cr_expect_not(h.structured);
	}
}

/* NB-13 */
Test(serve_nbd_handshake, hostile_queries_are_invalid)
{
	static const struct {
		uint32_t len;
		const char *data;
	} bad[] = {
		{0, ""},
		{4, "\0\0\0\0"},                          /* no number of queries */
		{8, "\0\0\0\0\0\0\0\1"},                  /* a query missing */
		{12, "\0\0\0\0\0\0\0\1\377\377\377\377"}, /* a long one */
		{12, "\0\0\0\0\377\377\377\377\0\0\0\0"}, /* four billion */
		{13, "\0\0\0\0\0\0\0\1\0\0\0\0x"},        /* a byte behind */
		{14, "\0\0\0\0\0\0\0\1\0\0\0\2\0x"},      /* a NUL */
		{16, "\0\0\20\1aaaaaaaaaaa"},             /* a name longer than there is */
	};

	greet(1);
	h.structured = true;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		put_option(NBD_OPT_SET_META_CONTEXT, bad[i].len);
		put(bad[i].data, bad[i].len);
		cr_expect_eq(feed(), NBD_MORE, "case %zu", i);
		expect_only(NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_INVALID);
		cr_expect_eq(h.ncontexts, 0);
	}
}

/* NB-14 */
Test(serve_nbd_handshake, go_gives_size_and_bounds_and_starts)
{
	const struct nbd_export_info info = {"vm/d", 12345, 65536, false};
	struct reply r;

	greet(1);
	h.structured = true;
	put_info(NBD_OPT_GO, "vm/d", 1);
	cr_assert_eq(feed(), NBD_EXPORT);
	cr_expect_str_eq(h.name, "vm/d");
	cr_expect_eq(nbd_handshake_export(&h, 0, NULL, &info), NBD_TRANSMIT);
	r = next_reply();
	cr_expect_eq(r.type, NBD_REP_INFO);
	cr_expect_eq(nbd_get16(r.data), NBD_INFO_EXPORT);
	cr_expect_eq(nbd_get64(r.data + 2), 12345);
	cr_expect_eq(nbd_get16(r.data + 10), nbd_export_flags(false, true));
	r = next_reply();
	cr_expect_eq(nbd_get16(r.data), NBD_INFO_BLOCK_SIZE);
	cr_expect_eq(nbd_get32(r.data + 2), 1);
	cr_expect_eq(nbd_get32(r.data + 6), 65536);
	cr_expect_eq(nbd_get32(r.data + 10), 1 << 20);
	r = next_reply();
	cr_expect_eq(nbd_get16(r.data), NBD_INFO_NAME);
	cr_expect_eq(memcmp(r.data + 2, "vm/d", 4), 0);
	expect_only(NBD_OPT_GO, NBD_REP_ACK);
}

/* NB-4 */
Test(serve_nbd_handshake, a_read_only_export_offers_no_writes)
{
	uint16_t flags = nbd_export_flags(true, false);

	cr_expect(flags & NBD_FLAG_READ_ONLY);
	cr_expect(flags & NBD_FLAG_CAN_MULTI_CONN);
	cr_expect_not(flags & (NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_DF |
			       NBD_FLAG_SEND_FAST_ZERO));
}

/* NB-14, NB-15 */
Test(serve_nbd_handshake, a_go_that_fails_leaves_it_open)
{
	static const struct {
		int result;
		uint32_t reply;
	} errors[] = {
		{-ENOENT, NBD_REP_ERR_UNKNOWN}, {-EINVAL, NBD_REP_ERR_UNKNOWN},
		{-EBUSY, NBD_REP_ERR_POLICY},   {-ESHUTDOWN, NBD_REP_ERR_SHUTDOWN},
		{-EIO, NBD_REP_ERR_POLICY},
	};

	greet(1);
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
		put_info(NBD_OPT_GO, "vm/d", 0);
		cr_assert_eq(feed(), NBD_EXPORT);
		cr_expect_eq(nbd_handshake_export(&h, errors[i].result, "why", NULL), NBD_MORE);
		expect_only(NBD_OPT_GO, errors[i].reply);
	}
}

/* NB-14 */
Test(serve_nbd_handshake, export_name_answers_in_the_old_form)
{
	const struct nbd_export_info info = {"vm/d", UINT64_C(1) << 40, 4096, true};

	greet(1);
	put_option(NBD_OPT_EXPORT_NAME, 4);
	put("vm/d", 4);
	cr_assert_eq(feed(), NBD_EXPORT);
	cr_expect_eq(nbd_handshake_export(&h, 0, NULL, &info), NBD_TRANSMIT);
	cr_expect_eq(h.out.len, 134);
	cr_expect_eq(nbd_get64(h.out.bytes), UINT64_C(1) << 40);
	h.out.len = 0;
	h.no_zeroes = true;
	h.option = NBD_OPT_EXPORT_NAME;
	cr_expect_eq(nbd_handshake_export(&h, 0, NULL, &info), NBD_TRANSMIT);
	cr_expect_eq(h.out.len, 10);
	h.option = NBD_OPT_EXPORT_NAME;
	cr_expect_eq(nbd_handshake_export(&h, -ENOENT, NULL, NULL), NBD_BROKEN);
}

/* A name too long for any export is one that is not there, not one cut off. */
Test(serve_nbd_handshake, long_names_are_no_exports)
{
	char name[4097];

	memset(name, 'a', sizeof(name) - 1);
	name[4096] = 0;
	greet(1);
	put_info(NBD_OPT_INFO, name, 0);
	cr_assert_eq(feed(), NBD_EXPORT);
	cr_expect_str_eq(h.name, "?");
	nbd_handshake_export(&h, -ENOENT, NULL, NULL);
}

/* NB-3 */
Test(serve_nbd_handshake, lists_names)
{
	char *names[] = {"a/b", "c@d/a/b"};
	struct reply r;

	greet(1);
	put_option(NBD_OPT_LIST, 0);
	cr_assert_eq(feed(), NBD_LIST);
	cr_expect_eq(nbd_handshake_list(&h, 0, names, 2), NBD_MORE);
	r = next_reply();
	cr_expect_eq(r.type, NBD_REP_SERVER);
	cr_expect_eq(r.len, 7);
	cr_expect_eq(memcmp(r.data, "\0\0\0\3a/b", 7), 0);
	expect(NBD_OPT_LIST, NBD_REP_SERVER);
	expect_only(NBD_OPT_LIST, NBD_REP_ACK);
}

/* NB-3 */
Test(serve_nbd_handshake, a_list_has_a_bound)
{
	size_t count = NBD_LIST_MAX / 25;
	char **names = malloc((count + 1) * sizeof(char *));

	cr_assert_not_null(names);
	for (size_t i = 0; i <= count; i++)
		names[i] = "x";
	greet(1);
	put_option(NBD_OPT_LIST, 0);
	cr_assert_eq(feed(), NBD_LIST);
	nbd_handshake_list(&h, 0, names, count);
	cr_expect_gt(h.out.len, NBD_LIST_MAX - 25);
	h.out.len = 0;
	put_option(NBD_OPT_LIST, 0);
	cr_assert_eq(feed(), NBD_LIST);
	nbd_handshake_list(&h, 0, names, count + 1);
	expect_only(NBD_OPT_LIST, NBD_REP_ERR_TOO_BIG);
	free(names);
}

/* NB-16 */
Test(serve_nbd_handshake, chosen_contexts_count_for_their_export)
{
	static const char *const queries[] = {"base:allocation", "vmimg:changed:c@s",
					      "base:allocation", "qemu:nothing",
					      "vmimg:",          "vmimg:changed:nothing"};
	const struct nbd_export_info info = {"vm/d", 4096, 4096, false};

	greet(1);
	h.structured = true;
	put_contexts(NBD_OPT_SET_META_CONTEXT, "vm/d", queries, 6);
	cr_assert_eq(feed(), NBD_CONTEXTS);
	cr_assert_eq(h.nasked, 2);
	cr_expect_eq(h.asked[0].kind, NBD_CONTEXT_ALLOCATION);
	cr_expect_str_eq(h.asked[1].snapshot, "c@s");
	cr_expect_not(h.all_changed);
	cr_expect_eq(nbd_handshake_contexts(&h, 0, NULL, h.asked, 2), NBD_MORE);
	for (uint32_t i = 0; i < 2; i++) {
		struct reply r = next_reply();

		cr_expect_eq(r.type, NBD_REP_META_CONTEXT);
		cr_expect_eq(nbd_get32(r.data), i);
	}
	expect_only(NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
	put_info(NBD_OPT_GO, "vm/d", 0);
	cr_assert_eq(feed(), NBD_EXPORT);
	cr_expect_eq(nbd_handshake_export(&h, 0, NULL, &info), NBD_TRANSMIT);
	cr_expect_eq(h.ncontexts, 2);
	put_info(NBD_OPT_GO, "vm/e", 0);
	cr_assert_eq(feed(), NBD_EXPORT);
	cr_expect_eq(nbd_handshake_export(&h, 0, NULL, &info), NBD_TRANSMIT);
	cr_expect_eq(h.ncontexts, 0, "another export's");
}

/* NB-16: one that fails leaves nothing chosen. */
Test(serve_nbd_handshake, a_failed_choice_drops_the_one_before)
{
	static const char *const one[] = {"base:allocation"};

	greet(1);
	h.structured = true;
	put_contexts(NBD_OPT_SET_META_CONTEXT, "vm/d", one, 1);
	cr_assert_eq(feed(), NBD_CONTEXTS);
	nbd_handshake_contexts(&h, 0, NULL, h.asked, 1);
	cr_expect_eq(h.ncontexts, 1);
	h.out.len = 0;
	put_option(NBD_OPT_SET_META_CONTEXT, 3);
	put("abc", 3);
	cr_expect_eq(feed(), NBD_MORE);
	expect_only(NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_INVALID);
	cr_expect_eq(h.ncontexts, 0);
}

/* NB-16 */
Test(serve_nbd_handshake, at_most_sixteen_contexts)
{
	char text[NBD_CONTEXTS_MAX + 1][32];
	const char *queries[NBD_CONTEXTS_MAX + 1];

	greet(1);
	h.structured = true;
	for (unsigned i = 0; i <= NBD_CONTEXTS_MAX; i++) {
		snprintf(text[i], sizeof(text[i]), "vmimg:changed:c@s%u", i);
		queries[i] = text[i];
	}
	put_contexts(NBD_OPT_SET_META_CONTEXT, "vm/d", queries, NBD_CONTEXTS_MAX);
	cr_expect_eq(feed(), NBD_CONTEXTS);
	cr_expect_eq(h.nasked, NBD_CONTEXTS_MAX);
	nbd_handshake_contexts(&h, 0, NULL, h.asked, 0);
	h.out.len = 0;
	put_contexts(NBD_OPT_SET_META_CONTEXT, "vm/d", queries, NBD_CONTEXTS_MAX + 1);
	cr_expect_eq(feed(), NBD_MORE);
	expect_only(NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_TOO_BIG);
}

/* NB-23: a snapshot's name longer than any is unknown, not cut off. */
Test(serve_nbd_handshake, lists_of_contexts)
{
	static const struct {
		const char *query;
		unsigned asked;
		bool changed;
	} cases[] = {
		{"base:", 1, false},
		{"base:allocation", 1, false},
		{"base:alloc", 0, false},
		{"vmimg:", 1, true},
		{"vmimg:changed:", 0, true},
		{"vmimg:changed:a@b", 1, false},
		{"vmimg:depth", 1, false},
		{"", 0, false},
		{NULL, 2, true},
	};
	char query[400] = "vmimg:changed:a@";
	const char *const long_query[] = {query};

	greet(1);
	h.structured = true;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		put_contexts(NBD_OPT_LIST_META_CONTEXT, "", &cases[i].query,
			     cases[i].query != NULL);
		cr_assert_eq(feed(), NBD_CONTEXTS);
		cr_expect_eq(h.nasked, cases[i].asked, "case %zu", i);
		cr_expect_eq(h.all_changed, cases[i].changed, "case %zu", i);
		cr_expect_eq(nbd_handshake_contexts(&h, -ENOENT, "no", NULL, 0), NBD_MORE);
		expect_only(NBD_OPT_LIST_META_CONTEXT, NBD_REP_ERR_UNKNOWN);
	}
	memset(query + 16, 'x', 300);
	put_contexts(NBD_OPT_SET_META_CONTEXT, "", long_query, 1);
	cr_assert_eq(feed(), NBD_CONTEXTS);
	cr_expect_eq(h.nasked, 0);
	nbd_handshake_contexts(&h, 0, NULL, NULL, 0);
}

/* TL-1, TL-3 */
Test(serve_nbd_handshake, tls_comes_first_where_it_is_required)
{
	h.tls_available = h.tls_required = true;
	greet(1);
	put_option(NBD_OPT_LIST, 0);
	put_info(NBD_OPT_GO, "vm/d", 0);
	put_option(NBD_OPT_STRUCTURED_REPLY, 0);
	put_option(99, 0);
	cr_expect_eq(feed(), NBD_MORE);
	expect(NBD_OPT_LIST, NBD_REP_ERR_TLS_REQD);
	expect(NBD_OPT_GO, NBD_REP_ERR_TLS_REQD);
	expect(NBD_OPT_STRUCTURED_REPLY, NBD_REP_ERR_TLS_REQD);
	expect_only(99, NBD_REP_ERR_TLS_REQD);
	cr_expect_not(h.structured);
	put_option(NBD_OPT_STARTTLS, 0);
	cr_expect_eq(feed(), NBD_TLS);
	expect_only(NBD_OPT_STARTTLS, NBD_REP_ACK);
	nbd_handshake_secured(&h);
	put_option(NBD_OPT_LIST, 0);
	cr_expect_eq(feed(), NBD_LIST);
	nbd_handshake_list(&h, 0, NULL, 0);
}

/* TL-3 */
Test(serve_nbd_handshake, export_name_before_tls_ends_it)
{
	h.tls_available = h.tls_required = true;
	greet(1);
	put_option(NBD_OPT_EXPORT_NAME, 4);
	put("vm/d", 4);
	cr_expect_eq(feed(), NBD_BROKEN);
}

/* TL-1 */
Test(serve_nbd_handshake, tls_forgets_what_was_said_before)
{
	static const char *const one[] = {"base:allocation"};

	h.tls_available = true;
	greet(1);
	put_option(NBD_OPT_STRUCTURED_REPLY, 0);
	put_contexts(NBD_OPT_SET_META_CONTEXT, "vm/d", one, 1);
	cr_assert_eq(feed(), NBD_CONTEXTS);
	nbd_handshake_contexts(&h, 0, NULL, h.asked, 1);
	put_option(NBD_OPT_STARTTLS, 0);
	cr_assert_eq(feed(), NBD_TLS);
	nbd_handshake_secured(&h);
	cr_expect_not(h.structured);
	cr_expect_eq(h.ncontexts, 0);
	h.out.len = 0;
	put_option(NBD_OPT_STARTTLS, 0);
	cr_expect_eq(feed(), NBD_MORE);
	expect_only(NBD_OPT_STARTTLS, NBD_REP_ERR_INVALID);
}

/* TL-1 */
Test(serve_nbd_handshake, no_credentials_no_tls)
{
	greet(1);
	put_option(NBD_OPT_STARTTLS, 0);
	cr_expect_eq(feed(), NBD_MORE);
	expect_only(NBD_OPT_STARTTLS, NBD_REP_ERR_UNSUP);
}

Test(serve_nbd_handshake, abort_is_acknowledged)
{
	h.tls_available = h.tls_required = true; /* also before TLS */
	greet(1);
	put_option(NBD_OPT_ABORT, 0);
	cr_expect_eq(feed(), NBD_END);
	expect_only(NBD_OPT_ABORT, NBD_REP_ACK);
}

/* The same decisions and replies, whatever the pieces that bytes come in. */
Test(serve_nbd_handshake, bytes_may_come_one_by_one)
{
	uint8_t all[200];
	size_t len;

	put32(1);
	put_option(55, 3);
	put("xyz", 3);
	put_option(NBD_OPT_STRUCTURED_REPLY, 0);
	put_info(NBD_OPT_GO, "vm/disk", 3);
	len = in_len;
	memcpy(all, in, len);
	in_len = 0;
	h.out.len = 0;
	for (size_t i = 0; i < len; i++) {
		put(&all[i], 1);
		cr_assert_eq(feed(), i + 1 < len ? NBD_MORE : NBD_EXPORT, "byte %zu", i);
	}
	expect(55, NBD_REP_ERR_UNSUP);
	expect_only(NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
	cr_expect_str_eq(h.name, "vm/disk");
	nbd_handshake_export(&h, -ENOENT, NULL, NULL);
}
