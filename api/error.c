/* SPDX-License-Identifier: MIT */
/*
 * error.c - fills the caller's struct vmimg_error: every failure has a code and a text (RC-5). Any
 * thread.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "api/service.h"

/* fmt_fail() makes it printable: names in it come from callers and from images. */
static void set_text(struct vmimg_error *err, int code, const char *text)
{
	struct fmt_error clean = {""};

	if (!err)
		return;
	fmt_fail(&clean, code, "%s", text);
	err->code = code;
	snprintf(err->message, sizeof(err->message), "%s", clean.text);
}

static void set_error(struct vmimg_error *err, int code, const char *fmt, va_list args)
{
	char text[sizeof(((struct fmt_error *)NULL)->text)] = "";

	vsnprintf(text, sizeof(text), fmt, args);
	set_text(err, code, text);
}

int api_fail(struct vmimg_error *err, int code, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	set_error(err, code, fmt, args);
	va_end(args);
	return code;
}

uint32_t api_answer(struct vmimg_error *err, uint32_t code, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	set_error(err, (int)code, fmt, args);
	va_end(args);
	return code;
}

uint32_t api_answer_why(struct vmimg_error *err, uint32_t code, int r, const struct fmt_error *why,
			const char *what)
{
	if (why->text[0])
		set_text(err, (int)code, why->text);
	else
		api_answer(err, code, "%s: %s", what,
			   r == -ENOTRECOVERABLE ? "the catalog is unusable after an I/O error; "
						   "reopen the store"
						 : strerror(-r));
	return code;
}

int api_fail_why(struct vmimg_error *err, int code, const struct fmt_error *why, const char *what)
{
	api_answer_why(err, (uint32_t)code, code, why, what);
	return code;
}

uint32_t api_vendor_code(int r)
{
	switch (-r) {
	case EACCES:
	case EPERM:
	case EROFS: return VMIMG_V_ACCESS_DENIED;
	case EOPNOTSUPP: /* = ENOTSUP */
	case ENOSYS: return VMIMG_V_NOT_SUPPORTED;
	case ETIMEDOUT: return VMIMG_V_TIMEOUT;
	case EINVAL:
	case EEXIST:
	case ENAMETOOLONG:
	case ERANGE: return VMIMG_V_INVALID_PARAMETER;
	case EBUSY:
	case ETXTBSY:
	case EWOULDBLOCK: return VMIMG_V_IN_USE;
	case ENOTRECOVERABLE:
	case ENODATA: /* change tracking is lost (RP-15) */
	case ENOTEMPTY: return VMIMG_V_INVALID_STATE;
	case EUCLEAN:
	case EBADMSG: return VMIMG_V_BAD_TYPE;
	case ENOSPC:
	case EDQUOT:
	case EMFILE:
	case ENFILE: return VMIMG_V_NOT_AVAILABLE;
	case ENOMEM: return VMIMG_V_NO_MEMORY;
	case ENOENT: return VMIMG_V_NOT_FOUND;
	default: return VMIMG_V_FAILED;
	}
}
