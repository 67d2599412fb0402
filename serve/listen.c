/* SPDX-License-Identifier: MIT */
/*
 * listen.c - listening sockets: a Unix socket by its path, TCP by host and port, and those that the
 * service manager holds for us (sd_listen_fds). No state; any thread.
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "serve/server.h"

#define BACKLOG 128

/* The socket that the service manager passed under that name, or -1. */
static int passed_socket(const char *fdname)
{
	char **names = NULL;
	int n = sd_listen_fds_with_names(0, &names), found = -1;

	for (int i = 0; i < n; i++) {
		if (found < 0 && !strcmp(names[i], fdname))
			found = SD_LISTEN_FDS_START + i;
		free(names[i]);
	}
	free(names);
	return found;
}

/* Whether somebody answers there. */
static bool is_live(const struct sockaddr_un *addr)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	bool live;

	if (fd < 0)
		return true;
	live = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0 || errno == EAGAIN;
	close(fd);
	return live;
}

static int bind_unix(int fd, const struct sockaddr_un *addr, unsigned mode)
{
	struct stat st;

	/* The mode before the name: nobody else gets in between. */
	if (fchmod(fd, mode) < 0)
		return -errno;
	if (bind(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0) {
		if (errno != EADDRINUSE)
			return -errno;
		if (lstat(addr->sun_path, &st) < 0 || !S_ISSOCK(st.st_mode) || is_live(addr))
			return -EADDRINUSE;
		if (unlink(addr->sun_path) < 0 ||
		    bind(fd, (const struct sockaddr *)addr, sizeof(*addr)) < 0)
			return -errno;
	}
	/* And again for what the umask took away. */
	if (chmod(addr->sun_path, mode) < 0 || listen(fd, BACKLOG) < 0) {
		int r = -errno;

		unlink(addr->sun_path);
		return r;
	}
	return 0;
}

int srv_listen_unix(const char *path, unsigned mode, const char *fdname, struct vmimg_error *err,
		    bool *passed)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = fdname ? passed_socket(fdname) : -1;
	int r;

	*passed = fd >= 0;
	if (fd >= 0)
		return fd;
	if (strlen(path) >= sizeof(addr.sun_path))
		return srv_fail(err, -ENAMETOOLONG,
				"%s: %zu bytes, a socket's path has at most %zu", path,
				strlen(path), sizeof(addr.sun_path) - 1);
	memcpy(addr.sun_path, path, strlen(path));
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return srv_fail(err, -errno, "%s: cannot make a socket: %s", path, strerror(errno));
	r = bind_unix(fd, &addr, mode);
	if (r < 0) {
		close(fd);
		return srv_fail(err, r, "%s: cannot listen: %s%s", path, strerror(-r),
				r == -EADDRINUSE ? " (another server, or no socket)"
				: r == -ENOSPC
					? " (delete snapshots, or put it on another file system)"
					: "");
	}
	return fd;
}

/* --- TCP --- */

/* Splits "HOST:PORT", "[V6]:PORT", ":PORT" in place; a host of "" means every address. */
static int split_address(char *text, char **host, char **port)
{
	char *colon = strrchr(text, ':');

	if (!colon || !colon[1])
		return -EINVAL;
	*colon = 0;
	*host = text;
	*port = colon + 1;
	if (text[0] == '[') {
		if (colon[-1] != ']')
			return -EINVAL;
		colon[-1] = 0;
		*host = text + 1;
	} else if (strchr(text, ':')) {
		return -EINVAL;
	}
	return 0;
}

static int listen_one(const struct addrinfo *ai)
{
	int fd = socket(ai->ai_family, ai->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
			ai->ai_protocol);
	int one = 1, r;

	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (ai->ai_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	if (bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, BACKLOG) < 0) {
		r = -errno;
		close(fd);
		return r;
	}
	return fd;
}

int srv_listen_tcp(const char *address, int *fds, unsigned max, struct vmimg_error *err)
{
	struct addrinfo hints = {
		.ai_flags = AI_PASSIVE | AI_ADDRCONFIG,
		.ai_family = AF_UNSPEC,
		.ai_socktype = SOCK_STREAM,
	};
	struct addrinfo *list = NULL;
	char *text = strdup(address), *host, *port;
	unsigned n = 0;
	int r = text ? split_address(text, &host, &port) : -ENOMEM;

	if (r < 0) {
		srv_fail(err, r, "%s: not HOST:PORT, [V6]:PORT or :PORT", address);
		goto out;
	}
	r = getaddrinfo(*host ? host : NULL, port, &hints, &list);
	if (r) {
		r = srv_fail(err, -EADDRNOTAVAIL, "%s: %s", address, gai_strerror(r));
		goto out;
	}
	for (struct addrinfo *ai = list; ai && n < max; ai = ai->ai_next) {
		r = listen_one(ai);
		if (r < 0) {
			srv_fail(err, r, "%s: cannot listen: %s", address, strerror(-r));
			break;
		}
		fds[n++] = r;
	}
	if (r < 0)
		while (n > 0)
			close(fds[--n]);
	else
		r = (int)n;
out:
	if (list)
		freeaddrinfo(list);
	free(text);
	return r;
}
