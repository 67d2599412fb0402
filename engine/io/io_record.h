/* SPDX-License-Identifier: MIT */
/*
 * io_record.h - an eng_io that passes everything on to another one and logs what a power loss could
 * undo: writes with their content, truncates, allocations, punches, flushes, and creates, renames,
 * unlinks and syncs of directories, for every file below one directory (the root). From the log it
 * builds the directory tree that a power loss at a chosen event would have left (P2, P4).
 *
 * Every submission, every completion and every mark is one event; events are numbered from 0 over
 * all threads and files. Crash index X means: events 0..X-1 have happened, nothing else has.
 *
 * What survives a crash:
 * - A write survives when it completed before a successful fdatasync of its file was submitted and
 *   that fdatasync completed before the crash; a dsync write, when it completed before the crash.
 *   Every other write that was submitted is kept, dropped, or torn into sectors of 512 bytes.
 *   Surviving writes apply in the order of submission.
 * - Sizes (truncate, allocate, a write past the end) and punches become durable with the file's
 *   fdatasync, sizes also with a later dsync write; of the others those up to a random point are
 *   kept, in order. Bytes beyond the size that survived are lost.
 * - Directory entries become durable when a sync_dir of their directory, submitted after them,
 *   completed; of the others those up to a random point of each directory are kept, in order. A
 *   rename is kept whole or not at all. A file without an entry is gone.
 * - What was not durable when an fdatasync of the file failed never becomes durable (the kernel may
 *   have dropped it), nor does a write that failed.
 *
 * The log holds a copy of everything written, in memory; where memory runs out it aborts, since a
 * log with a gap would prove nothing. Shared memory is passed on and not logged: it does not
 * outlive the host, so a test that opens a replayed tree also sets another boot id and an empty
 * directory for shared memory (eng_io_posix_set_boot_id(), eng_io_posix_set_shm_dir()).
 *
 * The io may be used as io.h says; the other calls may be made from any thread at any time.
 */
#ifndef ENGINE_IO_RECORD_H
#define ENGINE_IO_RECORD_H

#include "engine/io/io.h"

struct eng_record;

/* What a test wants to find again in the log: an acknowledgement, a phase of its own. */
struct eng_record_mark {
	uint64_t index;      /* its event: happened before a crash at X when index < X */
	uint64_t kind, a, b; /* the test's own */
};

/*
 * Starts recording below @root, an existing directory; what is there now counts as durable. @inner
 * is borrowed and must outlive the recorder. To record the creation of a store's directory itself,
 * give its parent.
 */
int eng_record_create(struct eng_io *inner, const char *root, struct eng_record **ret);
/* The same as eng_io_destroy() of its io. NULL is fine. */
void eng_record_destroy(struct eng_record *rec);
struct eng_io *eng_record_io(struct eng_record *rec);

/* The number of events so far, which is the crash index of this moment. */
uint64_t eng_record_index(struct eng_record *rec);
/* Logs a mark and returns its event. */
uint64_t eng_record_mark(struct eng_record *rec, uint64_t kind, uint64_t a, uint64_t b);
/* Mark number @n, in order of events; false behind the last one. */
bool eng_record_get_mark(struct eng_record *rec, size_t n, struct eng_record_mark *ret);

/*
 * Writes the tree that a power loss at @index could leave into @to: a new directory, or an empty
 * one. @seed decides everything that is left to chance; the same log, index and seed give the same
 * tree. Many crashes are cheapest in the order of their indexes: what is durable at one of them is
 * not replayed for the next.
 */
int eng_record_crash(struct eng_record *rec, uint64_t index, uint64_t seed, const char *to);

/*
 * The recorded process died at @index, and the machine goes on: what comes behind is forgotten for good,
 * what was under way happens or not, by @seed. Writes the tree that another process finds into @to (as
 * above) and goes on recording there, on @inner: what was not durable still is not, though it can be read.
 * Nothing may be in flight, and no file of the recorder is open or used any more. A test that needs the rest
 * of the log forks first.
 */
int eng_record_kill(struct eng_record *rec, uint64_t index, uint64_t seed, struct eng_io *inner,
		    const char *to);

/* Removes @path and everything below it; for trees of eng_record_crash(). */
int eng_record_remove_tree(const char *path);

#endif
