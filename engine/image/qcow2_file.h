/* SPDX-License-Identifier: MIT */
/*
 * qcow2_file.h - the file of a new qcow2 image: where its clusters lie, its tables and its reference
 * counts (spec/qcow2.md, Q2W-3 to Q2W-5, Q2W-10). One thread at a time, but for
 * eng_qcow2_file_write(), which any number may call at once. What memory it takes depends on the
 * cluster size and the L1 table alone.
 */
#ifndef ENGINE_QCOW2_FILE_H
#define ENGINE_QCOW2_FILE_H

#include "engine/io/io.h"
#include "format/error.h"
#include "format/qcow2.h"

struct eng_qcow2_file;

/*
 * Makes @path, which nobody has yet. @new: cluster_bits, size, backing and backing_format; strings
 * are borrowed. @packed: compressed streams will be written, at any place and of any length.
 */
int eng_qcow2_file_create(struct eng_io *io, const char *path, const struct fmt_qcow2_new *new,
			  bool packed, struct fmt_error *err, struct eng_qcow2_file **ret);
/* Closes; the file stays as it is. NULL is fine. */
void eng_qcow2_file_close(struct eng_qcow2_file *f);

/*
 * Guest clusters, in ascending order, each once at most; what is never named is unallocated. Gives its
 * entry, and for data the place, where eng_qcow2_file_write() is to put it.
 */
int eng_qcow2_file_data(struct eng_qcow2_file *f, uint64_t cluster, struct fmt_error *err,
			uint64_t *host);
int eng_qcow2_file_compressed(struct eng_qcow2_file *f, uint64_t cluster, uint32_t len,
			      struct fmt_error *err, uint64_t *host);
int eng_qcow2_file_zero(struct eng_qcow2_file *f, uint64_t cluster, struct fmt_error *err);

int eng_qcow2_file_write(struct eng_qcow2_file *f, const void *buf, size_t len, uint64_t host,
			 struct fmt_error *err);

/* What is missing of the tables, then the header; durable afterwards. */
int eng_qcow2_file_finish(struct eng_qcow2_file *f, struct fmt_error *err);

#endif
