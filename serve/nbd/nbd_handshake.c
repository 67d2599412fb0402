/* SPDX-License-Identifier: MIT */
/*
 * nbd_handshake.c - the options, one function each. An option is looked at when all of it is there and
 * refused before anything changes (NB-13); what cannot be said inside the protocol is NBD_BROKEN.
 */
#include "serve/nbd/nbd_handshake.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_MAX 512u

/* --- what goes out --- */

static uint8_t *out_room(struct nbd_handshake *h, size_t len)
{
	struct nbd_out *out = &h->out;

	if (out->len + len > out->cap) {
		size_t cap = (out->len + len) / 2 * 3 + 512;
		uint8_t *bytes = realloc(out->bytes, cap);

		if (!bytes)
			return NULL;
		out->bytes = bytes;
		out->cap = cap;
	}
	out->len += len;
	return out->bytes + out->len - len;
}

static enum nbd_decision broken(struct nbd_handshake *h, const char *why)
{
	h->why = why;
	return NBD_BROKEN;
}

/* The header of a reply to @option and room for @len bytes, which follow it; NULL: no memory. */
static uint8_t *reply(struct nbd_handshake *h, uint32_t option, uint32_t type, uint32_t len)
{
	uint8_t *p = out_room(h, NBD_OPT_REPLY_LEN + len);

	if (!p)
		return NULL;
	return nbd_put32(nbd_put32(nbd_put32(nbd_put64(p, NBD_REPLY_MAGIC), option), type), len);
}

static enum nbd_decision answer(struct nbd_handshake *h, uint32_t type, const char *text)
{
	uint32_t len = text ? (uint32_t)strnlen(text, TEXT_MAX) : 0;
	uint8_t *p = reply(h, h->option, type, len);

	if (!p)
		return broken(h, "out of memory");
	if (len)
		memcpy(p, text, len);
	h->option = 0;
	return NBD_MORE;
}

static enum nbd_decision ack(struct nbd_handshake *h)
{
	return answer(h, NBD_REP_ACK, NULL);
}

static enum nbd_decision invalid(struct nbd_handshake *h, const char *text)
{
	return answer(h, NBD_REP_ERR_INVALID, text);
}

/* NB-15 */
static uint32_t reply_of(int result)
{
	switch (-result) {
	case ENOENT:
	case EINVAL: return NBD_REP_ERR_UNKNOWN;
	case EMSGSIZE: return NBD_REP_ERR_TOO_BIG;
	case ESHUTDOWN: return NBD_REP_ERR_SHUTDOWN;
	default: return NBD_REP_ERR_POLICY;
	}
}

/* --- what comes in --- */

struct cursor {
	const uint8_t *at;
	size_t left;
};

static bool take32(struct cursor *c, uint32_t *ret)
{
	if (c->left < 4)
		return false;
	*ret = nbd_get32(c->at);
	c->at += 4;
	c->left -= 4;
	return true;
}

/* A string with its length before it: *@ret points into the option's bytes. */
static bool take_string(struct cursor *c, const char **ret, uint32_t *len)
{
	if (!take32(c, len) || *len > c->left || *len > NBD_NAME_LEN_MAX ||
	    memchr(c->at, 0, *len) != NULL)
		return false;
	*ret = (const char *)c->at;
	c->at += *len;
	c->left -= *len;
	return true;
}

/* A name longer than any export's is some name that is not there. */
static void keep_name(struct nbd_handshake *h, const char *name, size_t len)
{
	if (len >= sizeof(h->name)) {
		name = "?";
		len = 1;
	}
	memcpy(h->name, name, len);
	h->name[len] = 0;
}

static enum nbd_decision option_export_name(struct nbd_handshake *h, const uint8_t *data,
					    uint32_t len)
{
	if (memchr(data, 0, len))
		return broken(h, "an export name with a NUL");
	keep_name(h, (const char *)data, len);
	return NBD_EXPORT;
}

static enum nbd_decision option_info(struct nbd_handshake *h, struct cursor c)
{
	const char *name;
	uint32_t len, infos;

	if (!take_string(&c, &name, &len) || c.left < 2)
		return invalid(h, "a name, and what to know of it, are expected");
	infos = nbd_get16(c.at);
	if (c.left != 2 + 2 * (size_t)infos)
		return invalid(h, "the number of things to know does not match the length");
	h->name_wanted = false;
	for (uint32_t i = 0; i < infos; i++)
		h->name_wanted |= nbd_get16(c.at + 2 + 2 * i) == NBD_INFO_NAME;
	keep_name(h, name, len);
	return NBD_EXPORT;
}

/* --- contexts --- */

void nbd_context_name(const struct nbd_context *context, char *to)
{
	switch (context->kind) {
	case NBD_CONTEXT_ALLOCATION: strcpy(to, "base:allocation"); return;
	case NBD_CONTEXT_DEPTH: strcpy(to, "vmimg:depth"); return;
	case NBD_CONTEXT_CHANGED:
		snprintf(to, NBD_CONTEXT_NAME_MAX, "vmimg:changed:%s", context->snapshot);
		return;
	}
}

static bool is(const char *text, uint32_t len, const char *what)
{
	return len == strlen(what) && !memcmp(text, what, len);
}

/* Once each; false: too many. */
static bool ask(struct nbd_handshake *h, enum nbd_context_kind kind, const char *snapshot,
		uint32_t len)
{
	struct nbd_context *c;

	for (unsigned i = 0; i < h->nasked; i++)
		if (h->asked[i].kind == kind && is(snapshot, len, h->asked[i].snapshot))
			return true;
	if (h->nasked == NBD_CONTEXTS_MAX)
		return false;
	c = &h->asked[h->nasked++];
	c->kind = kind;
	memcpy(c->snapshot, snapshot, len);
	c->snapshot[len] = 0;
	return true;
}

/* NB-23; false: too many. What nobody knows is no error. */
static bool add_query(struct nbd_handshake *h, const char *q, uint32_t len)
{
	static const char changed[] = "vmimg:changed:";
	const uint32_t prefix = sizeof(changed) - 1;
	bool list = h->option == NBD_OPT_LIST_META_CONTEXT;

	if (is(q, len, "base:allocation") || (list && is(q, len, "base:")))
		return ask(h, NBD_CONTEXT_ALLOCATION, "", 0);
	if (list && (is(q, len, "vmimg:") || is(q, len, changed)))
		h->all_changed = true;
	if (is(q, len, "vmimg:depth") || (list && is(q, len, "vmimg:")))
		return ask(h, NBD_CONTEXT_DEPTH, "", 0);
	if (len > prefix && !memcmp(q, changed, prefix) &&
	    len - prefix < sizeof(h->asked[0].snapshot) &&
	    (memchr(q + prefix, '@', len - prefix) || memchr(q + prefix, '#', len - prefix)))
		return ask(h, NBD_CONTEXT_CHANGED, q + prefix, len - prefix);
	return true;
}

static enum nbd_decision option_contexts(struct nbd_handshake *h, struct cursor c)
{
	const char *name, *query;
	uint32_t len, query_len, queries;
	bool fits = true;

	if (h->option == NBD_OPT_SET_META_CONTEXT)
		h->ncontexts = 0; /* NB-16: whatever comes of it */
	if (!h->structured)
		return invalid(h, "structured replies come first");
	if (!take_string(&c, &name, &len) || !take32(&c, &queries))
		return invalid(h, "a name, and queries, are expected");
	h->nasked = 0;
	h->all_changed = false;
	for (uint32_t i = 0; i < queries; i++) {
		if (!take_string(&c, &query, &query_len))
			return invalid(h, "a query does not fit");
		fits = fits && add_query(h, query, query_len);
	}
	if (c.left)
		return invalid(h, "bytes behind the last query");
	if (!fits)
		return answer(h, NBD_REP_ERR_TOO_BIG, "more contexts than a connection can have");
	if (!queries && h->option == NBD_OPT_LIST_META_CONTEXT) {
		add_query(h, "base:", 5);
		add_query(h, "vmimg:", 6);
	}
	keep_name(h, name, len);
	return NBD_CONTEXTS;
}

enum nbd_decision nbd_handshake_contexts(struct nbd_handshake *h, int result, const char *text,
					 const struct nbd_context *found, size_t count)
{
	bool set = h->option == NBD_OPT_SET_META_CONTEXT;

	assert(set || h->option == NBD_OPT_LIST_META_CONTEXT);
	if (result < 0)
		return answer(h, reply_of(result), text);
	if (set) {
		assert(count <= NBD_CONTEXTS_MAX);
		for (size_t i = 0; i < count; i++)
			h->contexts[i] = found[i];
		h->ncontexts = (unsigned)count;
		strcpy(h->contexts_of, h->name);
	}
	for (size_t i = 0; i < count; i++) {
		char name[NBD_CONTEXT_NAME_MAX];
		uint8_t *p;

		nbd_context_name(&found[i], name);
		p = reply(h, h->option, NBD_REP_META_CONTEXT, 4 + (uint32_t)strlen(name));
		if (!p)
			return broken(h, "out of memory");
		memcpy(nbd_put32(p, set ? (uint32_t)i : 0), name, strlen(name));
	}
	return ack(h);
}

/* --- lists --- */

enum nbd_decision nbd_handshake_list(struct nbd_handshake *h, int result, char *const *names,
				     size_t count)
{
	size_t total = 0;

	assert(h->option == NBD_OPT_LIST);
	for (size_t i = 0; i < count; i++)
		total += NBD_OPT_REPLY_LEN + 4 + strlen(names[i]);
	if (result == 0 && total > NBD_LIST_MAX)
		result = -EMSGSIZE;
	if (result < 0)
		return answer(h, reply_of(result), NULL);
	for (size_t i = 0; i < count; i++) {
		uint32_t len = (uint32_t)strlen(names[i]);
		uint8_t *p = reply(h, h->option, NBD_REP_SERVER, 4 + len);

		if (!p)
			return broken(h, "out of memory");
		memcpy(nbd_put32(p, len), names[i], len);
	}
	return ack(h);
}

/* --- exports --- */

static bool put_info(struct nbd_handshake *h, const struct nbd_export_info *info)
{
	uint32_t preferred = info->block_size > 4096 ? info->block_size : 4096; /* NB-5 */
	uint32_t len = (uint32_t)strlen(info->name);
	uint8_t *p = reply(h, h->option, NBD_REP_INFO, 12);

	if (!p)
		return false;
	nbd_put16(nbd_put64(nbd_put16(p, NBD_INFO_EXPORT), info->size),
		  nbd_export_flags(info->read_only, h->structured));
	p = reply(h, h->option, NBD_REP_INFO, 14);
	if (!p)
		return false;
	nbd_put32(nbd_put32(nbd_put32(nbd_put16(p, NBD_INFO_BLOCK_SIZE), 1), preferred),
		  h->max_request);
	if (!h->name_wanted)
		return true;
	p = reply(h, h->option, NBD_REP_INFO, 2 + len);
	if (!p)
		return false;
	memcpy(nbd_put16(p, NBD_INFO_NAME), info->name, len);
	return true;
}

static enum nbd_decision end_export_name(struct nbd_handshake *h, int result,
					 const struct nbd_export_info *info)
{
	size_t len = h->no_zeroes ? 10 : 134;
	uint8_t *p;

	if (result < 0)
		return broken(h, "asked for an export that cannot be had");
	p = out_room(h, len);
	if (!p)
		return broken(h, "out of memory");
	memset(p, 0, len);
	nbd_put16(nbd_put64(p, info->size), nbd_export_flags(info->read_only, h->structured));
	return NBD_TRANSMIT;
}

enum nbd_decision nbd_handshake_export(struct nbd_handshake *h, int result, const char *text,
				       const struct nbd_export_info *info)
{
	bool go = h->option != NBD_OPT_INFO;
	enum nbd_decision d;

	if (result == 0 && go && strcmp(h->contexts_of, h->name))
		h->ncontexts = 0;
	if (h->option == NBD_OPT_EXPORT_NAME)
		return end_export_name(h, result, info);
	assert(h->option == NBD_OPT_INFO || h->option == NBD_OPT_GO);
	if (result < 0)
		return answer(h, reply_of(result), text);
	if (!put_info(h, info))
		return broken(h, "out of memory");
	d = ack(h);
	return d == NBD_MORE && go ? NBD_TRANSMIT : d;
}

/* --- the machine --- */

static enum nbd_decision option_starttls(struct nbd_handshake *h, uint32_t len)
{
	enum nbd_decision d;

	if (len)
		return invalid(h, "data behind STARTTLS");
	if (h->secured)
		return invalid(h, "TLS is on already");
	if (!h->tls_available)
		return answer(h, NBD_REP_ERR_UNSUP, "no TLS is configured");
	d = ack(h);
	return d == NBD_MORE ? NBD_TLS : d;
}

static enum nbd_decision option_structured(struct nbd_handshake *h, uint32_t len)
{
	if (len)
		return invalid(h, "data behind STRUCTURED_REPLY");
	h->structured = true;
	return ack(h);
}

static enum nbd_decision option(struct nbd_handshake *h, const uint8_t *data, uint32_t len)
{
	struct cursor c = {data, len};
	enum nbd_decision d;

	if (h->tls_required && !h->secured && h->option != NBD_OPT_STARTTLS &&
	    h->option != NBD_OPT_ABORT) { /* TL-3 */
		if (h->option == NBD_OPT_EXPORT_NAME)
			return broken(h, "EXPORT_NAME before TLS");
		return answer(h, NBD_REP_ERR_TLS_REQD, "TLS comes first");
	}
	switch (h->option) {
	case NBD_OPT_EXPORT_NAME: return option_export_name(h, data, len);
	case NBD_OPT_ABORT: d = ack(h); return d == NBD_MORE ? NBD_END : d;
	case NBD_OPT_LIST: return len ? invalid(h, "data behind LIST") : NBD_LIST;
	case NBD_OPT_STARTTLS: return option_starttls(h, len);
	case NBD_OPT_INFO:
	case NBD_OPT_GO: return option_info(h, c);
	case NBD_OPT_STRUCTURED_REPLY: return option_structured(h, len);
	case NBD_OPT_LIST_META_CONTEXT:
	case NBD_OPT_SET_META_CONTEXT: return option_contexts(h, c);
	default: return answer(h, NBD_REP_ERR_UNSUP, NULL); /* NB-12 */
	}
}

static enum nbd_decision client_flags(struct nbd_handshake *h, const uint8_t *bytes)
{
	uint32_t flags = nbd_get32(bytes);

	if (flags & ~(uint32_t)(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES))
		return broken(h, "unknown client flags"); /* NB-10 */
	h->fixed = flags & NBD_FIXED_NEWSTYLE;
	h->no_zeroes = flags & NBD_NO_ZEROES;
	h->greeted = true;
	return NBD_MORE;
}

enum nbd_decision nbd_handshake_feed(struct nbd_handshake *h, const uint8_t *bytes, size_t len,
				     size_t *used)
{
	enum nbd_decision d = NBD_MORE;
	size_t at = 0;

	if (!h->greeted && len >= 4) {
		d = client_flags(h, bytes);
		at = 4;
	}
	while (d == NBD_MORE && h->greeted && len - at >= NBD_OPTION_LEN) {
		const uint8_t *p = bytes + at;
		uint32_t data = nbd_get32(p + 12);

		if (nbd_get64(p) != NBD_OPTION_MAGIC) {
			d = broken(h, "no option where one was expected");
		} else if (data > NBD_OPTION_MAX) {
			d = broken(h, "an option too long to read");
		} else if (h->options == NBD_OPTIONS_MAX) {
			d = broken(h, "options without end");
		} else if (len - at - NBD_OPTION_LEN < data) {
			break;
		} else {
			h->options++;
			h->option = nbd_get32(p + 8);
			at += NBD_OPTION_LEN + data;
			d = option(h, p + NBD_OPTION_LEN, data);
		}
	}
	*used = at;
	return d;
}

int nbd_handshake_init(struct nbd_handshake *h)
{
	uint8_t *p = out_room(h, NBD_GREETING_LEN);

	if (!p)
		return -ENOMEM;
	nbd_put16(nbd_put64(nbd_put64(p, NBD_MAGIC), NBD_OPTION_MAGIC),
		  NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
	return 0;
}

void nbd_handshake_fini(struct nbd_handshake *h)
{
	free(h->out.bytes);
	h->out = (struct nbd_out){0};
}

void nbd_handshake_secured(struct nbd_handshake *h)
{
	h->secured = true;
	h->structured = false;
	h->ncontexts = 0;
	h->contexts_of[0] = 0;
}
