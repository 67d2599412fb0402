/* SPDX-License-Identifier: MIT */
/*
 * api_meanwhile.c - what a call has looked at is another one by the time it acts: deleted and made anew under
 * the same name, deleted for good, or about to end. The other call comes at an operation on a file, or from
 * another thread.
 */
#include <criterion/criterion.h>
#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/service.h"
#include "engine/io/io_fault.h"
#include "engine/io/io_record.h"

#define SIZE (1u << 20)

static char dir[80], store_dir[100], out_dir[100];
static struct eng_io *posix;
static struct eng_fault *fault;
static struct vmimg_service *svc;
static struct vmimg_error err;

#define ok(call)                                                                                   \
	do {                                                                                       \
		int64_t code_ = (int64_t)(call);                                                   \
		cr_assert_eq(code_, 0, "%s: %lld, %s", #call, (long long)code_, err.message);      \
	} while (0)

static void open_store(void)
{
	ok(vmimg_store_init(store_dir, &err));
	ok(api_open(eng_fault_io(fault), store_dir, NULL, &err, &svc));
}

static void setup(void)
{
	const struct vmimg_disk_spec spec = {.size_of = sizeof(spec), .size = SIZE};

	strcpy(dir, "/dev/shm/vmimg-meanwhile-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	snprintf(store_dir, sizeof(store_dir), "%s/store", dir);
	snprintf(out_dir, sizeof(out_dir), "%s/out", dir);
	cr_assert_eq(eng_io_posix_create(&posix), 0);
	cr_assert_eq(eng_fault_create(posix, &fault), 0);
	open_store();
	ok(vmimg_vm_create(svc, "vm", &err));
	ok(vmimg_disk_create(svc, "vm/d", &spec, &err));
	ok(vmimg_define_collection(svc, "c", NULL, 0, NULL, &err));
	ok(vmimg_add_member(svc, "vm", "c", &err));
}

static void teardown(void)
{
	eng_fault_clear(fault);
	ok(vmimg_close(svc));
	eng_fault_destroy(fault);
	eng_io_destroy(posix);
	cr_assert_eq(eng_record_remove_tree(dir), 0);
}

TestSuite(api_meanwhile, .init = setup, .fini = teardown, .timeout = 60);

static uint32_t create(const char *name)
{
	struct vmimg_ref ref = {.name = ""};

	snprintf(ref.name, sizeof(ref.name), "%s", name);
	return vmimg_create_snapshot(svc, "c", "{\"Synchronous\": true}", VMIMG_SNAPSHOT_STANDARD,
				     &ref, NULL, &err);
}

static void write_byte(uint8_t byte)
{
	uint8_t *buf = aligned_alloc(4096, 4096);
	struct iovec iov = {.iov_base = buf, .iov_len = 4096};
	struct vmimg_request request = {.op = VMIMG_WRITE, .iovcnt = 1, .iov = &iov, .length = 4096};
	struct vmimg_completion done;
	struct vmimg_queue *queue;

	memset(buf, byte, 4096);
	ok(vmimg_queue_create(svc, 4, &err, &queue));
	ok(vmimg_disk_attach(queue, "vm/d", 0, &err, &request.disk));
	cr_assert_eq(vmimg_queue_submit(queue, &request, 1), 1);
	cr_assert_eq(vmimg_queue_poll(queue, &done, 1, UINT64_MAX), 1);
	ok(done.result);
	ok(vmimg_disk_detach(request.disk));
	ok(vmimg_queue_destroy(queue));
	free(buf);
}

static void snapshot_id(const char *name, char id[37])
{
	id[0] = 0;
	vmimg_snapshot_id(svc, name, NULL, id);
}

/* --- a name that is given again --- */

static struct again {
	const char *name, *once; /* "c@..."; only as soon as this one is there, or NULL */
	unsigned done;
	char id[37]; /* of the new one */
} again;

static void give_again(void *arg)
{
	char id[37] = "";
	struct again *a = arg;

	if (a->once)
		snapshot_id(a->once, id);
	if (a->done || (a->once && !id[0]))
		return;
	a->done++;
	eng_fault_clear(fault);
	ok(vmimg_destroy_snapshot(svc, a->name, NULL, &err));
	ok(create(a->name + 2));
	snapshot_id(a->name, a->id);
}

static void expect_new_one(void)
{
	char id[37];

	cr_assert_eq(again.done, 1u, "nothing came in between");
	snapshot_id(again.name, id);
	cr_expect_str_eq(id, again.id, "%s was made anew, and is gone", again.name);
}

/* RT-7: what was decided on goes, and nothing else. */
Test(api_meanwhile, prune_leaves_what_has_got_a_name)
{
	const struct eng_fault_rule rule = {.ops = ENG_FAULT_UNLINK,
					    .path = ".vmo",
					    .strike = give_again,
					    .arg = &again};
	const struct vmimg_prune how = {.size_of = sizeof(how), .keep_last = 1};
	char *json = NULL;

	ok(create("base"));
	write_byte(1);
	ok(create("end"));
	/* A branch's end, whose files go with it. */
	ok(vmimg_apply_snapshot(svc, "c@base", "{\"KeepState\": false}", NULL, NULL, &err));
	ok(create("again"));
	write_byte(2);
	ok(create("last"));
	again = (struct again){.name = "c@again"};
	cr_assert_geq(eng_fault_add(fault, &rule), 0);
	ok(vmimg_prune_snapshots(svc, "c", &how, &err, &json));
	vmimg_free(json);
	expect_new_one();
}

static pthread_t other;
static _Atomic unsigned strikes;

static void *delete_other(void *arg)
{
	struct vmimg_error why;

	(void)arg;
	if (vmimg_destroy_snapshot(svc, "c@s1", NULL, &why) != VMIMG_OK)
		abort();
	return NULL;
}

/* First within the pruning's own deletion: the other one begins, and waits for the disk. Then within that. */
static void begin_other(void *arg)
{
	char id[37] = "some";

	(void)arg;
	if (atomic_fetch_add(&strikes, 1)) {
		usleep(200000);
		return;
	}
	pthread_create(&other, NULL, delete_other, NULL);
	while (id[0]) {
		usleep(1000);
		snapshot_id("c@s1", id);
	}
}

/* RT-7: what somebody else is deleting just now is as good as gone. */
Test(api_meanwhile, prune_goes_on_beside_another_deletion)
{
	const struct eng_fault_rule rule = {.ops = ENG_FAULT_PWRITE,
					    .path = ".vm",
					    .sticky = true,
					    .strike = begin_other};
	const struct vmimg_prune how = {.size_of = sizeof(how), .keep_last = 1};
	char *json = NULL, id[37];

	ok(create("s0"));
	ok(create("s1"));
	ok(create("s2"));
	ok(create("s3"));
	ok(vmimg_settle(svc, NULL, VMIMG_SETTLE_WAIT, UINT64_MAX, NULL, &err));
	cr_assert_geq(eng_fault_add(fault, &rule), 0);
	ok(vmimg_prune_snapshots(svc, "c", &how, &err, &json));
	vmimg_free(json);
	eng_fault_clear(fault);
	cr_assert_gt(strikes, 1u);
	pthread_join(other, NULL);
	snapshot_id("c@s2", id);
	cr_expect_str_eq(id, "");
	snapshot_id("c@s3", id);
	cr_expect_str_neq(id, "");
}

static void export(const char *name, const char *base, const char *to)
{
	char settings[120];

	snprintf(settings, sizeof(settings), "{\"Synchronous\": true%s%s%s}",
		 base ? ", \"DifferentialBackupBase\": \"" : "", base ? base : "",
		 base ? "\"" : "");
	ok(vmimg_export_snapshot(svc, name, to, settings, NULL, &err));
}

/* Another store, that has c@s0; c@s1 is an increment beside it, at @increment. */
static void begin_anew_with_s0(char increment[120])
{
	snprintf(increment, 120, "%s.1", out_dir);
	export("c@s0", NULL, out_dir);
	export("c@s1", "c@s0", increment);
	ok(vmimg_close(svc));
	cr_assert_eq(eng_record_remove_tree(store_dir), 0);
	open_store();
	ok(vmimg_import_snapshot(svc, out_dir, "{\"Synchronous\": true}", NULL, &err));
}

/* IP-5: the base that was merged, and not its namesake. */
Test(api_meanwhile, merging_import_leaves_what_has_got_its_bases_name)
{
	const struct eng_fault_rule rule = {.ops = ENG_FAULT_SYNC_DIR,
					    .path = "layers",
					    .sticky = true,
					    .strike = give_again,
					    .arg = &again};
	char increment[120];

	write_byte(1);
	ok(create("s0"));
	write_byte(2);
	ok(create("s1"));
	begin_anew_with_s0(increment);
	again = (struct again){.name = "c@s0", .once = "c@s1"};
	cr_assert_geq(eng_fault_add(fault, &rule), 0);
	ok(vmimg_import_snapshot(svc, increment, "{\"Synchronous\": true, \"BackupIntent\": 2}",
				 NULL, &err));
	expect_new_one();
}

/* --- a member that comes while a snapshot is being created --- */

static struct vmimg_job *creating;

/* As soon as the import has claimed what is there: the create begins, and waits for that. */
static void create_too(void *arg)
{
	struct vmimg_error why;
	bool busy = false;

	(void)arg;
	pthread_mutex_lock(&svc->store->lock);
	for (const struct eng_entry *e = svc->store->entries; e; e = e->next)
		busy = busy || e->busy;
	pthread_mutex_unlock(&svc->store->lock);
	if (busy && !creating)
		vmimg_create_snapshot(svc, "c", "{\"Timeout\": 60000}", VMIMG_SNAPSHOT_STANDARD,
				      NULL, &creating, &why);
}

/* CU-4, I17: a disk and a member are there before the create's check, or come after its end. */
Test(api_meanwhile, import_makes_no_member_while_a_snapshot_is_created)
{
	const struct vmimg_disk_spec spec = {.size_of = sizeof(spec), .size = SIZE};
	const struct eng_fault_rule rule = {.ops = ENG_FAULT_OPEN,
					    .path = ".vmo",
					    .sticky = true,
					    .strike = create_too};
	struct vmimg_job_info info;
	char increment[120];

	ok(create("s0"));
	ok(vmimg_vm_create(svc, "late", &err));
	ok(vmimg_disk_create(svc, "late/d", &spec, &err));
	ok(vmimg_add_member(svc, "late", "c", &err));
	ok(create("s1"));
	begin_anew_with_s0(increment);
	cr_assert_geq(eng_fault_add(fault, &rule), 0);
	cr_expect_neq(vmimg_import_snapshot(svc, increment, "{\"Synchronous\": true}", NULL, &err),
		      VMIMG_OK);
	cr_expect(strstr(err.message, "a snapshot is being created"), "%s", err.message);
	eng_fault_clear(fault);
	cr_assert_not_null(creating);
	ok(vmimg_job_wait(creating, UINT64_MAX));
	vmimg_job_info(creating, &info);
	cr_expect_eq(info.job_state, VMIMG_JOB_COMPLETED, "%s", info.error_description);
	vmimg_job_put(creating);
}

/* --- two to one directory --- */

static uint32_t second_code;
static unsigned seconds;

static void export_too(void *arg)
{
	struct vmimg_error why;

	(void)arg;
	if (!seconds++)
		second_code = vmimg_export_reference_point(svc, "c#p1", out_dir,
							   "{\"Synchronous\": true}", NULL, &why);
}

static void make_point(const char *name)
{
	struct vmimg_ref ref = {.name = ""};

	snprintf(ref.name, sizeof(ref.name), "%s", name);
	ok(vmimg_create_reference_point(svc, "c", "{\"Synchronous\": true}", VMIMG_REFPOINT_RCT,
					&ref, NULL, &err));
}

/* XP-9, EX-2: what has the name is what said so. */
Test(api_meanwhile, points_that_are_exported_to_one_directory_are_not_mixed)
{
	const struct eng_fault_rule rule = {.ops = ENG_FAULT_FDATASYNC,
					    .path = "refpoint.json",
					    .strike = export_too};
	json_t *doc, *point;
	char path[120];

	make_point("p0");
	make_point("p1");
	cr_assert_geq(eng_fault_add(fault, &rule), 0);
	ok(vmimg_export_reference_point(svc, "c#p0", out_dir, "{\"Synchronous\": true}", NULL,
					&err));
	cr_expect_neq(second_code, VMIMG_OK);
	snprintf(path, sizeof(path), "%s/refpoint.json", out_dir);
	doc = json_load_file(path, 0, NULL);
	point = json_object_get(json_object_get(doc, "refpoint"), "refpoint");
	cr_expect_str_eq(json_string_value(point), "c#p0");
	json_decref(doc);
	snprintf(path, sizeof(path), "%s/.lock", out_dir);
	cr_expect_neq(access(path, F_OK), 0);
}

/* --- a VM that is deleted --- */

static _Atomic bool stop;

static void *set_agents(void *arg)
{
	struct vmimg_error why;

	(void)arg;
	while (!stop)
		vmimg_vm_set_guest_agent(svc, "gone", "/run/agent.sock", &why);
	return NULL;
}

/* QU-1: a change of what is not there any more does not bring it back. */
Test(api_meanwhile, deleted_vm_stays_deleted)
{
	char *json = NULL;
	pthread_t thread;

	cr_assert_eq(pthread_create(&thread, NULL, set_agents, NULL), 0);
	for (unsigned i = 0; i < 200; i++) {
		ok(vmimg_vm_create(svc, "gone", &err));
		usleep(200);
		ok(vmimg_vm_delete(svc, "gone", &err));
		usleep(200);
		cr_assert_eq(vmimg_describe(svc, VMIMG_KIND_VM, "gone", &err, &json), -ENOENT,
			     "in round %u", i);
	}
	stop = true;
	pthread_join(thread, NULL);
}

/* --- two disks at once --- */

static void *make_disks(void *arg)
{
	const struct vmimg_disk_spec spec = {.size_of = sizeof(spec), .size = SIZE};
	struct vmimg_error why;
	char name[16];

	for (unsigned i = 0; i < 8; i++) {
		snprintf(name, sizeof(name), "vm/%s%u", (const char *)arg, i);
		if (vmimg_disk_create(svc, name, &spec, &why) < 0)
			abort();
	}
	return NULL;
}

Test(api_meanwhile, disks_that_are_made_at_once_have_places_of_their_own)
{
	struct cat_disk *rows = NULL;
	uint64_t seen = 0;
	pthread_t a, b;
	size_t n = 0;

	cr_assert_eq(pthread_create(&a, NULL, make_disks, "a"), 0);
	cr_assert_eq(pthread_create(&b, NULL, make_disks, "b"), 0);
	pthread_join(a, NULL);
	pthread_join(b, NULL);
	ok(eng_catalog_list_disks(svc->store->catalog, NULL, &rows, &n));
	cr_assert_eq(n, 17u);
	for (size_t i = 0; i < n; i++)
		seen |= UINT64_C(1) << rows[i].position;
	cr_expect_eq(seen, (UINT64_C(1) << 17) - 1);
	free(rows);
}

/* --- a job that is found before it has ended --- */

static struct vmimg_job *found;

static void find_job(void *arg)
{
	char *json = NULL;
	json_t *list, *job;
	size_t i;

	(void)arg;
	if (found)
		return;
	ok(vmimg_list(svc, VMIMG_KIND_JOB, NULL, &err, &json));
	list = json_loads(json, 0, NULL);
	vmimg_free(json);
	json_array_foreach (list, i, job)
		if (json_integer_value(json_object_get(job, "job_type")) ==
		    VMIMG_JOB_TYPE_DELETE_SNAPSHOT)
			ok(vmimg_job_get(svc,
					 json_string_value(json_object_get(job, "instance_id")),
					 &err, &found));
	json_decref(list);
}

/* JB-2: whoever has found a deletion's job while it ran hears of its end, and so does who began it. */
Test(api_meanwhile, job_that_is_found_early_ends)
{
	const struct eng_fault_rule rule = {.ops = ENG_FAULT_PWRITE,
					    .path = ".vm",
					    .strike = find_job,
					    .sticky = true};
	struct vmimg_job *job = NULL;
	struct vmimg_job_info info;

	ok(create("s"));
	cr_assert_geq(eng_fault_add(fault, &rule), 0);
	ok(vmimg_destroy_snapshot(svc, "c@s", &job, &err));
	eng_fault_clear(fault);
	cr_assert_not_null(found, "no job was found");
	ok(vmimg_job_wait(found, 1000000000));
	vmimg_job_info(found, &info);
	cr_expect_eq(info.job_state, VMIMG_JOB_COMPLETED);
	vmimg_job_info(job, &info);
	cr_expect_eq(info.job_state, VMIMG_JOB_COMPLETED);
	vmimg_job_put(found);
	vmimg_job_put(job);
}
