/* SPDX-License-Identifier: MIT */
/* format_error.c - messages are safe to print and to write as JSON, whatever name an image holds. */
#include "format/error.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

Test(format_error, returns_the_code_and_fills_the_text)
{
	struct fmt_error err;

	cr_assert_eq(fmt_fail(&err, -EUCLEAN, "%s at %d", "entry", 7), -EUCLEAN);
	cr_assert_str_eq(err.text, "entry at 7");
}

Test(format_error, null_is_fine)
{
	cr_assert_eq(fmt_fail(NULL, -EIO, "%s", "lost"), -EIO);
}

Test(format_error, replaces_what_is_no_printable_utf8)
{
	struct fmt_error err;

	fmt_fail(&err, -EIO, "a\x1b[1mb\nc\x7f");
	cr_expect_str_eq(err.text, "a?[1mb?c?");
	fmt_fail(&err, -EIO,
		 "gr\xc3\xb6\xc3\x9f"
		 "e \xe2\x82\xac \xf0\x9f\x98\x80");
	cr_expect_str_eq(err.text, "gr\xc3\xb6\xc3\x9f"
				   "e \xe2\x82\xac \xf0\x9f\x98\x80");
	fmt_fail(&err, -EIO, "\xff|\xc3|\xc0\xaf|\xed\xa0\x80|\xc2\x9b|\xe2\x82");
	cr_expect_str_eq(err.text, "?|?|??|???|??|??");
}

Test(format_error, truncates_long_text_between_characters)
{
	struct fmt_error err;
	char text[600];

	memset(text, 'x', sizeof(text));
	for (size_t i = 254; i < sizeof(text) - 2; i += 2) /* the cut falls inside the first one */
		memcpy(text + i, "\xc3\xb6", 2);
	text[sizeof(text) - 1] = '\0';
	fmt_fail(&err, -EIO, "%s", text);
	cr_assert_eq(strlen(err.text), sizeof(err.text) - 1);
	cr_assert_eq(err.text[254], '?');
}

Test(format_error, may_quote_itself)
{
	struct fmt_error err;

	fmt_fail(&err, -EIO, "inner");
	fmt_fail(&err, -EIO, "outer: %s", err.text);
	cr_assert_str_eq(err.text, "outer: inner");
}
