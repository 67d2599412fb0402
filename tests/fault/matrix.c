/* SPDX-License-Identifier: MIT */
/*
 * matrix.c - the fault matrix (P4, P6; T15, T16, T23; FL-9, RV-10): every kind of operation of the I/O
 * seam fails, with EIO or ENOSPC, once or from then on, at its n-th occurrence in each step of a
 * store's life. Nothing crashes or hangs, errors say what failed, a failed flush poisons its disk and
 * nothing else, and when the faults are over the store opens again with everything that was
 * acknowledged, whole snapshots only, and goes on working.
 *
 * Each case is a process of its own. Environment: VMIMG_TEST_SECONDS bounds how many of the cases
 * run (all, where time allows; the order is shuffled, one of each kind first); SEED; CASE=STEP:OP:
 * ERRNO:STICKY:N runs one, as printed with a failure.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/io/io_record.h"
#include "tests/fault/scene.h"
#include "tests/lib/random.h"

#define ALL_BELOW 12 /* occurrences tried one by one; beyond, every seventh */

static const char *const step_names[STEPS] = {
	"open", "make disk",       "attach", "write",  "flush", "snapshot", "overlay writes",
	"roll", "second snapshot", "seal",   "detach", "close", "recovery",
};

static int run_child(struct scene_shared *sh, const struct fault *fault, bool recovery)
{
	char dir[] = "/dev/shm/vmimg-matrix-XXXXXX";
	int status = -1;
	pid_t pid;

	cr_assert_not_null(mkdtemp(dir));
	sh->why[0] = 0;
	sh->struck = 0;
	pid = fork();
	cr_assert_geq(pid, 0);
	if (pid == 0)
		scene_run(sh, fault, dir, recovery);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	eng_record_remove_tree(dir);
	if (WIFSIGNALED(status) && !sh->why[0])
		snprintf(sh->why, sizeof(sh->why), "ended by signal %d%s", WTERMSIG(status),
			 WTERMSIG(status) == SIGALRM ? ": it hung" : "");
	return status;
}

/* --- the matrix --- */

struct matrix {
	struct fault *faults;
	size_t count, room;
};

static void add(struct matrix *m, struct fault fault)
{
	if (m->count == m->room) {
		m->room = m->room ? 2 * m->room : 1024;
		m->faults = reallocarray(m->faults, m->room, sizeof(*m->faults));
		cr_assert_not_null(m->faults);
	}
	m->faults[m->count++] = fault;
}

static void add_all(struct matrix *m, const struct scene_shared *sh)
{
	static const int errors[] = {-EIO, -ENOSPC};

	for (unsigned step = 0; step < STEPS; step++)
		for (unsigned op = 0; op < ENG_FAULT_OPS; op++)
			for (uint64_t n = 0; n < sh->counts[step][op]; n += n < ALL_BELOW ? 1 : 7)
				for (unsigned k = 0; k < 4; k++)
					add(m, (struct fault){.step = step,
							      .op = 1u << op,
							      .error = errors[k % 2],
							      .sticky = k / 2,
							      .nth = n});
}

/* A random order, but the first of each kind before the others. */
static void shuffle(struct matrix *m, uint64_t *rng)
{
	size_t first = 0;

	for (size_t i = 0; i < m->count; i++) {
		size_t j = i + test_random(rng) % (m->count - i);
		struct fault f = m->faults[i];

		m->faults[i] = m->faults[j];
		m->faults[j] = f;
	}
	for (size_t i = 0; i < m->count; i++)
		if (m->faults[i].nth == 0) {
			struct fault f = m->faults[i];

			m->faults[i] = m->faults[first];
			m->faults[first++] = f;
		}
}

static unsigned bit_of(unsigned op)
{
	return (unsigned)__builtin_ctz(op);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static struct scene_shared *share(void)
{
	struct scene_shared *sh = mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE,
				       MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	cr_assert(sh != MAP_FAILED);
	return sh;
}

static bool try(struct scene_shared *sh, const struct fault *f)
{
	int status = run_child(sh, f, f->step == STEP_RECOVER);

	if (status == 0)
		return true;
	cr_expect(false,
		  "CASE=%u:%u:%d:%d:%llu (%s, operation %u, %s, %s, number %llu): %s (status %#x)",
		  f->step, bit_of(f->op), -f->error, f->sticky, (unsigned long long)f->nth,
		  step_names[f->step], bit_of(f->op), strerror(-f->error),
		  f->sticky ? "from then on" : "once", (unsigned long long)f->nth, sh->why, status);
	return false;
}

static bool one_case(struct scene_shared *sh)
{
	const char *text = getenv("CASE");
	unsigned step, op, sticky;
	unsigned long long n;
	struct fault f;
	int error;

	if (!text)
		return false;
	cr_assert_eq(sscanf(text, "%u:%u:%d:%u:%llu", &step, &op, &error, &sticky, &n), 5);
	f = (struct fault){
		.step = step, .op = 1u << op, .error = -error, .sticky = sticky != 0, .nth = n};
	try(sh, &f);
	return true;
}

/* P4, P6, T15, T16, T23, FL-9, RV-10 */
Test(fault_matrix, no_fault_hangs_lies_or_loses_what_was_acknowledged)
{
	const char *text = getenv("VMIMG_TEST_SECONDS"), *first = getenv("SEED");
	double start = now(), end = start + (text ? atof(text) : 60);
	uint64_t rng = first ? strtoull(first, NULL, 0) : (uint64_t)(start * 1e6);
	struct scene_shared *sh = share();
	struct matrix m = {0};
	size_t done = 0, struck_count = 0, failed = 0;

	if (one_case(sh))
		return;
	fprintf(stderr, "matrix: SEED=%llu\n", (unsigned long long)rng);
	cr_assert_eq(run_child(sh, NULL, false), 0, "without a fault: %s", sh->why);
	cr_assert_eq(run_child(sh, NULL, true), 0, "recovery without a fault: %s", sh->why);
	add_all(&m, sh);
	shuffle(&m, &rng);
	for (; done < m.count && now() < end && failed < 20; done++) {
		failed += !try(sh, &m.faults[done]);
		struck_count += sh->struck > 0;
	}
	fprintf(stderr, "matrix: %zu of %zu cases, %zu faults struck, in %.1f s\n", done, m.count,
		struck_count, now() - start);
	cr_expect_gt(struck_count, done / 2, "most faults did not strike");
	free(m.faults);
	munmap(sh, sizeof(*sh));
}
