/* SPDX-License-Identifier: MIT */
/*
 * disk.c - the verbs of disks, except the copying ones (copy.c): create, list, show, resize, delete.
 */
#include "cli/options.h"
#include "cli/output.h"
#include "cli/copy.h"
#include "cli/session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct create {
	uint64_t size, block;
	const char *from, *format, *base_dir;
	bool in_place, independent;
};

static json_t *create_params(const struct create *c, const char *disk)
{
	char *from = c->from ? cli_absolute_path(c->from) : NULL;
	json_t *params = json_pack("{s:s, s:s*, s:s*, s:b, s:b}", "Disk", disk, "From", from,
				   "Format", c->format, "InPlace", (int)c->in_place, "Independent",
				   (int)c->independent);

	free(from);
	if (c->size)
		json_object_set_new(params, "Size", json_integer((json_int_t)c->size));
	if (c->block)
		json_object_set_new(params, "BlockSize", json_integer((json_int_t)c->block));
	return params;
}

static int create(struct cli *cli, const struct create *c, const char *disk)
{
	const char *base_dirs[2] = {c->base_dir, NULL};
	struct vmimg_options options = {.size = sizeof(options), .base_dirs = base_dirs};
	struct cli_session *s = NULL;
	json_t *made = NULL;
	int status = cli_begin(cli, &options, &s);

	if (status)
		return status;
	if (c->base_dir && !cli_service(s))
		status = cli_error(cli, -ENOTSUP,
				   "--base-dir: the store is served, and only its server knows "
				   "where backing files may lie");
	else
		status = cli_call(s, "CreateDisk", create_params(c, disk), &made);
	return cli_end(cli, s, status ? status : cli_print_made(cli, made));
}

static int run_create(struct cli *cli, int argc, char **argv)
{
	struct create c = {0};
	const struct cli_option options[] = {
		{"size", 0, CLI_SIZE, &c.size, "SIZE", "an empty disk of so many bytes"},
		{"from", 0, CLI_TEXT, &c.from, "FILE", "the disk's first content"},
		{"format", 0, CLI_CHOICE, &c.format, "raw|qcow2", "of FILE (default: probed)"},
		{"in-place", 0, CLI_FLAG, &c.in_place, NULL,
		 "use FILE where it is, without a copy"},
		{"independent", 0, CLI_FLAG, &c.independent, NULL, "not part of snapshots"},
		{"block-size", 0, CLI_SIZE, &c.block, "SIZE",
		 "of its overlays, 4K to 64K (default: 4K)"},
		{"base-dir", 0, CLI_TEXT, &c.base_dir, "DIR",
		 "a qcow2's backing files may lie here too"},
		{0},
	};

	cli_parse(cli, options, argc, argv);
	if (!c.size && !c.from)
		cli_usage_error(cli, "disk create: give --size, of 512 bytes or more, or --from");
	if (!c.from && (c.format || c.in_place))
		cli_usage_error(cli, "disk create: --format and --in-place need --from");
	if (c.size > INT64_MAX)
		cli_usage_error(cli, "--size: too large");
	if (c.block && ((c.block & (c.block - 1)) || c.block < 4096 || c.block > 65536))
		cli_usage_error(cli, "--block-size: not a power of two from 4K to 64K");
	return create(cli, &c, argv[0]);
}

static int run_list(struct cli *cli, int argc, char **argv)
{
	static const struct cli_column columns[] = {
		{"DISK", "disk", CLI_AS_TEXT},       {"SIZE", "size", CLI_AS_SIZE},
		{"USED", "used", CLI_AS_SIZE},       {"ALLOCATED", "allocated", CLI_AS_SIZE},
		{"LAYERS", "layers", CLI_AS_TEXT},   {"INDEPENDENT", "independent", CLI_AS_TEXT},
		{"CREATED", "created", CLI_AS_TIME}, {0},
	};
	int words = cli_parse(cli, NULL, argc, argv);

	return cli_list(cli, "disk", words ? argv[0] : NULL, columns);
}

static int run_show(struct cli *cli, int argc, char **argv)
{
	cli_parse(cli, NULL, argc, argv);
	return cli_show(cli, "disk", argv[0]);
}

static int run_resize(struct cli *cli, int argc, char **argv)
{
	struct cli_session *s = NULL;
	bool shrink = false;
	const struct cli_option options[] = {
		{"shrink", 0, CLI_FLAG, &shrink, NULL,
		 "cut it off: what is beyond SIZE is lost, but for its snapshots"},
		{0},
	};
	json_t *made = NULL;
	uint64_t size;
	int status;

	cli_parse(cli, options, argc, argv);
	size = cli_size_argument(cli, "SIZE", argv[1]);
	if (size > INT64_MAX)
		cli_usage_error(cli, "SIZE: too large");
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	status = cli_call(s, "ResizeDisk",
			  json_pack("{s:s, s:I, s:b}", "Disk", argv[0], "Size", (json_int_t)size,
				    "Shrink", (int)shrink),
			  &made);
	return cli_end(cli, s, status ? status : cli_print_made(cli, made));
}

static int run_delete(struct cli *cli, int argc, char **argv)
{
	struct cli_session *s = NULL;

	cli_parse(cli, NULL, argc, argv);
	if (cli_begin(cli, NULL, &s))
		return CLI_FAILURE;
	return cli_end(cli, s,
		       cli_call(s, "DeleteDisk", json_pack("{s:s}", "Disk", argv[0]), NULL));
}

const struct cli_verb cli_disk_verbs[] = {
	{"disk create", "VM/DISK (--size=SIZE | --from=FILE)", "Add a disk to a virtual machine", 1,
	 1, run_create, 0},
	{"disk list", "[VM]", "List the disks", 0, 1, run_list, 0},
	{"disk show", "VM/DISK", "Show a disk", 1, 1, run_show, 0},
	{"disk resize", "VM/DISK SIZE", "Make a disk larger, or with --shrink smaller", 2, 2,
	 run_resize, 0},
	{"disk delete", "VM/DISK", "Delete a disk that no snapshot holds", 1, 1, run_delete, 0},
	{"disk read", "DISK [OFFSET [LENGTH]] >FILE",
	 "Write a disk's or a snapshot's bytes to standard output", 1, 3, cli_disk_read, 0},
	{"disk write", "VM/DISK [OFFSET] <FILE", "Write standard input to a disk, and flush", 1, 2,
	 cli_disk_write, 0},
	{0},
};
