/* SPDX-License-Identifier: MIT */
/*
 * gone.c - slots of sealed layers whose data was given back (GO-*, PU-2): the list of one layer, and that
 * what it names is held by the one layer on top of it, by both layers' indexes, read page by page. One
 * thread a check.
 */
#include "fsck/layer.h"
#include "fsck/store.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* --- one layer --- */

void fsck_gone_load(struct fsck_layer *l)
{
	const struct fmt_header *h = &l->hdr;
	size_t len = (size_t)fmt_gone_pages(h->gone_runs) * FMT_PAGE;
	struct fmt_error why = {""};
	uint8_t *pages;
	int r;

	if (!h->gone_runs)
		return;
	pages = malloc(len);
	l->gone = malloc(h->gone_runs * sizeof(*l->gone)); /* bounded: GO-1 */
	if (!pages || !l->gone) {
		r = fsck_cannot(l->f, -ENOMEM, "%s: no memory", l->path);
	} else {
		r = fsck_read(l, pages, len, h->gone_offset);
		if (r == -ENODATA)
			fsck_found(l->f, PR_GONE_LIST,
				   "it ends at %#" PRIx64 ", the file at %#" PRIx64,
				   h->gone_offset + len, l->st.size);
		if (r == 0)
			r = fmt_gone_decode(h, pages, l->gone, &why);
		if (r < 0 && why.text[0])
			fsck_found(l->f, PR_GONE_LIST, "%s", why.text);
	}
	free(pages);
	if (r < 0) {
		free(l->gone);
		l->gone = NULL;
	}
}

static bool is_gone(const struct fmt_gone *gone, uint32_t count, uint64_t slot)
{
	uint32_t low = 0, high = count;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (slot < gone[mid].slot)
			high = mid;
		else if (slot - gone[mid].slot < gone[mid].count)
			return true;
		else
			low = mid + 1;
	}
	return false;
}

bool fsck_is_gone(const struct fsck_layer *l, uint64_t slot)
{
	return l->gone && is_gone(l->gone, l->hdr.gone_runs, slot);
}

void fsck_gone_named(const struct fsck_layer *l, const struct fsck_runs *used)
{
	size_t u = 0;

	for (uint32_t i = 0; l->gone && i < l->hdr.gone_runs; i++) {
		uint64_t at = l->gone[i].slot, end = at + l->gone[i].count;

		while (u < used->count && (uint64_t)used->run[u].slot + used->run[u].count <= at)
			u++;
		for (size_t j = u; at < end && j < used->count && used->run[j].slot <= at; j++)
			at = (uint64_t)used->run[j].slot + used->run[j].count > at
				     ? (uint64_t)used->run[j].slot + used->run[j].count
				     : at;
		if (at < end)
			fsck_found(l->f, PR_GONE_UNNAMED, "first is slot %" PRIu64, at);
	}
}

/* --- the chain --- */

/* The runs of a sealed layer's index, in order. Its pages have been checked: what is wrong with them has
 * been said, and ends the walk. */
struct leaves {
	struct eng_io *io;
	struct eng_file *file;
	struct fmt_header hdr;
	uint64_t next; /* leaf */
	uint8_t page[FMT_PAGE];
	uint32_t count, i;
	struct fmt_run run;
};

static int leaves_open(struct fsck_store *s, const struct fsck_node *n, struct leaves *ret)
{
	char *path = fsck_layer_path(s, &n->id, "vmo");
	int r;

	memset(ret, 0, sizeof(*ret));
	if (!path)
		return -ENOMEM;
	ret->io = s->f->io;
	ret->hdr = n->hdr;
	r = eng_io_open(s->f->io, path, ENG_OPEN_NOFOLLOW, &ret->file);
	if (r < 0)
		fsck_cannot(s->f, r, "%s: %s", path, strerror(-r));
	free(path);
	return r;
}

/* 1: another run; 0: none. */
static int leaves_next(struct leaves *l)
{
	struct fmt_error why;

	while (l->i == l->count) {
		uint64_t offset = l->hdr.index_offset + l->next * FMT_PAGE;

		if (l->next * FMT_LEAF_RUNS >= l->hdr.index_runs)
			return 0;
		if (eng_io_pread(l->io, l->file, l->page, FMT_PAGE, offset) != FMT_PAGE ||
		    fmt_page_check(l->page, FMT_PAGE_LEAF, 0, l->hdr.salt, offset, &l->count,
				   &why) < 0)
			return -EUCLEAN;
		l->next++;
		l->i = 0;
	}
	fmt_leaf_run(l->page, l->i++, &l->run);
	return 1;
}

struct mask {
	struct fsck_store *s;
	const struct fsck_node *lower;
	struct leaves below, above;
	struct fmt_gone *gone;
	int more;            /* of leaves_next(&above) */
	uint64_t missing, n; /* first block that nothing holds, and how many */
};

/* Whether the layer on top holds @block, which rises from call to call. */
static bool is_held(struct mask *m, uint64_t block)
{
	while (m->more > 0 && m->above.run.block + m->above.run.count <= block)
		m->more = leaves_next(&m->above);
	return m->more > 0 && m->above.run.block <= block;
}

static int walk(struct mask *m)
{
	int r;

	m->more = leaves_next(&m->above);
	while ((r = leaves_next(&m->below)) > 0) {
		const struct fmt_run *run = &m->below.run;

		for (uint32_t i = 0; run->kind == FMT_RUN_DATA && i < run->count; i++) {
			if (!is_gone(m->gone, m->lower->hdr.gone_runs, (uint64_t)run->slot + i) ||
			    is_held(m, run->block + i))
				continue;
			if (!m->n++)
				m->missing = run->block + i;
		}
	}
	return r < 0 || m->more < 0 ? -EUCLEAN : 0;
}

static int load(struct mask *m)
{
	const struct fmt_header *h = &m->lower->hdr;
	size_t len = (size_t)fmt_gone_pages(h->gone_runs) * FMT_PAGE;
	uint8_t *pages = malloc(len);
	int r = -ENOMEM;

	m->gone = malloc(h->gone_runs * sizeof(*m->gone));
	if (pages && m->gone)
		r = eng_io_pread(m->s->f->io, m->below.file, pages, len, h->gone_offset) ==
				    (ssize_t)len
			    ? fmt_gone_decode(h, pages, m->gone, NULL)
			    : -EUCLEAN;
	free(pages);
	return r;
}

/* What was damaged has been reported with the layer. */
static int check_mask(struct fsck_store *s, const struct fsck_node *lower,
		      const struct fsck_node *upper)
{
	struct mask m = {.s = s, .lower = lower};
	int r = leaves_open(s, lower, &m.below);

	if (r == 0)
		r = leaves_open(s, upper, &m.above);
	if (r == 0)
		r = load(&m);
	if (r == 0)
		r = walk(&m);
	if (r == 0 && m.n)
		fsck_found(s->f, PR_GONE_MASK,
			   "%" PRIu64 " blocks, the first is block %" PRIu64 ", not in %s", m.n,
			   m.missing, upper->name);
	free(m.gone);
	eng_io_close(s->f->io, m.below.file);
	eng_io_close(s->f->io, m.above.file);
	return r == -ENOMEM ? fsck_cannot(s->f, r, "%s: no memory", lower->name) : 0;
}

int fsck_gone_masks(struct fsck_store *s)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < s->count; i++) {
		const struct fsck_node *n = &s->nodes[i], *child = NULL;
		size_t children = 0;

		if (!n->has_header || !n->hdr.gone_runs)
			continue;
		for (size_t j = 0; j < s->count; j++) {
			if (s->nodes[j].up != n)
				continue;
			child = &s->nodes[j];
			children++;
		}
		/* Nobody reads an end that at most a reference point refers to (RP-13). */
		if (!children && fmt_uuid_is_none(&n->snapshot) && n->state == CAT_LAYER_SEALED)
			continue;
		fsck_at(s->f, "%s", n->name);
		if (children != 1 || !fmt_uuid_is_none(&n->snapshot) ||
		    child->kind != FMT_KIND_OVERLAY || child->state != CAT_LAYER_SEALED)
			fsck_found(s->f, PR_GONE_MASK,
				   "%zu layers stand on it, expected one that is sealed, and no "
				   "snapshot",
				   children);
		else if (child->has_header && child->hdr.state == FMT_STATE_SEALED)
			r = check_mask(s, n, child);
	}
	return r;
}
