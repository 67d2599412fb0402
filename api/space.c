/* SPDX-License-Identifier: MIT */
/* space.c - the reserve of free space (SG-*), set and told. Any thread. */
#include <errno.h>

#include "api/describe.h"
#include "engine/space/guard.h"

int vmimg_set_space_reserve(struct vmimg_service *svc, uint64_t bytes, struct vmimg_error *err)
{
	struct fmt_error why = {""};
	int r;

	if (!svc)
		return api_fail(err, -EINVAL, "reserve: no service given");
	r = eng_guard_set_reserve(svc->store, bytes, &why);
	return r < 0 ? api_fail_why(err, r, &why, "reserve") : 0;
}

/* SG-6: null where the file system cannot tell. */
int api_add_space(struct vmimg_service *svc, json_t *object)
{
	static const char *const states[] = {"ok", "warning", "reached"};
	struct eng_guard g;
	json_t *space = json_pack("{s:n, s:n, s:n, s:n, s:n}", "free", "size", "space_reserve",
				  "space_reserve_default", "space_state");

	if (space && eng_guard_look(svc->store, &g) == 0) {
		json_decref(space);
		space = json_pack("{s:I, s:I, s:I, s:b, s:s}", "free", (json_int_t)g.free, "size",
				  (json_int_t)g.size, "space_reserve", (json_int_t)g.reserve,
				  "space_reserve_default", (int)g.is_default, "space_state",
				  states[eng_guard_state(&g, ENG_GUARD_FINE)]);
	}
	if (!space || json_object_update(object, space) < 0) {
		json_decref(space);
		return -ENOMEM;
	}
	json_decref(space);
	return 0;
}
