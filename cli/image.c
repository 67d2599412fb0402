/* SPDX-License-Identifier: MIT */
/*
 * image.c - the verbs on image files outside a store: create, info, map, convert. A map is printed as
 * it is read, since a large image has millions of ranges.
 */
#include "cli/options.h"
#include "cli/output.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * Where a base is: as given when it has a slash; else in @file's directory, in @base_dir, here. Malloced;
 * as given when it is nowhere, for the library to say so.
 */
static char *find_base(const char *base, const char *file, const char *base_dir)
{
	const char *slash = strrchr(file, '/');
	char *path = NULL;

	if (!strchr(base, '/')) {
		int n = slash ? (int)(slash - file + 1) : 0;

		if (asprintf(&path, "%.*s%s", n, file, base) >= 0 && !access(path, F_OK))
			return path;
		free(path);
		if (base_dir && asprintf(&path, "%s/%s", base_dir, base) >= 0) {
			if (!access(path, F_OK))
				return path;
			free(path);
		}
	}
	return strdup(base);
}

static int run_create(struct cli *cli, int argc, char **argv)
{
	const char *base = NULL, *base_dir = NULL, *format = "vmo";
	const struct cli_option options[] = {
		{"base", 'b', CLI_TEXT, &base, "FILE", "the image beneath: raw, qcow2 or vmo"},
		{"base-dir", 0, CLI_TEXT, &base_dir, "DIR", "look for the base here too"},
		{"format", 'f', CLI_CHOICE, &format, "vmo|raw", "of the new image (default: vmo)"},
		{0},
	};
	struct vmimg_error err = {0};
	char *path = NULL, *text = NULL;
	uint64_t size = 0;
	int words = cli_parse(cli, options, argc, argv);
	int r;

	if (words > 1)
		size = cli_size_argument(cli, "SIZE", argv[1]);
	else if (!base)
		cli_usage_error(cli, "create: a size is needed where there is no base");
	if (base && strcmp(format, "vmo") != 0)
		cli_usage_error(cli, "create: a raw image has no base");
	if (base) {
		path = find_base(base, argv[0], base_dir);
		if (!path)
			return cli_error(cli, -ENOMEM, "out of memory");
	}
	r = vmimg_image_create(argv[0], format, path, size, &err);
	free(path);
	if (r < 0)
		return cli_fail(cli, r, &err);
	if (!cli->json)
		return CLI_OK;
	r = vmimg_image_info(argv[0], base_dir, false, &err, &text);
	if (r < 0)
		return cli_fail(cli, r, &err);
	return cli_print(cli, cli_take_json(cli, text));
}

static int run_info(struct cli *cli, int argc, char **argv)
{
	const char *base_dir = NULL;
	bool chain = false;
	const struct cli_option options[] = {
		{"backing-chain", 0, CLI_FLAG, &chain, NULL, "the images beneath too, top first"},
		{"base-dir", 0, CLI_TEXT, &base_dir, "DIR", "look for bases here too"},
		{0},
	};
	struct vmimg_error err = {0};
	char *text = NULL;
	json_t *document;
	int r;

	cli_parse(cli, options, argc, argv);
	r = vmimg_image_info(argv[0], base_dir, chain, &err, &text);
	if (r < 0)
		return cli_fail(cli, r, &err);
	document = cli_take_json(cli, text);
	return document ? cli_print(cli, document) : CLI_FAILURE;
}

/* --- map --- */

static const char *state_name(uint8_t state)
{
	switch (state) {
	case VMIMG_EXTENT_DATA: return "data";
	case VMIMG_EXTENT_ZERO: return "zero";
	default: return "hole";
	}
}

struct map_printer {
	struct cli *cli;
	const json_t *chain;         /* vmimg_image_info() of all images, top first */
	struct vmimg_extent pending; /* length 0: none */
	uint64_t printed;
};

static void map_flush(struct map_printer *p)
{
	const struct vmimg_extent *e = &p->pending;
	json_t *name = json_object_get(json_array_get(p->chain, e->depth), "filename");
	bool absent = e->state == VMIMG_EXTENT_HOLE;
	char *layer;

	if (!e->length)
		return;
	if (p->cli->json) {
		layer = absent || !name ? NULL : json_dumps(name, JSON_ENCODE_ANY);
		printf("%s\n  {\"start\": %llu, \"length\": %llu, \"state\": \"%s\", \"layer\": %s, "
		       "\"depth\": ",
		       p->printed ? "," : "", (unsigned long long)e->start,
		       (unsigned long long)e->length, state_name(e->state), layer ? layer : "null");
		printf(absent ? "null}" : "%u}", e->depth);
		free(layer);
	} else {
		printf("%14llu  %14llu  %-5s  %s\n", (unsigned long long)e->start,
		       (unsigned long long)e->length, state_name(e->state),
		       absent || !name ? "-" : json_string_value(name));
	}
	p->printed++;
	p->pending.length = 0;
}

/* Joins the extent to the pending one where they differ in nothing but their place. */
static void map_add(struct map_printer *p, const struct vmimg_extent *e)
{
	struct vmimg_extent *last = &p->pending;

	if (last->length && last->state == e->state && last->start + last->length == e->start &&
	    (last->depth == e->depth || e->state == VMIMG_EXTENT_HOLE)) {
		last->length += e->length;
		return;
	}
	map_flush(p);
	*last = *e;
}

static int print_map(struct map_printer *p, struct vmimg_image *image)
{
	uint64_t size = vmimg_image_size(image);
	struct vmimg_extent extent;
	struct vmimg_error err = {0};

	if (p->cli->json)
		putchar('[');
	else
		printf("%14s  %14s  %-5s  %s\n", "START", "LENGTH", "STATE", "LAYER");
	for (uint64_t at = 0; at < size; at = extent.start + extent.length) {
		int r = vmimg_image_extent(image, at, &extent, &err);

		if (r < 0)
			return cli_fail(p->cli, r, &err);
		if (!extent.length)
			return cli_error(p->cli, -EIO, "no extent at offset %llu",
					 (unsigned long long)at);
		if (cli_interrupted())
			return cli_error(p->cli, -EINTR, "interrupted");
		map_add(p, &extent);
	}
	map_flush(p);
	if (p->cli->json)
		printf("%s]\n", p->printed ? "\n" : "");
	return cli_finish_output(p->cli);
}

static int run_map(struct cli *cli, int argc, char **argv)
{
	const char *base_dir = NULL;
	const struct cli_option options[] = {
		{"base-dir", 0, CLI_TEXT, &base_dir, "DIR", "look for bases here too"},
		{0},
	};
	struct map_printer printer = {.cli = cli};
	struct vmimg_image *image = NULL;
	struct vmimg_error err = {0};
	char *text = NULL;
	json_t *chain = NULL;
	int status = CLI_FAILURE;
	int r;

	cli_parse(cli, options, argc, argv);
	cli_catch_interrupts();
	r = vmimg_image_info(argv[0], base_dir, true, &err, &text);
	if (r >= 0)
		r = vmimg_image_open(argv[0], base_dir, false, &err, &image);
	if (r < 0) {
		cli_fail(cli, r, &err);
		vmimg_free(text);
		goto out;
	}
	chain = cli_take_json(cli, text);
	if (!chain)
		goto out;
	printer.chain = chain;
	status = print_map(&printer, image);
out:
	json_decref(chain);
	vmimg_image_close(image);
	return status;
}

/* --- convert --- */

static int on_progress(void *arg, uint64_t done, uint64_t total)
{
	cli_progress_show(arg, done, total);
	return cli_interrupted();
}

static int run_convert(struct cli *cli, int argc, char **argv)
{
	struct vmimg_convert how = {.dst_format = "raw", .progress = on_progress};
	uint64_t cluster = 0;
	const struct cli_option options[] = {
		{"source-format", 'f', CLI_CHOICE, &how.src_format, "raw|qcow2|vmo",
		 "of SRC (default: probed)"},
		{"format", 'O', CLI_CHOICE, &how.dst_format, "raw|qcow2|vmo",
		 "of DST (default: raw)"},
		{"compress", 'c', CLI_FLAG, &how.compressed, NULL,
		 "compressed clusters, with -O qcow2"},
		{"cluster-size", 0, CLI_SIZE, &cluster, "SIZE",
		 "of qcow2: 512 to 2M (default: 64K)"},
		{"rate-limit", 0, CLI_RATE, &how.rate_limit, "BYTES/s", "copy no faster than this"},
		{0},
	};
	struct cli_progress progress;
	struct vmimg_error err = {0};
	char *text = NULL;
	int r;

	cli_parse(cli, options, argc, argv);
	if ((how.compressed || cluster) && strcmp(how.dst_format, "qcow2") != 0)
		cli_usage_error(cli, "convert: %s needs -O qcow2",
				cluster ? "--cluster-size" : "-c");
	if (cluster && (cluster < 512 || cluster > 2u << 20 || cluster & (cluster - 1)))
		cli_usage_error(cli, "--cluster-size: expected a power of two from 512 to 2M");
	how.cluster_size = (uint32_t)cluster;
	how.arg = &progress;
	cli_catch_interrupts();
	cli_progress_init(&progress, cli, "convert");
	r = vmimg_image_convert(argv[0], argv[1], &how, &err);
	cli_progress_fini(&progress);
	if (r < 0)
		return cli_fail(cli, r, &err);
	if (!cli->json)
		return CLI_OK;
	r = vmimg_image_info(argv[1], NULL, false, &err, &text);
	if (r < 0)
		return cli_fail(cli, r, &err);
	return cli_print(cli, cli_take_json(cli, text));
}

const struct cli_verb cli_image_verbs[] = {
	{"create", "[-b BASE] FILE [SIZE]", "Make a new overlay or raw image", 1, 2, run_create, 0},
	{"info", "[--backing-chain] FILE", "Show what an image is", 1, 1, run_info, 0},
	{"map", "FILE", "Show which layer holds each range of an image", 1, 1, run_map, 0},
	{"convert", "[-f FMT] [-O raw|qcow2|vmo] [-c] SRC DST", "Copy an image into another format",
	 2, 2, run_convert, 0},
	{0},
};
