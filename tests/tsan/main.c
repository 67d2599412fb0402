/* SPDX-License-Identifier: MIT */
/*
 * main.c - runs the tests of a program built with TSAN=1 (criterion.h says why not Criterion). Knows
 * the options that tests/run gives: --tap=FILE and --filter SUITE/TEST; ignores others. The parent
 * has one thread and forks a child for each test.
 */
#include "tests/tsan/criterion/criterion.h"

#include <fnmatch.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <unistd.h>

enum { EXIT_FAILED = 1, EXIT_SKIPPED = 77 };

static struct tsan_test *tests, **tests_end = &tests;
static struct tsan_suite *suites;
static bool child_failed;

void tsan_add_test(struct tsan_test *test)
{
	*tests_end = test;
	tests_end = &test->next;
}

void tsan_add_suite(struct tsan_suite *suite)
{
	suite->next = suites;
	suites = suite;
}

void tsan_failed(bool fatal, const char *file, int line, const char *what, const char *fmt, ...)
{
	va_list args;

	fprintf(stderr, "%s:%d: %s", file, line, what);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	child_failed = true;
	if (fatal)
		exit(EXIT_FAILED);
}

void tsan_skip(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	exit(EXIT_SKIPPED);
}

static const struct tsan_suite *suite_of(const struct tsan_test *test)
{
	static const struct tsan_suite none;

	for (const struct tsan_suite *s = suites; s; s = s->next)
		if (!strcmp(s->name, test->suite))
			return s;
	return &none;
}

static void run_child(const struct tsan_test *test, const struct tsan_suite *suite)
{
	double timeout = test->timeout > 0 ? test->timeout : suite->timeout;

	/* The sanitizer makes everything several times slower. */
	if (timeout > 0)
		alarm((unsigned)(10 * timeout) + 1);
	if (suite->init)
		suite->init();
	if (test->init)
		test->init();
	test->run();
	if (test->fini)
		test->fini();
	if (suite->fini)
		suite->fini();
	exit(child_failed ? EXIT_FAILED : 0); /* the sanitizer's own status is 66 */
}

static int run_test(const struct tsan_test *test, FILE *tap)
{
	const struct tsan_suite *suite = suite_of(test);
	int status = EXIT_SKIPPED << 8;
	bool ok;

	fflush(NULL);
	if (!test->disabled && !suite->disabled) {
		pid_t pid = fork();

		if (pid == 0)
			run_child(test, suite);
		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			status = EXIT_FAILED << 8;
	}
	ok = status == 0 || status == EXIT_SKIPPED << 8;
	fprintf(tap, "%s - %s::%s%s\n", ok ? "ok" : "not ok", test->suite, test->name,
		status == EXIT_SKIPPED << 8 ? "  # SKIP" : "");
	if (!ok)
		fprintf(stderr, "[FAIL] %s::%s: wait status 0x%x\n", test->suite, test->name,
			(unsigned)status);
	return ok ? 0 : 1;
}

int main(int argc, char **argv)
{
	const char *filter = "*";
	FILE *tap = stdout;
	int failed = 0;

	for (int i = 1; i < argc; i++) {
		if (!strncmp(argv[i], "--tap=", 6))
			tap = fopen(argv[i] + 6, "w");
		else if (!strcmp(argv[i], "--filter") && i + 1 < argc)
			filter = argv[++i];
	}
	if (!tap)
		return EXIT_FAILED;
	for (const struct tsan_test *test = tests; test; test = test->next) {
		char name[256];

		snprintf(name, sizeof(name), "%s/%s", test->suite, test->name);
		if (!fnmatch(filter, name, 0))
			failed += run_test(test, tap);
	}
	if (tap != stdout)
		fclose(tap);
	return failed ? EXIT_FAILED : 0;
}
