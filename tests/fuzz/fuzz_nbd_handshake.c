/* SPDX-License-Identifier: MIT */
/*
 * fuzz_nbd_handshake.c - a client's negotiation, and a catalog that answers by what the fuzzer says. The
 * first byte: TLS offered (bit 0), required (1), bytes in pieces (2); the second decides the answers.
 * Invariants:
 * - no crash, no undefined behaviour, no leak, and an end
 * - a buffer of NBD_IN_CAP is never full without progress, and no more is used than there was
 * - what goes out is a greeting and whole replies, and bounded by what came in
 * - whole or in pieces, the same comes out
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "serve/nbd/nbd_handshake.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void check(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "violated: %s\n", what);
		abort();
	}
}

/* Greeting or old-style answer first; then replies that fit one another. */
static void check_output(const struct nbd_handshake *h, bool old_style)
{
	size_t at = NBD_GREETING_LEN, end = h->out.len;

	check(end >= at, "a greeting");
	if (old_style)
		end -= h->no_zeroes ? 10 : 134;
	while (at < end) {
		const uint8_t *p = h->out.bytes + at;

		check(end - at >= NBD_OPT_REPLY_LEN, "a reply is whole");
		check(nbd_get64(p) == NBD_REPLY_MAGIC, "a reply has its magic");
		check(nbd_get32(p + 16) <= end - at - NBD_OPT_REPLY_LEN, "a reply has its data");
		at += NBD_OPT_REPLY_LEN + nbd_get32(p + 16);
	}
}

static enum nbd_decision answer(struct nbd_handshake *h, enum nbd_decision d, uint8_t how)
{
	static char *names[] = {"vm/a", "c@s/vm/a"};
	static const int results[] = {0, -ENOENT, -EBUSY, 0};
	const struct nbd_export_info info = {"vm/a", 1 << 20, 4096, how & 4};
	int result = results[how & 3];

	check(strnlen(h->name, sizeof(h->name)) < sizeof(h->name), "the name has an end");
	switch (d) {
	case NBD_LIST: return nbd_handshake_list(h, result, names, result ? 0 : 2);
	case NBD_EXPORT: return nbd_handshake_export(h, result, "no", result ? NULL : &info);
	case NBD_CONTEXTS:
		check(h->nasked <= NBD_CONTEXTS_MAX, "contexts are bounded");
		for (unsigned i = 0; i < h->nasked; i++) {
			char name[NBD_CONTEXT_NAME_MAX];

			nbd_context_name(&h->asked[i], name);
			check(strlen(name) < sizeof(name), "a context has a name");
		}
		return nbd_handshake_contexts(h, result, NULL, h->asked, result ? 0 : h->nasked);
	case NBD_TLS: nbd_handshake_secured(h); return NBD_MORE;
	default: return d;
	}
}

/* Feeds all of it, at most @piece bytes more at a time; the output is the caller's. */
static struct nbd_out run(const uint8_t *data, size_t len, uint8_t config, uint8_t how,
			  size_t piece)
{
	struct nbd_handshake h = {.max_request = 1 << 25,
				  .tls_available = config & 1,
				  .tls_required = (config & 3) == 3};
	size_t at = 0, have = 0;
	enum nbd_decision d = NBD_MORE;
	bool old_style = false;
	struct nbd_out out;

	check(nbd_handshake_init(&h) == 0, "memory");
	while (d == NBD_MORE) {
		size_t used, room = have + piece < NBD_IN_CAP ? have + piece : NBD_IN_CAP;
		size_t now = len - at < room ? len - at : room;
		bool last = now == len - at;

		d = nbd_handshake_feed(&h, data + at, now, &used);
		check(used <= now, "no more is used than there is");
		check(used > 0 || d != NBD_MORE || now < NBD_IN_CAP, "a full buffer is used");
		at += used;
		have = now - used;
		if (d == NBD_LIST || d == NBD_EXPORT || d == NBD_CONTEXTS || d == NBD_TLS) {
			old_style = d == NBD_EXPORT && h.option == NBD_OPT_EXPORT_NAME;
			d = answer(&h, d, how);
			old_style = old_style && d == NBD_TRANSMIT;
		} else if (last && used == 0) {
			break;
		}
	}
	check((d == NBD_BROKEN) == (h.why != NULL), "the end has a reason");
	check(h.out.len <= 4096 + 8 * len + NBD_OPTIONS_MAX * 1024, "the output is bounded");
	check_output(&h, old_style);
	out = h.out;
	h.out = (struct nbd_out){0};
	nbd_handshake_fini(&h);
	return out;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct nbd_out whole, pieces;

	if (len < 2)
		return 0;
	whole = run(data + 2, len - 2, data[0], data[1], NBD_IN_CAP);
	if (data[0] & 4) {
		pieces = run(data + 2, len - 2, data[0], data[1], 7);
		check(whole.len == pieces.len && !memcmp(whole.bytes, pieces.bytes, whole.len),
		      "pieces make no difference");
		free(pieces.bytes);
	}
	free(whole.bytes);
	return 0;
}
