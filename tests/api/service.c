/* SPDX-License-Identifier: MIT */
/* service.c - stores made, opened and closed; options; the calls that need none of it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/api/fixture.h"

TestSuite(api_service, .init = fixture_init, .fini = fixture_fini, .timeout = 60);

Test(api_service, init_wants_an_empty_directory)
{
	char path[300];

	expect_error(vmimg_store_init(store_dir, &err), -EEXIST);
	expect_error(vmimg_store_init(scratch, &err), -EEXIST);
	expect_error(vmimg_store_init(NULL, &err), -EINVAL);
	expect_error(vmimg_store_init("", &err), -EINVAL);
	snprintf(path, sizeof(path), "%s/no/such", scratch);
	expect_error(vmimg_store_init(path, &err), -ENOENT);
	snprintf(path, sizeof(path), "%s/empty", scratch);
	cr_assert_eq(mkdir(path, 0700), 0);
	expect_ok(vmimg_store_init(path, &err));
}

Test(api_service, open_refuses_what_is_no_store)
{
	struct vmimg_service *other = NULL;
	char path[300];

	expect_error(vmimg_open(scratch, NULL, &err, &other), -ENOENT);
	snprintf(path, sizeof(path), "%s/gone", scratch);
	expect_error(vmimg_open(path, NULL, &err, &other), -ENOENT);
	expect_error(vmimg_open(NULL, NULL, &err, &other), -EINVAL);
	expect_error(vmimg_open("", NULL, &err, &other), -EINVAL);
	expect_error(vmimg_open(store_dir, NULL, &err, NULL), -EINVAL);
	cr_expect_null(other);
	cr_expect_eq(vmimg_close(NULL), 0);
}

/* T19, S-1 */
Test(api_service, one_process_at_a_time)
{
	struct vmimg_service *other = NULL;
	int status;
	pid_t pid;

	expect_error(vmimg_open(store_dir, NULL, &err, &other), -EBUSY);
	pid = fork();
	if (pid == 0)
		_exit(vmimg_open(store_dir, NULL, NULL, &other) == -EBUSY ? 0 : 1);
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

Test(api_service, options_are_checked)
{
	struct {
		struct vmimg_options options;
		uint64_t later;
	} longer = {.options.size = sizeof(longer)};
	struct vmimg_options o = {0};
	struct vmimg_service *other = NULL;

	fixture_close();
	expect_error(vmimg_open(store_dir, &o, &err, &other), -EINVAL);
	o.size = 8;
	expect_error(vmimg_open(store_dir, &o, &err, &other), -EINVAL);
	o.size = sizeof(o);
	o.buffered = 2;
	expect_error(vmimg_open(store_dir, &o, &err, &other), -EINVAL);
	o.buffered = 0;
	o.standby = 2;
	expect_error(vmimg_open(store_dir, &o, &err, &other), -EINVAL);
	o.standby = 0;
	o.background_threads = 65;
	expect_error(vmimg_open(store_dir, &o, &err, &other), -EINVAL);
	longer.later = 1;
	expect_error(vmimg_open(store_dir, &longer.options, &err, &other), -EINVAL);
	cr_expect_null(other);
	longer.later = 0;
	expect_ok(vmimg_open(store_dir, &longer.options, &err, &svc));
}

/* Every mode gives the same bytes. */
Test(api_service, options_work)
{
	const char *const dirs[] = {scratch, NULL};
	struct vmimg_options o = {.size = sizeof(o), .base_dirs = dirs};
	char name[16], snapshot[64];

	make_vm("web", 2);
	make_collection("prod", "web", NULL);
	for (unsigned mode = 0; mode < 4; mode++) {
		fixture_close();
		o.buffered = mode & 1;
		o.standby = mode >> 1;
		o.background_threads = mode + 1;
		o.log_bound = MIB;
		o.seal_rate = 64 * MIB;
		expect_ok(vmimg_open(store_dir, &o, &err, &svc));
		fill("web/d0", 4096 * mode, 4096, (uint8_t)(mode + 1));
		fill("web/d1", 512 * mode, 512, (uint8_t)(mode + 1));
		snprintf(name, sizeof(name), "s%u", mode);
		expect_ok(create("prod", name));
		fill("web/d0", 4096 * mode, 4096, 0xff);
		snprintf(snapshot, sizeof(snapshot), "prod@%s/web/d0", name);
		expect_filled(snapshot, 4096 * mode, 4096, (uint8_t)(mode + 1));
		snprintf(snapshot, sizeof(snapshot), "prod@%s/web/d1", name);
		expect_filled(snapshot, 512 * mode, 512, (uint8_t)(mode + 1));
	}
}

Test(api_service, numbers_have_names)
{
	static const uint32_t known[] = {0,     1,     2,     3,     4,     5,     6,
					 4096,  32768, 32769, 32770, 32771, 32772, 32773,
					 32774, 32775, 32776, 32777, 32778, 32779};
	char number_text[16];

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		snprintf(number_text, sizeof(number_text), "(%u)", known[i]);
		cr_expect_not_null(strstr(vmimg_strerror(known[i]), number_text), "%u", known[i]);
	}
	cr_expect_str_eq(vmimg_strerror(VMIMG_INVALID_STATE), "Invalid State (5)");
	cr_expect_str_neq(vmimg_strerror(7), "");
	cr_expect_str_neq(vmimg_strerror(UINT32_MAX), "");
	cr_expect_str_neq(vmimg_version(), "");
	vmimg_free(NULL);
}
