/* SPDX-License-Identifier: MIT */
/*
 * collection.c - the verbs of collections. A call adds or removes one member; a verb with
 * several does all or nothing, by undoing what it did before the failure.
 */
#include "cli/options.h"
#include "cli/output.h"
#include "cli/session.h"

#include <string.h>

static json_t *try_member(struct cli_session *s, const char *method, const char *vm,
			  const char *collection)
{
	return cli_try(s, method, json_pack("{s:s, s:s}", "Member", vm, "Collection", collection),
		       NULL);
}

/* Calls @method for every VM; after a failure, @undo for those done, last first. The error, or NULL. */
static json_t *for_members(struct cli_session *s, const char *collection, int count,
			   char *const *vms, const char *method, const char *undo)
{
	json_t *error = NULL;
	int done = 0;

	while (done < count && !error) {
		error = try_member(s, method, vms[done], collection);
		done += !error;
	}
	while (error && undo && done > 0)
		json_decref(try_member(s, undo, vms[--done], collection));
	return error;
}

/* What has become of the collection, and the end. */
static int finish(struct cli *cli, struct cli_session *s, const char *collection)
{
	json_t *document = NULL;
	int status = CLI_OK;

	if (cli->json)
		status = cli_call(s, "Describe",
				  json_pack("{s:s, s:s}", "Kind", "collection", "Name", collection),
				  &document);
	return cli_end(cli, s, document ? cli_print_json(cli, document) : status);
}

static int run_create(struct cli *cli, int argc, char **argv)
{
	struct cli_session *s = NULL;
	const char *id = NULL;
	const struct cli_option options[] = {
		{"id", 0, CLI_TEXT, &id, "UUID", "the collection's id (default: a new one)"},
		{0},
	};
	int words = cli_parse(cli, options, argc, argv);
	json_t *error;

	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	error = cli_try(s, "DefineCollection", json_pack("{s:s, s:s*}", "Name", argv[0], "Id", id),
			NULL);
	if (error)
		return cli_end(cli, s, cli_fail_call(cli, error, NULL));
	error = for_members(s, argv[0], words - 1, argv + 1, "AddMember", NULL);
	if (error) {
		json_decref(cli_try(s, "DestroyCollection",
				    json_pack("{s:s}", "Collection", argv[0]), NULL));
		return cli_end(cli, s, cli_fail_call(cli, error, NULL));
	}
	return finish(cli, s, argv[0]);
}

static int change_members(struct cli *cli, int argc, char **argv, const char *method,
			  const char *undo)
{
	struct cli_session *s = NULL;
	int words = cli_parse(cli, NULL, argc, argv);
	json_t *error;

	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	error = for_members(s, argv[0], words - 1, argv + 1, method, undo);
	if (error)
		return cli_end(cli, s, cli_fail_call(cli, error, NULL));
	return finish(cli, s, argv[0]);
}

static int run_add(struct cli *cli, int argc, char **argv)
{
	return change_members(cli, argc, argv, "AddMember", "RemoveMember");
}

static int run_remove(struct cli *cli, int argc, char **argv)
{
	return change_members(cli, argc, argv, "RemoveMember", "AddMember");
}

static int run_rename(struct cli *cli, int argc, char **argv)
{
	struct cli_session *s = NULL;
	int status;

	cli_parse(cli, NULL, argc, argv);
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	status = cli_call(s, "RenameCollection",
			  json_pack("{s:s, s:s}", "Collection", argv[0], "NewName", argv[1]), NULL);
	return status ? cli_end(cli, s, status) : finish(cli, s, argv[1]);
}

static int run_delete(struct cli *cli, int argc, char **argv)
{
	struct cli_session *s = NULL;

	cli_parse(cli, NULL, argc, argv);
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	return cli_end(cli, s,
		       cli_call(s, "DestroyCollection", json_pack("{s:s}", "Collection", argv[0]),
				NULL));
}

static int run_list(struct cli *cli, int argc, char **argv)
{
	static const struct cli_column columns[] = {
		{"COLLECTION", "collection", CLI_AS_TEXT}, {"MEMBERS", "members", CLI_AS_LIST},
		{"DISKS", "disks", CLI_AS_TEXT},           {"SNAPSHOTS", "snapshots", CLI_AS_TEXT},
		{"CREATED", "created", CLI_AS_TIME},       {0},
	};

	cli_parse(cli, NULL, argc, argv);
	return cli_list(cli, "collection", NULL, columns);
}

static int run_show(struct cli *cli, int argc, char **argv)
{
	cli_parse(cli, NULL, argc, argv);
	return cli_show(cli, "collection", argv[0]);
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
