/* SPDX-License-Identifier: MIT */
/* storm_model.c - versions, and which element holds which (storm.h). */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/random.h"
#include "tests/sim/storm.h"

/* The version that wrote each block last; 0: nobody. */
static uint32_t *content[STORM_VERSIONS];
static uint32_t newest;

static struct known {
	struct known *next;
	char id[40];
	uint32_t version;
} * known;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards the list */

uint32_t storm_version_make(uint64_t *random)
{
	uint32_t *c = calloc(STORM_DISKS * STORM_BLOCKS, sizeof(*c));

	if (!c || newest + 1 == STORM_VERSIONS)
		abort();
	if (newest)
		memcpy(c, content[newest], STORM_DISKS * STORM_BLOCKS * sizeof(*c));
	content[++newest] = c;
	for (unsigned d = 0; d < STORM_DISKS; d++)
		for (unsigned i = 0, n = 1 + test_random(random) % 12; i < n; i++)
			c[d * STORM_BLOCKS + test_random(random) % STORM_BLOCKS] = newest;
	return newest;
}

uint32_t storm_version_newest(void)
{
	return newest;
}

static uint32_t writer(uint32_t version, unsigned disk, unsigned block)
{
	return content[version][disk * STORM_BLOCKS + block];
}

void storm_block(uint32_t version, unsigned disk, unsigned block, uint8_t buf[STORM_BLOCK])
{
	uint32_t words[2] = {writer(version, disk, block), disk << 16 | block};

	if (!words[0])
		words[1] = 0;
	for (unsigned i = 0; i < STORM_BLOCK; i += sizeof(words))
		memcpy(buf + i, words, sizeof(words));
}

bool storm_differs(uint32_t a, uint32_t b, unsigned disk, unsigned block)
{
	return writer(a, disk, block) != writer(b, disk, block);
}

static bool is_version(uint32_t version, unsigned disk, const uint8_t *data)
{
	uint8_t buf[STORM_BLOCK];

	for (unsigned b = 0; b < STORM_BLOCKS; b++) {
		storm_block(version, disk, b, buf);
		if (memcmp(buf, data + b * STORM_BLOCK, STORM_BLOCK) != 0)
			return false;
	}
	return true;
}

uint32_t storm_version_of(unsigned disk, const uint8_t *data, uint64_t size)
{
	for (uint64_t i = STORM_SIZE; i < size; i++)
		if (data[i])
			return 0;
	for (uint32_t v = newest; v > 0; v--)
		if (is_version(v, disk, data))
			return v;
	return 0;
}

static struct known *find_locked(const char *id)
{
	struct known *k = known;

	while (k && strcmp(k->id, id) != 0)
		k = k->next;
	return k;
}

void storm_note(struct storm_thread *t, const char *id, uint32_t version)
{
	uint32_t was = version;
	struct known *k;

	pthread_mutex_lock(&lock);
	k = find_locked(id);
	if (k) {
		was = k->version;
	} else {
		k = calloc(1, sizeof(*k));
		if (!k)
			abort();
		strcpy(k->id, id);
		k->version = version;
		k->next = known;
		known = k;
	}
	pthread_mutex_unlock(&lock);
	if (was != version)
		storm_fail(t, "%s held version %u, and holds %u", id, was, version);
}

uint32_t storm_known(const char *id)
{
	const struct known *k;
	uint32_t version;

	pthread_mutex_lock(&lock);
	k = find_locked(id);
	version = k ? k->version : 0;
	pthread_mutex_unlock(&lock);
	return version;
}
