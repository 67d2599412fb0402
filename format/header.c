/* SPDX-License-Identifier: MIT */
/*
 * header.c - a layer's two header slots: bytes <-> struct fmt_header, the rules between the fields,
 * and which of the two slots counts (spec/format.md LH-*). Pure functions, any thread.
 */
#include "format/layer.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <xxhash.h>

static const uint8_t MAGIC[8] = {'V', 'M', 'I', 'M', 'G', 'L', 'Y', 'R'};
static const uint8_t NO_HASH[16];

static uint64_t slot_csum(const void *slot)
{
	return XXH3_64bits(slot, offsetof(struct fmt_header_disk, csum));
}

/* LH-6 kind, state and geometry. */
static int check_shape(const struct fmt_header *h, struct fmt_error *err)
{
	bool overlay = h->kind == FMT_KIND_OVERLAY;
	bool state_ok;

	switch (h->kind) {
	case FMT_KIND_OVERLAY:
		state_ok = h->state >= FMT_STATE_ACTIVE && h->state <= FMT_STATE_SEALED;
		break;
	case FMT_KIND_RAW:
		state_ok = h->state == FMT_STATE_ACTIVE || h->state == FMT_STATE_FROZEN;
		break;
	case FMT_KIND_QCOW2:
		state_ok = h->state == FMT_STATE_FROZEN; /* never written */
		break;
	default:
		return fmt_fail(err, -EUCLEAN, "header: kind is %" PRIu32 ", expected 1, 2 or 3",
				h->kind);
	}
	if (!state_ok)
		return fmt_fail(err, -EUCLEAN,
				"header: state %" PRIu32 " is not one of kind %" PRIu32, h->state,
				h->kind);
	if (h->block_bits < FMT_BLOCK_BITS_MIN || h->block_bits > FMT_BLOCK_BITS_MAX)
		return fmt_fail(err, -EUCLEAN, "header: block_bits is %" PRIu32 ", expected 12..16",
				h->block_bits);
	if (!h->size || h->size % 512 || h->size > FMT_SIZE_MAX)
		return fmt_fail(err, -EUCLEAN,
				"header: size is %" PRIu64
				", expected a multiple of 512 up to %llu",
				h->size, FMT_SIZE_MAX);
	if (!overlay)
		return 0;
	if (h->log_granule < 512 || h->log_granule > 4096 ||
	    (h->log_granule & (h->log_granule - 1)))
		return fmt_fail(err, -EUCLEAN,
				"header: log_granule is %" PRIu32
				", expected a power of two from 512 to 4096",
				h->log_granule);
	if (!h->log0_len || h->log0_len % h->log_granule)
		return fmt_fail(err, -EUCLEAN,
				"header: log0_len is %" PRIu32 ", expected a multiple of %" PRIu32,
				h->log0_len, h->log_granule);
	if (h->log_segments > FMT_LOG_SEGMENTS_MAX)
		return fmt_fail(err, -EUCLEAN,
				"header: log_segments is %" PRIu32 ", expected at most %u",
				h->log_segments, FMT_LOG_SEGMENTS_MAX);
	if (h->data_offset % (1u << h->block_bits) || h->data_offset > FMT_DATA_OFFSET_MAX ||
	    h->data_offset < (uint64_t)FMT_LOG0_OFFSET + h->log0_len)
		return fmt_fail(err, -EUCLEAN,
				"header: data_offset %#" PRIx64 " is not aligned to the block"
				" or not past the first log segment",
				h->data_offset);
	return 0;
}

/* LH-7 identity: ids, parent and generation, boundary (BD-1). */
static int check_identity(const struct fmt_header *h, struct fmt_error *err)
{
	bool orphan = fmt_uuid_is_none(&h->parent_id);

	if (fmt_uuid_is_none(&h->layer_id))
		return fmt_fail(err, -EUCLEAN, "header: no layer id");
	if (fmt_uuid_equal(&h->layer_id, &h->parent_id))
		return fmt_fail(err, -EUCLEAN, "header: the layer is its own parent");
	if (orphan != (h->generation == 0))
		return fmt_fail(err, -EUCLEAN, "header: generation is %" PRIu64 " %s a parent",
				h->generation, orphan ? "without" : "with");
	if (!orphan && h->kind != FMT_KIND_OVERLAY)
		return fmt_fail(err, -EUCLEAN, "header: a base has a parent");
	if (orphan && memcmp(h->parent_hash, NO_HASH, 16) != 0)
		return fmt_fail(err, -EUCLEAN, "header: a parent's hash without a parent");
	if (fmt_uuid_is_none(&h->snapshot_id)) {
		if (h->snapshot_members || h->snapshot_index)
			return fmt_fail(err, -EUCLEAN,
					"header: boundary %" PRIu32 " of %" PRIu32
					" without a snapshot",
					h->snapshot_index, h->snapshot_members);
		return 0;
	}
	if (h->snapshot_index >= h->snapshot_members)
		return fmt_fail(err, -EUCLEAN, "header: boundary says disk %" PRIu32 " of %" PRIu32,
				h->snapshot_index, h->snapshot_members);
	if (h->state == FMT_STATE_ACTIVE)
		return fmt_fail(err, -EUCLEAN, "header: boundary of a snapshot in an active layer");
	return 0;
}

/* SL-2: index and checksum pages are aligned, past the slots, apart from each other, in bounds. */
static int check_seal(const struct fmt_header *h, struct fmt_error *err)
{
	struct fmt_index_shape shape;
	uint64_t blocks, slots_end, index_len, csum_len;
	int r;

	if (h->state != FMT_STATE_SEALED)
		return 0;
	blocks = (h->size + (1ull << h->block_bits) - 1) >> h->block_bits;
	if (h->slots >= FMT_SLOT_NONE)
		return fmt_fail(err, -EUCLEAN, "header: %" PRIu64 " slots", h->slots);
	if (h->index_runs > blocks)
		return fmt_fail(err, -EUCLEAN,
				"header: %" PRIu64 " index runs for %" PRIu64 " blocks",
				h->index_runs, blocks);
	r = fmt_index_shape(h->index_runs, &shape);
	if (r < 0)
		return fmt_fail(err, r, "header: index of %" PRIu64 " runs is too deep",
				h->index_runs);
	slots_end = h->data_offset + (h->slots << h->block_bits);
	index_len = shape.total * FMT_PAGE;
	csum_len = fmt_csum_pages(h->slots) * FMT_PAGE;
	if (h->index_offset % FMT_PAGE || h->index_offset < slots_end ||
	    h->index_offset > FMT_OFFSET_MAX)
		return fmt_fail(err, -EUCLEAN,
				"header: index_offset %#" PRIx64
				" is not aligned or not past the slots, which end at %#" PRIx64,
				h->index_offset, slots_end);
	if (h->csum_offset % FMT_PAGE || h->csum_offset < slots_end ||
	    h->csum_offset > FMT_OFFSET_MAX)
		return fmt_fail(err, -EUCLEAN,
				"header: csum_offset %#" PRIx64
				" is not aligned or not past the slots, which end at %#" PRIx64,
				h->csum_offset, slots_end);
	if (h->index_offset < h->csum_offset + csum_len &&
	    h->csum_offset < h->index_offset + index_len)
		return fmt_fail(err, -EUCLEAN,
				"header: index at %#" PRIx64 " and checksums at %#" PRIx64
				" overlap",
				h->index_offset, h->csum_offset);
	return 0;
}

/* FD-1: the list of a folded layer. */
static int check_replaced(const struct fmt_header *h, struct fmt_error *err)
{
	bool folded = h->incompat & FMT_INCOMPAT_FOLDED;

	if (h->replaced_count > FMT_REPLACED_MAX || folded != (h->replaced_count > 0))
		return fmt_fail(err, -EUCLEAN,
				"header: %" PRIu32
				" replaced layers %s the feature bit, expected 1..%u",
				h->replaced_count, folded ? "with" : "without", FMT_REPLACED_MAX);
	if (folded && (h->kind == FMT_KIND_QCOW2 || h->state == FMT_STATE_ACTIVE))
		return fmt_fail(err, -EUCLEAN, "header: a qcow2 base or an active layer is folded");
	for (uint32_t i = 0; i < h->replaced_count; i++)
		if (fmt_uuid_is_none(&h->replaced[i].id) ||
		    fmt_uuid_equal(&h->replaced[i].id, &h->layer_id) ||
		    fmt_uuid_equal(&h->replaced[i].id, &h->parent_id))
			return fmt_fail(err, -EUCLEAN,
					"header: replaced layer %" PRIu32
					" is none, itself or its parent",
					i);
	return 0;
}

const uint8_t *fmt_header_hash_for(const struct fmt_header *below, const struct fmt_uuid *parent_id)
{
	if (fmt_uuid_equal(&below->layer_id, parent_id))
		return below->state == FMT_STATE_SEALED ? below->seal_hash : NO_HASH;
	for (uint32_t i = 0; i < below->replaced_count; i++)
		if (fmt_uuid_equal(&below->replaced[i].id, parent_id))
			return below->replaced[i].hash;
	return NULL;
}

int fmt_header_check_child(const struct fmt_header *below, const struct fmt_uuid *parent_id,
			   const uint8_t parent_hash[16])
{
	const uint8_t *hash = fmt_header_hash_for(below, parent_id);

	if (!hash)
		return -ENOENT;
	if (memcmp(hash, NO_HASH, 16) != 0 && memcmp(parent_hash, NO_HASH, 16) != 0 &&
	    memcmp(hash, parent_hash, 16) != 0)
		return -EUCLEAN;
	return 0;
}

/* GO-1: the list of slots that are gone. */
static int check_gone(const struct fmt_header *h, struct fmt_error *err)
{
	bool gone = h->incompat & FMT_INCOMPAT_GONE;

	if (h->gone_runs > FMT_GONE_RUNS_MAX || gone != (h->gone_runs > 0))
		return fmt_fail(err, -EUCLEAN,
				"header: %" PRIu32
				" runs of gone slots %s the feature bit, expected 1..%u",
				h->gone_runs, gone ? "with" : "without", FMT_GONE_RUNS_MAX);
	if (!gone)
		return 0;
	if (h->kind != FMT_KIND_OVERLAY || h->state != FMT_STATE_SEALED ||
	    !fmt_uuid_is_none(&h->snapshot_id))
		return fmt_fail(err, -EUCLEAN,
				"header: gone slots in what is no sealed overlay, or a snapshot's");
	if (!fmt_gone_fits(h, h->gone_offset, h->gone_runs))
		return fmt_fail(err, -EUCLEAN,
				"header: gone_offset %#" PRIx64
				" is not aligned, or neither between log and slots nor past the "
				"seal's pages, which end at %#" PRIx64,
				h->gone_offset, fmt_seal_end(h));
	return 0;
}

static int check(const struct fmt_header *h, struct fmt_error *err)
{
	int r;

	r = check_shape(h, err);
	if (r == 0)
		r = check_identity(h, err);
	if (r == 0)
		r = check_seal(h, err);
	if (r == 0)
		r = check_replaced(h, err);
	if (r == 0)
		r = check_gone(h, err);
	return r;
}

void fmt_header_encode(const struct fmt_header *h, uint8_t slot[FMT_PAGE])
{
	struct fmt_header_disk d;

	assert(check(h, NULL) == 0);
	assert((h->incompat & ~(uint64_t)FMT_INCOMPAT_KNOWN) == 0);
	memset(&d, 0, sizeof(d));
	memcpy(d.magic, MAGIC, sizeof(MAGIC));
	d.version = le32_make(FMT_VERSION);
	d.kind = le32_make(h->kind);
	d.seq = le64_make(h->seq);
	d.incompat = le64_make(h->incompat);
	d.ro_compat = le64_make(h->ro_compat);
	d.compat = le64_make(h->compat);
	memcpy(d.store_id, h->store_id.b, 16);
	memcpy(d.disk_id, h->disk_id.b, 16);
	memcpy(d.layer_id, h->layer_id.b, 16);
	memcpy(d.parent_id, h->parent_id.b, 16);
	d.generation = le64_make(h->generation);
	d.size = le64_make(h->size);
	d.block_bits = le32_make(h->block_bits);
	d.state = le32_make(h->state);
	d.salt = le64_make(h->salt);
	d.created_ns = le64_make((uint64_t)h->created_ns);
	d.data_offset = le64_make(h->data_offset);
	d.log0_len = le32_make(h->log0_len);
	d.log_granule = le32_make(h->log_granule);
	d.log_segments = le32_make(h->log_segments);
	memcpy(d.boot_id, h->boot_id, 16);
	d.journal_nonce = le64_make(h->journal_nonce);
	memcpy(d.snapshot_id, h->snapshot_id.b, 16);
	d.snapshot_members = le32_make(h->snapshot_members);
	d.snapshot_index = le32_make(h->snapshot_index);
	d.index_offset = le64_make(h->index_offset);
	d.index_runs = le64_make(h->index_runs);
	d.csum_offset = le64_make(h->csum_offset);
	d.slots = le64_make(h->slots);
	memcpy(d.seal_hash, h->seal_hash, 16);
	memcpy(d.parent_hash, h->parent_hash, 16);
	d.base_mtime_ns = le64_make((uint64_t)h->base_mtime_ns);
	d.base_bytes = le64_make(h->base_bytes);
	d.log_seq = le64_make(h->log_seq);
	d.replaced_count = le32_make(h->replaced_count);
	memcpy(d.replaced, h->replaced, h->replaced_count * sizeof(h->replaced[0]));
	d.gone_offset = le64_make(h->gone_offset);
	d.gone_runs = le32_make(h->gone_runs);
	memcpy(d.gone_hash, h->gone_hash, 16);
	d.csum = le64_make(slot_csum(&d));
	memcpy(slot, &d, FMT_PAGE);
}

static void unpack(const struct fmt_header_disk *d, struct fmt_header *h)
{
	memset(h, 0, sizeof(*h));
	h->kind = le32_get(d->kind);
	h->seq = le64_get(d->seq);
	h->incompat = le64_get(d->incompat);
	h->ro_compat = le64_get(d->ro_compat);
	h->compat = le64_get(d->compat);
	memcpy(h->store_id.b, d->store_id, 16);
	memcpy(h->disk_id.b, d->disk_id, 16);
	memcpy(h->layer_id.b, d->layer_id, 16);
	memcpy(h->parent_id.b, d->parent_id, 16);
	h->generation = le64_get(d->generation);
	h->size = le64_get(d->size);
	h->block_bits = le32_get(d->block_bits);
	h->state = le32_get(d->state);
	h->salt = le64_get(d->salt);
	h->created_ns = (int64_t)le64_get(d->created_ns);
	h->data_offset = le64_get(d->data_offset);
	h->log0_len = le32_get(d->log0_len);
	h->log_granule = le32_get(d->log_granule);
	h->log_segments = le32_get(d->log_segments);
	memcpy(h->boot_id, d->boot_id, 16);
	h->journal_nonce = le64_get(d->journal_nonce);
	memcpy(h->snapshot_id.b, d->snapshot_id, 16);
	h->snapshot_members = le32_get(d->snapshot_members);
	h->snapshot_index = le32_get(d->snapshot_index);
	h->index_offset = le64_get(d->index_offset);
	h->index_runs = le64_get(d->index_runs);
	h->csum_offset = le64_get(d->csum_offset);
	h->slots = le64_get(d->slots);
	memcpy(h->seal_hash, d->seal_hash, 16);
	memcpy(h->parent_hash, d->parent_hash, 16);
	h->base_mtime_ns = (int64_t)le64_get(d->base_mtime_ns);
	h->base_bytes = le64_get(d->base_bytes);
	h->log_seq = le64_get(d->log_seq);
	h->replaced_count = le32_get(d->replaced_count);
	if (h->replaced_count <= FMT_REPLACED_MAX) /* else refused by check_replaced() */
		memcpy(h->replaced, d->replaced, h->replaced_count * sizeof(h->replaced[0]));
	h->gone_offset = le64_get(d->gone_offset);
	h->gone_runs = le32_get(d->gone_runs);
	memcpy(h->gone_hash, d->gone_hash, 16);
}

int fmt_header_decode(const uint8_t slot[FMT_PAGE], struct fmt_header *ret, struct fmt_error *err)
{
	struct fmt_header_disk d;
	struct fmt_header h;
	int r;

	memcpy(&d, slot, sizeof(d));
	if (memcmp(d.magic, MAGIC, sizeof(MAGIC)) != 0)
		return fmt_fail(err, -EBADMSG, "header: no magic \"VMIMGLYR\"");
	if (le64_get(d.csum) != slot_csum(&d))
		return fmt_fail(err, -EBADMSG,
				"header: checksum is %016" PRIx64 ", expected %016" PRIx64,
				le64_get(d.csum), slot_csum(&d));
	if (le32_get(d.version) != FMT_VERSION)
		return fmt_fail(err, -ENOTSUP, "header: version %" PRIu32 ", expected %u",
				le32_get(d.version), FMT_VERSION);
	unpack(&d, &h);
	if (h.incompat & ~(uint64_t)FMT_INCOMPAT_KNOWN)
		return fmt_fail(err, -ENOTSUP, "header: unknown incompatible features %#" PRIx64,
				h.incompat & ~(uint64_t)FMT_INCOMPAT_KNOWN);
	r = check(&h, err);
	if (r < 0)
		return r;
	*ret = h;
	return 0;
}

int fmt_header_pick(const uint8_t slots[2 * FMT_PAGE], struct fmt_header *ret,
		    struct fmt_error *err)
{
	struct fmt_header best;
	struct fmt_error best_err, slot_err;
	uint64_t best_seq = 0;
	int best_r = -EBADMSG;

	memset(&best, 0, sizeof(best));
	fmt_fail(&best_err, 0, "header: neither slot has a valid checksum");
	for (unsigned i = 0; i < FMT_HEADER_SLOTS; i++) {
		const uint8_t *slot = slots + i * FMT_PAGE;
		struct fmt_header_disk d;
		struct fmt_header h;
		uint64_t seq;
		int r = fmt_header_decode(slot, &h, &slot_err);

		if (r == -EBADMSG)
			continue; /* torn, or never written (LH-4) */
		memcpy(&d, slot, sizeof(d));
		seq = le64_get(d.seq); /* its place is the same in every version (LH-2) */
		if (r == 0 && seq % FMT_HEADER_SLOTS != i)
			r = fmt_fail(&slot_err, -EUCLEAN, "header: seq %" PRIu64 " in slot %u", seq,
				     i);
		if (best_r != -EBADMSG && (seq < best_seq || (seq == best_seq && r == 0)))
			continue;
		best_r = r;
		best_seq = seq;
		best_err = slot_err;
		if (r == 0)
			best = h;
	}
	if (best_r < 0)
		return fmt_fail(err, best_r, "%s", best_err.text);
	*ret = best;
	return 0;
}
