/* SPDX-License-Identifier: MIT */
/*
 * vhost_server.h - a store and a real `vmimg serve` over it, for tests in C: made in a directory of their
 * own, killed and started again at will. One at a time, one thread.
 */
#ifndef TESTS_SERVE_VHOST_SERVER_H
#define TESTS_SERVE_VHOST_SERVER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

extern char vs_dir[256];

/* The store with the disks m/d0.. of @size each, VM m in the collection c. Not served yet. */
void vs_make(unsigned disks, uint64_t size);
void vs_remove(void);
void vs_start(void);
/* SIGTERM; its exit status. */
int vs_stop(void);
void vs_kill(void); /* -9 */
bool vs_alive(void);
/* vmimg ARG..., its status; output to the file of that name in vs_dir. */
int vs_run(const char *arguments);
/* DIR/m.dN.sock */
const char *vs_socket(unsigned disk);
/* Whether the server's log has the text. */
bool vs_logged(const char *text);

#endif
