/* SPDX-License-Identifier: MIT */
/*
 * verify.c - judges what was found on the disks of snapshots. verify MARKS PLAN FOUND, three files:
 *   MARKS  SNAPSHOT CHAIN ACKED ISSUED   acknowledged before it was asked for, issued when it had ended
 *   PLAN   INDEX SNAPSHOT DISK [COPY]    which disk of which snapshot an index stands for; COPY: a raw one's
 *   FOUND  what the judge in a guest said of the others (guest.c)
 *
 * A snapshot is in order when of each chain it holds exactly the first K writes, ACKED <= K <= ISSUED,
 * each once, on every disk in rising order; and when every one of its disks could be read. One line
 * for each snapshot of the plan; status 0 when all are in order.
 */
#include "examples/demo-vm/record.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SNAPSHOTS_MAX 1024u
#define DISKS_MAX     256u
#define NUMBERS_MAX   1000000u
#define NAME_BYTES    192

struct chain {
	bool marked;
	uint64_t acked, issued, found, highest;
	unsigned char *seen; /* by number */
};

struct snapshot {
	char name[NAME_BYTES];
	struct chain chains[RECORD_CHAINS];
	unsigned disks, read; /* planned, and read by the judge */
	bool failed;
};

struct disk {
	struct snapshot *snapshot;
	char name[NAME_BYTES], copy[NAME_BYTES];
	uint64_t last[RECORD_CHAINS];
	bool read;
};

static struct snapshot snapshots[SNAPSHOTS_MAX];
static struct disk disks[DISKS_MAX];
static unsigned snapshot_count;

static void wrong(struct snapshot *snapshot, const char *format, ...)
{
	va_list args;

	snapshot->failed = true;
	printf("%s FAILED: ", snapshot->name);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
}

static _Noreturn void die(const char *file, const char *what)
{
	printf("FAILED: %s: %s\n", file, what);
	exit(2);
}

/* The snapshot of that name; made when @make says so. */
static struct snapshot *snapshot_get(const char *name, bool make)
{
	for (unsigned i = 0; i < snapshot_count; i++)
		if (strcmp(snapshots[i].name, name) == 0)
			return &snapshots[i];
	if (!make || snapshot_count == SNAPSHOTS_MAX)
		return NULL;
	snprintf(snapshots[snapshot_count].name, NAME_BYTES, "%s", name);
	return &snapshots[snapshot_count++];
}

static void read_plan(const char *file)
{
	char line[1024], snapshot[NAME_BYTES], disk[NAME_BYTES], copy[NAME_BYTES];
	FILE *f = fopen(file, "re");
	unsigned index;
	int n;

	if (!f)
		die(file, "cannot be read");
	while (fgets(line, sizeof(line), f)) {
		n = sscanf(line, "%u %191s %191s %191s", &index, snapshot, disk, copy);
		if (n < 3 || index >= DISKS_MAX || disks[index].snapshot ||
		    !(disks[index].snapshot = snapshot_get(snapshot, true)))
			die(file, line);
		snprintf(disks[index].name, NAME_BYTES, "%s", disk);
		snprintf(disks[index].copy, NAME_BYTES, "%s", n == 4 ? copy : "");
		disks[index].snapshot->disks++;
	}
	fclose(f);
}

/* Marks of snapshots that are not in the plan are for another round. */
static void read_marks(const char *file)
{
	char line[512], name[NAME_BYTES];
	FILE *f = fopen(file, "re");
	uint64_t acked, issued;
	unsigned chain;

	if (!f)
		die(file, "cannot be read");
	while (fgets(line, sizeof(line), f)) {
		struct snapshot *snapshot;

		if (sscanf(line, "%191s %u %" SCNu64 " %" SCNu64, name, &chain, &acked, &issued) !=
			    4 ||
		    chain >= RECORD_CHAINS || acked > issued || issued >= NUMBERS_MAX)
			die(file, line);
		snapshot = snapshot_get(name, false);
		if (!snapshot)
			continue;
		snapshot->chains[chain] = (struct chain){.marked = true,
							 .acked = acked,
							 .issued = issued};
		snapshot->chains[chain].seen = calloc(NUMBERS_MAX, 1);
		if (!snapshot->chains[chain].seen)
			die(file, "no memory");
	}
	fclose(f);
}

static void found_record(void *opaque, uint32_t c, uint64_t number)
{
	struct disk *disk = opaque;
	struct chain *chain = &disk->snapshot->chains[c];

	if (!chain->marked || number == 0 || number >= NUMBERS_MAX) {
		wrong(disk->snapshot, "%s: write %" PRIu64 " of chain %u never was", disk->name,
		      number, c);
		return;
	}
	if (number <= disk->last[c])
		wrong(disk->snapshot, "%s: chain %u: write %" PRIu64 " after %" PRIu64, disk->name,
		      c, number, disk->last[c]);
	if (chain->seen[number])
		wrong(disk->snapshot, "%s: chain %u: write %" PRIu64 " a second time", disk->name,
		      c, number);
	chain->seen[number] = 1;
	chain->found++;
	disk->last[c] = number;
	if (number > chain->highest)
		chain->highest = number;
}

static void read_found(const char *file)
{
	FILE *f = fopen(file, "re");
	char line[512];
	unsigned index, chain;
	uint64_t number;

	if (!f)
		die(file, "cannot be read");
	while (fgets(line, sizeof(line), f)) {
		struct disk *disk;

		line[strcspn(line, "\n")] = 0;
		if (sscanf(line, "%*s %u", &index) != 1 || strncmp(line, "judged ", 7) == 0)
			continue;
		if (index >= DISKS_MAX || !disks[index].snapshot)
			die(file, line);
		disk = &disks[index];
		if (sscanf(line, "record %*u %u %" SCNu64, &chain, &number) == 2 &&
		    chain < RECORD_CHAINS) {
			found_record(disk, chain, number);
		} else if (strncmp(line, "disk ", 5) == 0 && !disk->read) {
			disk->read = true;
			disk->snapshot->read++;
		} else {
			wrong(disk->snapshot, "%s: %s", disk->name, line);
		}
	}
	fclose(f);
}

/* The copies of raw disks need nobody to mount them. */
static void read_raw(struct disk *disk)
{
	char header[sizeof(RECORD_RAW)] = "";
	int fd = open(disk->copy, O_RDONLY | O_CLOEXEC), r = -EUCLEAN;
	uint64_t count;

	if (fd < 0)
		die(disk->copy, "cannot be read");
	if (pread(fd, header, strlen(RECORD_RAW), 0) > 0 && strcmp(header, RECORD_RAW) == 0)
		r = record_scan(fd, record_raw_room((uint64_t)lseek(fd, 0, SEEK_END)), found_record,
				disk, &count);
	close(fd);
	if (r < 0)
		wrong(disk->snapshot, "%s: %s", disk->name, strerror(-r));
	else
		disk->snapshot->read++;
}

static void judge(struct snapshot *snapshot)
{
	if (snapshot->read != snapshot->disks)
		wrong(snapshot, "%u of %u disks could be read", snapshot->read, snapshot->disks);
	for (unsigned c = 0; c < RECORD_CHAINS; c++) {
		struct chain *chain = &snapshot->chains[c];
		uint64_t missing = 1;

		if (!chain->marked)
			continue;
		while (missing <= chain->highest && chain->seen[missing])
			missing++;
		if (missing <= chain->highest)
			wrong(snapshot, "chain %u: write %" PRIu64 " is there, %" PRIu64 " is not",
			      c, chain->highest, missing);
		if (chain->highest < chain->acked)
			wrong(snapshot,
			      "chain %u: up to %" PRIu64 ", acknowledged before was %" PRIu64, c,
			      chain->highest, chain->acked);
		if (chain->highest > chain->issued)
			wrong(snapshot,
			      "chain %u: up to %" PRIu64 ", issued by its end was %" PRIu64, c,
			      chain->highest, chain->issued);
	}
	if (snapshot->failed)
		return;
	printf("%s ok:", snapshot->name);
	for (unsigned c = 0; c < RECORD_CHAINS; c++)
		if (snapshot->chains[c].marked)
			printf(" 1..%" PRIu64 " (%" PRIu64 "..%" PRIu64 ")",
			       snapshot->chains[c].highest, snapshot->chains[c].acked,
			       snapshot->chains[c].issued);
	printf("\n");
}

int main(int argc, char **argv)
{
	bool failed = false;

	if (argc != 4) {
		fprintf(stderr, "verify: MARKS PLAN FOUND\n");
		return 2;
	}
	read_plan(argv[2]);
	read_marks(argv[1]);
	read_found(argv[3]);
	for (unsigned i = 0; i < DISKS_MAX; i++)
		if (disks[i].copy[0])
			read_raw(&disks[i]);
	for (unsigned i = 0; i < snapshot_count; i++) {
		struct snapshot *snapshot = &snapshots[i];
		unsigned marks = 0;

		for (unsigned c = 0; c < RECORD_CHAINS; c++)
			marks += snapshot->chains[c].marked;
		if (marks == 0)
			wrong(snapshot, "no marks");
		else
			judge(snapshot);
		failed |= snapshot->failed;
	}
	return failed || snapshot_count == 0;
}
