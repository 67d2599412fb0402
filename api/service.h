/* SPDX-License-Identifier: MIT */
/*
 * service.h - what the files of api/ share: the service, error texts, names. Private.
 *
 * S-API-1: the service's lock is taken before a job's lock, the store's and the catalog's, never
 * after.
 * S-API-2: under it a create is checked and enters the store's running cuts; whatever
 * changes members looks at those under it too (CU-4).
 * S-API-3: the lock of the events comes last: an event may be told under any other.
 */
#ifndef API_SERVICE_H
#define API_SERVICE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "api/vmimg.h"
#include "engine/store/store.h"

struct api_callback;
struct api_guest_ops;
struct api_orphan;
struct api_report;
struct api_thaw_batch;

struct vmimg_service {
	struct eng_io *io, *own_io; /* what it runs on; the same, where it made that */
	struct eng_store *store;
	_Atomic unsigned queues;
	char **lease_argv; /* NULL-ended, ours */

	struct api_events *events;

	pthread_mutex_t usage_lock; /* usage.c: taken alone */
	struct eng_usage *usage;    /* or NULL */
	uint64_t usage_changes, usage_ns, usage_spent_ns, usage_taken_ns;

	pthread_mutex_t lock; /* guards what follows */
	pthread_cond_t job_ended;
	struct vmimg_job *jobs;     /* that run or somebody refers to */
	struct vmimg_job *finished; /* ended, thread to be joined; a reference each */
	uint64_t pruned_ns;         /* when old job rows were removed last */
	struct api_report *reports; /* report.c; newest first */

	struct api_guest_ops *guest_ops; /* callback.c */
	struct api_callback *callbacks;
	struct eng_thread *thaw_thread; /* thaw.c; NULL: not needed so far */
	struct api_orphan *orphans;     /* lease_client.c */
	int thaw_bell;
	bool thaw_stop;
	struct api_thaw_batch *thaw_new, *thaw_now;
};

/* vmimg_open() on another machine: @io, borrowed, or NULL for this one. For tests. */
int api_open(struct eng_io *io, const char *dir, const struct vmimg_options *options,
	     struct vmimg_error *err, struct vmimg_service **ret);

/* --- errors (error.c) --- */
/* Fill *@err, NULL being fine, and return @code. The text keeps to 255 bytes of printable UTF-8. */
int api_fail(struct vmimg_error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
uint32_t api_answer(struct vmimg_error *err, uint32_t code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* With the engine's own text; where that is empty "@what: " and the errno's. */
int api_fail_why(struct vmimg_error *err, int code, const struct fmt_error *why, const char *what);
uint32_t api_answer_why(struct vmimg_error *err, uint32_t code, int r, const struct fmt_error *why,
			const char *what);
/* The vendor code of a negative errno (RC-2). */
uint32_t api_vendor_code(int r);

/* --- names (name.c; RC-6) --- */
bool api_name_is_valid(const char *name);
/* "LEFT<sep>RIGHT" with valid names on both sides; -EINVAL. */
int api_name_split(const char *text, char sep, char left[CAT_NAME_MAX], char right[CAT_NAME_MAX]);
/* The wanted name, "" for none, without its collection; 4: it is no name, or of another collection. */
uint32_t api_wanted_name(const char *wanted, char sep, const char *collection,
			 struct vmimg_error *err, char ret[CAT_NAME_MAX]);
/*
 * What calls of a snapshot (@sep '@') or a reference point ('#') begin with: 4, with @verb naming the call,
 * where there is no service or @text is no such name.
 */
uint32_t api_read_name(const struct vmimg_service *svc, const char *verb, const char *text,
		       char sep, struct vmimg_error *err, char collection[CAT_NAME_MAX],
		       char name[CAT_NAME_MAX]);
/* 5: the catalog takes no change any more; of what the call is about. */
uint32_t api_check_writable(const struct vmimg_service *svc, const char *what,
			    struct vmimg_error *err);
/* "LEFT<sep>RIGHT" into @buf. */
void api_name_join(char buf[CAT_NS_MAX], const char *left, char sep, const char *right);
/* A free snapshot name of the collection: "PREFIX-YYYYMMDD-HHMMSS" (CSN-5); snapshot.c. */
void api_name_by_time(struct vmimg_service *svc, const char *collection, const char *prefix,
		      char ret[CAT_NAME_MAX]);

#endif
