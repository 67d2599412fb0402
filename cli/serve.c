/* SPDX-License-Identifier: MIT */
/*
 * serve.c - the verb serve: options in, serve_run(), exit status out. In the foreground until SIGTERM;
 * the log goes to standard error, nothing to standard output.
 */
#include "cli/options.h"
#include "cli/output.h"
#include "serve/serve.h"

#include <string.h>

/* An octal number of permission bits. */
static unsigned parse_mode(struct cli *cli, const char *text)
{
	unsigned mode = 0;

	for (const char *p = text; *p; p++) {
		if (*p < '0' || *p > '7' || mode > 0777)
			cli_usage_error(cli, "--socket-mode: '%s' is not an octal mode", text);
		mode = mode * 8 + (unsigned)(*p - '0');
	}
	if (!mode || mode > 0777)
		cli_usage_error(cli, "--socket-mode: '%s' is not in 1..777", text);
	return mode;
}

static uint32_t parse_u32(struct cli *cli, const char *option, uint64_t value)
{
	if (value > UINT32_MAX)
		cli_usage_error(cli, "%s: too large", option);
	return (uint32_t)value;
}

static int run_serve(struct cli *cli, int argc, char **argv)
{
	struct serve_options o = {.store = cli->store};
	const char *mode = NULL, *log = "text", *tls = "offer";
	bool standby = false, buffered = false;
	uint64_t fold_rate = 0, threads = 0, connections = 0, request = 0, drain = 0, handshake = 0;
	const struct cli_option options[] = {
		{"nbd", 0, CLI_TEXT, &o.nbd_socket, "SOCKET",
		 "default STORE/nbd.sock; '' for none"},
		{"nbd-tcp", 0, CLI_TEXT, &o.nbd_tcp, "HOST:PORT", "NBD over TCP too"},
		{"vhost-user", 0, CLI_TEXT, &o.vhost_dir, "DIR", "a vhost-user-blk socket a disk"},
		{"control", 0, CLI_TEXT, &o.control_socket, "SOCKET",
		 "default STORE/control.sock; '' for none"},
		{"socket-mode", 0, CLI_TEXT, &mode, "OCTAL", "of Unix sockets; default 600"},
		{"tls-certificates", 0, CLI_TEXT, &o.tls_certificates, "DIR",
		 "ca-cert.pem, server-cert.pem, server-key.pem"},
		{"tls-psk", 0, CLI_TEXT, &o.tls_psk, "FILE", "lines of USER:KEY"},
		{"tls", 0, CLI_CHOICE, &tls, "offer|require", "on Unix sockets; TCP requires it"},
		{"tls-verify-peer", 0, CLI_FLAG, &o.tls_verify_peer, NULL,
		 "clients need a certificate"},
		{"threads", 0, CLI_COUNT, &threads, "N", "workers; default one a processor"},
		{"max-connections", 0, CLI_COUNT, &connections, "N", "default 1024"},
		{"max-request", 0, CLI_SIZE, &request, "SIZE", "default 32M"},
		{"max-inflight", 0, CLI_SIZE, &o.max_inflight, "SIZE",
		 "payload of one connection; default 64M"},
		{"max-inflight-total", 0, CLI_SIZE, &o.max_inflight_total, "SIZE",
		 "payload of all; default 512M"},
		{"handshake-timeout", 0, CLI_COUNT, &handshake, "SECONDS", "default 10"},
		{"drain-timeout", 0, CLI_COUNT, &drain, "SECONDS", "at the end; default 30"},
		{"fold-rate", 0, CLI_RATE, &fold_rate, "BYTES/s",
		 "deleted snapshots' space; default 64M/s"},
		{"standby", 0, CLI_FLAG, &standby, NULL, "keep an overlay ready for each disk"},
		{"buffered", 0, CLI_FLAG, &buffered, NULL, "through the page cache"},
		{"pid-file", 0, CLI_TEXT, &o.pid_file, "FILE", "written when all can connect"},
		{"log", 0, CLI_CHOICE, &log, "text|json", "form of the log's lines"},
		{0},
	};
	struct cli_open_options open_options;
	struct vmimg_error err = {0};
	int r;

	cli_parse(cli, options, argc, argv);
	if (!cli->store)
		cli_usage_error(cli, "no store: give --store=DIR or set VMIMG_STORE");
	o.store = cli->store;
	if (!o.control_socket)
		o.control_socket = cli->control;
	o.socket_mode = mode ? parse_mode(cli, mode) : 0;
	o.threads = parse_u32(cli, "--threads", threads);
	o.max_connections = parse_u32(cli, "--max-connections", connections);
	o.max_request = parse_u32(cli, "--max-request", request);
	o.drain_timeout_s = parse_u32(cli, "--drain-timeout", drain);
	o.handshake_timeout_s = parse_u32(cli, "--handshake-timeout", handshake);
	o.log_json = !strcmp(log, "json");
	o.tls_required = !strcmp(tls, "require");
	cli_fill_options(cli, NULL, &open_options);
	o.open = open_options.options;
	o.open.fold_rate = fold_rate;
	o.open.standby = standby;
	o.open.buffered = buffered;
	r = serve_run(&o, &err);
	return r < 0 ? cli_fail(cli, r, &err) : CLI_OK;
}

const struct cli_verb cli_serve_verbs[] = {
	{"serve", "", "Serve the store's disks to running machines", 0, 0, run_serve, 0},
	{0},
};
