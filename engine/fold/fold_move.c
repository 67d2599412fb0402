/* SPDX-License-Identifier: MIT */
/*
 * fold_move.c - see fold_move.h.
 *
 * A unit is a piece of one input, read by one operation; when it is there its blocks are compared with
 * their checksums and written, neighbours together. Few writes are under way at once, however scattered:
 * guests use the same device. Under a limit the pieces are small and follow one another, because a
 * guest's request waits for those that the device took before it (FO-18).
 */
#include "engine/fold/fold_move.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define UNITS   6u             /* read or being written at once */
#define CHUNK   (1u << 20)     /* bytes of one */
#define GAP     (128u << 10)   /* bytes that are read rather than left out */
#define WRITES  16u            /* under way at once */
#define COST    (16u << 10)    /* bytes of the limit that a write counts for, at least */
#define ENTRIES 64u            /* of the ring */
#define SYNC    (256ull << 20) /* bytes in the page cache that one sync may find */

/* FREE -> READING -> WRITING -> FREE */
enum { FREE, READING, WRITING };

struct fold_write {
	struct eng_op op;
	struct iovec iov;
	struct fold_unit *unit;
};

struct fold_unit {
	struct eng_fold_move *m;
	const struct eng_fold_item *items;
	uint32_t count;
	uint8_t *buf;
	int state;
	struct eng_op read;
	struct iovec iov;
	struct fold_write *writes; /* as many as there are blocks in a chunk */
	uint32_t nwrites, issued, ended;
};

static void note(struct eng_fold_move *m, int r)
{
	if (m->result == 0)
		m->result = r;
}

static bool stopped(const struct eng_fold_move *m)
{
	return m->stop && m->stop(m->arg);
}

static uint64_t limit(const struct eng_fold_move *m)
{
	return m->progress ? atomic_load(&m->progress->rate) : 0;
}

/* --- writes --- */

static void write_done(struct eng_op *op)
{
	struct fold_write *w = (struct fold_write *)((char *)op - offsetof(struct fold_write, op));
	struct fold_unit *u = w->unit;
	struct eng_fold_move *m = u->m;

	m->writing--;
	if (op->res < 0)
		note(m, fmt_fail(m->err, (int)op->res, "%s: cannot write: %s", m->path,
				 strerror((int)-op->res)));
	if (++u->ended == u->nwrites)
		u->state = FREE;
}

/* Sends on what may go; after an error nothing more does. */
static void pump(struct eng_fold_move *m)
{
	unsigned most = limit(m) ? 1 : WRITES;

	for (uint32_t i = 0; i < UNITS; i++) {
		struct fold_unit *u = &m->units[i];

		if (u->state != WRITING)
			continue;
		while (u->issued < u->nwrites && m->writing < most && m->result == 0) {
			m->writing++;
			eng_ring_queue(m->ring, &u->writes[u->issued++].op);
		}
		if (m->result < 0) { /* the rest will not be issued */
			u->nwrites = u->issued;
			if (u->ended == u->nwrites)
				u->state = FREE;
		}
	}
}

static void add_write(struct fold_unit *u, const uint8_t *data, uint64_t to, uint32_t blocks)
{
	struct eng_fold_move *m = u->m;
	struct fold_write *w = &u->writes[u->nwrites];
	uint64_t at = m->start + (to << m->bits), len = (uint64_t)blocks << m->bits;

	if (at >= m->end)
		return;
	len = len < m->end - at ? len : m->end - at;
	memset(w, 0, sizeof(*w));
	w->unit = u;
	w->iov = (struct iovec){(void *)data, len};
	w->op.kind = ENG_OP_WRITE;
	w->op.file = m->out;
	w->op.offset = at;
	w->op.iov = &w->iov;
	w->op.iovcnt = 1;
	w->op.done = write_done;
	u->nwrites++;
	m->owed += len < COST ? COST - len : 0;
	m->unsynced += len;
}

/* --- reads --- */

/* P6: what is rotten does not get where nothing would tell. */
static int check_block(struct eng_fold_move *m, const struct eng_fold_item *it, const uint8_t *data)
{
	struct eng_index *index = m->indexes[it->input];
	uint64_t want;
	int r = eng_index_csum(index, it->slot, &want);

	if (r == -EAGAIN) {
		r = eng_index_load_csum(index, it->slot, m->err);
		if (r == 0)
			r = eng_index_csum(index, it->slot, &want);
	}
	if (r < 0)
		return r;
	if (fmt_block_csum(data, (size_t)1 << m->bits) != want)
		return fmt_fail(m->err, -EBADMSG,
				"%s: the data of slot %" PRIu32
				" does not match its checksum (CS-2)",
				m->inputs[it->input]->path, it->slot);
	if (m->csums)
		m->csums[it->to] = want;
	return 0;
}

/* The unit's writes; those of a unit with a rotten block are left out. */
static int plan_writes(struct fold_unit *u)
{
	struct eng_fold_move *m = u->m;
	const struct eng_fold_item *it = u->items;
	uint32_t n;
	int r = 0;

	u->nwrites = 0;
	u->issued = 0;
	u->ended = 0;
	for (uint32_t i = 0; r == 0 && i < u->count; i += n) {
		const uint8_t *data = u->buf + ((size_t)(it[i].slot - it[0].slot) << m->bits);

		r = check_block(m, &it[i], data);
		for (n = 1; r == 0 && i + n < u->count && it[i + n].to == it[i].to + n &&
			    it[i + n].slot == it[i].slot + n;
		     n++)
			r = check_block(m, &it[i + n], data + ((size_t)n << m->bits));
		if (r == 0)
			add_write(u, data, it[i].to, n);
	}
	return r;
}

static void read_done(struct eng_op *op)
{
	struct fold_unit *u = (struct fold_unit *)((char *)op - offsetof(struct fold_unit, read));
	struct eng_fold_move *m = u->m;
	const char *path = m->inputs[u->items[0].input]->path;
	int r = 0;

	u->state = FREE;
	if (op->res < (int64_t)u->iov.iov_len)
		r = fmt_fail(m->err, op->res < 0 ? (int)op->res : -EUCLEAN,
			     "%s: cannot read %zu bytes of slot %" PRIu32 ": %s", path,
			     u->iov.iov_len, u->items[0].slot,
			     op->res < 0 ? strerror((int)-op->res) : "the file ends");
	if (r == 0 && m->result == 0)
		r = plan_writes(u);
	if (r < 0)
		note(m, r);
	if (m->result < 0)
		return;
	eng_progress_add(m->progress, (uint64_t)u->count << m->bits);
	u->state = u->nwrites ? WRITING : FREE;
}

/* As many of the items as are read at once. */
static uint32_t start_read(struct fold_unit *u, const struct eng_fold_item *items, uint32_t count)
{
	struct eng_fold_move *m = u->m;
	const struct eng_fold_item *last = items;
	struct eng_layer *layer = m->inputs[items->input];
	uint32_t n = 1, bytes = eng_progress_piece(limit(m), CHUNK);

	for (; n < count; n++) {
		const struct eng_fold_item *it = &items[n];

		if (it->input != items->input ||
		    (uint64_t)(it->slot - items->slot + 1) << m->bits > bytes ||
		    (uint64_t)(it->slot - last->slot - 1) << m->bits > GAP)
			break;
		last = it;
	}
	u->items = items;
	u->count = n;
	u->state = READING;
	u->iov = (struct iovec){u->buf, (size_t)(last->slot - items->slot + 1) << m->bits};
	memset(&u->read, 0, sizeof(u->read));
	u->read.kind = ENG_OP_READ;
	u->read.file = m->files[items->input];
	u->read.offset = eng_layer_slot_offset(layer, items->slot);
	u->read.iov = &u->iov;
	u->read.iovcnt = 1;
	u->read.done = read_done;
	eng_ring_queue(m->ring, &u->read);
	return n;
}

/* --- all of it --- */

static struct fold_unit *free_unit(struct eng_fold_move *m, bool *busy)
{
	struct fold_unit *found = NULL;

	*busy = false;
	for (uint32_t i = 0; i < UNITS; i++) {
		if (m->units[i].state == FREE)
			found = &m->units[i];
		else
			*busy = true;
	}
	return *busy && limit(m) ? NULL : found;
}

/* What was sent goes on meanwhile; what came back waits. */
static int wait_limit(struct eng_fold_move *m, const struct fold_unit *u)
{
	const char *path = m->inputs[u->items->input]->path;
	int r = eng_ring_submit(m->ring);

	if (r < 0)
		return fmt_fail(m->err, r, "%s: cannot be read: %s", path, strerror(-r));
	if (stopped(m))
		return fmt_fail(m->err, -ECANCELED, "the fold was stopped");
	r = eng_progress_wait(m->progress, m->io, u->iov.iov_len + m->owed, path, m->err);
	m->owed = 0;
	return r;
}

int eng_fold_move_sync(struct eng_fold_move *m)
{
	int r = eng_io_fdatasync(m->io, m->out);

	m->unsynced = 0;
	return r < 0 ? fmt_fail(m->err, r, "%s: cannot sync: %s", m->path, strerror(-r)) : 0;
}

int eng_fold_move(struct eng_fold_move *m, const struct eng_fold_item *items, uint32_t count)
{
	uint32_t next = 0;
	bool busy = true;

	for (;;) {
		struct fold_unit *u = free_unit(m, &busy);
		int r = 0;

		if (u && next < count && m->result == 0) {
			next += start_read(u, items + next, count - next);
			r = wait_limit(m, u);
		} else if (busy) {
			r = eng_ring_wait(m->ring, UINT64_MAX);
			r = r == -EINTR || r > 0 ? 0 : r;
		} else {
			break;
		}
		if (r < 0)
			note(m, r);
		/* So that a fold of any length leaves little for one sync to wait for, ours or a guest's. */
		if (m->result == 0 && !m->direct && m->unsynced >= SYNC)
			note(m, eng_fold_move_sync(m));
		pump(m);
	}
	return m->result;
}

static int open_one(struct eng_fold_move *m, const char *path, unsigned flags, bool direct,
		    struct eng_file **ret)
{
	struct eng_stat st;
	int r = eng_io_open(m->io, path, flags | (direct ? ENG_OPEN_DIRECT : 0), ret);

	if (r == 0 && direct)
		r = eng_io_fstat(m->io, *ret, &st);
	/* Blocks lie at multiples of their size: so they must be multiples of what direct I/O wants. */
	if (r == 0 && direct && st.dio_align > 1u << m->bits) {
		eng_io_close(m->io, *ret);
		*ret = NULL;
		r = eng_io_open(m->io, path, flags, ret);
	}
	return r < 0 ? fmt_fail(m->err, r, "%s: %s", path, strerror(-r)) : 0;
}

static int make_units(struct eng_fold_move *m)
{
	m->units = calloc(UNITS, sizeof(*m->units));
	if (!m->units)
		return -ENOMEM;
	for (uint32_t i = 0; i < UNITS; i++) {
		struct fold_unit *u = &m->units[i];

		u->m = m;
		u->writes = malloc((CHUNK >> m->bits) * sizeof(*u->writes));
		if (!u->writes || posix_memalign((void **)&u->buf, FMT_PAGE, CHUNK))
			return -ENOMEM;
	}
	return 0;
}

int eng_fold_move_init(struct eng_fold_move *m)
{
	int r;

	m->bits = m->inputs[0]->block_bits;
	m->files = calloc(m->count, sizeof(struct eng_file *));
	r = m->files ? make_units(m) : -ENOMEM;
	if (r < 0)
		return fmt_fail(m->err, r, "no memory to fold %u layers", m->count);
	m->direct = m->direct && m->end % (1u << m->bits) == 0 && m->start % (1u << m->bits) == 0;
	r = eng_ring_create(m->io, ENTRIES, m->hold, &m->ring);
	if (r < 0)
		return fmt_fail(m->err, r, "cannot make a ring: %s", strerror(-r));
	for (uint32_t i = 0; r == 0 && i < m->count; i++)
		r = open_one(m, m->inputs[i]->path, ENG_OPEN_NOFOLLOW, m->direct, &m->files[i]);
	return r < 0 ? r
		     : open_one(m, m->path, ENG_OPEN_WRITE | ENG_OPEN_NOFOLLOW, m->direct, &m->out);
}

void eng_fold_move_fini(struct eng_fold_move *m)
{
	eng_ring_destroy(m->ring);
	for (uint32_t i = 0; m->files && i < m->count; i++)
		eng_io_close(m->io, m->files[i]);
	eng_io_close(m->io, m->out);
	for (uint32_t i = 0; m->units && i < UNITS; i++) {
		free(m->units[i].writes);
		free(m->units[i].buf);
	}
	free(m->units);
	free(m->files);
}
