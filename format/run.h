/* SPDX-License-Identifier: MIT */
/*
 * run.h - a run's 16 bytes, as log records and index leaves hold it (spec/format.md RU-1). Inside
 * format/; others use fmt_record_run() and fmt_leaf_run(). Pure functions, any thread.
 */
#ifndef FORMAT_RUN_H
#define FORMAT_RUN_H

#include "format/layer.h"

void fmt_run_pack(const struct fmt_run *run, uint8_t ret[sizeof(struct fmt_run_disk)]);
/* Checks nothing: see fmt_run_check(). */
void fmt_run_unpack(const uint8_t bytes[sizeof(struct fmt_run_disk)], struct fmt_run *ret);

#endif
