/* SPDX-License-Identifier: MIT */
/*
 * manifest.h - what an export says of the snapshot that it holds (spec/stream.md MF-*): struct to JSON
 * and back, everything checked on the way in. Pure: no I/O, any thread.
 */
#ifndef FORMAT_MANIFEST_H
#define FORMAT_MANIFEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format/error.h"
#include "format/uuid.h"

#define FMT_NAME_MAX           65 /* [A-Za-z0-9][A-Za-z0-9._-]{0,63} and the zero */
#define FMT_MANIFEST_COUNT_MAX 65536u

enum fmt_export_format {
	FMT_EXPORT_STREAM = 0,
	FMT_EXPORT_RAW = 1,
	FMT_EXPORT_QCOW2 = 2,
};

enum fmt_backup_intent {
	FMT_INTENT_PRESERVE_CHAIN = 1,
	FMT_INTENT_MERGE = 2,
};

struct fmt_manifest_vm {
	struct fmt_uuid id;
	char name[FMT_NAME_MAX];
};

struct fmt_manifest_disk {
	struct fmt_uuid id;
	uint32_t vm; /* index */
	char name[FMT_NAME_MAX];
	uint64_t size; /* bytes */
	uint32_t block_bits;
	uint32_t position;   /* within the VM */
	bool full;           /* stands for itself, not on the base */
	bool has_content;    /* raw, qcow2: there is a file */
	uint8_t content[16]; /* of it (MF-5) */
};

struct fmt_manifest_base {
	bool refpoint; /* else a snapshot */
	struct fmt_uuid id, snapshot;
	char name[FMT_NAME_MAX];
	uint8_t state[16];
};

struct fmt_manifest {
	enum fmt_export_format format;
	struct fmt_uuid collection, snapshot;
	char collection_name[FMT_NAME_MAX], snapshot_name[FMT_NAME_MAX];
	char element_name[256];
	uint16_t type;
	uint8_t consistency, guest_backup_type;
	int64_t created_ns, cut_wall_ns;
	uint32_t skipped;
	uint8_t state[16]; /* MF-3 */
	bool has_base;
	struct fmt_manifest_base base;
	uint16_t intent; /* enum fmt_backup_intent */
	struct fmt_manifest_vm *vms;
	uint32_t vm_count;
	struct fmt_manifest_disk *disks;
	uint32_t disk_count;
};

void fmt_manifest_fini(struct fmt_manifest *m);
/* MF-3, from the disks in their order. -ENOMEM. */
int fmt_manifest_state(const struct fmt_uuid *snapshot, const struct fmt_manifest_disk *disks,
		       uint32_t count, uint8_t ret[16]);
/* Malloced text without a zero in @ret's bytes but one behind them. -ENOMEM, -E2BIG. */
int fmt_manifest_encode(const struct fmt_manifest *m, char **ret, size_t *len);
/* @ret is filled only on success: fmt_manifest_fini(). -EUCLEAN, -ENOTSUP, -ENOMEM. */
int fmt_manifest_decode(const char *text, size_t len, struct fmt_manifest *ret,
			struct fmt_error *err);

static inline uint64_t fmt_manifest_blocks(const struct fmt_manifest_disk *d)
{
	return (d->size + (1ull << d->block_bits) - 1) >> d->block_bits;
}

#endif
