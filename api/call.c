/* SPDX-License-Identifier: MIT */
/*
 * call.c - the API family as JSON (CP-1..CP-5): reads a request, checks every member of it against
 * the method's table, and writes the reply. Any thread.
 */
#include "api/call.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REQUEST_MAX (64u << 10) /* CP-1 */
#define DEPTH_MAX   8u

static const struct api_method *const tables[] = {api_snapshot_methods, api_element_methods,
						  api_keep_methods,     api_branch_methods,
						  api_diff_methods,     api_transfer_methods,
						  api_refpoint_methods};

/* --- what a method asks for --- */

const char *api_call_text(const struct api_call *call, unsigned index)
{
	return json_string_value(call->values[index]);
}

char *api_call_settings(const struct api_call *call, unsigned index)
{
	const json_t *settings = call->values[index];

	if (json_is_object(settings))
		return json_dumps(settings, JSON_COMPACT);
	return strdup(settings ? json_string_value(settings) : "");
}

uint64_t api_call_number(const struct api_call *call, unsigned index)
{
	return (uint64_t)json_integer_value(call->values[index]);
}

bool api_call_bool(const struct api_call *call, unsigned index)
{
	return json_is_true(call->values[index]);
}

int64_t api_call_blame(struct api_call *call, unsigned index, int64_t code)
{
	call->field = call->method->params[index].name;
	call->in_params = true;
	return code;
}

static bool is_about_a_parameter(int64_t code)
{
	return code == -EINVAL || code == -ENOENT || code == VMIMG_NOT_SUPPORTED ||
	       code == VMIMG_INVALID_PARAMETER || code == VMIMG_INVALID_TYPE ||
	       code == VMIMG_V_NOT_SUPPORTED || code == VMIMG_V_INVALID_PARAMETER ||
	       code == VMIMG_V_NOT_FOUND;
}

int64_t api_call_blame_words(struct api_call *call, int64_t code, const struct api_blame *about)
{
	const char *message = call->error.message;

	if (!is_about_a_parameter(code))
		return code;
	for (; about->words; about++)
		if (about->words[0] == ':' ? strstr(message, about->words) != NULL
					   : !strncmp(message, about->words, strlen(about->words)))
			return api_call_blame(call, about->index, code);
	return code;
}

void api_call_take_job(struct vmimg_job *job, struct vmimg_job_info *ret)
{
	memset(ret, 0, sizeof(*ret));
	if (job)
		vmimg_job_info(job, ret);
	vmimg_job_put(job);
}

json_t *api_call_ref(const struct vmimg_ref *ref)
{
	return ref->id[0] ? json_pack("{s:s, s:s}", "Name", ref->name, "Id", ref->id) : json_null();
}

void api_call_wanted(const struct api_call *call, unsigned index, struct vmimg_ref *ret)
{
	const char *name = api_call_text(call, index);

	memset(ret, 0, sizeof(*ret));
	if (name)
		snprintf(ret->name, sizeof(ret->name), "%s", name);
}

int64_t api_call_answer_job(struct api_call *call, uint32_t code, struct vmimg_job *job,
			    const struct api_blame *about, const char *name,
			    const struct vmimg_ref *made)
{
	struct vmimg_job_info info;

	api_call_take_job(job, &info);
	if (code != VMIMG_OK && code != VMIMG_JOB_STARTED) {
		snprintf(call->job, sizeof(call->job), "%s", info.instance_id);
		return api_call_blame_words(call, code, about);
	}
	call->result = json_pack("{s:I}", "ReturnValue", (json_int_t)code);
	if (made)
		json_object_set_new(call->result, name, api_call_ref(made));
	json_object_update_new(call->result,
			       json_pack("{s:s, s:i, s:i, s:i}", "Job", info.instance_id,
					 "JobState", info.job_state, "PercentComplete",
					 info.percent_complete, "ErrorCode", info.error_code));
	return 0;
}

int64_t api_call_describe(struct api_call *call, enum vmimg_kind kind, const char *name)
{
	return vmimg_describe(call->svc, kind, name, &call->error, &call->text);
}

/* --- the request --- */

/* The field's text must last as long as the request. */
__attribute__((format(printf, 4, 5))) static int refuse(struct api_call *call, const char *field,
							bool in_params, const char *format, ...)
{
	char text[256];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	call->field = field;
	call->in_params = in_params;
	return api_fail(&call->error, -EINVAL, "%s", text);
}

/* Brackets that open and do not close before @max of them: the parser recurses on them. */
static bool is_too_deep(const char *json)
{
	unsigned depth = 0;
	bool in_string = false;

	for (; *json; json++) {
		if (in_string) {
			if (*json == '\\' && json[1])
				json++;
			else if (*json == '"')
				in_string = false;
		} else if (*json == '"') {
			in_string = true;
		} else if (*json == '{' || *json == '[') {
			if (++depth > DEPTH_MAX)
				return true;
		} else if ((*json == '}' || *json == ']') && depth) {
			depth--;
		}
	}
	return false;
}

static int parse(struct api_call *call, const char *request, json_t **ret)
{
	size_t len = strnlen(request, REQUEST_MAX + 1);
	json_error_t why;
	json_t *object;

	if (len > REQUEST_MAX)
		return refuse(call, NULL, false, "request: longer than %u bytes", REQUEST_MAX);
	if (is_too_deep(request))
		return refuse(call, NULL, false, "request: more than %u levels deep", DEPTH_MAX);
	object = json_loadb(request, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
	if (!object)
		return refuse(call, NULL, false, "request: no valid JSON at byte %d: %s",
			      why.position, why.text);
	*ret = object;
	return json_is_object(object) ? 0 : refuse(call, NULL, false, "request: no JSON object");
}

static const char *type_of(const json_t *value)
{
	static const char *const types[] = {
		"an object", "an array", "a string", "a whole number", "a number with a fraction",
		"true",      "false",    "null"};

	return types[json_typeof(value)];
}

static int check_number(struct api_call *call, const struct api_param *p, json_t *value)
{
	json_int_t n = json_integer_value(value);

	if (!json_is_integer(value))
		return refuse(call, p->name, true, "%s is %s, expected a whole number", p->name,
			      type_of(value));
	if (n < 0 || (uint64_t)n < p->min || (uint64_t)n > p->max)
		return refuse(call, p->name, true, "%s is %lld, expected %llu..%llu", p->name,
			      (long long)n, (unsigned long long)p->min, (unsigned long long)p->max);
	return 0;
}

static int check_text(struct api_call *call, const struct api_param *p, const json_t *value)
{
	if (!json_is_string(value))
		return refuse(call, p->name, true, "%s is %s, expected a string", p->name,
			      type_of(value));
	if (json_string_length(value) > p->max)
		return refuse(call, p->name, true, "%s has %zu bytes, expected at most %llu",
			      p->name, json_string_length(value), (unsigned long long)p->max);
	return 0;
}

static int check_value(struct api_call *call, const struct api_param *p, json_t *value)
{
	switch (p->type) {
	case API_TEXT: return check_text(call, p, value);
	case API_NUMBER: return check_number(call, p, value);
	case API_BOOL:
		return json_is_boolean(value)
			       ? 0
			       : refuse(call, p->name, true, "%s is %s, expected true or false",
					p->name, type_of(value));
	case API_SETTINGS:
		return json_is_object(value) || json_is_string(value)
			       ? 0
			       : refuse(call, p->name, true,
					"%s is %s, expected an object, or one as a string", p->name,
					type_of(value));
	}
	return -EINVAL;
}

static int read_params(struct api_call *call, json_t *params)
{
	const struct api_param *table = call->method->params;
	const char *name;
	json_t *value;
	int r = 0;

	json_object_foreach (params, name, value) {
		unsigned i = 0;

		while (i < API_PARAMS_MAX && table[i].name && strcmp(table[i].name, name) != 0)
			i++;
		if (i == API_PARAMS_MAX || !table[i].name)
			return refuse(call, name, true, "'%.64s' is no parameter of %s", name,
				      call->method->name);
		r = check_value(call, &table[i], value);
		if (r < 0)
			return r;
		call->values[i] = value;
	}
	for (unsigned i = 0; i < API_PARAMS_MAX && table[i].name; i++)
		if (table[i].required && !call->values[i])
			return refuse(call, table[i].name, true, "%s needs %s", call->method->name,
				      table[i].name);
	return 0;
}

static const struct api_method *find_method(const char *name)
{
	for (size_t t = 0; t < sizeof(tables) / sizeof(tables[0]); t++)
		for (const struct api_method *m = tables[t]; m->name; m++)
			if (strcmp(m->name, name) == 0)
				return m;
	return NULL;
}

/* CP-4: nothing in the request that is not meant. */
static int read_request(struct api_call *call, json_t *request)
{
	const json_t *method = json_object_get(request, "method");
	json_t *params = json_object_get(request, "params");
	const char *name;
	json_t *value;

	json_object_foreach (request, name, value) {
		if (strcmp(name, "id") != 0 && strcmp(name, "method") != 0 &&
		    strcmp(name, "params") != 0)
			return refuse(call, name, false,
				      "'%.64s' is unknown, expected id, method and params", name);
	}
	if (!json_is_string(method))
		return refuse(call, "method", false, "method is %s, expected a string",
			      method ? type_of(method) : "missing");
	if (params && !json_is_object(params))
		return refuse(call, "params", false, "params is %s, expected an object",
			      type_of(params));
	call->method = find_method(json_string_value(method));
	if (!call->method)
		return refuse(call, "method", false, "method '%.64s' is unknown",
			      json_string_value(method));
	return read_params(call, params);
}

/* --- the reply --- */

static json_t *error_document(const struct api_call *call, int64_t code)
{
	const char *name = code < 0 ? strerrorname_np((int)-code) : NULL;
	const char *message = call->error.message;
	json_t *error = json_pack("{s:o, s:s}", "code",
				  name ? json_string(name) : json_integer(code), "message",
				  *message   ? message
				  : code < 0 ? strerror((int)-code)
					     : vmimg_strerror((uint32_t)code));
	char field[512];

	if (call->field) {
		snprintf(field, sizeof(field), "%s%s", call->in_params ? "params." : "",
			 call->field);
		/* An unknown name may be long: cut within a character it is none, and left out. */
		json_object_set_new(error, "field", json_string(field));
	}
	if (call->job[0])
		json_object_set_new(error, "job", json_string(call->job));
	return error;
}

/* A document of the library is spliced in as it is: it may be large. */
static int write_reply(const struct api_call *call, int64_t code, const json_t *id, char **reply)
{
	json_t *document = code ? error_document(call, code) : json_incref(call->result);
	char *made = document ? json_dumps(document, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
	char *id_text = id ? json_dumps(id, JSON_COMPACT | JSON_ENCODE_ANY) : strdup("null");
	const char *body = made ? made : code ? NULL : call->text;
	char *text = NULL;
	int r = -ENOMEM;

	if (body && id_text &&
	    asprintf(&text, "{\"id\":%s,\"%s\":%s}", id_text, code ? "error" : "result", body) >= 0)
		r = code != 0;
	if (r >= 0)
		*reply = text;
	json_decref(document);
	free(made);
	free(id_text);
	return r;
}

int vmimg_call(struct vmimg_service *svc, const char *request, char **reply)
{
	struct api_call call = {.svc = svc};
	json_t *object = NULL;
	int64_t code;
	int r;

	if (!svc || !request || !reply)
		return -EINVAL;
	code = parse(&call, request, &object);
	if (code == 0)
		code = read_request(&call, object);
	if (code == 0)
		code = call.method->run(&call);
	r = write_reply(&call, code, json_object_get(object, "id"), reply);
	json_decref(call.result);
	vmimg_free(call.text);
	json_decref(object);
	return r;
}
