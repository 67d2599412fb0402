/* SPDX-License-Identifier: MIT */
/* holder.h - who has a store that is in use (holder.c). Private. */
#ifndef API_HOLDER_H
#define API_HOLDER_H

#include <stddef.h>

/* ": process 17 has it (vmimg serve)" into @buf, or "" where it cannot be told. */
void api_holder_text(const char *dir, char *buf, size_t size);

#endif
