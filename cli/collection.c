/* SPDX-License-Identifier: MIT */
/*
 * collection.c - the verbs of collections. The library adds and removes one member a call; a verb with
 * several does all or nothing, by undoing what it did before the failure.
 */
#include "cli/options.h"
#include "cli/output.h"

#include <string.h>

typedef uint32_t (*member_call)(struct vmimg_service *svc, const char *vm, const char *collection,
				struct vmimg_error *err);

/* Calls @call for every VM; after a failure, @undo for those done, last first. */
static uint32_t for_members(struct vmimg_service *svc, const char *collection, int count,
			    char *const *vms, member_call call, member_call undo,
			    struct vmimg_error *err)
{
	uint32_t r = VMIMG_OK;
	int done = 0;

	while (done < count && r == VMIMG_OK) {
		r = call(svc, vms[done], collection, err);
		done += r == VMIMG_OK;
	}
	while (r != VMIMG_OK && undo && done > 0) {
		struct vmimg_error ignored;

		done--;
		undo(svc, vms[done], collection, &ignored);
	}
	return r;
}

static int run_create(struct cli *cli, int argc, char **argv)
{
	struct vmimg_service *svc = NULL;
	struct vmimg_error err = {0};
	struct vmimg_ref made;
	const char *id = NULL;
	const struct cli_option options[] = {
		{"id", 0, CLI_TEXT, &id, "UUID", "the collection's id (default: a new one)"},
		{0},
	};
	int words = cli_parse(cli, options, argc, argv);
	uint32_t r;

	if (cli_open(cli, NULL, &svc))
		return CLI_FAILURE;
	r = vmimg_define_collection(svc, argv[0], id, 0, &made, &err);
	if (r != VMIMG_OK)
		return cli_close(cli, svc, cli_fail(cli, r, &err));
	r = for_members(svc, argv[0], words - 1, argv + 1, vmimg_add_member, NULL, &err);
	if (r != VMIMG_OK) {
		struct vmimg_error ignored;
		int status = cli_fail(cli, r, &err);

		vmimg_destroy_collection(svc, argv[0], &ignored);
		return cli_close(cli, svc, status);
	}
	return cli_close(cli, svc, cli_print_made(cli, svc, VMIMG_KIND_COLLECTION, argv[0]));
}

static int change_members(struct cli *cli, int argc, char **argv, member_call call,
			  member_call undo)
{
	struct vmimg_service *svc = NULL;
	struct vmimg_error err = {0};
	int words = cli_parse(cli, NULL, argc, argv);
	uint32_t r;

	if (cli_open(cli, NULL, &svc))
		return CLI_FAILURE;
	r = for_members(svc, argv[0], words - 1, argv + 1, call, undo, &err);
	if (r != VMIMG_OK)
		return cli_close(cli, svc, cli_fail(cli, r, &err));
	return cli_close(cli, svc, cli_print_made(cli, svc, VMIMG_KIND_COLLECTION, argv[0]));
}

static int run_add(struct cli *cli, int argc, char **argv)
{
	return change_members(cli, argc, argv, vmimg_add_member, vmimg_remove_member);
}

static int run_remove(struct cli *cli, int argc, char **argv)
{
	return change_members(cli, argc, argv, vmimg_remove_member, vmimg_add_member);
}

static int run_rename(struct cli *cli, int argc, char **argv)
{
	struct vmimg_service *svc = NULL;
	struct vmimg_error err = {0};
	uint32_t r;

	cli_parse(cli, NULL, argc, argv);
	if (cli_open(cli, NULL, &svc))
		return CLI_FAILURE;
	r = vmimg_rename_collection(svc, argv[0], argv[1], &err);
	if (r != VMIMG_OK)
		return cli_close(cli, svc, cli_fail(cli, r, &err));
	return cli_close(cli, svc, cli_print_made(cli, svc, VMIMG_KIND_COLLECTION, argv[1]));
}

static int run_delete(struct cli *cli, int argc, char **argv)
{
	struct vmimg_service *svc = NULL;
	struct vmimg_error err = {0};
	uint32_t r;

	cli_parse(cli, NULL, argc, argv);
	if (cli_open(cli, NULL, &svc))
		return CLI_FAILURE;
	r = vmimg_destroy_collection(svc, argv[0], &err);
	return cli_close(cli, svc, r != VMIMG_OK ? cli_fail(cli, r, &err) : CLI_OK);
}

static int run_list(struct cli *cli, int argc, char **argv)
{
	static const struct cli_column columns[] = {
		{"COLLECTION", "collection", CLI_AS_TEXT}, {"MEMBERS", "members", CLI_AS_LIST},
		{"DISKS", "disks", CLI_AS_TEXT},           {"SNAPSHOTS", "snapshots", CLI_AS_TEXT},
		{"CREATED", "created", CLI_AS_TIME},       {0},
	};

	cli_parse(cli, NULL, argc, argv);
	return cli_list(cli, VMIMG_KIND_COLLECTION, NULL, columns);
}

static int run_show(struct cli *cli, int argc, char **argv)
{
	cli_parse(cli, NULL, argc, argv);
	return cli_show(cli, VMIMG_KIND_COLLECTION, argv[0]);
}

const struct cli_verb cli_collection_verbs[] = {
	{"collection create", "COLLECTION [VM...]", "Define a collection, with these members", 1,
	 65536, run_create, 0},
	{"collection add", "COLLECTION VM...", "Add members: all or none", 2, 65536, run_add, 0},
	{"collection remove", "COLLECTION VM...", "Remove members: all or none", 2, 65536,
	 run_remove, 0},
	{"collection rename", "COLLECTION NEWNAME", "Rename a collection", 2, 2, run_rename, 0},
	{"collection list", "", "List the collections", 0, 0, run_list, 0},
	{"collection show", "COLLECTION", "Show a collection", 1, 1, run_show, 0},
	{"collection delete", "COLLECTION", "Delete a collection that has no snapshots", 1, 1,
	 run_delete, 0},
	{0},
};
