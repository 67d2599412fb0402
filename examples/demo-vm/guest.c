/* SPDX-License-Identifier: MIT */
/*
 * guest.c - the program inside the VMs; static, one thread, and the first process where it takes turns.
 *
 *   guest turns NAME=FILE... NAME=raw   writes what the host says: see turns()
 *   guest load DIRECTORY                work for a file system, with files that can be judged: see load()
 *   guest judge COUNT                   reads file systems that others wrote: see judge()
 *
 * The host is at the other end of the virtio-serial port "vmimg.turns". Every request and answer is one
 * line. A write is answered when the kernel has said that it is done, in the way the request asked for.
 */
#include "examples/demo-vm/record.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PORT           "vmimg.turns"
#define TARGETS_MAX    4u
#define LINE_MAX_BYTES 256u
#define NAME_BYTES     64u

/* Where records go: a file that grows, or a raw disk. */
struct target {
	char name[16];
	int fd;
	bool raw;
	uint64_t count, room;         /* records there are, and that fit */
	uint64_t last[RECORD_CHAINS]; /* highest number of each chain */
};

static void pause_ms(long ms)
{
	nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

static void die(const char *what, const char *which)
{
	fprintf(stderr, "guest: %s %s: %s\n", what, which, strerror(errno));
	exit(1);
}

/* ---- devices -------------------------------------------------------------------------------------- */

/* The first line of a file of sysfs, or "". */
static void sysfs_line(const char *path, char *line, size_t bytes)
{
	FILE *f = fopen(path, "re");

	line[0] = 0;
	if (f) {
		if (fgets(line, (int)bytes, f))
			line[strcspn(line, "\n")] = 0;
		fclose(f);
	}
}

static int port_open(void)
{
	for (int tries = 0; tries < 300; tries++) {
		DIR *dir = opendir("/sys/class/virtio-ports");
		struct dirent *entry;
		char path[300], name[NAME_BYTES];
		int fd = -1;

		while (dir && fd < 0 && (entry = readdir(dir))) {
			if (entry->d_name[0] == '.')
				continue;
			snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name",
				 entry->d_name);
			sysfs_line(path, name, sizeof(name));
			snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
			if (strcmp(name, PORT) == 0)
				fd = open(path, O_RDWR | O_CLOEXEC);
		}
		if (dir)
			closedir(dir);
		if (fd >= 0)
			return fd;
		pause_ms(100);
	}
	die("no port", PORT);
	return -1;
}

static bool is_raw(int fd)
{
	char *block = aligned_alloc(RECORD_BLOCK, RECORD_BLOCK);
	bool raw = block && pread(fd, block, RECORD_BLOCK, 0) == RECORD_BLOCK &&
		   memcmp(block, RECORD_RAW, strlen(RECORD_RAW)) == 0;

	free(block);
	return raw;
}

/* The virtio disk with the header of a raw one. */
static int raw_open(void)
{
	DIR *dir = opendir("/sys/block");
	struct dirent *entry;
	char path[300];
	int fd = -1;

	while (dir && fd < 0 && (entry = readdir(dir))) {
		if (strncmp(entry->d_name, "vd", 2) != 0)
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		fd = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
		if (fd >= 0 && !is_raw(fd)) {
			close(fd);
			fd = -1;
		}
	}
	if (dir)
		closedir(dir);
	if (fd < 0)
		die("no raw disk", "");
	return fd;
}

/* ---- records -------------------------------------------------------------------------------------- */

static void keep_last(void *opaque, uint32_t chain, uint64_t number)
{
	struct target *target = opaque;

	if (number > target->last[chain])
		target->last[chain] = number;
}

/* Finds what @target holds, and drops a torn record at the end of a file. */
static int target_scan(struct target *target)
{
	uint64_t bytes = 0;
	int r = 0;

	if (target->raw && ioctl(target->fd, BLKGETSIZE64, &bytes) < 0)
		return -errno;
	target->room = target->raw ? record_raw_room(bytes) : 0;
	r = record_scan(target->fd, target->room, keep_last, target, &target->count);
	if (r == 0 && !target->raw &&
	    ftruncate(target->fd, (off_t)(target->count * RECORD_BYTES)) < 0)
		r = -errno;
	if (r == 0 && fsync(target->fd) < 0)
		r = -errno;
	return r;
}

static void target_open(struct target *target, const char *argument)
{
	const char *path = strchr(argument, '=');
	int r;

	if (!path || path == argument || (size_t)(path - argument) >= sizeof(target->name))
		die("no NAME=FILE:", argument);
	memcpy(target->name, argument, (size_t)(path++ - argument));
	target->raw = strcmp(path, "raw") == 0;
	target->fd = target->raw ? raw_open() : open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	if (target->fd < 0)
		die("cannot open", path);
	r = target_scan(target);
	errno = -r;
	if (r < 0)
		die("cannot use", path);
}

/* Writes one record as @how says: write (acknowledged, in no way flushed), dsync, fdatasync or fsync. */
static int target_write(struct target *target, uint32_t chain, uint64_t number, const char *how)
{
	size_t bytes = target->raw ? RECORD_BLOCK : RECORD_BYTES;
	char *block = aligned_alloc(RECORD_BLOCK, RECORD_BLOCK);
	struct iovec iov = {block, bytes};
	off_t offset;
	ssize_t n;
	int r = -ENOMEM;

	if (!block)
		goto out;
	r = -ENOSPC;
	if (target->raw && target->count >= target->room)
		goto out;
	memset(block, 0, RECORD_BLOCK);
	record_make(block, chain, number);
	offset = (off_t)(target->raw ? record_raw_offset(target->count, target->room)
				     : target->count * RECORD_BYTES);
	n = pwritev2(target->fd, &iov, 1, offset, strcmp(how, "dsync") == 0 ? RWF_DSYNC : 0);
	r = n < 0 ? -errno : n < (ssize_t)bytes ? -EIO : 0;
	if (r == 0 && strcmp(how, "fdatasync") == 0 && fdatasync(target->fd) < 0)
		r = -errno;
	if (r == 0 && strcmp(how, "fsync") == 0 && fsync(target->fd) < 0)
		r = -errno;
	if (r == 0) {
		target->count++;
		target->last[chain] = number;
	}
out:
	free(block);
	return r;
}

/* ---- turns ---------------------------------------------------------------------------------------- */

static void answer(int port, const char *format, ...)
{
	char line[LINE_MAX_BYTES * 4];
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (n < 0 || (size_t)n >= sizeof(line) || write(port, line, (size_t)n) != n)
		die("cannot answer", format);
}

static void say_ready(int port, const struct target *targets, unsigned count)
{
	char line[LINE_MAX_BYTES * 3] = "";
	size_t at = 0;

	for (unsigned i = 0; i < count; i++) {
		at += (size_t)snprintf(line + at, sizeof(line) - at, " %s:%c", targets[i].name,
				       targets[i].raw ? 'r' : 'f');
		for (unsigned c = 0; c < RECORD_CHAINS; c++)
			at += (size_t)snprintf(line + at, sizeof(line) - at, ":%" PRIu64,
					       targets[i].last[c]);
	}
	answer(port, "ready%s\n", line);
}

/* The orderly end: the second file system unmounted, the first one read-only. */
static void stop(int port, const struct target *targets, unsigned count)
{
	int tries = 0;

	kill(-1, SIGKILL);
	for (unsigned i = 0; i < count; i++)
		close(targets[i].fd);
	sync();
	while (umount("/data") < 0 && errno == EBUSY && tries++ < 300)
		pause_ms(100);
	while (mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL) < 0)
		if (tries++ >= 300)
			die("cannot remount", "/");
		else
			pause_ms(100);
	answer(port, "stopped\n");
	reboot(RB_AUTOBOOT);
}

static void turn(int port, struct target *targets, unsigned count, const char *line)
{
	char name[16], how[16];
	uint64_t number;
	unsigned chain;
	int r = -EINVAL;

	if (sscanf(line, "go %u %" SCNu64 " %15s %15s", &chain, &number, name, how) == 4 &&
	    chain < RECORD_CHAINS)
		for (unsigned i = 0; i < count; i++)
			if (strcmp(targets[i].name, name) == 0)
				r = target_write(&targets[i], chain, number, how);
	if (r < 0)
		answer(port, "failed %s: %s\n", line, strerror(-r));
	else
		answer(port, "done %u %" PRIu64 "\n", chain, number);
}

/*
 * hello                       -> ready NAME:KIND:LAST:LAST...: by target; KIND r (raw) or f (file), and the
 *                                highest number of each chain
 * go CHAIN NUMBER TARGET HOW  -> done CHAIN NUMBER, or failed WHY
 * stop                        -> stopped, after which the VM ends
 */
static _Noreturn void turns(int argc, char **argv)
{
	struct target targets[TARGETS_MAX] = {0};
	char line[LINE_MAX_BYTES];
	size_t have = 0;
	int port;

	if (argc > (int)TARGETS_MAX)
		die("too many targets", argv[TARGETS_MAX]);
	for (int i = 0; i < argc; i++)
		target_open(&targets[i], argv[i]);
	port = port_open();
	for (;;) {
		ssize_t n = read(port, line + have, 1);

		/* Nobody at the other end: not yet, or no longer. */
		if (n <= 0) {
			have = 0;
			pause_ms(20);
			continue;
		}
		if (line[have] != '\n') {
			have = have + 1 < sizeof(line) ? have + 1 : 0;
			continue;
		}
		line[have] = 0;
		have = 0;
		if (strcmp(line, "hello") == 0)
			say_ready(port, targets, (unsigned)argc);
		else if (strcmp(line, "stop") == 0)
			stop(port, targets, (unsigned)argc);
		else
			turn(port, targets, (unsigned)argc, line);
	}
}

/* ---- load ----------------------------------------------------------------------------------------- */

/* A file of the load holds its number all over; its size, in records, follows from the number. */
static uint64_t load_records(uint64_t number)
{
	return 1 + number * 2654435761u % 1021;
}

static int load_write(const char *path, uint64_t number)
{
	char record[RECORD_BYTES];
	FILE *f = fopen(path, "we");
	int r = 0;

	if (!f)
		return -errno;
	record_make(record, 0, number);
	for (uint64_t i = 0; r == 0 && i < load_records(number); i++)
		if (fwrite(record, sizeof(record), 1, f) != 1)
			r = -errno;
	if (r == 0 && (fflush(f) != 0 || fsync(fileno(f)) < 0))
		r = -errno;
	if (fclose(f) != 0 && r == 0)
		r = -errno;
	return r;
}

static int load_check(const char *path, uint64_t number)
{
	char record[RECORD_BYTES];
	FILE *f = fopen(path, "re");
	uint64_t found, records = 0;
	uint32_t chain;
	int r = 0;

	if (!f)
		return -errno;
	while (r == 0 && fread(record, 1, sizeof(record), f) == sizeof(record)) {
		if (!record_read(record, &chain, &found) || found != number)
			r = -EUCLEAN;
		records++;
	}
	if (r == 0 && (ferror(f) || records != load_records(number)))
		r = -EUCLEAN;
	fclose(f);
	return r;
}

/*
 * Makes files under another name, makes them durable, then gives them theirs (so that one with a name is
 * whole, whatever happens), makes and removes directories, and removes what is old.
 */
static _Noreturn void load(const char *dir)
{
	char path[512], named[512];
	uint64_t number = 1;
	DIR *entries = opendir(dir);
	struct dirent *entry;
	uint64_t n;

	if (!entries)
		die("cannot read", dir);
	while ((entry = readdir(entries)))
		if (sscanf(entry->d_name, "f-%" SCNu64, &n) == 1 && n >= number)
			number = n + 1;
	closedir(entries);
	for (;; number++) {
		snprintf(path, sizeof(path), "%s/new", dir);
		snprintf(named, sizeof(named), "%s/f-%" PRIu64, dir, number);
		errno = -load_write(path, number);
		if (errno != 0 || rename(path, named) < 0)
			die("cannot write", named);
		snprintf(path, sizeof(path), "%s/f-%" PRIu64, dir, number > 40 ? number - 40 : 0);
		unlink(path);
		snprintf(path, sizeof(path), "%s/d-%" PRIu64, dir, number);
		if (mkdir(path, 0755) < 0 && errno != EEXIST)
			die("cannot make", path);
		snprintf(path, sizeof(path), "%s/d-%" PRIu64, dir, number > 10 ? number - 10 : 0);
		rmdir(path);
		pause_ms(20);
	}
}

/* ---- judge ---------------------------------------------------------------------------------------- */

struct verdict {
	FILE *out;
	unsigned index;
};

static void print_record(void *opaque, uint32_t chain, uint64_t number)
{
	struct verdict *verdict = opaque;

	fprintf(verdict->out, "record %u %" PRIu32 " %" PRIu64 "\n", verdict->index, chain, number);
}

static int judge_load(const char *dir, unsigned *count)
{
	DIR *entries = opendir(dir);
	struct dirent *entry;
	char path[300];
	uint64_t number;
	int r = 0;

	if (!entries)
		return -errno;
	while (r == 0 && (entry = readdir(entries)))
		if (sscanf(entry->d_name, "f-%" SCNu64, &number) == 1) {
			snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
			r = load_check(path, number);
			++*count;
		}
	closedir(entries);
	return r;
}

/* A file system: mounted, which replays its journal; its records and files read; unmounted. */
static int judge_disk(struct verdict *verdict, const char *device, unsigned *files)
{
	uint64_t count;
	int fd, r;

	if (mount(device, "/mnt", "ext4", 0, NULL) < 0 && mount(device, "/mnt", "xfs", 0, NULL) < 0)
		return -errno;
	fd = open("/mnt/records", O_RDONLY | O_CLOEXEC);
	r = fd < 0 ? -errno : record_scan(fd, 0, print_record, verdict, &count);
	if (fd >= 0)
		close(fd);
	if (r == 0)
		r = judge_load("/mnt/load", files);
	if (umount("/mnt") < 0 && r == 0)
		r = -errno;
	return r;
}

/* The index of a SCSI disk is its target's; -1 where @name is none. */
static int disk_index(const char *name)
{
	char path[300], link[300];
	unsigned host, channel, target, lun;
	ssize_t n;

	if (strncmp(name, "sd", 2) != 0)
		return -1;
	snprintf(path, sizeof(path), "/sys/block/%s/device", name);
	n = readlink(path, link, sizeof(link) - 1);
	if (n <= 0)
		return -1;
	link[n] = 0;
	if (sscanf(strrchr(link, '/') ? strrchr(link, '/') + 1 : link, "%u:%u:%u:%u", &host,
		   &channel, &target, &lun) != 4)
		return -1;
	return (int)target;
}

/*
 * Waits for @wanted SCSI disks with file systems and tells the host of each, by index: its records, in their
 * order, "record INDEX CHAIN NUMBER"; and "disk INDEX N files", or "bad INDEX WHY". Ends with "judged COUNT".
 */
static _Noreturn void judge(unsigned wanted)
{
	int port = port_open();
	struct verdict verdict = {.out = fdopen(port, "w")};
	unsigned count = 0;

	if (!verdict.out)
		die("no stream to", PORT);
	for (int tries = 0; count < wanted && tries < 600; tries++) {
		DIR *dir = opendir("/sys/block");

		count = 0;
		for (struct dirent *entry; dir && (entry = readdir(dir));)
			count += disk_index(entry->d_name) >= 0;
		closedir(dir);
		pause_ms(50);
	}
	DIR *dir = opendir("/sys/block");

	for (struct dirent *entry; dir && (entry = readdir(dir));) {
		char path[300];
		int r, index = disk_index(entry->d_name);
		unsigned files;

		if (index < 0)
			continue;
		verdict.index = (unsigned)index;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		files = 0;
		r = judge_disk(&verdict, path, &files);
		if (r < 0)
			fprintf(verdict.out, "bad %d %s\n", index, strerror(-r));
		else
			fprintf(verdict.out, "disk %d %u files\n", index, files);
	}
	fprintf(verdict.out, "judged %u\n", count);
	fflush(verdict.out);
	reboot(RB_AUTOBOOT);
	exit(1);
}

int main(int argc, char **argv)
{
	if (argc > 2 && strcmp(argv[1], "turns") == 0)
		turns(argc - 2, argv + 2);
	if (argc == 3 && strcmp(argv[1], "load") == 0)
		load(argv[2]);
	if (argc == 3 && strcmp(argv[1], "judge") == 0)
		judge((unsigned)strtoul(argv[2], NULL, 10));
	fprintf(stderr, "guest: turns NAME=FILE... | load DIRECTORY | judge COUNT\n");
	return 2;
}
