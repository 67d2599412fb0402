/* SPDX-License-Identifier: MIT */
/*
 * fsck_fault.c - the checker when reading fails: whatever could not be read, the check never calls a
 * store sound, and damage that it can see it still reports.
 */
#include "tests/unit/fsck_made_store.h"

#include "engine/io/io_fault.h"

TestSuite(fsck_fault, .init = start, .fini = finish);

static const uint32_t ops[] = {ENG_FAULT_OPEN, ENG_FAULT_PREAD, ENG_FAULT_STAT, ENG_FAULT_LOCK,
			       ENG_FAULT_LIST};

/* Checks again and again, each time with the next operation failing, until none is left. */
static void fail_each(const struct eng_fault_rule *how, const char *file)
{
	for (uint64_t skip = 0;; skip++) {
		struct eng_fault_rule rule = *how;
		struct eng_fault *fault = NULL;
		uint64_t struck;
		int r, number;

		rule.skip = skip;
		ok(eng_fault_create(io, &fault));
		number = eng_fault_add(fault, &rule);
		ok(number);
		r = check(eng_fault_io(fault), file);
		struck = eng_fault_struck(fault, number);
		eng_fault_destroy(fault);
		if (!struck) {
			cr_assert_gt(skip, 0, "operation %#x is never used", rule.ops);
			break;
		}
		cr_assert(r < 0 || summary.corruptions, "operation %#x, number %" PRIu64 ": %s",
			  rule.ops, skip, all_findings());
		cr_assert(r == 0 || check_error.text[0], "an error has a text");
	}
	assert_sound(io, file);
}

/* CK-2 */
Test(fsck_fault, no_store_is_called_sound_when_something_could_not_be_read)
{
	make_store();
	for (size_t i = 0; i < sizeof(ops) / sizeof(*ops); i++)
		fail_each(&(struct eng_fault_rule){.ops = ops[i], .error = -EIO}, store_dir);
}

/* CK-2 */
Test(fsck_fault, no_file_that_ends_early_is_called_sound)
{
	char path[400];

	make_store();
	snprintf(path, sizeof(path), "%s/layers", store_dir);
	fail_each(&(struct eng_fault_rule){.ops = ENG_FAULT_PREAD,
					   .path = "/layers/",
					   .shorten = true,
					   .short_len = 100},
		  store_dir);
}

/* CK-2 */
Test(fsck_fault, no_image_is_called_sound_when_it_could_not_be_read)
{
	make_store();
	for (size_t i = 0; i + 1 < sizeof(ops) / sizeof(*ops); i++)
		fail_each(&(struct eng_fault_rule){.ops = ops[i], .error = -EIO}, layer_file(1));
}

/* CK-2: corruption is worse than what could not be read. */
Test(fsck_fault, damage_is_reported_beside_what_could_not_be_read)
{
	struct eng_fault_rule rule = {.ops = ENG_FAULT_PREAD, .sticky = true, .error = -EIO};
	struct eng_fault *fault = NULL;
	uint8_t was;

	make_store();
	file_read(layer_file(1), &was, 1, FMT_DATA_OFFSET);
	was ^= 1;
	file_write(layer_file(1), &was, 1, FMT_DATA_OFFSET);
	rule.path = strrchr(layer_file(2), '/');
	ok(eng_fault_create(io, &fault));
	ok(eng_fault_add(fault, &rule));
	cr_assert_eq(check(eng_fault_io(fault), store_dir), -EIO);
	cr_assert(was_found("CS-2", FSCK_CORRUPT), "%s", all_findings());
	eng_fault_destroy(fault);
}
