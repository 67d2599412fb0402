/* SPDX-License-Identifier: MIT */
/*
 * nbd_handshake.h - newstyle negotiation as a state machine: bytes in, bytes out, and now and then a
 * decision that somebody else has to make (spec/nbd.md 2). No I/O, no catalog, no clock: whoever holds
 * it feeds it, sends what is in @out, and answers decisions. One thread at a time.
 */
#ifndef SERVE_NBD_HANDSHAKE_H
#define SERVE_NBD_HANDSHAKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "serve/export.h"
#include "serve/nbd/nbd_proto.h"

#define NBD_IN_CAP       32768u /* a connection's read buffer; holds any option whole */
#define NBD_OPTION_MAX   (NBD_IN_CAP - NBD_OPTION_LEN)
#define NBD_OPTIONS_MAX  256u /* NB-11 */
#define NBD_CONTEXTS_MAX 16u  /* NB-16 */
#define NBD_LIST_MAX     (4u << 20)

enum nbd_context_kind { NBD_CONTEXT_ALLOCATION, NBD_CONTEXT_DEPTH, NBD_CONTEXT_CHANGED };

struct nbd_context {
	enum nbd_context_kind kind;
	char snapshot[2 * VMIMG_NAME_MAX + 2]; /* CHANGED: "COLLECTION@NAME", or with # */
};

enum nbd_decision {
	NBD_MORE,     /* nothing to decide: feed it more */
	NBD_LIST,     /* which exports are there? nbd_handshake_list() */
	NBD_EXPORT,   /* @option INFO, GO or EXPORT_NAME of @name: nbd_handshake_export() */
	NBD_CONTEXTS, /* which of @asked has @name? nbd_handshake_contexts() */
	NBD_TLS,      /* send @out, then TLS, then nbd_handshake_secured() */
	NBD_TRANSMIT, /* send @out; the rest of the bytes are requests */
	NBD_END,      /* send @out, then close */
	NBD_BROKEN,   /* close; @why says what the client did */
};

/* Bytes to be sent. */
struct nbd_out {
	uint8_t *bytes;
	size_t len, cap, sent;
};

struct nbd_handshake {
	/* set by whoever makes it */
	bool tls_available, tls_required;
	uint32_t max_request;

	struct nbd_out out;
	const char *why;

	/* negotiated */
	bool fixed, no_zeroes, structured, secured;
	struct nbd_context contexts[NBD_CONTEXTS_MAX]; /* the id on the wire is the place */
	unsigned ncontexts;
	char contexts_of[SRV_EXPORT_NAME_MAX]; /* the export they were chosen for */

	/* the option under decision; 0: none */
	uint32_t option;
	char name[SRV_EXPORT_NAME_MAX]; /* as the client gave it */
	bool name_wanted;
	struct nbd_context asked[NBD_CONTEXTS_MAX];
	unsigned nasked;
	bool all_changed; /* and every snapshot that the disk is in */

	/* private */
	bool greeted;
	unsigned options;
};

/* What an export is, to a client. */
struct nbd_export_info {
	const char *name;
	uint64_t size;
	uint32_t block_size;
	bool read_only;
};

/* @h is zeroed but for its settings; puts the greeting into @out. -ENOMEM. */
int nbd_handshake_init(struct nbd_handshake *h);
void nbd_handshake_fini(struct nbd_handshake *h);
/*
 * Takes whole elements off @bytes until one wants a decision or more is needed; *@used says how much.
 * No decision is open. A buffer of NBD_IN_CAP bytes is never full without progress.
 */
enum nbd_decision nbd_handshake_feed(struct nbd_handshake *h, const uint8_t *bytes, size_t len,
				     size_t *used);
/* Answers; @result: 0 or a negative errno, with @text for the client or NULL. What they return is
 * NBD_MORE, NBD_TRANSMIT or NBD_BROKEN. */
enum nbd_decision nbd_handshake_list(struct nbd_handshake *h, int result, char *const *names,
				     size_t count);
enum nbd_decision nbd_handshake_export(struct nbd_handshake *h, int result, const char *text,
				       const struct nbd_export_info *info);
enum nbd_decision nbd_handshake_contexts(struct nbd_handshake *h, int result, const char *text,
					 const struct nbd_context *found, size_t count);
void nbd_handshake_secured(struct nbd_handshake *h); /* TL-1 */
/* The context's name; @to holds NBD_CONTEXT_NAME_MAX bytes. */
#define NBD_CONTEXT_NAME_MAX (2 * VMIMG_NAME_MAX + 32)
void nbd_context_name(const struct nbd_context *context, char *to);

#endif
