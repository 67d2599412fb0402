/* SPDX-License-Identifier: MIT */
/*
 * criterion.h - the part of Criterion's interface that our tests use, for TSAN=1 only: Criterion maps
 * its memory where the thread sanitizer has its shadow, so the two cannot share a process. Tests
 * run one after another, each in a forked child; main.c reports as Criterion's TAP output does.
 */
#ifndef TESTS_TSAN_CRITERION_H
#define TESTS_TSAN_CRITERION_H

#pragma GCC system_header /* as the real one is: tests warn alike with both */

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tsan_test {
	const char *suite, *name;
	void (*run)(void);
	void (*init)(void);
	void (*fini)(void);
	double timeout; /* seconds, 0: none */
	bool disabled;
	const char *description;
	struct tsan_test *next;
};

struct tsan_suite {
	const char *name;
	void (*init)(void);
	void (*fini)(void);
	double timeout;
	bool disabled;
	const char *description;
	struct tsan_suite *next;
};

void tsan_add_test(struct tsan_test *test);
void tsan_add_suite(struct tsan_suite *suite);
/* Prints where and what; ends the child when @fatal. */
__attribute__((format(printf, 5, 6))) void tsan_failed(bool fatal, const char *file, int line,
						       const char *what, const char *fmt, ...);
__attribute__((format(printf, 1, 2), noreturn)) void tsan_skip(const char *fmt, ...);

#define Test(suite_, name_, ...)                                                                   \
	static void suite_##_##name_##_impl(void);                                                 \
	__attribute__((constructor)) static void suite_##_##name_##_add(void)                      \
	{                                                                                          \
		static struct tsan_test test = {.suite = #suite_,                                  \
						.name = #name_,                                    \
						.run = suite_##_##name_##_impl,                    \
						__VA_ARGS__};                                      \
		tsan_add_test(&test);                                                              \
	}                                                                                          \
	static void suite_##_##name_##_impl(void)

#define TestSuite(suite_, ...)                                                                     \
	__attribute__((constructor)) static void suite_##_add_suite(void)                          \
	{                                                                                          \
		static struct tsan_suite suite = {.name = #suite_, __VA_ARGS__};                   \
		tsan_add_suite(&suite);                                                            \
	}                                                                                          \
	_Static_assert(1, "")

#define TSAN_CHECK(fatal, cond, what, ...)                                                         \
	do {                                                                                       \
		if (!(cond))                                                                       \
			tsan_failed(fatal, __FILE__, __LINE__, what, " " __VA_ARGS__);             \
	} while (0)

#define cr_assert(c, ...)           TSAN_CHECK(true, c, #c, __VA_ARGS__)
#define cr_assert_not(c, ...)       TSAN_CHECK(true, !(c), "!(" #c ")", __VA_ARGS__)
#define cr_assert_eq(a, b, ...)     TSAN_CHECK(true, (a) == (b), #a " == " #b, __VA_ARGS__)
#define cr_assert_neq(a, b, ...)    TSAN_CHECK(true, (a) != (b), #a " != " #b, __VA_ARGS__)
#define cr_assert_lt(a, b, ...)     TSAN_CHECK(true, (a) < (b), #a " < " #b, __VA_ARGS__)
#define cr_assert_leq(a, b, ...)    TSAN_CHECK(true, (a) <= (b), #a " <= " #b, __VA_ARGS__)
#define cr_assert_gt(a, b, ...)     TSAN_CHECK(true, (a) > (b), #a " > " #b, __VA_ARGS__)
#define cr_assert_geq(a, b, ...)    TSAN_CHECK(true, (a) >= (b), #a " >= " #b, __VA_ARGS__)
#define cr_assert_null(a, ...)      TSAN_CHECK(true, (a) == NULL, #a " == NULL", __VA_ARGS__)
#define cr_assert_not_null(a, ...)  TSAN_CHECK(true, (a) != NULL, #a " != NULL", __VA_ARGS__)
#define cr_assert_str_eq(a, b, ...) TSAN_CHECK(true, !strcmp(a, b), #a " equals " #b, __VA_ARGS__)
#define cr_assert_str_neq(a, b, ...)                                                               \
	TSAN_CHECK(true, strcmp(a, b), #a " differs from " #b, __VA_ARGS__)
#define cr_assert_str_empty(a, ...)     TSAN_CHECK(true, !*(a), #a " is empty", __VA_ARGS__)
#define cr_assert_str_not_empty(a, ...) TSAN_CHECK(true, *(a), #a " is not empty", __VA_ARGS__)
#define cr_assert_arr_eq(a, b, n, ...)                                                             \
	TSAN_CHECK(true, !memcmp(a, b, n), #a " equals " #b, __VA_ARGS__)
#define cr_assert_arr_neq(a, b, n, ...)                                                            \
	TSAN_CHECK(true, memcmp(a, b, n), #a " differs from " #b, __VA_ARGS__)
#define cr_assert_float_eq(a, b, e, ...)                                                           \
	TSAN_CHECK(true, fabs((a) - (b)) <= (e), #a " == " #b, __VA_ARGS__)
#define cr_assert_fail(...) TSAN_CHECK(true, false, "reached", __VA_ARGS__)
#define cr_fatal(...)       TSAN_CHECK(true, false, "reached", __VA_ARGS__)

#define cr_expect(c, ...)           TSAN_CHECK(false, c, #c, __VA_ARGS__)
#define cr_expect_not(c, ...)       TSAN_CHECK(false, !(c), "!(" #c ")", __VA_ARGS__)
#define cr_expect_eq(a, b, ...)     TSAN_CHECK(false, (a) == (b), #a " == " #b, __VA_ARGS__)
#define cr_expect_neq(a, b, ...)    TSAN_CHECK(false, (a) != (b), #a " != " #b, __VA_ARGS__)
#define cr_expect_lt(a, b, ...)     TSAN_CHECK(false, (a) < (b), #a " < " #b, __VA_ARGS__)
#define cr_expect_leq(a, b, ...)    TSAN_CHECK(false, (a) <= (b), #a " <= " #b, __VA_ARGS__)
#define cr_expect_gt(a, b, ...)     TSAN_CHECK(false, (a) > (b), #a " > " #b, __VA_ARGS__)
#define cr_expect_geq(a, b, ...)    TSAN_CHECK(false, (a) >= (b), #a " >= " #b, __VA_ARGS__)
#define cr_expect_null(a, ...)      TSAN_CHECK(false, (a) == NULL, #a " == NULL", __VA_ARGS__)
#define cr_expect_not_null(a, ...)  TSAN_CHECK(false, (a) != NULL, #a " != NULL", __VA_ARGS__)
#define cr_expect_str_eq(a, b, ...) TSAN_CHECK(false, !strcmp(a, b), #a " equals " #b, __VA_ARGS__)
#define cr_expect_str_neq(a, b, ...)                                                               \
	TSAN_CHECK(false, strcmp(a, b), #a " differs from " #b, __VA_ARGS__)
#define cr_expect_arr_eq(a, b, n, ...)                                                             \
	TSAN_CHECK(false, !memcmp(a, b, n), #a " equals " #b, __VA_ARGS__)
#define cr_expect_arr_neq(a, b, n, ...)                                                            \
	TSAN_CHECK(false, memcmp(a, b, n), #a " differs from " #b, __VA_ARGS__)
#define cr_expect_float_eq(a, b, e, ...)                                                           \
	TSAN_CHECK(false, fabs((a) - (b)) <= (e), #a " == " #b, __VA_ARGS__)
#define cr_expect_fail(...) TSAN_CHECK(false, false, "reached", __VA_ARGS__)

#define cr_skip_test(...) tsan_skip(" " __VA_ARGS__)
#define cr_skip(...)      tsan_skip(" " __VA_ARGS__)
#define cr_log_info(...)  ((void)fprintf(stderr, __VA_ARGS__), (void)fputc('\n', stderr))
#define cr_log_warn(...)  cr_log_info(__VA_ARGS__)
#define cr_log_error(...) cr_log_info(__VA_ARGS__)

#endif
