/* SPDX-License-Identifier: MIT */
/* vhost_server.c - see vhost_server.h. */
#include "tests/serve/vhost_server.h"

#include <criterion/criterion.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

char vs_dir[256];
static pid_t server;

static const char *command(void)
{
	const char *path = getenv("VMIMG");

	return path ? path : "build/vmimg";
}

int vs_run(const char *arguments)
{
	char line[1024];
	int status;

	snprintf(line, sizeof(line), "%s -s %s/store %s >%s/out 2>%s/err </dev/null", command(),
		 vs_dir, arguments, vs_dir, vs_dir);
	status = system(line); /* the tests' own words only */
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void vs_make(unsigned disks, uint64_t size)
{
	const char *tmp = getenv("TMPDIR");
	char line[400];

	/* Short: a socket's path has 107 bytes at most. */
	snprintf(vs_dir, sizeof(vs_dir), "%s/vh-XXXXXX", tmp && strlen(tmp) < 60 ? tmp : "/tmp");
	cr_assert_not_null(mkdtemp(vs_dir), "%s", vs_dir);
	snprintf(line, sizeof(line), "%s init %s/store", command(), vs_dir);
	cr_assert_eq(system(line), 0);
	cr_assert_eq(vs_run("vm create m"), 0);
	for (unsigned i = 0; i < disks; i++) {
		snprintf(line, sizeof(line), "disk create m/d%u --size=%llu", i,
			 (unsigned long long)size);
		cr_assert_eq(vs_run(line), 0);
	}
	cr_assert_eq(vs_run("collection create c m"), 0);
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

void vs_remove(void)
{
	if (server)
		vs_kill();
	nftw(vs_dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static void run_server(void)
{
	char store[300], sockets[300], log[300];
	int fd;

	snprintf(store, sizeof(store), "%s/store", vs_dir);
	snprintf(sockets, sizeof(sockets), "--vhost-user=%s/v", vs_dir);
	snprintf(log, sizeof(log), "%s/log", vs_dir);
	fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	dup2(fd, 2);
	dup2(fd, 1);
	execl(command(), command(), "-s", store, "serve", sockets, (char *)NULL);
	_exit(127);
}

void vs_start(void)
{
	fflush(NULL);
	server = fork();
	cr_assert_geq(server, 0);
	if (server == 0)
		run_server();
}

static int wait_server(void)
{
	int status = 0;
	pid_t pid = server;

	server = 0;
	cr_assert_eq(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

int vs_stop(void)
{
	kill(server, SIGTERM);
	return wait_server();
}

void vs_kill(void)
{
	kill(server, SIGKILL);
	wait_server();
}

bool vs_alive(void)
{
	int status;

	return server && waitpid(server, &status, WNOHANG) == 0;
}

const char *vs_socket(unsigned disk)
{
	static char path[300];

	snprintf(path, sizeof(path), "%s/v/m.d%u.sock", vs_dir, disk);
	return path;
}

bool vs_logged(const char *text)
{
	char line[400];

	snprintf(line, sizeof(line), "grep -qF '%s' %s/log", text, vs_dir);
	return system(line) == 0;
}
