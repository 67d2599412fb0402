/* SPDX-License-Identifier: MIT */
/*
 * control_call.c - what a line asks for: a method of the server's own, or one of the library's with what
 * the server has to do before and after it (CP-16). On the connection's thread, which may wait.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "serve/control/control.h"

/* --- replies: CP-2, CP-3 --- */

/* Takes @result or @error, the other being NULL. */
static char *reply_text(const json_t *id, const char *key, json_t *value)
{
	json_t *reply = json_pack("{s:O?, s:o}", "id", id, key, value);
	char *text = reply ? json_dumps(reply, JSON_COMPACT) : NULL;

	json_decref(reply);
	return text;
}

static char *reply_result(const json_t *request, json_t *result)
{
	json_t *id = json_object_get(request, "id");

	return result ? reply_text(id ? id : json_null(), "result", result) : NULL;
}

static char *reply_error(const json_t *request, json_t *code, const char *message,
			 const char *field)
{
	json_t *id = json_object_get(request, "id");

	return reply_text(id ? id : json_null(), "error",
			  json_pack("{s:o, s:s, s:s*}", "code", code, "message", message, "field",
				    field));
}

static json_t *errno_code(int code)
{
	const char *name = strerrorname_np(-code);

	return name ? json_string(name) : json_integer(code);
}

char *srv_control_refusal(int code, const char *message)
{
	char *text = reply_error(NULL, errno_code(code), message, NULL), *line = NULL;

	if (text && asprintf(&line, "%s\n", text) < 0)
		line = NULL;
	free(text);
	return line;
}

static char *reply_busy(const json_t *request, json_t *code, const char *name)
{
	char message[512];

	snprintf(message, sizeof(message), "%s: clients of the server are using it", name);
	return reply_error(request, code, message, NULL);
}

/* --- the server's own methods --- */

struct own_method {
	const char *name;
	const char *param; /* the one text it takes, or NULL */
	char *(*answer)(struct srv_conn *conn, const json_t *request, const char *value);
};

/* As clients with another working directory find it; null where there is none. */
static json_t *path_document(const char *path)
{
	char *absolute = path && *path ? realpath(path, NULL) : NULL;
	json_t *text = absolute ? json_string(absolute) : NULL;

	free(absolute);
	return text ? text : json_null();
}

static json_t *nbd_path(const struct srv_server *server)
{
	const char *given = server->options.nbd_socket;
	json_t *document;
	char *path = NULL;

	if (!server->nbd)
		return json_null();
	if (given)
		return path_document(given);
	if (asprintf(&path, "%s/nbd.sock", server->options.store) < 0)
		return json_null();
	document = path_document(path);
	free(path);
	return document;
}

static char *answer_server(struct srv_conn *conn, const json_t *request, const char *value)
{
	const struct srv_server *server = conn->control->server;

	(void)value;
	return reply_result(
		request,
		json_pack("{s:s, s:i, s:o, s:o, s:o, s:b, s:o}", "Version", vmimg_version(), "Pid",
			  (int)getpid(), "Store", path_document(server->options.store), "Control",
			  path_document(conn->control->path), "Nbd", nbd_path(server), "NbdTls",
			  (int)server->options.tls_required, "VhostUser",
			  path_document(server->vhost ? server->options.vhost_dir : NULL)));
}

static char *answer_metrics(struct srv_conn *conn, const json_t *request, const char *value)
{
	struct srv_server *server = conn->control->server;
	json_t *document = NULL;
	char *text;

	if (value && strcmp(value, "json") != 0 && strcmp(value, "prometheus") != 0)
		return reply_error(request, errno_code(-EINVAL),
				   "Format is unknown, expected json or prometheus",
				   "params.Format");
	if (value && !strcmp(value, "prometheus")) {
		text = srv_metrics_prometheus(server);
		document = text ? json_pack("{s:s}", "Text", text) : NULL;
	} else {
		text = srv_metrics_json(server);
		document = text ? json_loads(text, JSON_DECODE_ANY, NULL) : NULL;
	}
	free(text);
	return reply_result(request, document);
}

/* What is queued from here on is sent after the reply: by this thread, too. */
static char *answer_subscribe(struct srv_conn *conn, const json_t *request, const char *value)
{
	struct vmimg_error err = {0};
	int r = srv_conn_subscribe(conn, &err);

	(void)value;
	return r < 0 ? reply_error(request, errno_code(r), err.message, NULL)
		     : reply_result(request, json_object());
}

static const struct own_method own_methods[] = {
	{"Server", NULL, answer_server},
	{"Metrics", "Format", answer_metrics},
	{"Subscribe", NULL, answer_subscribe},
};

/* CP-4, for these few. */
static char *answer_own(struct srv_conn *conn, const struct own_method *method,
			const json_t *request)
{
	json_t *params = json_object_get(request, "params"), *value;
	const char *name, *given = NULL;
	char field[256];

	json_object_foreach ((json_t *)request, name, value) {
		if (strcmp(name, "id") != 0 && strcmp(name, "method") != 0 &&
		    strcmp(name, "params") != 0)
			return reply_error(request, errno_code(-EINVAL),
					   "expected id, method and params", name);
	}
	if (params && !json_is_object(params))
		return reply_error(request, errno_code(-EINVAL), "params is no object", "params");
	json_object_foreach (params, name, value) {
		snprintf(field, sizeof(field), "params.%s", name);
		if (!method->param || strcmp(name, method->param) != 0)
			return reply_error(request, errno_code(-EINVAL), "unknown parameter",
					   field);
		given = json_string_value(value);
		if (!given)
			return reply_error(request, errno_code(-EINVAL), "expected a string",
					   field);
	}
	return method->answer(conn, request, given);
}

/* --- the library's methods, and the exports: CP-16 --- */

static const char *param(const json_t *request, const char *name)
{
	return json_string_value(json_object_get(json_object_get(request, "params"), name));
}

static char *release_disk(struct srv_server *server, const json_t *request)
{
	const char *disk = param(request, "Disk");

	if (!disk || !*disk || srv_exports_release(server->exports, disk) == 0)
		return NULL;
	return reply_busy(request, errno_code(-EBUSY), disk);
}

/* One that is attached is not made smaller (RZ-4). */
static char *release_shrunk(struct srv_server *server, const json_t *request)
{
	const json_t *params = json_object_get(request, "params");
	const char *disk = param(request, "Disk");

	if (json_is_true(json_object_get(params, "Shrink")) && disk && *disk)
		srv_exports_release(server->exports, disk);
	return NULL;
}

static char *release_snapshot(struct srv_server *server, const json_t *request)
{
	const char *snapshot = param(request, "AffectedSnapshotCollection");

	if (!snapshot || !strchr(snapshot, '@') ||
	    srv_exports_release(server->exports, snapshot) == 0)
		return NULL;
	return reply_busy(request, json_integer(VMIMG_INVALID_STATE), snapshot);
}

/* Exports of the collection's snapshots that nobody uses go; with @all the first used one is the reply. */
static char *release_snapshots(struct srv_server *server, const json_t *request, bool all)
{
	const char *collection = param(request, "Collection");
	char *text = NULL, *busy = NULL;
	json_t *list, *snapshot;
	size_t i;

	if (!collection || !*collection ||
	    vmimg_list(server->svc, VMIMG_KIND_BRIEF | VMIMG_KIND_SNAPSHOT, collection, NULL,
		       &text) < 0)
		return NULL;
	list = json_loads(text, 0, NULL);
	vmimg_free(text);
	json_array_foreach (list, i, snapshot) {
		const char *name = json_string_value(json_object_get(snapshot, "snapshot"));

		if (!busy && name && srv_exports_release(server->exports, name) < 0 && all)
			busy = reply_busy(request, json_integer(VMIMG_V_IN_USE), name);
	}
	json_decref(list);
	return busy;
}

/* Snapshots take their collection's new name with them; no export may stay under the old one. */
static char *release_collection(struct srv_server *server, const json_t *request)
{
	return release_snapshots(server, request, true);
}

/* Exports that nobody uses would count as readers (RT-5); with used ones their snapshots stay. */
static char *release_unused(struct srv_server *server, const json_t *request)
{
	return release_snapshots(server, request, false);
}

/* A disk of it that nobody uses is detached first; one with users is the library's to refuse (AS-2). */
static char *release_members(struct srv_server *server, const json_t *request)
{
	const char *name = param(request, "SnapshotCollection");
	json_t *snapshot, *member;
	char *text = NULL;
	size_t i;

	if (!name || vmimg_describe(server->svc, VMIMG_KIND_BRIEF | VMIMG_KIND_SNAPSHOT, name, NULL,
				    &text) < 0)
		return NULL;
	snapshot = json_loads(text, 0, NULL);
	vmimg_free(text);
	json_array_foreach (json_object_get(snapshot, "members"), i, member) {
		const char *disk = json_string_value(json_object_get(member, "disk"));

		if (disk)
			srv_exports_release(server->exports, disk);
	}
	json_decref(snapshot);
	return NULL;
}

static void tell_resized(struct srv_server *server, const json_t *request)
{
	srv_exports_resized(server->exports, param(request, "Disk"));
}

static void follow_disk(struct srv_server *server, const json_t *request)
{
	srv_vhost_follow(server->vhost, param(request, "Disk"));
}

/* All disks of the new collection. */
static void follow_clone(struct srv_server *server, const json_t *request)
{
	const char *collection = param(request, "NewCollection");
	json_t *doc, *vm, *disks, *disk;
	char *text = NULL;
	size_t i, j;

	if (!collection ||
	    vmimg_describe(server->svc, VMIMG_KIND_COLLECTION, collection, NULL, &text) < 0)
		return;
	doc = json_loads(text, 0, NULL);
	vmimg_free(text);
	json_array_foreach (json_object_get(doc, "members"), i, vm) {
		if (vmimg_list(server->svc, VMIMG_KIND_BRIEF | VMIMG_KIND_DISK,
			       json_string_value(vm), NULL, &text) < 0)
			continue;
		disks = json_loads(text, 0, NULL);
		vmimg_free(text);
		json_array_foreach (disks, j, disk)
			srv_vhost_follow(server->vhost,
					 json_string_value(json_object_get(disk, "disk")));
		json_decref(disks);
	}
	json_decref(doc);
}

static const struct hook {
	const char *method;
	char *(*before)(struct srv_server *server, const json_t *request); /* NULL: go on */
	void (*after)(struct srv_server *server, const json_t *request);   /* it succeeded */
} hooks[] = {
	{"CreateDisk", NULL, follow_disk},
	{"DeleteDisk", release_disk, follow_disk},
	{"ResizeDisk", release_shrunk, tell_resized},
	{"DestroySnapshot", release_snapshot, NULL},
	{"PruneSnapshots", release_unused, NULL},
	{"ConvertToReferencePoint", release_snapshot, NULL},
	{"RenameCollection", release_collection, NULL},
	{"ApplySnapshot", release_members, NULL},
	{"CloneSnapshot", NULL, follow_clone},
};

static char *answer_library(struct srv_server *server, const struct hook *hook,
			    const json_t *request, const char *line)
{
	char *early = hook && hook->before ? hook->before(server, request) : NULL;
	char *reply = NULL, *text = NULL;
	int r;

	if (early)
		return early;
	r = vmimg_call(server->svc, line, &reply);
	if (r == 0 && hook && hook->after)
		hook->after(server, request);
	if (r >= 0)
		text = strdup(reply);
	if (r >= 0)
		vmimg_free(reply);
	return text;
}

char *srv_control_answer(struct srv_conn *conn, const char *line)
{
	json_t *request = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
	const char *method = json_string_value(json_object_get(request, "method"));
	const struct own_method *own = NULL;
	const struct hook *hook = NULL;
	char *reply;

	for (size_t i = 0; method && i < sizeof(own_methods) / sizeof(own_methods[0]); i++)
		if (!strcmp(own_methods[i].name, method))
			own = &own_methods[i];
	for (size_t i = 0; method && i < sizeof(hooks) / sizeof(hooks[0]); i++)
		if (!strcmp(hooks[i].method, method))
			hook = &hooks[i];
	reply = own ? answer_own(conn, own, request)
		    : answer_library(conn->control->server, hook, request, line);
	json_decref(request);
	return reply;
}
