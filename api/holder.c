/* SPDX-License-Identifier: MIT */
/*
 * holder.c - who has a store that is in use: for the message alone. What the system says of its locks is
 * looked up once, and believed only where it is complete. Any thread.
 */
#include "api/holder.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/* The process that took the lock on that file; 0: nobody, or cannot tell. */
static int find_locker(const char *path)
{
	unsigned long long inode, want;
	unsigned major_, minor_;
	struct stat st;
	char line[256];
	int pid, found = 0;
	FILE *locks;

	if (stat(path, &st) < 0)
		return 0;
	want = st.st_ino;
	locks = fopen("/proc/locks", "re");
	while (locks && !found && fgets(line, sizeof(line), locks))
		if (sscanf(line, "%*s FLOCK %*s WRITE %d %x:%x:%llu", &pid, &major_, &minor_,
			   &inode) == 4 &&
		    inode == want && major_ == major(st.st_dev) && minor_ == minor(st.st_dev) &&
		    pid > 0)
			found = pid;
	if (locks)
		fclose(locks);
	return found;
}

/* Its words, as far as they fit and can be printed. */
static void read_command(int pid, char *buf, size_t size)
{
	char path[32];
	size_t n = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/cmdline", pid);
	file = fopen(path, "re");
	if (file) {
		n = fread(buf, 1, size - 1, file);
		fclose(file);
	}
	while (n && !buf[n - 1])
		n--;
	buf[n] = 0;
	for (size_t i = 0; i < n; i++)
		if (!isprint((unsigned char)buf[i]))
			buf[i] = buf[i] ? '?' : ' ';
}

void api_holder_text(const char *dir, char *buf, size_t size)
{
	char path[4096], command[100];
	int pid = 0;

	buf[0] = 0;
	if ((size_t)snprintf(path, sizeof(path), "%s/lock", dir) < sizeof(path))
		pid = find_locker(path);
	if (!pid)
		return;
	read_command(pid, command, sizeof(command));
	snprintf(buf, size, ": process %d has it%s%s%s", pid, *command ? " (" : "", command,
		 *command ? ")" : "");
}
