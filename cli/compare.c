/* SPDX-License-Identifier: MIT */
/*
 * compare.c - whether two images hold the same. The exit status answers: 0 the same, 1 different, 2 an
 * error, so that "different" is never taken for "could not be compared".
 */
#include "cli/options.h"
#include "cli/output.h"

#include <stdio.h>

enum {
	SAME = 0,
	DIFFERENT = 1,
	ERROR = 2,
};

static int on_progress(void *arg, uint64_t done, uint64_t total)
{
	cli_progress_show(arg, done, total);
	return cli_interrupted();
}

static void print_text(const struct vmimg_comparison *c)
{
	bool sizes = c->size_a == c->size_b;

	if (c->same)
		printf("The images hold the same%s.\n", sizes ? "" : ", but for zeros at the end");
	else if (c->first_difference != UINT64_MAX)
		printf("The images differ, first at offset %llu.\n",
		       (unsigned long long)c->first_difference);
	if (!sizes)
		printf("Their sizes differ: %llu and %llu bytes.\n", (unsigned long long)c->size_a,
		       (unsigned long long)c->size_b);
}

static json_t *document(const struct vmimg_comparison *c)
{
	json_t *doc = json_pack("{s:b, s:I, s:I, s:n}", "same", (int)c->same, "size_a",
				(json_int_t)c->size_a, "size_b", (json_int_t)c->size_b,
				"first_difference");

	if (c->first_difference != UINT64_MAX)
		json_object_set_new(doc, "first_difference",
				    json_integer((json_int_t)c->first_difference));
	return doc;
}

static int run_compare(struct cli *cli, int argc, char **argv)
{
	struct cli_progress progress;
	struct vmimg_compare how = {.progress = on_progress, .arg = &progress};
	const struct cli_option options[] = {
		{"format-a", 'f', CLI_CHOICE, &how.format_a, "raw|qcow2|vmo",
		 "of A (default: probed)"},
		{"format-b", 'F', CLI_CHOICE, &how.format_b, "raw|qcow2|vmo",
		 "of B (default: probed)"},
		{"strict", 0, CLI_FLAG, &how.strict, NULL, "different sizes are a difference"},
		{"base-dir", 0, CLI_TEXT, &how.base_dir, "DIR", "look for bases here too"},
		{"rate-limit", 0, CLI_RATE, &how.rate_limit, "BYTES/s", "read no faster than this"},
		{0},
	};
	struct vmimg_comparison result;
	struct vmimg_error err = {0};
	int r;

	cli_parse(cli, options, argc, argv);
	cli_catch_interrupts();
	cli_progress_init(&progress, cli, "compare");
	r = vmimg_image_compare(argv[0], argv[1], &how, &err, &result);
	cli_progress_fini(&progress);
	if (r < 0) {
		cli_fail(cli, r, &err);
		return ERROR;
	}
	if (cli->json)
		r = cli_print_json(cli, document(&result));
	else
		print_text(&result);
	if (r || cli_finish_output(cli))
		return ERROR;
	return result.same ? SAME : DIFFERENT;
}

const struct cli_verb cli_compare_verbs[] = {
	{"compare", "[-f FMT] [-F FMT] [--strict] A B", "Tell whether two images hold the same", 2,
	 2, run_compare, 0},
	{0},
};
