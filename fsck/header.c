/* SPDX-License-Identifier: MIT */
/*
 * header.c - the first pass: a layer's two header slots (LH-*, FB-*, BD-1, SL-2). The format's decoder
 * says whether a slot can be used; which rule is broken is found here, from the bytes, so that a rule
 * that the decoder forgot is found, too. One thread a check.
 */
#include "fsck/layer.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

static bool all_zeros(const void *bytes, size_t len)
{
	const uint8_t *p = bytes;

	while (len && !p[len - 1])
		len--;
	return !len;
}

/* LH-6 */
static bool geometry_holds(const struct fmt_header_disk *d)
{
	uint32_t kind = le32_get(d->kind), state = le32_get(d->state);
	uint32_t bits = le32_get(d->block_bits), granule = le32_get(d->log_granule);
	uint64_t size = le64_get(d->size), data = le64_get(d->data_offset);
	uint32_t log0 = le32_get(d->log0_len);

	if (size < 512 || size % 512 || size > FMT_SIZE_MAX || bits < FMT_BLOCK_BITS_MIN ||
	    bits > FMT_BLOCK_BITS_MAX)
		return false;
	if (kind == FMT_KIND_RAW)
		return state == FMT_STATE_ACTIVE || state == FMT_STATE_FROZEN;
	if (kind == FMT_KIND_QCOW2)
		return state == FMT_STATE_FROZEN;
	if (kind != FMT_KIND_OVERLAY || state < FMT_STATE_ACTIVE || state > FMT_STATE_SEALED)
		return false;
	return granule >= 512 && granule <= 4096 && !(granule & (granule - 1)) && log0 &&
	       log0 % granule == 0 && le32_get(d->log_segments) <= FMT_LOG_SEGMENTS_MAX &&
	       data % (UINT64_C(1) << bits) == 0 && data >= (uint64_t)FMT_LOG0_OFFSET + log0 &&
	       data <= FMT_DATA_OFFSET_MAX;
}

/* LH-7 */
static bool identity_holds(const struct fmt_header_disk *d)
{
	bool parent = !all_zeros(d->parent_id, 16);

	if (all_zeros(d->layer_id, 16) || memcmp(d->layer_id, d->parent_id, 16) == 0 ||
	    parent != (le64_get(d->generation) != 0))
		return false;
	return parent ? le32_get(d->kind) == FMT_KIND_OVERLAY : all_zeros(d->parent_hash, 16);
}

/* BD-1 */
static bool boundary_holds(const struct fmt_header_disk *d)
{
	uint32_t members = le32_get(d->snapshot_members), index = le32_get(d->snapshot_index);

	if (all_zeros(d->snapshot_id, 16))
		return !members && !index;
	return index < members && le32_get(d->state) != FMT_STATE_ACTIVE;
}

/* SL-2, but for the file's end; after LH-6. */
static bool seal_holds(const struct fmt_header_disk *d)
{
	uint32_t bits = le32_get(d->block_bits);
	uint64_t index = le64_get(d->index_offset), csum = le64_get(d->csum_offset);
	uint64_t slots = le64_get(d->slots), runs = le64_get(d->index_runs), end, index_end,
		 csum_end;
	struct fmt_index_shape shape;

	if (le32_get(d->state) != FMT_STATE_SEALED)
		return true;
	if (slots >= FMT_SLOT_NONE || runs > ((le64_get(d->size) - 1) >> bits) + 1 ||
	    fmt_index_shape(runs, &shape) < 0)
		return false;
	end = le64_get(d->data_offset) + (slots << bits);
	if (index % FMT_PAGE || csum % FMT_PAGE || index < end || csum < end ||
	    index > FMT_OFFSET_MAX || csum > FMT_OFFSET_MAX)
		return false;
	index_end = index + shape.total * FMT_PAGE;
	csum_end = csum + fmt_csum_pages(slots) * FMT_PAGE;
	return index_end <= csum || csum_end <= index;
}

/* FD-1 */
static bool folded_holds(const struct fmt_header_disk *d)
{
	bool folded = le64_get(d->incompat) & FMT_INCOMPAT_FOLDED;
	uint32_t count = le32_get(d->replaced_count);

	if (count > FMT_REPLACED_MAX || folded != (count > 0))
		return false;
	if (folded &&
	    (le32_get(d->kind) == FMT_KIND_QCOW2 || le32_get(d->state) == FMT_STATE_ACTIVE))
		return false;
	for (uint32_t i = 0; i < count; i++)
		if (all_zeros(d->replaced[i].id.b, 16) ||
		    memcmp(d->replaced[i].id.b, d->layer_id, 16) == 0 ||
		    memcmp(d->replaced[i].id.b, d->parent_id, 16) == 0)
			return false;
	return true;
}

/* GO-1; after SL-2. */
static bool gone_holds(const struct fmt_header_disk *d)
{
	uint64_t offset = le64_get(d->gone_offset), end, csum_end, list_end;
	uint32_t runs = le32_get(d->gone_runs);
	struct fmt_index_shape shape;

	if (runs > FMT_GONE_RUNS_MAX ||
	    (le64_get(d->incompat) & FMT_INCOMPAT_GONE ? 1 : 0) != (runs > 0))
		return false;
	if (!runs)
		return true;
	if (le32_get(d->kind) != FMT_KIND_OVERLAY || le32_get(d->state) != FMT_STATE_SEALED ||
	    !all_zeros(d->snapshot_id, 16) || fmt_index_shape(le64_get(d->index_runs), &shape) < 0)
		return false;
	end = le64_get(d->index_offset) + shape.total * FMT_PAGE;
	csum_end = le64_get(d->csum_offset) + fmt_csum_pages(le64_get(d->slots)) * FMT_PAGE;
	if (offset % FMT_PAGE || offset > FMT_OFFSET_MAX)
		return false;
	list_end = offset + ((uint64_t)runs + FMT_GONE_SLOTS - 1) / FMT_GONE_SLOTS * FMT_PAGE;
	return (offset >= end && offset >= csum_end) ||
	       (offset >= (uint64_t)FMT_LOG0_OFFSET + le32_get(d->log0_len) &&
		list_end <= le64_get(d->data_offset));
}

/* Reports what breaks a rule between the fields of a slot whose checksum is right. */
static bool check_slot(struct fsck *f, const uint8_t *slot, unsigned place)
{
	struct fmt_error why = {"by the rules the decoder knows it is sound"};
	enum fsck_problem problem;
	struct fmt_header_disk d;
	struct fmt_header h;
	int r = fmt_header_decode(slot, &h, &why);

	memcpy(&d, slot, sizeof(d));
	if (r == -ENOTSUP) {
		fsck_found(f, PR_HEADER_UNKNOWN, "%s", why.text);
		fsck_cannot(f, r, "%s: %s", f->where, why.text);
		return false;
	}
	if (le64_get(d.seq) % FMT_HEADER_SLOTS != place) {
		fsck_found(f, PR_HEADER_PLACE, "header %" PRIu64 " is in slot %u", le64_get(d.seq),
			   place);
		return false;
	}
	if (!geometry_holds(&d))
		problem = PR_HEADER_GEOMETRY;
	else if (!identity_holds(&d))
		problem = PR_HEADER_IDENTITY;
	else if (!boundary_holds(&d))
		problem = PR_HEADER_BOUNDARY;
	else if (!folded_holds(&d))
		problem = PR_HEADER_FOLDED;
	else if (seal_holds(&d) && !gone_holds(&d))
		problem = PR_HEADER_GONE;
	else if (!seal_holds(&d) || r < 0)
		problem = PR_HEADER_SEAL;
	else
		return true;
	fsck_found(f, problem, "header %" PRIu64 " in slot %u: %s", le64_get(d.seq), place,
		   why.text);
	return false;
}

/* FD-1, FD-5: the list of a base goes with the layers that are folded into it. */
static bool list_changed(const struct fmt_header *old, const struct fmt_header *new)
{
	return new->kind != FMT_KIND_RAW &&
	       (old->replaced_count != new->replaced_count ||
		memcmp(old->replaced, new->replaced, sizeof(old->replaced)) != 0);
}

/* LH-11, LH-12: what the change from @old to @new may not do. */
static void check_change(struct fsck *f, const struct fmt_header *old, const struct fmt_header *new)
{
	if (new->seq - old->seq != 1)
		fsck_found(f, PR_HEADER_SEQ, "they hold headers %" PRIu64 " and %" PRIu64, old->seq,
			   new->seq);
	if (old->kind != new->kind || old->block_bits != new->block_bits ||
	    old->salt != new->salt || old->generation != new->generation ||
	    !fmt_uuid_equal(&old->layer_id, &new->layer_id) ||
	    !fmt_uuid_equal(&old->parent_id, &new->parent_id) ||
	    !fmt_uuid_equal(&old->disk_id, &new->disk_id) ||
	    !fmt_uuid_equal(&old->store_id, &new->store_id) ||
	    old->data_offset != new->data_offset || old->log0_len != new->log0_len ||
	    old->log_granule != new->log_granule || old->size > new->size ||
	    old->log_segments > new->log_segments || list_changed(old, new))
		fsck_found(f, PR_HEADER_CHANGED,
			   "header %" PRIu64 " is of another layer than header %" PRIu64
			   ", or smaller",
			   new->seq, old->seq);
	if (old->state == FMT_STATE_SEALED && new->state != FMT_STATE_SEALED)
		fsck_found(f, PR_HEADER_STATES,
			   "header %" PRIu64 " is sealed, header %" PRIu64 " has state %" PRIu32,
			   old->seq, new->seq, new->state);
}

int fsck_header(struct fsck *f, const uint8_t slots[2 * FMT_PAGE], struct fmt_header *ret)
{
	struct fmt_header h[FMT_HEADER_SLOTS];
	struct fmt_error why[FMT_HEADER_SLOTS];
	int r[FMT_HEADER_SLOTS];
	uint64_t seq[FMT_HEADER_SLOTS];
	unsigned newest;

	for (unsigned i = 0; i < FMT_HEADER_SLOTS; i++) {
		const uint8_t *slot = slots + i * FMT_PAGE;
		struct fmt_header_disk d;

		memcpy(&d, slot, sizeof(d));
		r[i] = fmt_header_decode(slot, &h[i], &why[i]);
		seq[i] = le64_get(d.seq); /* its place is the same in every version (LH-2) */
	}
	if (r[0] == -EBADMSG && r[1] == -EBADMSG) {
		fsck_found(f, PR_HEADER_TORN, "slot 0: %s; slot 1: %s", why[0].text, why[1].text);
		return -EBADMSG;
	}
	newest = r[0] == -EBADMSG || (r[1] != -EBADMSG && seq[1] > seq[0]);
	if (r[!newest] == -EBADMSG && !all_zeros(slots + !newest * FMT_PAGE, FMT_PAGE))
		fsck_found(f, PR_HEADER_OLD_TORN, "slot %u: %s", !newest, why[!newest].text);
	if (!check_slot(f, slots + newest * FMT_PAGE, newest))
		return -EUCLEAN;
	if (r[!newest] == 0)
		check_change(f, &h[!newest], &h[newest]);
	else if (r[!newest] == -EUCLEAN)
		check_slot(f, slots + !newest * FMT_PAGE, !newest);
	*ret = h[newest];
	if (ret->ro_compat)
		fsck_found(f, PR_HEADER_RO_COMPAT, "bits %#" PRIx64, ret->ro_compat);
	return 0;
}
