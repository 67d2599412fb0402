/* SPDX-License-Identifier: MIT */
/*
 * io_record_log.h - the recorder's log, shared by io_record.c, which writes it,
 * io_record_crash.c, which replays it, and io_record_log.c, which keeps it. Private to these three.
 *
 * Nodes and operations are never freed before the recorder is. rec->lock guards everything here;
 * rec->names_lock, taken first, makes a directory operation and its place in the log one step.
 */
#ifndef ENGINE_IO_RECORD_LOG_H
#define ENGINE_IO_RECORD_LOG_H

#include "engine/io/io_record.h"

#include <pthread.h>

#define REC_NEVER UINT64_MAX
#define REC_PAGE  4096u

/* A file's content: sparse, by page. */
struct rec_image {
	uint8_t **pages;
	size_t count; /* of pages[]; pages behind are holes, as NULL ones are */
	uint64_t size;
};

enum rec_kind {
	REC_WRITE,
	REC_TRUNCATE, /* to offset */
	REC_ALLOCATE,
	REC_PUNCH,
};

struct rec_op {
	uint8_t kind;
	bool dsync;
	bool ok;                   /* completed, and without an error */
	bool tainted;              /* a failed flush came over it: never durable */
	uint64_t submit, complete; /* events; complete is REC_NEVER until then */
	uint64_t offset, len;
	uint8_t *data;
};

/* A successful flush of a file or directory, or a successful dsync write. */
struct rec_sync {
	uint64_t submit, complete;
	bool all; /* not only the write itself */
};

struct rec_node;

struct rec_entry {
	const char *name; /* a rec_name's */
	struct rec_node *node;
};

struct rec_dir {
	struct rec_entry *entries;
	size_t count, room;
};

struct rec_node {
	bool is_dir;
	uint64_t id;
	struct rec_sync *syncs; /* in order of completion */
	size_t sync_count, sync_room;
	/* files */
	struct rec_op **ops; /* in order of submission */
	size_t op_count, op_room;
	struct rec_image origin; /* when recording started */
	/* directories */
	struct rec_dir live;
	/* io_record_crash.c's, for what is durable at rec->at */
	size_t syncs_seen;
	uint64_t durable_before; /* what completed before this event is durable */
	uint64_t size_before;    /* the same for sizes */
	bool has_image;
	size_t folded; /* ops that are in image, all durable */
	struct rec_image image;
	struct rec_dir durable; /* the entries after names[0..names_folded) */
	/* and for the crash being built */
	struct rec_dir crash;
	uint64_t entries_before; /* entries submitted before this event are durable */
	uint64_t undecided;      /* entries left to chance, and how many of them to keep */
	uint64_t keep;
};

/* A change of names: create and mkdir have no from, unlink has no to. Only those that succeeded. */
struct rec_name {
	struct rec_node *from_dir, *to_dir;
	char *from, *to;
	struct rec_node *node;
	uint64_t submit, complete;
	bool adopted; /* made behind the recorder's back: durable at once */
	bool durable; /* this crash */
};

struct eng_record {
	struct eng_io io;
	struct eng_io *inner;
	char *root, *root_real; /* as given, and resolved */

	pthread_mutex_t names_lock;
	pthread_mutex_t lock;
	uint64_t events;
	struct rec_node **nodes; /* nodes[0] is the root */
	size_t node_count, node_room;
	struct rec_name *names; /* in order of submission */
	size_t name_count, name_room;
	size_t base_count; /* names[0..] that were there at the start */
	struct eng_record_mark *marks;
	size_t mark_count, mark_room;
	/* io_record_crash.c's */
	uint64_t at;
	size_t names_folded;
};

uint64_t rec_event(struct eng_record *rec);
/* The directory that is recorded, and what is beneath. */
int rec_set_root(struct eng_record *rec, struct eng_io *inner, const char *root);
struct rec_node *rec_node_create(struct eng_record *rec, bool is_dir);
/* Log a submission and its completion; with a file outside the root (node NULL) nothing. */
struct rec_op *rec_begin(struct eng_record *rec, struct rec_node *node, struct rec_op what);
struct rec_op *rec_begin_write(struct eng_record *rec, struct rec_node *node, uint64_t offset,
			       const struct iovec *iov, unsigned count, bool dsync);
void rec_end(struct eng_record *rec, struct rec_node *node, struct rec_op *op, bool ok);
/* The end of an fdatasync or sync_dir that was submitted at @submit. */
void rec_end_sync(struct eng_record *rec, struct rec_node *node, uint64_t submit, bool ok);

/* Makes room for one more element in a growing array; aborts without memory. */
void *rec_grow(void *array, size_t count, size_t *room, size_t element);
void *rec_alloc(size_t len);

/* Directories: NULL where there is no such name; a change of names on one's own lists. */
struct rec_node *rec_dir_find(const struct rec_dir *dir, const char *name);
void rec_dir_apply(const struct rec_name *name, struct rec_dir *from, struct rec_dir *to);

/* Writing does not change the size: chance may have left that behind. */
void rec_image_write(struct rec_image *image, uint64_t offset, const uint8_t *data, uint64_t len);
void rec_image_punch(struct rec_image *image, uint64_t offset, uint64_t len);
void rec_image_truncate(struct rec_image *image, uint64_t size);
void rec_image_copy(struct rec_image *to, const struct rec_image *from);
void rec_image_fini(struct rec_image *image);

#endif
