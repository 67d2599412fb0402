/* SPDX-License-Identifier: MIT */
/* copy.h - the verbs that move a disk's bytes: disk read, disk write. */
#ifndef CLI_COPY_H
#define CLI_COPY_H

#include "cli/cli.h"

int cli_disk_read(struct cli *cli, int argc, char **argv);
int cli_disk_write(struct cli *cli, int argc, char **argv);

#endif
