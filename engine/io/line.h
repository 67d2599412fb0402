/* SPDX-License-Identifier: MIT */
/*
 * line.h - an assembly line: the owner's thread feeds pieces of work, some threads do each piece in
 * three steps, and the middle step happens in the order of feeding, one piece at a time. What a piece
 * is lies in the owner's array, by slot; a slot is free again when its last step is done.
 *
 * The owner's thread calls everything here; the steps run on the line's threads.
 */
#ifndef ENGINE_LINE_H
#define ENGINE_LINE_H

#include "engine/io/io.h"
#include "format/error.h"

struct eng_line;

/* Each returns 0, or not 0 to end the line with that result: no step of a later piece begins. */
struct eng_line_steps {
	int (*work)(void *arg, unsigned slot, struct fmt_error *err);   /* any order */
	int (*commit)(void *arg, unsigned slot, struct fmt_error *err); /* in order, or NULL */
	int (*finish)(void *arg, unsigned slot, struct fmt_error *err); /* any order, or NULL */
};

enum {
	ENG_LINE_THREADS_MAX = 32,
	ENG_LINE_SLOTS =
		4, /* for each thread: work for all, while some pieces wait for their turn */
};

/* Threads that keep all processors busy although some wait for I/O or for their turn. */
unsigned eng_line_threads(struct eng_io *io);

int eng_line_create(struct eng_io *io, unsigned threads, unsigned slots,
		    const struct eng_line_steps *steps, void *arg, struct eng_line **ret);
/* Waits for a free slot: 0, or what ended the line. */
int eng_line_take(struct eng_line *line, unsigned *slot);
/* Gives the slot taken last to the threads. */
void eng_line_feed(struct eng_line *line);
/*
 * Waits until everything fed is done, ends the threads and frees the line. 0, or what ended the line
 * and, of an error, its text.
 */
int eng_line_end(struct eng_line *line, struct fmt_error *err);

#endif
