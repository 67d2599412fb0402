/* SPDX-License-Identifier: MIT */
/*
 * disk.c - disks made, deleted and resized: arguments checked here, the rest is the store's. Any
 * thread.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/event.h"
#include "engine/store/shrink.h"
#include "format/layer.h"

struct disk_name {
	char vm[CAT_NAME_MAX], disk[CAT_NAME_MAX];
};

static int check_arguments(const struct vmimg_service *svc, const char *name,
			   struct vmimg_error *err, struct disk_name *ret)
{
	if (!svc)
		return api_fail(err, -EINVAL, "disk: no service given");
	if (api_name_split(name, '/', ret->vm, ret->disk) < 0)
		return api_fail(err, -EINVAL, "disk: '%.140s' is no name, expected VM/DISK",
				name ? name : "");
	return 0;
}

static int check_size(const char *name, uint64_t size, struct vmimg_error *err)
{
	if (size == 0 || size % 512 || size > FMT_SIZE_MAX)
		return api_fail(err, -EINVAL,
				"disk %s: size is %llu, expected a multiple of 512 from 512 to 2^53",
				name, (unsigned long long)size);
	return 0;
}

static int read_spec(const char *name, const struct vmimg_disk_spec *spec, struct vmimg_error *err,
		     struct vmimg_disk_spec *ret)
{
	const char *format;

	if (!spec || spec->size_of < sizeof(*spec))
		return api_fail(err, -EINVAL, "disk %s: spec of %u bytes, expected %zu", name,
				spec ? spec->size_of : 0, sizeof(*spec));
	*ret = *spec;
	format = ret->format;
	if (format && strcmp(format, "raw") && strcmp(format, "qcow2"))
		return api_fail(err, -EINVAL, "disk %s: format is '%.40s', expected raw or qcow2",
				name, format);
	if (!ret->from && (format || ret->in_place))
		return api_fail(err, -EINVAL, "disk %s: %s without an image to import", name,
				ret->in_place ? "in place" : "format");
	if (ret->from && !*ret->from)
		return api_fail(err, -EINVAL, "disk %s: the image's name is empty", name);
	if (ret->block_bits &&
	    (ret->block_bits < FMT_BLOCK_BITS_MIN || ret->block_bits > FMT_BLOCK_BITS_MAX))
		return api_fail(err, -EINVAL, "disk %s: block_bits is %u, expected 0 or %u..%u",
				name, ret->block_bits, FMT_BLOCK_BITS_MIN, FMT_BLOCK_BITS_MAX);
	return ret->from && !ret->size ? 0 : check_size(name, ret->size, err);
}

int vmimg_disk_create(struct vmimg_service *svc, const char *disk,
		      const struct vmimg_disk_spec *spec, struct vmimg_error *err)
{
	struct fmt_error why = {""};
	struct vmimg_disk_spec s = {0};
	struct disk_name name;
	int r = check_arguments(svc, disk, err, &name);

	if (r == 0)
		r = read_spec(disk, spec, err, &s);
	if (r == 0) {
		const struct eng_disk_make make = {
			.vm = name.vm,
			.name = name.disk,
			.size = s.size,
			.from = s.from,
			.format = s.format,
			.in_place = s.in_place,
			.independent = s.independent,
			.block_bits = s.block_bits,
		};

		r = eng_store_make_disk(svc->store, &make, &why);
		if (r < 0)
			api_fail_why(err, r, &why, disk);
		else
			api_event_change(svc, "disk", "created", disk);
	}
	return r;
}

int vmimg_disk_delete(struct vmimg_service *svc, const char *disk, struct vmimg_error *err)
{
	struct fmt_error why = {""};
	struct disk_name name;
	int r = check_arguments(svc, disk, err, &name);

	if (r < 0)
		return r;
	r = eng_store_delete_disk(svc->store, name.vm, name.disk, &why);
	if (r < 0)
		return api_fail_why(err, r, &why, disk);
	api_event_change(svc, "disk", "deleted", disk);
	return 0;
}

static void tell_resized(struct vmimg_service *svc, const char *disk, uint64_t size)
{
	if (api_events_wanted(svc->events))
		api_event_post(svc->events, "disk",
			       json_pack("{s:s, s:s, s:I}", "change", "resized", "name", disk,
					 "size", (json_int_t)size));
}

int vmimg_disk_shrink(struct vmimg_service *svc, const char *disk, uint64_t size,
		      struct vmimg_error *err)
{
	struct fmt_error why = {""};
	struct disk_name name;
	bool marked = false;
	int r = check_arguments(svc, disk, err, &name);
	size_t len;

	if (r == 0)
		r = check_size(disk, size, err);
	if (r < 0)
		return r;
	r = eng_store_shrink_disk(svc->store, name.vm, name.disk, size, &marked, &why);
	if (r < 0)
		api_fail_why(err, r, &why, disk);
	else
		tell_resized(svc, disk, size);
	len = err && r < 0 && marked ? strlen(err->message) : 0;
	if (len)
		snprintf(err->message + len, sizeof(err->message) - len,
			 "; it goes on when the store is opened anew");
	return r;
}

int vmimg_disk_resize(struct vmimg_service *svc, const char *disk, uint64_t size,
		      struct vmimg_error *err)
{
	struct fmt_error why = {""};
	struct disk_name name;
	int r = check_arguments(svc, disk, err, &name);

	if (r == 0)
		r = check_size(disk, size, err);
	if (r < 0)
		return r;
	r = eng_store_resize_disk(svc->store, name.vm, name.disk, size, &why);
	if (r < 0)
		return api_fail_why(err, r, &why, disk);
	tell_resized(svc, disk, size);
	return 0;
}
