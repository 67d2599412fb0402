/* SPDX-License-Identifier: MIT */
/* format_uuid.c - ids as text and back. */
#include <criterion/criterion.h>
#include <errno.h>

#include "format/uuid.h"

Test(format_uuid, text_and_back)
{
	static const char *text = "01234567-89ab-cdef-0123-456789abcdef";
	struct fmt_uuid id;
	char back[FMT_UUID_TEXT];

	cr_assert_eq(fmt_uuid_parse(text, &id), 0);
	cr_expect_eq(id.b[0], 0x01);
	cr_expect_eq(id.b[15], 0xef);
	fmt_uuid_format(&id, back);
	cr_expect_str_eq(back, text);
	cr_assert_eq(fmt_uuid_parse("01234567-89AB-CDEF-0123-456789ABCDEF", &id), 0);
	fmt_uuid_format(&id, back);
	cr_expect_str_eq(back, text);
}

Test(format_uuid, anything_but_the_canonical_form_is_refused)
{
	static const char *const bad[] = {
		"",
		"0123456789abcdef0123456789abcdef",
		"01234567-89ab-cdef-0123-456789abcde",
		"01234567-89ab-cdef-0123-456789abcdef0",
		"01234567-89ab-cdef-0123-456789abcdeg",
		"0123456-789ab-cdef-0123-456789abcdef",
		"01234567-89ab-cdef-0123_456789abcdef",
		" 1234567-89ab-cdef-0123-456789abcdef",
	};
	struct fmt_uuid id = {{42}};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		cr_expect_eq(fmt_uuid_parse(bad[i], &id), -EINVAL, "%s", bad[i]);
	cr_expect_eq(id.b[0], 42, "written on failure");
}

Test(format_uuid, random_bytes_become_version_4)
{
	uint8_t ones[16];
	struct fmt_uuid id;
	char text[FMT_UUID_TEXT];

	memset(ones, 0xff, sizeof(ones));
	fmt_uuid_from_random(ones, &id);
	fmt_uuid_format(&id, text);
	cr_expect_str_eq(text, "ffffffff-ffff-4fff-bfff-ffffffffffff");
	cr_expect(!fmt_uuid_is_none(&id));
	memset(&id, 0, sizeof(id));
	cr_expect(fmt_uuid_is_none(&id));
}
