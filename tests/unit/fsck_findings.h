/* SPDX-License-Identifier: MIT */
/*
 * fsck_findings.h - what the checker's tests share: running it and asking what it found; editing files
 * byte by byte, with checksums made good again. For one program each: all of it is static.
 */
#ifndef TESTS_UNIT_FSCK_FINDINGS_H
#define TESTS_UNIT_FSCK_FINDINGS_H

#include <criterion/criterion.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

#include "format/layer.h"
#include "fsck/fsck.h"

#define FINDINGS_MAX 256

struct finding {
	enum fsck_severity severity;
	uint64_t leaked_bytes;
	char rule[16], where[256], message[512];
};

static struct finding findings[FINDINGS_MAX];
static size_t finding_count;
static struct fsck_summary summary;
static struct fmt_error check_error;

static inline void take_finding(void *arg, const struct fsck_finding *f)
{
	struct finding *to = &findings[finding_count % FINDINGS_MAX];

	(void)arg;
	cr_assert(f->rule && f->where && f->message, "a finding says what, where and why");
	to->severity = f->severity;
	to->leaked_bytes = f->leaked_bytes;
	snprintf(to->rule, sizeof(to->rule), "%s", f->rule);
	snprintf(to->where, sizeof(to->where), "%s", f->where);
	snprintf(to->message, sizeof(to->message), "%s", f->message);
	finding_count++;
}

static inline int check(struct eng_io *on, const char *file)
{
	finding_count = 0;
	check_error.text[0] = 0;
	return fsck_run(on, file, take_finding, NULL, &check_error, &summary);
}

/* All findings, one a line, for a test's message. */
static inline const char *all_findings(void)
{
	static const char *const names[] = {"note", "leak", "corruption"};
	static char text[16384];
	size_t at = 0;

	at += (size_t)snprintf(text, sizeof(text), "%zu findings\n", finding_count);
	for (size_t i = 0; i < finding_count && i < FINDINGS_MAX && at < sizeof(text); i++)
		at += (size_t)snprintf(text + at, sizeof(text) - at, "  %s %s: %s: %s\n",
				       names[findings[i].severity], findings[i].rule,
				       findings[i].where, findings[i].message);
	return text;
}

static inline bool was_found(const char *rule, enum fsck_severity severity)
{
	for (size_t i = 0; i < finding_count && i < FINDINGS_MAX; i++)
		if (!strcmp(findings[i].rule, rule) && findings[i].severity == severity)
			return true;
	return false;
}

/* For problems that share a rule with others. */
static inline bool was_said(const char *words)
{
	for (size_t i = 0; i < finding_count && i < FINDINGS_MAX; i++)
		if (strstr(findings[i].message, words))
			return true;
	return false;
}

/* Leaks and corruption, and notes but for slots that came to nothing, which any layer may have. */
static inline size_t faults(void)
{
	size_t n = 0;

	for (size_t i = 0; i < finding_count && i < FINDINGS_MAX; i++)
		n += findings[i].severity != FSCK_NOTE || strcmp(findings[i].rule, "SP-5") != 0;
	return n;
}

#define assert_sound(on, file)                                                                     \
	do {                                                                                       \
		int r_ = check(on, file);                                                          \
		cr_assert_eq(r_, 0, "%d: %s", r_, check_error.text);                               \
		cr_assert_eq(faults(), 0, "%s: %s", file, all_findings());                         \
		cr_assert(!summary.leaks && !summary.corruptions && !summary.leaked_bytes);        \
	} while (0)

/* The rule is found broken, and nothing that is worse. */
#define assert_found(on, file, rule_, severity_)                                                   \
	do {                                                                                       \
		int r_ = check(on, file);                                                          \
		cr_assert_eq(r_, 0, "%d: %s", r_, check_error.text);                               \
		cr_assert(was_found(rule_, severity_), "%s not found: %s", rule_, all_findings()); \
		cr_assert_eq(summary.corruptions > 0, (severity_) == FSCK_CORRUPT, "%s",           \
			     all_findings());                                                      \
		cr_assert((severity_) != FSCK_NOTE || !summary.leaks, "%s", all_findings());       \
	} while (0)

/* --- files --- */

static inline void file_read(const char *file, void *buf, size_t len, uint64_t offset)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC);

	cr_assert(fd >= 0, "open %s", file);
	cr_assert_eq(pread(fd, buf, len, (off_t)offset), (ssize_t)len, "%s at %#" PRIx64, file,
		     offset);
	close(fd);
}

static inline void file_write(const char *file, const void *buf, size_t len, uint64_t offset)
{
	int fd = open(file, O_WRONLY | O_CLOEXEC);

	cr_assert(fd >= 0, "open %s", file);
	cr_assert_eq(pwrite(fd, buf, len, (off_t)offset), (ssize_t)len);
	close(fd);
}

static inline uint64_t file_size(const char *file)
{
	struct stat st;

	cr_assert_eq(stat(file, &st), 0, "stat %s", file);
	return (uint64_t)st.st_size;
}

static inline void file_copy(const char *from, const char *to)
{
	size_t len = file_size(from);
	uint8_t *buf = malloc(len + 1);
	int fd = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	file_read(from, buf, len, 0);
	cr_assert(fd >= 0, "open %s", to);
	cr_assert_eq(write(fd, buf, len), (ssize_t)len);
	close(fd);
	free(buf);
}

/* --- checksums made good --- */

static inline void put_le64(uint8_t *at, uint64_t v)
{
	le64 d = le64_make(v);

	memcpy(at, &d, 8);
}

static inline uint64_t get_le64(const uint8_t *at)
{
	le64 d;

	memcpy(&d, at, 8);
	return le64_get(d);
}

static inline uint32_t get_le32(const uint8_t *at)
{
	le32 d;

	memcpy(&d, at, 4);
	return le32_get(d);
}

static inline void refit_header(uint8_t slot[FMT_PAGE])
{
	put_le64(slot + 0xff8, XXH3_64bits(slot, 0xff8));
}

static inline void refit_record(uint8_t *rec, uint64_t salt)
{
	put_le64(rec + 0x38, 0);
	put_le64(rec + 0x38, XXH3_64bits_withSeed(rec, get_le32(rec + 4), salt));
}

static inline void refit_page(uint8_t page[FMT_PAGE], uint64_t salt, uint64_t offset)
{
	put_le64(page + 0x10, 0);
	put_le64(page + 0x10, XXH3_64bits_withSeed(page, FMT_PAGE, salt ^ offset));
}

/* Where the header that counts is, and what it says. */
static inline uint64_t newest_header(const char *file, struct fmt_header *ret)
{
	uint8_t slots[2 * FMT_PAGE];

	file_read(file, slots, sizeof(slots), 0);
	cr_assert_eq(fmt_header_pick(slots, ret, NULL), 0, "%s has a header", file);
	return ret->seq % 2 * FMT_PAGE;
}

/* Writes @hdr, which may break any rule, over the header that counts. */
static inline void edit_header(const char *file, void (*edit)(struct fmt_header_disk *d))
{
	struct fmt_header_disk d;
	struct fmt_header h;
	uint64_t at = newest_header(file, &h);

	file_read(file, &d, sizeof(d), at);
	edit(&d);
	refit_header((uint8_t *)&d);
	file_write(file, &d, sizeof(d), at);
}

#endif
