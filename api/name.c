/* SPDX-License-Identifier: MIT */
/*
 * name.c - the names of elements (RC-6): [A-Za-z0-9][A-Za-z0-9._-]{0,63}, joined by '/', '@' and '#'.
 * Pure.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "api/service.h"

#define ALNUM "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

static_assert(CAT_NAME_MAX == VMIMG_NAME_MAX + 1, "RC-6");
static_assert(CAT_NS_MAX == sizeof(((struct vmimg_ref *)NULL)->name), "a reference holds any name");

bool api_name_is_valid(const char *name)
{
	size_t len = name ? strspn(name, ALNUM "._-") : 0;

	return len > 0 && len <= VMIMG_NAME_MAX && !name[len] && strchr(ALNUM, name[0]);
}

int api_name_split(const char *text, char sep, char left[CAT_NAME_MAX], char right[CAT_NAME_MAX])
{
	const char *at = text ? strchr(text, sep) : NULL;
	char name[CAT_NAME_MAX];

	if (!at || at - text > VMIMG_NAME_MAX)
		return -EINVAL;
	snprintf(name, sizeof(name), "%.*s", (int)(at - text), text);
	if (!api_name_is_valid(name) || !api_name_is_valid(at + 1))
		return -EINVAL;
	memcpy(left, name, sizeof(name));
	snprintf(right, CAT_NAME_MAX, "%s", at + 1);
	return 0;
}

void api_name_join(char buf[CAT_NS_MAX], const char *left, char sep, const char *right)
{
	snprintf(buf, CAT_NS_MAX, "%.64s%c%.64s", left, sep, right);
}

uint32_t api_wanted_name(const char *wanted, char sep, const char *collection,
			 struct vmimg_error *err, char ret[CAT_NAME_MAX])
{
	const char *what = sep == '@' ? "new snapshot" : "new reference point";
	char left[CAT_NAME_MAX];

	ret[0] = 0;
	if (!wanted || !*wanted)
		return 0;
	if (strchr(wanted, sep)) {
		if (api_name_split(wanted, sep, left, ret) < 0)
			return api_answer(
				err, VMIMG_INVALID_PARAMETER,
				"%s: '%.140s' is no name, expected NAME or COLLECTION%cNAME", what,
				wanted, sep);
		if (strcmp(left, collection) != 0)
			return api_answer(err, VMIMG_INVALID_PARAMETER,
					  "%s: '%s' is of collection %s, expected %s", what, wanted,
					  left, collection);
		return 0;
	}
	if (!api_name_is_valid(wanted))
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "%s: '%.140s' is no name, expected NAME or COLLECTION%cNAME",
				  what, wanted, sep);
	snprintf(ret, CAT_NAME_MAX, "%s", wanted);
	return 0;
}

uint32_t api_read_name(const struct vmimg_service *svc, const char *verb, const char *text,
		       char sep, struct vmimg_error *err, char collection[CAT_NAME_MAX],
		       char name[CAT_NAME_MAX])
{
	if (!svc)
		return api_answer(err, VMIMG_INVALID_PARAMETER, "%s: no service given", verb);
	if (api_name_split(text, sep, collection, name) < 0)
		return api_answer(err, VMIMG_INVALID_PARAMETER,
				  "%s: '%.140s' is no name, expected COLLECTION%cNAME",
				  sep == '@' ? "snapshot" : "reference point", text ? text : "",
				  sep);
	return VMIMG_OK;
}

uint32_t api_check_writable(const struct vmimg_service *svc, const char *what,
			    struct vmimg_error *err)
{
	if (!eng_catalog_poisoned(svc->store->catalog))
		return VMIMG_OK;
	return api_answer(err, VMIMG_INVALID_STATE,
			  "%s: the catalog is poisoned by an I/O error; reopen the store", what);
}
