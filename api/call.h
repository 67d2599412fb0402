/* SPDX-License-Identifier: MIT */
/*
 * call.h - what the files of vmimg_call() share (spec/control.md): one call being answered, and the
 * tables of methods. A method sees its parameters checked by its table: known, typed, within bounds.
 * Private.
 */
#ifndef API_CALL_H
#define API_CALL_H

#include <jansson.h>

#include "api/service.h"

#define API_PARAMS_MAX 10

enum api_param_type {
	API_TEXT,
	API_NUMBER,
	API_BOOL,
	API_SETTINGS, /* an object, or text: handed on as text */
};

struct api_param {
	const char *name; /* NULL ends a table */
	enum api_param_type type;
	bool required;
	uint64_t min, max; /* of a number; max also bytes of a text */
};

struct api_call;

struct api_method {
	const char *name;
	/*
	 * 0 with @result or @text set; or a negative errno or a number of the family that means
	 * failure, with @error filled, and @field where a parameter is to blame.
	 */
	int64_t (*run)(struct api_call *call);
	struct api_param params[API_PARAMS_MAX];
};

struct api_call {
	struct vmimg_service *svc;
	const struct api_method *method;
	const json_t *values[API_PARAMS_MAX]; /* by the method's table; NULL: not given */
	/* the outcome */
	json_t *result;
	char *text; /* instead of @result: a document of vmimg_describe() and the like */
	struct vmimg_error error;
	const char *field; /* "method", or a parameter's name */
	bool in_params;    /* which of the two */
	char job[37];      /* of a failed synchronous create */
};

/* By the parameter's place in the method's table; NULL, 0, false when it was not given. */
const char *api_call_text(const struct api_call *call, unsigned index);
uint64_t api_call_number(const struct api_call *call, unsigned index);
bool api_call_bool(const struct api_call *call, unsigned index);
/* Of API_SETTINGS: malloced; "" when none are given, NULL when memory is short. */
char *api_call_settings(const struct api_call *call, unsigned index);
/* The parameter at @index is to blame for @code; returns it. */
int64_t api_call_blame(struct api_call *call, unsigned index, int64_t code);
/* Which parameter the library's message for a bad one is about: by its first words, or by words in the
 * middle, which begin with ": ", as no name does. NULL ends @about. Returns @code. */
struct api_blame {
	const char *words;
	unsigned index;
};
int64_t api_call_blame_words(struct api_call *call, int64_t code, const struct api_blame *about);
/* Takes @job, or NULL: what it says, or nothing. */
void api_call_take_job(struct vmimg_job *job, struct vmimg_job_info *ret);
/*
 * The answer of a call that starts a job: @code of the library, @job taken, with @made (NULL: nothing) as
 * member @name of the result. A failed one names its job too, and blames by @about.
 */
int64_t api_call_answer_job(struct api_call *call, uint32_t code, struct vmimg_job *job,
			    const struct api_blame *about, const char *name,
			    const struct vmimg_ref *made);
/* The element that a call is to make, as the parameter at @index wants it named. */
void api_call_wanted(const struct api_call *call, unsigned index, struct vmimg_ref *ret);
json_t *api_call_ref(const struct vmimg_ref *ref); /* {Name, Id}, or null */
/* As the call's outcome: the document of one element. */
int64_t api_call_describe(struct api_call *call, enum vmimg_kind kind, const char *name);

/* --- rows of a table of parameters --- */
#define API_NAME_BYTES 1024u /* longer than any name: those get the library's own answer */
#define API_PATH_BYTES 4096u
#define TEXT(param, is_required)                                                                   \
	{                                                                                          \
		.name = (param), .type = API_TEXT, .required = (is_required),                      \
		.max = API_NAME_BYTES                                                              \
	}
#define PATH(param, is_required)                                                                   \
	{                                                                                          \
		.name = (param), .type = API_TEXT, .required = (is_required),                      \
		.max = API_PATH_BYTES                                                              \
	}
#define NUMBER(param, is_required, largest)                                                        \
	{                                                                                          \
		.name = (param), .type = API_NUMBER, .required = (is_required), .max = (largest)   \
	}
#define BOOL(param)                                                                                \
	{                                                                                          \
		.name = (param), .type = API_BOOL                                                  \
	}
#define SETTINGS_OF(param)                                                                         \
	{                                                                                          \
		.name = (param), .type = API_SETTINGS                                              \
	}
/* What was made: a name that a reference holds. */
#define WANTED(param)                                                                              \
	{                                                                                          \
		.name = (param), .type = API_TEXT,                                                 \
		.max = sizeof(((struct vmimg_ref *)NULL)->name) - 1                                \
	}

/* Tables, each ended by a method without a name. */
extern const struct api_method api_element_methods[];  /* call_elements.c */
extern const struct api_method api_snapshot_methods[]; /* call_snapshot.c */
extern const struct api_method api_diff_methods[];     /* call_diff.c */
extern const struct api_method api_keep_methods[];     /* call_keep.c */
extern const struct api_method api_branch_methods[];   /* call_branch.c */
extern const struct api_method api_transfer_methods[]; /* call_transfer.c */
extern const struct api_method api_refpoint_methods[]; /* call_refpoint.c */

#endif
