/* SPDX-License-Identifier: MIT */
/*
 * lease.h - the packets between a service and its lease, the process that holds guests frozen
 * (spec/quiesce.md 4). Private. Both run on one machine and share its monotonic clock.
 */
#ifndef API_LEASE_H
#define API_LEASE_H

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

#define LEASE_MAGIC      0x5345414cu /* "LASE" */
#define LEASE_VERSION    1
#define LEASE_GUESTS_MAX 65536u
#define LEASE_TEXT_MAX   256

enum lease_kind {
	/* to the lease */
	LEASE_GUEST = 1,  /* text: its agent's socket; index counts up from 0 */
	LEASE_SYNC = 2,   /* that were all; talk to them. limit_ns: for it */
	LEASE_FREEZE = 3, /* freeze all; limit_ns: thaw then */
	LEASE_THAW = 4,   /* thaw all; after GUESTs, instead of SYNC: whatever they are */
	/* from the lease */
	LEASE_HELLO = 16,  /* once, at first */
	LEASE_READY = 17,  /* index; result: 0 or why not, text */
	LEASE_FROZEN = 18, /* index; result 0: count, at_ns; else it is not, or not any more: text */
	LEASE_RELEASED = 19, /* at_ns: when thawing was decided, by whoever */
	LEASE_THAWED = 20, /* index; result 0: confirmed; count; at_ns begun, limit_ns ended; text */
};

struct lease_packet {
	uint32_t magic;
	uint16_t version, kind;
	uint32_t index;
	int32_t result; /* 0 or a negative errno */
	uint64_t at_ns, limit_ns;
	uint32_t count; /* file systems */
	uint32_t reserved;
	char text[LEASE_TEXT_MAX];
};

/* 1: a packet; 0: none now; -EPIPE: the other end has gone; -EPROTO: it is none of ours. */
static inline int lease_receive(int fd, struct lease_packet *ret)
{
	ssize_t n;

	do
		n = recv(fd, ret, sizeof(*ret), MSG_DONTWAIT | MSG_TRUNC);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return 0;
	if (n <= 0)
		return -EPIPE;
	if (n != sizeof(*ret) || ret->magic != LEASE_MAGIC || ret->version != LEASE_VERSION ||
	    !memchr(ret->text, 0, sizeof(ret->text)))
		return -EPROTO;
	return 1;
}

/* Fills in what all have in common. 1: sent; 0: no room now; -EPIPE. */
static inline int lease_send(int fd, struct lease_packet *packet)
{
	ssize_t n;

	packet->magic = LEASE_MAGIC;
	packet->version = LEASE_VERSION;
	do
		n = send(fd, packet, sizeof(*packet), MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS))
		return 0;
	return n == sizeof(*packet) ? 1 : -EPIPE;
}

#endif
