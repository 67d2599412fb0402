/* SPDX-License-Identifier: MIT */
/* api_error.c - vendor codes of errno (RC-2), error texts (RC-5), names (RC-6). */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "api/service.h"

/* RC-2 */
Test(api_error, every_listed_errno_has_its_vendor_code)
{
	static const struct {
		int error;
		uint32_t code;
	} table[] = {
		{EIO, 32768},          {EACCES, 32769},
		{EPERM, 32769},        {EROFS, 32769},
		{ENOTSUP, 32770},      {EOPNOTSUPP, 32770},
		{ENOSYS, 32770},       {ETIMEDOUT, 32772},
		{EINVAL, 32773},       {EEXIST, 32773},
		{ENAMETOOLONG, 32773}, {ERANGE, 32773},
		{EBUSY, 32774},        {ETXTBSY, 32774},
		{EWOULDBLOCK, 32774},  {ENOTRECOVERABLE, 32775},
		{ENOTEMPTY, 32775},    {EUCLEAN, 32776},
		{EBADMSG, 32776},      {ENOSPC, 32777},
		{EDQUOT, 32777},       {EMFILE, 32777},
		{ENFILE, 32777},       {ENOMEM, 32778},
		{ENOENT, 32779},       {ENXIO, 32768},
	};

	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		cr_expect_eq(api_vendor_code(-table[i].error), table[i].code, "%s",
			     strerror(table[i].error));
}

/* RC-5 */
Test(api_error, texts_are_printable_and_bounded)
{
	struct vmimg_error err = {.code = 7, .message = "before"};
	struct fmt_error none = {""}, why = {"the engine's"};
	char longer[600];

	cr_expect_eq(api_fail(&err, -EINVAL, "name '%s'", "a\033[2Jb\xff"), -EINVAL);
	cr_expect_eq(err.code, -EINVAL);
	cr_expect_str_eq(err.message, "name 'a?[2Jb?'");
	memset(longer, 'x', sizeof(longer));
	longer[599] = 0;
	cr_expect_eq(api_answer(&err, 32773, "%s", longer), 32773);
	cr_expect_eq(err.code, 32773);
	cr_expect_eq(strlen(err.message), 255);
	api_fail_why(&err, -EIO, &why, "disk");
	cr_expect_str_eq(err.message, "the engine's");
	api_fail_why(&err, -EIO, &none, "disk");
	cr_expect_str_eq(err.message, "disk: Input/output error");
	cr_expect_eq(api_fail(NULL, -EIO, "nobody asked"), -EIO);
}

/* RC-6 */
Test(api_error, names_split_and_join)
{
	char left[CAT_NAME_MAX], right[CAT_NAME_MAX], both[CAT_NS_MAX];
	char name64[] = "n234567890123456789012345678901234567890123456789012345678901234";

	cr_assert_eq(api_name_split("web/root", '/', left, right), 0);
	cr_expect_str_eq(left, "web");
	cr_expect_str_eq(right, "root");
	api_name_join(both, name64, '@', name64);
	cr_assert_eq(api_name_split(both, '@', left, right), 0);
	cr_expect_str_eq(left, name64);
	cr_expect_str_eq(right, name64);
	cr_expect_eq(api_name_split("web", '/', left, right), -EINVAL);
	cr_expect_eq(api_name_split("/root", '/', left, right), -EINVAL);
	cr_expect_eq(api_name_split("web/", '/', left, right), -EINVAL);
	cr_expect_eq(api_name_split("a/b/c", '/', left, right), -EINVAL);
	cr_expect_eq(api_name_split(NULL, '/', left, right), -EINVAL);
	cr_expect_str_eq(left, name64, "written on success only");
	cr_expect_not(api_name_is_valid(NULL));
	cr_expect_not(api_name_is_valid("a\n"));
}
