/* SPDX-License-Identifier: MIT */
/* life_step.c - what happens next in life.h: mostly requests, now and then an operation. */
#include "tests/sim/life.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- death --- */

static void *killer_main(void *arg)
{
	usleep((useconds_t)(uintptr_t)arg);
	kill(getpid(), SIGKILL);
	return NULL;
}

void life_die_within(uint32_t us)
{
	pthread_t thread;

	if (world->may_die)
		return;
	world->may_die = true;
	life_must(pthread_create(&thread, NULL, killer_main, (void *)(uintptr_t)us) == 0,
		  "no thread");
	pthread_detach(thread);
}

/* --- steps --- */

enum { STEP_WRITE, STEP_FLUSH, STEP_HEAD, STEP_SNAP, STEP_TURN, STEP_OPS };

static const struct {
	const char *name;
	void (*run)(void);
	uint32_t weight;
} ops[] = {
	{"snapshot", life_snapshot, 30}, {"delete", life_delete, 24},
	{"grow", life_resize, 4},        {"shrink", life_shrink, 4},
	{"folds", life_folds, 8},        {"reattach", life_reattach, 4},
	{"diff", life_diff, 10},         {"hold", life_hold, 5},
	{"prune", life_prune, 3},        {"revert", life_revert, 8},
	{"convert", life_convert, 10},   {"point", life_point, 6},
	{"unpoint", life_unpoint, 10},   {"clone", life_clone, 6},
	{"import", life_import, 4},      {"uncopy", life_uncopy, 14},
	{"flatten", life_flatten, 6},    {"verify", life_verify, 6},
	{"settle", life_settle, 3},      {"meddle", life_meddle, 24},
	{"backup", life_backup, 14},     {"files", life_files, 2},
};
#define OPS (sizeof(ops) / sizeof(ops[0]))

static void one_operation(void)
{
	uint32_t sum = 0, x;

	for (size_t i = 0; i < OPS; i++)
		sum += ops[i].weight;
	x = life_pick(sum);
	for (size_t i = 0; i < OPS; i++) {
		if (x < ops[i].weight) {
			if (world->mortal && life_chance(12))
				life_die_within(life_pick(6000));
			ops[i].run();
			world->counts[STEP_OPS + i]++;
			return;
		}
		x -= ops[i].weight;
	}
}

void life_step(void)
{
	uint32_t what = life_pick(100);
	int i;

	world->doing[0] = 0;
	life_jobs_turn();
	world->steps++; /* what is written beside operations is not counted */
	if (what < 60) {
		life_begin_write();
		world->counts[STEP_WRITE]++;
	} else if (what < 66) {
		life_flush();
		world->counts[STEP_FLUSH]++;
	} else if (what < 74) {
		i = life_some_disk();
		if (i >= 0)
			life_check_head((uint32_t)i, false);
		world->counts[STEP_HEAD]++;
	} else if (what < 79) {
		i = life_some_snap();
		if (i >= 0)
			life_check_snap(&world->snap[i], false);
		world->counts[STEP_SNAP]++;
	} else if (what < (world->loss ? 86 : 92)) {
		life_turn(life_chance(16) ? 2000000 : 0);
		world->counts[STEP_TURN]++;
	} else {
		one_operation();
	}
}

size_t life_op_count(void)
{
	return OPS;
}

const char *life_op_name(size_t op)
{
	return ops[op].name;
}

uint64_t life_op_times(const uint64_t counts[LIFE_COUNTS], size_t op)
{
	return counts[STEP_OPS + op];
}
