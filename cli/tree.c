/* SPDX-License-Identifier: MIT */
/*
 * tree.c - the verb tree: a picture of the store. Collections with their snapshots, then every VM with
 * its disks, each with its chain from the base up; the snapshot named beside a layer is the one that
 * froze it. Long chains are elided in the middle; --output=json has all of them.
 */
#include "cli/options.h"
#include "cli/output.h"
#include "cli/session.h"

#include <langinfo.h>
#include <stdio.h>
#include <string.h>

#define CHAIN_HEAD 2u /* layers shown at either end of a long chain */
#define CHAIN_TAIL 6u
#define DEPTH_MAX  4u

struct branches {
	const char *tee, *corner, *bar, *blank, *dots;
};

static const struct branches unicode = {"├── ", "└── ", "│   ", "    ", "⋮ "};
static const struct branches ascii = {"|-- ", "`-- ", "|   ", "    ", ": "};

struct picture {
	const struct branches *lines;
	bool last[DEPTH_MAX]; /* whether the branch at this depth was its parent's last */
};

/* The branches before a line; the line itself is printed after it. */
static void branch(struct picture *p, unsigned depth, bool last)
{
	for (unsigned i = 0; i < depth; i++)
		fputs(p->last[i] ? p->lines->blank : p->lines->bar, stdout);
	fputs(last ? p->lines->corner : p->lines->tee, stdout);
	p->last[depth] = last;
}

static const char *text(const json_t *object, const char *key)
{
	const char *value = json_string_value(json_object_get(object, key));

	return value ? value : "-";
}

static uint64_t number(const json_t *object, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(object, key));
}

/* --- collections --- */

static void print_collection(struct picture *p, const json_t *collection, bool last)
{
	const json_t *members = json_object_get(collection, "members");
	const json_t *snapshots = json_object_get(collection, "snapshots");
	const json_t *points = json_object_get(collection, "refpoints");
	size_t i, count = json_array_size(snapshots);
	json_t *item;
	char created[CLI_TEXT_MAX], size[CLI_TEXT_MAX];

	branch(p, 0, last);
	printf("collection %s:", text(collection, "collection"));
	json_array_foreach (members, i, item)
		printf("%s %s", i ? "," : "", json_string_value(item));
	printf("%s\n", json_array_size(members) ? "" : " empty");
	json_array_foreach (snapshots, i, item) {
		branch(p, 1, i + 1 == count && !json_array_size(points));
		printf("%s  %s  %s  %llu disk%s  %s used", text(item, "snapshot"),
		       cli_time_text(created, text(item, "created")), text(item, "type_name"),
		       (unsigned long long)number(item, "disks"),
		       number(item, "disks") == 1 ? "" : "s",
		       cli_size_text(size, number(item, "used")));
		printf(", %s%s exclusive\n",
		       json_is_true(json_object_get(item, "exact")) ? "" : "about ",
		       cli_size_text(size, number(item, "exclusive")));
	}
	json_array_foreach (points, i, item) {
		branch(p, 1, i + 1 == json_array_size(points));
		printf("%s  %s  reference point  %llu disk%s\n", text(item, "refpoint"),
		       cli_time_text(created, text(item, "created")),
		       (unsigned long long)number(item, "disks"),
		       number(item, "disks") == 1 ? "" : "s");
	}
}

/* --- disks --- */

static void print_layer(struct picture *p, const char *disk, const json_t *layer, bool last,
			bool beside)
{
	const char *snapshot = json_string_value(json_object_get(layer, "snapshot"));
	const char *owner = json_string_value(json_object_get(layer, "disk"));
	const json_t *clones = json_object_get(layer, "clones"), *clone;
	char size[CLI_TEXT_MAX];
	size_t i;

	branch(p, 2, last);
	printf("%s%-7s  %9s  ", beside ? "(left) " : "", text(layer, "kind"),
	       cli_size_text(size, number(layer, "allocated")));
	if (number(layer, "masked"))
		printf("%9s masked  ", cli_size_text(size, number(layer, "masked")));
	if (snapshot)
		printf("%-8s  %s", text(layer, "state"), snapshot);
	else
		printf("%s", text(layer, "state"));
	if (owner && strcmp(owner, disk) != 0)
		printf("  of %s", owner);
	json_array_foreach (clones, i, clone)
		if (strcmp(json_string_value(clone), disk) != 0)
			printf("%s%s", i ? ", " : "  cloned by ", json_string_value(clone));
	putchar('\n');
}

/* What the disk has left by a revert, and snapshots keep: a layer a line. */
static void print_branches(struct picture *p, const char *disk, const json_t *branches)
{
	size_t i, count = json_array_size(branches);
	json_t *layer;

	json_array_foreach (branches, i, layer)
		print_layer(p, disk, layer, i + 1 == count, true);
}

static void print_disk(struct picture *p, const json_t *disk, bool last)
{
	const json_t *chain = json_object_get(disk, "chain");
	const char *name = strrchr(text(disk, "disk"), '/');
	const json_t *branches = json_object_get(disk, "branches");
	size_t i, count = json_array_size(chain);
	json_t *layer;
	char size[CLI_TEXT_MAX];

	branch(p, 1, last);
	printf("%s  %s%s\n", name ? name + 1 : text(disk, "disk"),
	       cli_size_text(size, number(disk, "size")),
	       json_is_true(json_object_get(disk, "independent")) ? "  independent" : "");
	json_array_foreach (chain, i, layer) {
		if (count > CHAIN_HEAD + CHAIN_TAIL + 1 && i == CHAIN_HEAD) {
			i = count - CHAIN_TAIL - 1;
			branch(p, 2, false);
			printf("%s%zu more layers\n", p->lines->dots, i - CHAIN_HEAD + 1);
			continue;
		}
		print_layer(p, text(disk, "disk"), layer,
			    i + 1 == count && !json_array_size(branches), false);
	}
	print_branches(p, text(disk, "disk"), branches);
}

static void print_vm(struct picture *p, const json_t *vm, bool last)
{
	const json_t *disks = json_object_get(vm, "disks");
	size_t i, count = json_array_size(disks);
	json_t *disk;

	branch(p, 0, last);
	printf("vm %s\n", text(vm, "vm"));
	json_array_foreach (disks, i, disk)
		print_disk(p, disk, i + 1 == count);
}

static int print_tree(struct cli *cli, const json_t *tree)
{
	struct picture p = {.lines = strcmp(nl_langinfo(CODESET), "UTF-8") ? &ascii : &unicode};
	const json_t *collections = json_object_get(tree, "collections");
	const json_t *vms = json_object_get(tree, "vms");
	size_t i, count = json_array_size(collections) + json_array_size(vms);
	json_t *item;

	printf("%s\n", text(tree, "store"));
	json_array_foreach (collections, i, item)
		print_collection(&p, item, i + 1 == count);
	json_array_foreach (vms, i, item)
		print_vm(&p, item, json_array_size(collections) + i + 1 == count);
	return cli_finish_output(cli);
}

static int run_tree(struct cli *cli, int argc, char **argv)
{
	struct cli_session *s = NULL;
	json_t *tree = NULL;
	int status;

	cli_parse(cli, NULL, argc, argv);
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	status = cli_call(s, "Describe", json_pack("{s:s}", "Kind", "tree"), &tree);
	if (status)
		return cli_end(cli, s, status);
	if (cli->json)
		return cli_end(cli, s, cli_print_json(cli, tree));
	status = print_tree(cli, tree);
	json_decref(tree);
	return cli_end(cli, s, status);
}

const struct cli_verb cli_tree_verbs[] = {
	{"tree", "", "Draw collections, snapshots, VMs, disks and their chains", 0, 0, run_tree, 0},
	{0},
};
