/* SPDX-License-Identifier: MIT */
/*
 * gone.c - the list of a sealed layer's slots that are gone: its pages, and the list as a whole
 * (spec/format.md GO-*). Pure functions, any thread.
 */
#include "format/layer.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

uint64_t fmt_gone_pages(uint32_t runs)
{
	return (runs + FMT_GONE_SLOTS - 1) / FMT_GONE_SLOTS;
}

uint64_t fmt_seal_end(const struct fmt_header *h)
{
	uint64_t csum_end = h->csum_offset + fmt_csum_pages(h->slots) * FMT_PAGE, end = 0;
	struct fmt_index_shape shape;

	if (fmt_index_shape(h->index_runs, &shape) == 0)
		end = h->index_offset + shape.total * FMT_PAGE;
	return end > csum_end ? end : csum_end;
}

uint64_t fmt_gap_pages(const struct fmt_header *h, uint64_t *first)
{
	uint64_t from = ((uint64_t)FMT_LOG0_OFFSET + h->log0_len + FMT_PAGE - 1) / FMT_PAGE;
	uint64_t to = h->data_offset / FMT_PAGE;

	*first = from * FMT_PAGE;
	return to > from ? to - from : 0;
}

bool fmt_gone_fits(const struct fmt_header *h, uint64_t offset, uint32_t runs)
{
	uint64_t gap, pages = fmt_gap_pages(h, &gap);

	if (offset % FMT_PAGE || offset > FMT_OFFSET_MAX)
		return false;
	return offset >= fmt_seal_end(h) ||
	       (offset >= gap && offset < gap + pages * FMT_PAGE &&
		fmt_gone_pages(runs) <= pages - (offset - gap) / FMT_PAGE);
}

/* The runs within the layer, apart from each other over pages too, and the hash (GO-1, GO-2). */
int fmt_gone_decode(const struct fmt_header *h, const uint8_t *pages, struct fmt_gone *runs,
		    struct fmt_error *err)
{
	struct fmt_seal_hash *hash = fmt_seal_hash_create();
	uint32_t done = 0, count, left;
	uint64_t end = 0;
	uint8_t found[16];
	int r = hash ? 0 : fmt_fail(err, -ENOMEM, "no memory for a hash");

	for (uint64_t i = 0; r == 0 && done < h->gone_runs; i++) {
		const uint8_t *page = pages + i * FMT_PAGE;

		r = fmt_page_check(page, FMT_PAGE_GONE, 0, h->salt, h->gone_offset + i * FMT_PAGE,
				   &count, err);
		left = h->gone_runs - done;
		if (r == 0 && count != (left < FMT_GONE_SLOTS ? left : FMT_GONE_SLOTS))
			r = fmt_fail(err, -EUCLEAN,
				     "gone slots: page %" PRIu64 " has %" PRIu32 " runs of %" PRIu32
				     " left (GO-2)",
				     i, count, left);
		for (uint32_t j = 0; r == 0 && j < count; j++, done++) {
			fmt_gone_run(page, j, &runs[done]);
			if (done && runs[done].slot <= end)
				r = fmt_fail(err, -EUCLEAN,
					     "gone slots: run %" PRIu32 " does not rise (GO-2)",
					     done);
			end = (uint64_t)runs[done].slot + runs[done].count;
		}
		if (r == 0)
			fmt_seal_hash_add(hash, page, FMT_PAGE);
	}
	if (r == 0 && end > h->slots)
		r = fmt_fail(err, -EUCLEAN,
			     "gone slots: up to slot %" PRIu64 ", there are %" PRIu64 " (GO-2)",
			     end, h->slots);
	if (r == 0) {
		fmt_seal_hash_end(hash, found);
		if (memcmp(found, h->gone_hash, sizeof(found)) != 0)
			r = fmt_fail(err, -EBADMSG,
				     "gone slots: the list is not the header's (GO-1)");
	}
	fmt_seal_hash_destroy(hash);
	return r;
}
