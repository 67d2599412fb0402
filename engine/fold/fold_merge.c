/* SPDX-License-Identifier: MIT */
/*
 * fold_merge.c - see fold_merge.h. Runs are entered newest layer last, so that the newest of a block
 * stays. Blocks that no layer holds cost nothing but the look-up of the next one that is held.
 */
#include "engine/fold/fold_merge.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int eng_fold_merge_init(struct eng_fold_merge *m)
{
	int r = 0;

	m->indexes = calloc(m->count, sizeof(struct eng_index *));
	m->owner = calloc(ENG_FOLD_WINDOW, sizeof(*m->owner));
	m->slot = malloc(ENG_FOLD_WINDOW * sizeof(*m->slot));
	if (!m->indexes || !m->owner || !m->slot)
		return fmt_fail(m->err, -ENOMEM, "no memory to fold %u layers", m->count);
	for (uint32_t i = 0; r == 0 && i < m->count; i++)
		r = eng_layer_index(m->layers[i], m->err, &m->indexes[i]);
	return r;
}

void eng_fold_merge_fini(struct eng_fold_merge *m)
{
	free(m->indexes);
	free(m->owner);
	free(m->slot);
}

static int enter_run(void *arg, const struct fmt_run *run)
{
	struct eng_fold_merge *m = arg;

	for (uint32_t i = 0; i < run->count; i++) {
		uint64_t at = run->block + i - m->first;

		m->owner[at] = (uint16_t)(m->layer + 1);
		m->slot[at] = run->kind == FMT_RUN_DATA ? run->slot + i : ENG_FOLD_ZERO;
	}
	m->touched = true;
	return 0;
}

static int note_block(void *arg, const struct fmt_run *run)
{
	*(uint64_t *)arg = run->block;
	return 1;
}

/* The first block from @from on that a layer holds; the disk's end where there is none. */
static int next_block(struct eng_fold_merge *m, uint64_t from, uint64_t *ret)
{
	uint64_t first = m->blocks;
	int r = 0;

	for (uint32_t i = 0; r >= 0 && i < m->count && first > from; i++)
		r = eng_index_each(m->indexes[i], from, first - from, note_block, &first, m->err);
	*ret = first;
	return r < 0 ? r : 0;
}

int eng_fold_merge_next(struct eng_fold_merge *m, uint64_t from)
{
	uint64_t next = m->blocks, left;
	int r = from < m->blocks ? next_block(m, from, &next) : 0;

	if (r < 0 || next >= m->blocks)
		return r;
	m->first = next / ENG_FOLD_WINDOW * ENG_FOLD_WINDOW;
	left = m->blocks - m->first;
	m->length = left < ENG_FOLD_WINDOW ? (uint32_t)left : ENG_FOLD_WINDOW;
	if (m->touched)
		memset(m->owner, 0, ENG_FOLD_WINDOW * sizeof(*m->owner));
	m->touched = false;
	for (m->layer = 0; r == 0 && m->layer < m->count; m->layer++)
		r = eng_index_each(m->indexes[m->layer], m->first, m->length, enter_run, m, m->err);
	return r < 0 ? r : 1;
}
