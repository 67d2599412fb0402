/* SPDX-License-Identifier: MIT */
/*
 * service.c - the service: one open store with its machine beneath, its jobs and its queues.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/describe.h"
#include "api/event.h"
#include "api/fold.h"
#include "api/holder.h"
#include "api/job.h"
#include "api/quiesce.h"
#include "api/transfer.h"

#define THREADS_MAX 64u

int vmimg_store_init(const char *dir, struct vmimg_error *err)
{
	struct fmt_error why = {""};
	struct eng_io *io = NULL;
	int r;

	if (!dir || !*dir)
		return api_fail(err, -EINVAL, "store: no directory given");
	r = eng_io_posix_create(&io);
	if (r == 0)
		r = eng_store_init(io, dir, &why);
	if (r < 0)
		api_fail_why(err, r, &why, dir);
	eng_io_destroy(io);
	return r;
}

/* Callers built against a shorter or longer struct are served as far as both know it. */
static int read_options(const struct vmimg_options *options, struct vmimg_error *err,
			struct vmimg_options *ret)
{
	const uint8_t *bytes = (const uint8_t *)options;
	size_t known = sizeof(*ret);

	memset(ret, 0, sizeof(*ret));
	if (!options)
		return 0;
	if (options->size < offsetof(struct vmimg_options, base_dirs))
		return api_fail(err, -EINVAL, "options: size is %u, expected at least %zu",
				options->size, offsetof(struct vmimg_options, base_dirs));
	for (size_t i = sizeof(*ret); i < options->size; i++)
		if (bytes[i])
			return api_fail(err, -EINVAL,
					"options: byte %zu is set; this version knows %zu", i,
					sizeof(*ret));
	memcpy(ret, options, options->size < known ? options->size : known);
	if (ret->buffered > 1 || ret->standby > 1)
		return api_fail(err, -EINVAL,
				"options: buffered is %u, standby %u, expected 0 or 1",
				ret->buffered, ret->standby);
	if (ret->background_threads > THREADS_MAX)
		return api_fail(err, -EINVAL, "options: background_threads is %u, expected 0..%u",
				ret->background_threads, THREADS_MAX);
	return 0;
}

static void free_words(char **words)
{
	for (size_t i = 0; words && words[i]; i++)
		free(words[i]);
	free(words);
}

/* The caller's words may go after the call. */
static char **copy_words(const char *const *words)
{
	size_t n = 0;
	char **copy;

	while (words[n])
		n++;
	copy = calloc(n + 1, sizeof(*copy));
	for (size_t i = 0; copy && i < n; i++) {
		copy[i] = strdup(words[i]);
		if (!copy[i]) {
			free_words(copy);
			copy = NULL;
		}
	}
	return copy;
}

static struct vmimg_service *service_create(void)
{
	struct vmimg_service *svc = calloc(1, sizeof(*svc));

	if (!svc)
		return NULL;
	pthread_mutex_init(&svc->lock, NULL);
	pthread_mutex_init(&svc->usage_lock, NULL);
	pthread_cond_init(&svc->job_ended, NULL);
	return svc;
}

static void service_destroy(struct vmimg_service *svc)
{
	if (!svc)
		return;
	api_events_destroy(svc->events);
	api_reports_free(svc);
	eng_io_destroy(svc->own_io);
	free_words(svc->lease_argv);
	pthread_cond_destroy(&svc->job_ended);
	pthread_mutex_destroy(&svc->lock);
	pthread_mutex_destroy(&svc->usage_lock);
	free(svc);
}

int api_open(struct eng_io *io, const char *dir, const struct vmimg_options *options,
	     struct vmimg_error *err, struct vmimg_service **ret)
{
	static const char *const default_lease[] = {"vmimg", "lease", NULL};
	struct vmimg_service *svc = NULL;
	struct fmt_error why = {""};
	struct vmimg_options o;
	int r;

	if (!dir || !*dir || !ret)
		return api_fail(err, -EINVAL, "open: no %s given", ret ? "directory" : "result");
	r = read_options(options, err, &o);
	if (r < 0)
		return r;
	svc = service_create();
	r = !svc ? -ENOMEM : io ? 0 : eng_io_posix_create(&svc->own_io);
	if (r == 0) {
		svc->io = io ? io : svc->own_io;
		svc->lease_argv = copy_words(o.lease_argv && o.lease_argv[0] ? o.lease_argv
									     : default_lease);
		r = svc->lease_argv ? 0 : -ENOMEM;
	}
	if (r == 0) {
		const struct eng_store_options how = {
			.buffered = o.buffered,
			.threads = o.background_threads,
			.standby = o.standby,
			.log_bound = o.log_bound,
			.map_bound = o.map_bound,
			.map_memory = o.map_memory,
			.seal_rate = o.seal_rate,
			.fold_rate = o.fold_rate,
			.base_dirs = o.base_dirs,
		};

		r = eng_store_open(svc->io, dir, &how, &why, &svc->store);
	}
	if (r == -EBUSY && err) {
		char who[160];

		api_holder_text(dir, who, sizeof(who));
		api_fail(err, r, "%s%s", why.text, who);
	} else if (r < 0) {
		api_fail_why(err, r, &why, dir);
	}
	if (r < 0)
		goto out;
	r = api_events_create(svc, &svc->events);
	if (r < 0) {
		eng_store_close(svc->store);
		api_fail_why(err, r, &why, dir);
		goto out;
	}
	api_jobs_prune(svc);
	api_folds_watch(svc);
	api_thaw_recorded(svc);
	*ret = svc;
	svc = NULL;
out:
	service_destroy(svc);
	return r;
}

int vmimg_open(const char *dir, const struct vmimg_options *options, struct vmimg_error *err,
	       struct vmimg_service **ret)
{
	return api_open(NULL, dir, options, err, ret);
}

int vmimg_close(struct vmimg_service *svc)
{
	int r;

	if (!svc)
		return 0;
	if (atomic_load(&svc->queues) || api_events_wanted(svc->events))
		return -EBUSY;
	api_jobs_finish(svc);
	api_callbacks_finish(svc);
	api_thaw_finish(svc);
	api_leases_finish(svc);
	api_events_stop(svc->events);
	api_usage_forget(svc);
	r = eng_store_close(svc->store);
	if (r == -EBUSY)
		return r;
	api_jobs_forget(svc);
	service_destroy(svc);
	return r;
}
