/* SPDX-License-Identifier: MIT */
/*
 * disk.c - the verbs of disks, except the copying ones (copy.c): create, list, show, resize, delete.
 */
#include "cli/options.h"
#include "cli/output.h"
#include "cli/copy.h"

#include <string.h>

static int run_create(struct cli *cli, int argc, char **argv)
{
	struct vmimg_disk_spec spec = {.size_of = sizeof(spec)};
	const char *base_dir = NULL;
	uint64_t block = 0;
	const struct cli_option options[] = {
		{"size", 0, CLI_SIZE, &spec.size, "SIZE", "an empty disk of so many bytes"},
		{"from", 0, CLI_TEXT, &spec.from, "FILE", "the disk's first content"},
		{"format", 0, CLI_CHOICE, &spec.format, "raw|qcow2", "of FILE (default: probed)"},
		{"in-place", 0, CLI_FLAG, &spec.in_place, NULL,
		 "use FILE where it is, without a copy"},
		{"independent", 0, CLI_FLAG, &spec.independent, NULL, "not part of snapshots"},
		{"block-size", 0, CLI_SIZE, &block, "SIZE",
		 "of its overlays, 4K to 64K (default: 4K)"},
		{"base-dir", 0, CLI_TEXT, &base_dir, "DIR",
		 "a qcow2's backing files may lie here too"},
		{0},
	};
	const char *base_dirs[2] = {NULL, NULL};
	struct vmimg_options open_options = {.size = sizeof(open_options), .base_dirs = base_dirs};
	struct vmimg_service *svc = NULL;
	struct vmimg_error err = {0};
	int r;

	cli_parse(cli, options, argc, argv);
	base_dirs[0] = base_dir;
	if (!spec.size && !spec.from)
		cli_usage_error(cli, "disk create: give --size or --from");
	if (!spec.from && (spec.format || spec.in_place))
		cli_usage_error(cli, "disk create: --format and --in-place need --from");
	while (block && spec.block_bits < 63 && UINT64_C(1) << spec.block_bits < block)
		spec.block_bits++;
	if (block && (UINT64_C(1) << spec.block_bits != block || block < 4096 || block > 65536))
		cli_usage_error(cli, "--block-size: not a power of two from 4K to 64K");
	if (cli_open(cli, &open_options, &svc))
		return CLI_FAILURE;
	r = vmimg_disk_create(svc, argv[0], &spec, &err);
	return cli_close(cli, svc,
			 r < 0 ? cli_fail(cli, r, &err)
			       : cli_print_made(cli, svc, VMIMG_KIND_DISK, argv[0]));
}

static int run_list(struct cli *cli, int argc, char **argv)
{
	static const struct cli_column columns[] = {
		{"DISK", "disk", CLI_AS_TEXT},
		{"SIZE", "size", CLI_AS_SIZE},
		{"ALLOCATED", "allocated", CLI_AS_SIZE},
		{"LAYERS", "layers", CLI_AS_TEXT},
		{"INDEPENDENT", "independent", CLI_AS_TEXT},
		{"CREATED", "created", CLI_AS_TIME},
		{0},
	};
	int words = cli_parse(cli, NULL, argc, argv);

	return cli_list(cli, VMIMG_KIND_DISK, words ? argv[0] : NULL, columns);
}

static int run_show(struct cli *cli, int argc, char **argv)
{
	cli_parse(cli, NULL, argc, argv);
	return cli_show(cli, VMIMG_KIND_DISK, argv[0]);
}

static int run_resize(struct cli *cli, int argc, char **argv)
{
	struct vmimg_service *svc = NULL;
	struct vmimg_error err = {0};
	uint64_t size;
	int r;

	cli_parse(cli, NULL, argc, argv);
	size = cli_size_argument(cli, "SIZE", argv[1]);
	if (cli_open(cli, NULL, &svc))
		return CLI_FAILURE;
	r = vmimg_disk_resize(svc, argv[0], size, &err);
	return cli_close(cli, svc,
			 r < 0 ? cli_fail(cli, r, &err)
			       : cli_print_made(cli, svc, VMIMG_KIND_DISK, argv[0]));
}

static int run_delete(struct cli *cli, int argc, char **argv)
{
	struct vmimg_service *svc = NULL;
	struct vmimg_error err = {0};
	int r;

	cli_parse(cli, NULL, argc, argv);
	if (cli_open(cli, NULL, &svc))
		return CLI_FAILURE;
	r = vmimg_disk_delete(svc, argv[0], &err);
	return cli_close(cli, svc, r < 0 ? cli_fail(cli, r, &err) : CLI_OK);
}

const struct cli_verb cli_disk_verbs[] = {
	{"disk create", "VM/DISK (--size=SIZE | --from=FILE)", "Add a disk to a virtual machine", 1,
	 1, run_create, 0},
	{"disk list", "[VM]", "List the disks", 0, 1, run_list, 0},
	{"disk show", "VM/DISK", "Show a disk", 1, 1, run_show, 0},
	{"disk resize", "VM/DISK SIZE", "Make a disk larger", 2, 2, run_resize, 0},
	{"disk delete", "VM/DISK", "Delete a disk that no snapshot holds", 1, 1, run_delete, 0},
	{"disk read", "DISK [OFFSET [LENGTH]] >FILE",
	 "Write a disk's or a snapshot's bytes to standard output", 1, 3, cli_disk_read, 0},
	{"disk write", "VM/DISK [OFFSET] <FILE", "Write standard input to a disk, and flush", 1, 2,
	 cli_disk_write, 0},
	{0},
};
