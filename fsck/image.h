/* SPDX-License-Identifier: MIT */
/*
 * image.h - checks of single files that are not layers of ours, and of whole stores. One thread a check.
 */
#ifndef FSCK_IMAGE_H
#define FSCK_IMAGE_H

#include "fsck/problem.h"

/* qcow2.c: header and tables. 0, or negative: not all of it could be looked at; reported. */
int fsck_qcow2(struct fsck *f, const char *path);
/* store.c: locks the store in @dir and checks all of it. 0, -EBUSY, or why it is no store. */
int fsck_store(struct fsck *f, const char *dir);

#endif
