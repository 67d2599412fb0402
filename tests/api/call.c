/* SPDX-License-Identifier: MIT */
/* call.c - the API family as JSON: every method, and every request that is none (spec/control.md). */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/api/fixture.h"

TestSuite(api_call, .init = fixture_init, .fini = fixture_fini, .timeout = 120);

/* The reply to @request; json_decref(). CP-2: one object, no line breaks, result or error. */
static json_t *call(const char *request)
{
	char *reply = NULL;
	int r = vmimg_call(svc, request, &reply);
	json_t *document;

	cr_assert(r == 0 || r == 1, "%s: %d", request, r);
	cr_expect_null(strchr(reply, '\n'), "%s", reply);
	document = json_loads(reply, JSON_REJECT_DUPLICATES, NULL);
	cr_assert(json_is_object(document), "%.200s: %s", request, reply);
	cr_expect_eq(json_object_size(document), 2, "%s", reply);
	cr_expect_not_null(json_object_get(document, r ? "error" : "result"), "%s", reply);
	vmimg_free(reply);
	return document;
}

/* The result of @method with @params, a JSON object with ' for "; of the last call. */
static json_t *last;

__attribute__((format(printf, 2, 3))) static json_t *ask(const char *method, const char *format,
							 ...)
{
	char params[2048], request[4096];
	va_list args;

	va_start(args, format);
	vsnprintf(params, sizeof(params), format, args);
	va_end(args);
	snprintf(request, sizeof(request), "{\"id\": 1, \"method\": \"%s\", \"params\": {%s}}",
		 method, params);
	for (char *c = request; *c; c++)
		if (*c == '\'')
			*c = '"';
	json_decref(last);
	last = call(request);
	return json_object_get(last, "result");
}

/* The last call failed with @code, an errno's name or a number in text, and blames @field. */
static void failed(const char *code, const char *field)
{
	const json_t *error = json_object_get(last, "error");
	const json_t *got = json_object_get(error, "code");
	char number_text[24];

	cr_assert(json_is_object(error), "no error but %s", json_dumps(last, 0));
	snprintf(number_text, sizeof(number_text), "%lld", (long long)json_integer_value(got));
	cr_expect_str_eq(json_is_string(got) ? json_string_value(got) : number_text, code, "%s",
			 text(error, "message"));
	cr_expect_str_neq(text(error, "message"), "");
	if (field)
		cr_expect_str_eq(text(error, "field") ? text(error, "field") : "", field, "%s",
				 text(error, "message"));
	else
		cr_expect_null(json_object_get(error, "field"));
}

static void refused(const char *request, const char *field)
{
	json_decref(last);
	last = call(request);
	failed("EINVAL", field);
}

#define expect_result(...) cr_assert_not_null(ask(__VA_ARGS__), "%s", json_dumps(last, 0))

/* --- what is no request: CP-1, CP-4 --- */

Test(api_call, what_is_no_json_object_is_refused)
{
	static const char *const bad[] = {
		"",
		"x",
		"{",
		"[]",
		"null",
		"7",
		"\"x\"",
		"{\"method\"}",
		"\x80",
		"{\"\x80\": 1}",
		"{\"id\": 1e999}",
		"{'id': 1}",
		"{\"id\":\"\\u0000\"}",
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		refused(bad[i], NULL);
	refused("{\"method\": \"Version\"} {}", NULL);
}

Test(api_call, members_are_known_single_and_typed)
{
	refused("{}", "method");
	refused("{\"method\": 1}", "method");
	refused("{\"method\": \"\"}", "method");
	refused("{\"method\": \"version\"}", "method");
	refused("{\"method\": \"Version\", \"jsonrpc\": \"2.0\"}", "jsonrpc");
	refused("{\"method\": \"Version\", \"params\": []}", "params");
	refused("{\"method\": \"Version\", \"params\": null}", "params");
	refused("{\"method\": \"Version\", \"method\": \"Version\"}", NULL);
	refused("{\"method\": \"Version\", \"params\": {\"x\": 1}}", "params.x");
	refused("{\"method\": \"ResizeDisk\"}", "params.Disk");
	refused("{\"method\": \"ResizeDisk\", \"params\": {\"Disk\": \"a/b\"}}", "params.Size");
	refused("{\"method\": \"ResizeDisk\", \"params\": {\"Disk\": 1, \"Size\": 1}}",
		"params.Disk");
	refused("{\"method\": \"ResizeDisk\", \"params\": {\"Disk\": \"a/b\", \"Size\": \"1\"}}",
		"params.Size");
	refused("{\"method\": \"ResizeDisk\", \"params\": {\"Disk\": \"a/b\", \"Size\": 1.5}}",
		"params.Size");
	refused("{\"method\": \"ResizeDisk\", \"params\": {\"Disk\": \"a/b\", \"Size\": -1}}",
		"params.Size");
	refused("{\"method\": \"ResizeDisk\", \"params\": {\"Disk\": null, \"Size\": 1}}",
		"params.Disk");
	refused("{\"method\": \"CreateDisk\", \"params\": {\"Disk\": \"a/b\", \"InPlace\": 1}}",
		"params.InPlace");
	refused("{\"method\": \"CheckSnapshot\", \"params\": {\"Collection\": \"c\", "
		"\"SnapshotType\": 65536}}",
		"params.SnapshotType");
	refused("{\"method\": \"CheckSnapshot\", \"params\": {\"Collection\": \"c\", "
		"\"SnapshotType\": 1, \"SnapshotSettings\": []}}",
		"params.SnapshotSettings");
}

Test(api_call, size_and_depth_are_bounded)
{
	enum { LIMIT = 64 << 10 };
	static const char head[] = "{\"method\": \"Version\", \"id\": \"", tail[] = "\"}";
	char *request = malloc(LIMIT + 2);
	size_t fill = LIMIT - strlen(head) - strlen(tail);
	json_t *reply;

	memcpy(request, head, strlen(head));
	memset(request + strlen(head), 'x', fill + 1);
	memcpy(request + strlen(head) + fill, tail, sizeof(tail));
	reply = call(request);
	cr_expect_not_null(json_object_get(reply, "result"), "64 KiB are taken");
	json_decref(reply);
	memset(request + strlen(head), 'x', fill + 1);
	memcpy(request + strlen(head) + fill + 1, tail, sizeof(tail));
	refused(request, NULL);
	memset(request, '[', LIMIT - 1);
	request[LIMIT - 1] = 0;
	refused(request, NULL);
	free(request);
	refused("{\"id\": [[[[[[[[1]]]]]]]], \"method\": \"Version\"}", NULL);
	reply = call("{\"id\": [[[[[[[\"]]]\\\"[[[[[[[[\"]]]]]]], \"method\": \"Version\"}");
	cr_expect_not_null(json_object_get(reply, "result"),
			   "brackets in a string count for nothing");
	json_decref(reply);
}

/* CP-2 */
Test(api_call, the_id_comes_back_whatever_it_is)
{
	static const char *const ids[] = {"1", "\"a\\nb\"", "null", "[1,{\"x\":false}]", "-2.5"};

	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
		json_t *id = json_loads(ids[i], JSON_DECODE_ANY, NULL), *reply;
		char request[100];

		snprintf(request, sizeof(request), "{\"id\": %s, \"method\": \"%s\"}", ids[i],
			 i % 2 ? "Version" : "None");
		reply = call(request);
		cr_expect(json_equal(json_object_get(reply, "id"), id), "%s", ids[i]);
		json_decref(reply);
		json_decref(id);
	}
	cr_expect_eq(vmimg_call(NULL, "{}", &(char *){NULL}), -EINVAL);
	cr_expect_eq(vmimg_call(svc, NULL, &(char *){NULL}), -EINVAL);
	cr_expect_eq(vmimg_call(svc, "{}", NULL), -EINVAL);
}

/* --- VMs, disks, collections, documents --- */

Test(api_call, virtual_machines_come_and_go)
{
	expect_result("DefineVirtualMachine", "'Name': 'web'");
	cr_expect_str_eq(text(json_object_get(last, "result"), "name"), "web");
	ask("DefineVirtualMachine", "'Name': 'web'");
	failed("EEXIST", NULL);
	ask("DefineVirtualMachine", "'Name': '.web'");
	failed("EINVAL", "params.Name");
	expect_result("DestroyVirtualMachine", "'VirtualMachine': 'web'");
	ask("DestroyVirtualMachine", "'VirtualMachine': 'web'");
	failed("ENOENT", "params.VirtualMachine");
}

Test(api_call, disks_are_made_resized_and_deleted)
{
	make_vm("web", 0);
	expect_result("CreateDisk", "'Disk': 'web/a', 'Size': 1048576, 'BlockSize': 65536, "
				    "'Independent': true");
	cr_expect_eq(number(json_object_get(last, "result"), "block_size"), 65536);
	cr_expect(json_is_true(json_object_get(json_object_get(last, "result"), "independent")));
	expect_result("ResizeDisk", "'Disk': 'web/a', 'Size': 2097152");
	cr_expect_eq(number(json_object_get(last, "result"), "size"), 2097152);
	ask("ResizeDisk", "'Disk': 'web/a', 'Size': 1048576");
	failed("EINVAL", NULL);
	ask("CreateDisk", "'Disk': 'web/b', 'Size': 1048576, 'BlockSize': 12288");
	failed("EINVAL", "params.BlockSize");
	ask("CreateDisk", "'Disk': 'web/b', 'From': 'relative'");
	failed("EINVAL", "params.From");
	ask("CreateDisk", "'Disk': 'web/b', 'From': '%s/none'", scratch);
	failed("ENOENT", NULL);
	ask("CreateDisk", "'Disk': 'web/b'");
	failed("EINVAL", NULL);
	expect_result("DeleteDisk", "'Disk': 'web/a'");
	ask("DeleteDisk", "'Disk': 'web/a'");
	failed("ENOENT", "params.Disk");
}

/* CP-5 */
Test(api_call, collections_answer_with_the_family_s_numbers)
{
	make_vm("web", 1);
	expect_result("DefineCollection", "'Name': 'prod'");
	cr_expect_eq(number(json_object_get(last, "result"), "ReturnValue"), 0);
	cr_expect_str_eq(text(json_object_get(json_object_get(last, "result"), "DefinedCollection"),
			      "Name"),
			 "prod");
	ask("DefineCollection", "'Name': 'prod'");
	failed("32773", "params.Name");
	ask("DefineCollection", "'Name': 'x', 'Id': 'y'");
	failed("32773", "params.Id");
	ask("DefineCollection", "'Name': 'x', 'Type': 1");
	failed("32770", "params.Type");
	expect_result("AddMember", "'Member': 'web', 'Collection': 'prod'");
	ask("AddMember", "'Member': 'web', 'Collection': 'prod'");
	failed("32775", NULL);
	ask("AddMember", "'Member': 'web', 'Collection': 'none'");
	failed("32779", "params.Collection");
	ask("AddMember", "'Member': 'none', 'Collection': 'prod'");
	failed("32779", "params.Member");
	expect_result("RenameCollection", "'Collection': 'prod', 'NewName': 'live'");
	ask("RenameCollection", "'Collection': 'prod', 'NewName': 'x'");
	failed("32779", "params.Collection");
	expect_result("RemoveMember", "'Member': 'web', 'Collection': 'live'");
	expect_result("RemoveMemberById",
		      "'Member': 'web', 'CollectionId': '00000000-0000-4000-8000-000000000000'");
	ask("RemoveMemberById", "'Member': 'web', 'CollectionId': 'x'");
	failed("32773", "params.CollectionId");
	expect_result("DestroyCollection", "'Collection': 'live'");
	ask("DestroyCollection", "'Collection': 'live'");
	failed("32779", "params.Collection");
}

Test(api_call, documents_are_the_library_s)
{
	static const char *const kinds[] = {"vm", "disk", "collection", "snapshot", "job"};
	json_t *expected;

	make_vm("web", 1);
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		expect_result("List", "'Kind': '%s'", kinds[i]);
		expected = list((enum vmimg_kind)(i + VMIMG_KIND_VM), NULL);
		cr_expect(json_equal(json_object_get(last, "result"), expected), "%s", kinds[i]);
		json_decref(expected);
	}
	expect_result("List", "'Kind': 'disk', 'Filter': 'web'");
	cr_expect_eq(json_array_size(json_object_get(last, "result")), 1);
	expect_result("Describe", "'Kind': 'disk', 'Name': 'web/d0'");
	expected = describe(VMIMG_KIND_DISK, "web/d0");
	cr_expect(json_equal(json_object_get(last, "result"), expected));
	json_decref(expected);
	expect_result("Describe", "'Kind': 'tree'");
	expect_result("StoreInfo", " ");
	cr_expect_eq(number(json_object_get(last, "result"), "disks"), 1);
	expect_result("Version", " ");
	cr_expect_str_eq(text(json_object_get(last, "result"), "Version"), vmimg_version());
	ask("Describe", "'Kind': 'disk', 'Name': 'web/none'");
	failed("ENOENT", "params.Name");
	ask("Describe", "'Kind': 'Disk', 'Name': 'web/d0'");
	failed("EINVAL", "params.Kind");
	ask("List", "'Kind': 'disk', 'Filter': 'none'");
	failed("ENOENT", "params.Filter");
}

/* --- snapshots and jobs --- */

Test(api_call, a_synchronous_create_returns_the_snapshot)
{
	const json_t *result;

	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	expect_result("CreateSnapshot",
		      "'Collection': 'prod', 'SnapshotType': 2, 'SnapshotSettings': "
		      "{'Synchronous': true}, 'ResultingSnapshotCollection': 's1'");
	result = json_object_get(last, "result");
	cr_expect_eq(number(result, "ReturnValue"), 0);
	cr_expect_eq(number(result, "JobState"), VMIMG_JOB_COMPLETED);
	cr_expect_eq(number(result, "PercentComplete"), 100);
	cr_expect_str_eq(text(json_object_get(result, "ResultingSnapshotCollection"), "Name"),
			 "prod@s1");
	expect_result("CreateSnapshot", "'Collection': 'prod', 'SnapshotType': 1, "
					"'SnapshotSettings': '{\\'Synchronous\\': true}'");
	cr_expect_eq(count_of(VMIMG_KIND_SNAPSHOT), 2, "settings are taken as text too");
}

static void refused_create(const char *code, const char *field, const char *params)
{
	ask("CheckSnapshot", "%s", params);
	failed(code, field);
	ask("CreateSnapshot", "%s", params);
	failed(code, field);
	cr_expect_eq(count_of(VMIMG_KIND_JOB), 0);
}

/* CP-3 */
Test(api_call, a_create_that_is_refused_names_the_field)
{
	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	make_collection("empty", NULL);
	refused_create("4", "params.Collection", "'Collection': 'none', 'SnapshotType': 1");
	refused_create("4", "params.SnapshotSettings",
		       "'Collection': 'prod', 'SnapshotType': 1, 'SnapshotSettings': {'X': 1}");
	refused_create("4", "params.SnapshotSettings",
		       "'Collection': 'prod', 'SnapshotType': 1, 'SnapshotSettings': 'x'");
	refused_create("6", "params.SnapshotType", "'Collection': 'prod', 'SnapshotType': 3");
	refused_create("1", "params.SnapshotType", "'Collection': 'prod', 'SnapshotType': 32768");
	refused_create("4", "params.ResultingSnapshotCollection",
		       "'Collection': 'prod', 'SnapshotType': 1, "
		       "'ResultingSnapshotCollection': 'other@s'");
	refused_create("5", NULL, "'Collection': 'empty', 'SnapshotType': 1");
	expect_result("CheckSnapshot", "'Collection': 'prod', 'SnapshotType': 1");
}

static struct stuck guest;

/* A create that waits for a guest; its job's id. */
static void begin_held(char id[37], const char *settings)
{
	make_vm("web", 2);
	make_collection("prod", "web", NULL);
	stuck_begin(&guest, "web/d0");
	expect_result("CreateSnapshot",
		      "'Collection': 'prod', 'SnapshotType': 1, 'SnapshotSettings': {%s}",
		      settings);
	snprintf(id, 37, "%s", text(json_object_get(last, "result"), "Job"));
}

/* FO-16, FO-17, JB-15 */
Test(api_call, folds_have_a_rate_and_an_end)
{
	char job[100];

	expect_result("SetFoldRate", "'BytesPerSecond': 1048576");
	expect_result("SetFoldRate", "'BytesPerSecond': 0");
	ask("SetFoldRate", "'BytesPerSecond': -1");
	failed("EINVAL", "params.BytesPerSecond");
	ask("Settle", "'Name': 'web/root'");
	failed("4", "params.Name");
	expect_result("Settle", "'Whole': true, 'Timeout': 60000");
	snprintf(job, sizeof(job), "'Job': '%s', 'Timeout': 20000",
		 text(json_object_get(last, "result"), "Job"));
	expect_result("WaitJob", "%s", job);
	cr_expect_eq(number(json_object_get(last, "result"), "job_state"), VMIMG_JOB_COMPLETED);
	cr_expect_eq(number(json_object_get(last, "result"), "job_type"), VMIMG_JOB_TYPE_SETTLE);
	snprintf(job, sizeof(job), "'Job': '%s', 'BytesPerSecond': 1",
		 text(json_object_get(last, "result"), "instance_id"));
	ask("SetJobRate", "%s", job);
	failed("EINVAL", "params.Job");
}

/* CP-8, JB-12, JB-13 */
Test(api_call, a_job_is_waited_for_cancelled_and_explained)
{
	char id[37];

	begin_held(id, "'Timeout': 60000");
	cr_expect_eq(number(json_object_get(last, "result"), "ReturnValue"), 4096);
	cr_expect_eq(number(json_object_get(last, "result"), "JobState"), VMIMG_JOB_RUNNING);
	cr_expect(json_is_null(
		json_object_get(json_object_get(last, "result"), "ResultingSnapshotCollection")));
	expect_result("WaitJob", "'Job': '%s', 'Timeout': 50", id);
	cr_expect_eq(number(json_object_get(last, "result"), "job_state"), VMIMG_JOB_RUNNING);
	expect_result("GetErrorEx", "'Job': '%s'", id);
	cr_expect(json_is_null(json_object_get(json_object_get(last, "result"), "Errors")));
	ask("RequestStateChange", "'Job': '%s', 'RequestedState': 2", id);
	failed("1", NULL);
	ask("RequestStateChange", "'Job': '%s', 'RequestedState': 9", id);
	failed("5", NULL);
	ask("RequestStateChange", "'Job': '%s', 'RequestedState': 4, 'TimeoutPeriod': 1", id);
	failed("4098", NULL);
	expect_result("RequestStateChange", "'Job': '%s', 'RequestedState': 4", id);
	cr_expect_eq(number(json_object_get(last, "result"), "ReturnValue"), 4096);
	stuck_end(&guest);
	expect_result("WaitJob", "'Job': '%s', 'Timeout': 60000", id);
	cr_expect_eq(number(json_object_get(last, "result"), "job_state"), VMIMG_JOB_TERMINATED);
	ask("RequestStateChange", "'Job': '%s', 'RequestedState': 5", id);
	failed("4097", NULL);
	expect_result("GetErrorEx", "'Job': '%s'", id);
	cr_expect_eq(json_array_size(json_object_get(json_object_get(last, "result"), "Errors")),
		     1);
	expect_result("GetError", "'Job': '%s'", id);
	cr_expect_str_eq(text(json_object_get(json_object_get(last, "result"), "Error"),
			      "OwningEntity"),
			 "vmimg");
	expect_result("Describe", "'Kind': 'job', 'Name': '%s'", id);
	ask("WaitJob", "'Job': 'x'");
	failed("EINVAL", "params.Job");
	ask("WaitJob", "'Job': '00000000-0000-4000-8000-000000000000'");
	failed("ENOENT", "params.Job");
	ask("WaitJob", "'Job': '%s', 'Timeout': 60001", id);
	failed("EINVAL", "params.Timeout");
}

/* CP-3: job */
Test(api_call, a_synchronous_create_that_fails_names_its_job)
{
	make_vm("web", 1);
	make_collection("prod", "web", NULL);
	stuck_begin(&guest, "web/d0");
	ask("CreateSnapshot", "'Collection': 'prod', 'SnapshotType': 1, 'SnapshotSettings': "
			      "{'Synchronous': true, 'Timeout': 100}");
	stuck_end(&guest);
	failed("3", NULL);
	cr_expect_eq(strlen(text(json_object_get(last, "error"), "job")), 36);
}
