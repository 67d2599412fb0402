/* SPDX-License-Identifier: MIT */
/*
 * engine_verify.c - a sealed layer is held to its checksums and its seal hash.
 */
#include <criterion/criterion.h>

#include <errno.h>

#include "tests/unit/engine_overlay.h"

TestSuite(engine_verify, .init = start, .fini = finish, .timeout = 120);

static void flip(uint64_t offset)
{
	FILE *f = fopen(path, "r+");
	int c;

	cr_assert_not_null(f);
	cr_assert_eq(fseeko(f, (off_t)offset, SEEK_SET), 0);
	c = fgetc(f);
	cr_assert_eq(fseeko(f, (off_t)offset, SEEK_SET), 0);
	fputc(c ^ 1, f);
	cr_assert_eq(fclose(f), 0);
}

/* P6 */
Test(engine_verify, one_changed_bit_is_found_anywhere)
{
	uint64_t where[5];

	make_small_layer();
	seal();
	for (uint64_t b = 0; b < blocks; b++) {
		if (model[b] >= 0) /* any block in use */
			where[0] = eng_layer_slot_offset(layer, (uint32_t)model[b]) + 4095;
	}
	where[1] = layer->hdr.index_offset + 100;
	where[2] = layer->hdr.csum_offset - 1; /* the end of the last index page */
	where[3] = layer->hdr.csum_offset + 0x18;
	where[4] = layer->hdr.csum_offset + FMT_PAGE - 1;
	for (unsigned i = 0; i < 5; i++) {
		struct fmt_error err = {{0}};

		flip(where[i]);
		cr_expect_eq(eng_layer_verify(layer, &err), -EBADMSG, "at %#lx", where[i]);
		cr_expect_neq(err.text[0], 0);
		flip(where[i]);
		cr_expect_eq(eng_layer_verify(layer, NULL), 0);
	}
}

/* SL-3: pages that are well formed, each with the right checksum, but not those that were sealed. */
Test(engine_verify, pages_are_held_to_the_seal_hash)
{
	static uint8_t page[FMT_PAGE];
	uint64_t csums[FMT_CSUM_SLOTS];
	uint32_t count;
	FILE *f;

	make_layer((struct shape){.block_bits = 12, .slots = 40, .blocks = 100});
	put_data(3, 1);
	put_data(3, 1); /* slot 0 is in no run: nothing else tells that its sum changed */
	freeze();
	seal();
	f = fopen(path, "r+");
	cr_assert_not_null(f);
	fseeko(f, (off_t)layer->hdr.csum_offset, SEEK_SET);
	cr_assert_eq(fread(page, FMT_PAGE, 1, f), 1);
	cr_assert_eq(fmt_page_check(page, FMT_PAGE_CSUM, 0, layer->salt, layer->hdr.csum_offset,
				    &count, NULL),
		     0);
	for (uint32_t i = 0; i < count; i++)
		csums[i] = fmt_csum_get(page, i);
	cr_assert_eq(csums[0], 0, "a slot not in use has none");
	csums[0] = 1;
	fmt_csum_encode(csums, count, layer->salt, layer->hdr.csum_offset, page);
	fseeko(f, (off_t)layer->hdr.csum_offset, SEEK_SET);
	cr_assert_eq(fwrite(page, FMT_PAGE, 1, f), 1);
	cr_assert_eq(fclose(f), 0);
	cr_expect_eq(eng_layer_verify(layer, NULL), -EBADMSG);
}
