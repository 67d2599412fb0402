/* SPDX-License-Identifier: MIT */
/*
 * nbd_greet.c - the negotiation of one connection: the state machine of nbd_handshake.c fed from the
 * socket, and its decisions made.
 *
 * All of it in the lobby. What only an export's worker knows is asked there while the connection is on
 * no lane (NC-1): it leaves the lobby, the worker looks and sends it back, or, with GO, keeps it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "serve/nbd/nbd_conn.h"

static void on_export(struct srv_want *want, int result, struct srv_export *export);
static void run_back(struct srv_worker *worker, struct srv_task *task);

int nbd_greet_start(struct nbd_conn *c)
{
	const struct srv_server *server = c->nbd->server;
	struct nbd_greeting *g = calloc(1, sizeof(*g));

	if (!g)
		return -ENOMEM;
	c->greeting = g;
	c->consume = nbd_greet_consume;
	g->conn = c;
	g->want.done = on_export;
	g->back.run = run_back;
	g->hs.tls_available = server->tls != NULL;
	g->hs.tls_required = server->tls && (c->tcp || server->options.tls_required); /* TL-3 */
	g->hs.max_request = server->options.max_request;
	return nbd_handshake_init(&g->hs);
}

static void drop_baselines(struct nbd_greeting *g)
{
	for (unsigned i = 0; i < NBD_CONTEXTS_MAX; i++) {
		vmimg_baseline_destroy(g->baselines[i]);
		g->baselines[i] = NULL;
	}
}

void nbd_greeting_destroy(struct nbd_greeting *g)
{
	if (!g)
		return;
	drop_baselines(g);
	nbd_handshake_fini(&g->hs);
	free(g->found);
	free(g);
}

/* Notes a decision; whether more bytes are wanted. */
static bool decided(struct nbd_conn *c, enum nbd_decision decision)
{
	if (decision == NBD_BROKEN) {
		nbd_conn_fail(c, c->greeting->hs.why);
		return false;
	}
	c->greeting->open = decision;
	return decision == NBD_MORE;
}

static bool secure(struct nbd_conn *c)
{
	int r = srv_tls_handshake(c->tls);

	if (r == 0) {
		c->securing = false;
		nbd_handshake_secured(&c->greeting->hs);
	} else if (r != -EAGAIN) {
		nbd_send_flush(c); /* the alert says why */
		nbd_conn_fail(c, srv_tls_why(c->tls));
	}
	return r == 0;
}

bool nbd_greet_consume(struct nbd_conn *c)
{
	struct nbd_greeting *g = c->greeting;
	enum nbd_decision d;
	size_t used;

	if (c->securing && !secure(c))
		return !c->broken;
	if (g->open != NBD_MORE || !nbd_send_idle(c)) /* NB-18 */
		return false;
	d = nbd_handshake_feed(&g->hs, c->in + c->in_at, c->in_len - c->in_at, &used);
	c->in_at += (uint32_t)used;
	return decided(c, d);
}

/* --- what the catalog knows --- */

static enum nbd_decision decide_list(struct nbd_conn *c)
{
	struct nbd_names names = {0};
	int r = nbd_names_exports(c->nbd->server->svc, &names);
	enum nbd_decision d = nbd_handshake_list(&c->greeting->hs, r, names.names, names.count);

	nbd_names_fini(&names);
	return d;
}

/* NB-2 */
static int find_name(struct nbd_conn *c, char *ret)
{
	if (!c->greeting->hs.name[0])
		return nbd_names_only_disk(c->nbd->server->svc, ret);
	strcpy(ret, c->greeting->hs.name);
	return 0;
}

static void add_found(struct nbd_greeting *g, enum nbd_context_kind kind, const char *snapshot)
{
	struct nbd_context *x = &g->found[g->nfound++];

	x->kind = kind;
	snprintf(x->snapshot, sizeof(x->snapshot), "%s", snapshot);
}

/* Which of the contexts asked for the export has. Asked here, not of its worker, whose guests would
 * wait for the catalog with it (P3). */
static int find_contexts(struct nbd_conn *c, const char *export)
{
	struct vmimg_service *svc = c->nbd->server->svc;
	struct nbd_greeting *g = c->greeting;
	struct nbd_names names = {0};
	struct nbd_subject subject;
	int r = nbd_names_look_up(svc, export, &subject);

	if (r == 0 && g->hs.all_changed)
		r = nbd_names_points(svc, &subject, &names);
	if (r < 0)
		return r;
	free(g->found);
	g->nfound = 0;
	g->found = calloc(g->hs.nasked + names.count + 1, sizeof(*g->found));
	for (unsigned i = 0; g->found && i < g->hs.nasked; i++) {
		const struct nbd_context *x = &g->hs.asked[i];

		if (x->kind != NBD_CONTEXT_CHANGED ||
		    (!g->hs.all_changed && nbd_names_comparable(svc, &subject, x->snapshot)))
			add_found(g, x->kind, x->snapshot);
	}
	for (size_t i = 0; g->found && i < names.count; i++)
		add_found(g, NBD_CONTEXT_CHANGED, names.names[i]);
	nbd_names_fini(&names);
	return g->found ? 0 : -ENOMEM;
}

/* --- what the export's worker knows --- */

static void describe(struct nbd_greeting *g, struct srv_export *export)
{
	snprintf(g->info_name, sizeof(g->info_name), "%s", export->name);
	g->info = (struct nbd_export_info){
		.name = g->info_name,
		.size = atomic_load(&export->size),
		.block_size = export->block_size,
		.read_only = export->read_only,
	};
}

/* The worker: the connection is here to stay. */
static void settle(struct nbd_conn *c, struct srv_export *export)
{
	struct nbd_greeting *g = c->greeting;

	c->export = export;
	c->deadline_ns = 0;
	atomic_fetch_add(&export->stats.connections, 1);
	nbd_conn_enter(c, nbd_lane_of(c->nbd, export->worker));
	describe(g, export);
	decided(c, nbd_handshake_export(&g->hs, 0, NULL, &g->info));
	if (atomic_load(&c->nbd->phase) == NBD_CUT)
		nbd_conn_break(c);
	nbd_conn_kick(c);
}

static void on_export(struct srv_want *want, int result, struct srv_export *export)
{
	struct nbd_greeting *g = nbd_of(struct nbd_greeting, want, want);

	if (result == 0 && g->hs.option != NBD_OPT_INFO) {
		settle(g->conn, export);
		return;
	}
	if (result == 0) {
		describe(g, export);
		srv_export_put(export);
	}
	g->result = result;
	srv_worker_post(g->conn->nbd->server->lobby, &g->back);
}

/* What a client is told; the log has the details. */
static const char *text_of(int result)
{
	switch (-result) {
	case 0: return NULL;
	case ENOENT:
	case EINVAL: return "no such export";
	default: return strerror(-result);
	}
}

static void run_back(struct srv_worker *worker, struct srv_task *task)
{
	struct nbd_greeting *g = nbd_of(struct nbd_greeting, back, task);
	struct nbd_conn *c = g->conn;

	(void)worker;
	if (g->result < 0)
		srv_log(g->result == -ENOENT || g->result == -EINVAL ? SRV_INFO : SRV_WARNING,
			c->name, "%s: %s", g->want.name,
			g->want.error.message[0] ? g->want.error.message : strerror(-g->result));
	drop_baselines(g);
	nbd_conn_enter(c, &c->nbd->lanes[0]);
	decided(c, nbd_handshake_export(&g->hs, g->result, text_of(g->result), &g->info));
	if (atomic_load(&c->nbd->phase) != NBD_SERVING)
		nbd_conn_break(c);
	nbd_conn_kick(c);
}

/*
 * What the contexts chosen compare with. Made here, not by the export's worker: its guests would wait for
 * the catalog and for files (P3). One that cannot be made: everything has changed (NB-22).
 */
static void make_baselines(struct nbd_conn *c, const char *export)
{
	const struct nbd_handshake *hs = &c->greeting->hs;

	drop_baselines(c->greeting);
	if (hs->option == NBD_OPT_INFO || strcmp(hs->contexts_of, hs->name) != 0)
		return;
	for (unsigned i = 0; i < hs->ncontexts; i++)
		if (hs->contexts[i].kind == NBD_CONTEXT_CHANGED)
			vmimg_baseline_create(c->nbd->server->svc, export, hs->contexts[i].snapshot,
					      NULL, &c->greeting->baselines[i]);
}

/* INFO, GO, EXPORT_NAME: the export's worker knows. */
static void want_export(struct nbd_conn *c)
{
	struct nbd_greeting *g = c->greeting;
	int r = find_name(c, g->want.name);

	if (r < 0) {
		decided(c, nbd_handshake_export(&g->hs, r, text_of(r), NULL));
		nbd_conn_kick(c);
		return;
	}
	make_baselines(c, g->want.name);
	nbd_conn_leave(c);
	srv_export_want(c->nbd->server->exports, &g->want);
}

static void tell_contexts(struct nbd_conn *c)
{
	struct nbd_greeting *g = c->greeting;
	char name[SRV_EXPORT_NAME_MAX];
	int r = find_name(c, name);

	if (r == 0)
		r = find_contexts(c, name);
	decided(c, nbd_handshake_contexts(&g->hs, r, text_of(r), g->found, g->nfound));
	nbd_conn_kick(c);
}

/* --- the others --- */

static void start_tls(struct nbd_conn *c)
{
	c->greeting->open = NBD_MORE;
	if (c->in_at < c->in_len) /* TL-2 */
		nbd_conn_fail(c, "bytes in the clear behind STARTTLS");
	else if (srv_tls_session_create(c->nbd->server->tls, &c->tls) < 0)
		nbd_conn_fail(c, "no memory for TLS");
	else
		c->securing = true;
	nbd_conn_pump(c);
}

static void transmit(struct nbd_conn *c)
{
	struct nbd_handshake *hs = &c->greeting->hs;

	srv_log(SRV_DEBUG, c->name, "uses %s", c->export->name);
	c->structured = hs->structured;
	nbd_status_choose(c, hs->contexts, c->greeting->baselines, hs->ncontexts);
	nbd_greeting_destroy(c->greeting);
	c->greeting = NULL;
	c->consume = nbd_serve_consume;
	nbd_conn_pump(c);
	nbd_conn_kick(c);
}

void nbd_greet_act(struct nbd_conn *c)
{
	switch (c->greeting->open) {
	case NBD_LIST:
		decided(c, decide_list(c));
		nbd_conn_kick(c);
		return;
	case NBD_CONTEXTS: tell_contexts(c); return;
	case NBD_EXPORT: want_export(c); return;
	case NBD_TLS: start_tls(c); return;
	case NBD_TRANSMIT: transmit(c); return;
	case NBD_END:
		c->ended = true;
		nbd_conn_kick(c);
		return;
	default:
		if (!c->receiving) {
			nbd_conn_pump(c);
			if (!c->receiving) /* something was decided, or is to be sent */
				nbd_conn_kick(c);
		}
	}
}
