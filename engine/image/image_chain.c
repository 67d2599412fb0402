/* SPDX-License-Identifier: MIT */
/*
 * image_chain.c - image files found, probed and put together as a chain (IM-1, BY-4). No path is read
 * from an image: a parent is the file in the allowed directories whose header has its id. A raw or
 * qcow2 base has its header in a sidecar, whose own name says which file beside it is the base.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/image/image_impl.h"
#include "format/qcow2.h"

#define FILES_MAX 65536u /* layer files looked at, in both directories */

struct image_file {
	struct fmt_uuid id;
	uint32_t kind;
	unsigned dir;
	char *path;
};

struct eng_finder {
	struct eng_io *io;
	char *dirs[2];
	unsigned ndirs, dir; /* dir: being listed */
	bool listed;
	struct image_file *files;
	size_t count, cap;
	unsigned bad; /* files without a good header */
	struct fmt_error first_bad;
};

/* --- paths --- */

char *eng_path_dir(const char *path)
{
	const char *slash = strrchr(path, '/');

	if (!slash)
		return strdup(".");
	return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

int eng_path_sync_dir(struct eng_io *io, const char *path)
{
	char *dir = eng_path_dir(path);
	int r = dir ? eng_io_sync_dir(io, dir) : -ENOMEM;

	free(dir);
	return r;
}

static bool has_suffix(const char *name, const char *suffix)
{
	size_t n = strlen(name), s = strlen(suffix);

	return n > s && !strcmp(name + n - s, suffix);
}

static bool is_file(struct eng_io *io, const char *path)
{
	struct eng_stat st;

	return eng_io_stat(io, path, &st) == 0 && (st.is_regular || st.is_block);
}

static int check_file(struct eng_io *io, const char *path, struct fmt_error *err)
{
	struct eng_stat st;
	int r = eng_io_stat(io, path, &st);

	if (r < 0)
		return fmt_fail(err, r, "%s: %s", path, strerror(-r));
	if (!st.is_regular && !st.is_block)
		return fmt_fail(err, -EINVAL, "%s: neither a file nor a block device", path);
	return 0;
}

/* --- headers --- */

int eng_image_probe(struct eng_io *io, const char *path, const char **ret, struct fmt_error *err)
{
	static const char magic[8] = "VMIMGLYR";
	uint8_t slots[FMT_HEADER_SLOTS * FMT_PAGE] = {0};
	struct eng_file *file = NULL;
	ssize_t n;
	int r = check_file(io, path, err);

	if (r < 0)
		return r;
	r = eng_io_open(io, path, 0, &file);
	if (r < 0)
		return fmt_fail(err, r, "%s: %s", path, strerror(-r));
	n = eng_io_pread(io, file, slots, sizeof(slots), 0);
	eng_io_close(io, file);
	if (n < 0)
		return fmt_fail(err, (int)n, "%s: %s", path, strerror((int)-n));
	if (fmt_qcow2_is(slots, (size_t)n))
		*ret = "qcow2";
	else if (!memcmp(slots, magic, 8) || !memcmp(slots + FMT_PAGE, magic, 8))
		*ret = "vmo"; /* one slot may be torn (LH-4) */
	else
		*ret = "raw";
	return 0;
}

static int read_header(struct eng_io *io, const char *path, struct fmt_error *err,
		       struct fmt_header *ret)
{
	uint8_t slots[FMT_HEADER_SLOTS * FMT_PAGE];
	struct eng_file *file = NULL;
	struct fmt_error why = {{0}};
	ssize_t n;
	int r = eng_io_open(io, path, ENG_OPEN_NOFOLLOW, &file);

	if (r < 0)
		return fmt_fail(err, r, "%s: %s", path, strerror(-r));
	n = eng_io_pread(io, file, slots, sizeof(slots), 0);
	eng_io_close(io, file);
	if (n < 0)
		return fmt_fail(err, (int)n, "%s: %s", path, strerror((int)-n));
	if (n < (ssize_t)sizeof(slots))
		return fmt_fail(err, -EUCLEAN, "%s: %zd bytes, shorter than two header slots", path,
				n);
	r = fmt_header_pick(slots, ret, &why);
	return r < 0 ? fmt_fail(err, r, "%s: %s", path, why.text) : 0;
}

/* --- bases and their sidecars --- */

/* The file that the sidecar @path describes, as its name says; NULL without memory. */
static char *base_of(struct eng_io *io, const char *path, uint32_t kind)
{
	size_t n = strlen(path) - strlen(ENG_SIDECAR_SUFFIX);
	char *base = strndup(path, n), *named;

	if (!base || is_file(io, base))
		return base;
	if (asprintf(&named, "%s.%s", base, kind == FMT_KIND_RAW ? "raw" : "qcow2") < 0)
		named = NULL;
	free(base);
	return named;
}

/* Takes @path (NULL without memory); 0 when it is the sidecar of @base. */
static int sidecar_try(struct eng_io *io, const char *base, char *path, struct fmt_error *err,
		       struct fmt_header *hdr, char **ret)
{
	char *named = NULL;
	int r = -ENOENT;

	if (!path)
		return -ENOMEM;
	if (is_file(io, path))
		r = read_header(io, path, err, hdr);
	if (r == 0) {
		named = base_of(io, path, hdr->kind);
		r = !named ? -ENOMEM : strcmp(named, base) ? -ENOENT : 0;
	}
	if (r == 0) {
		*ret = path;
		path = NULL;
	}
	free(named);
	free(path);
	return r;
}

int eng_sidecar_find(struct eng_io *io, const char *base, struct fmt_error *err,
		     struct fmt_header *hdr, char **ret)
{
	size_t stem = has_suffix(base, ".raw")     ? strlen(base) - 4
		      : has_suffix(base, ".qcow2") ? strlen(base) - 6
						   : 0;
	char *path;
	int r;

	if (asprintf(&path, "%s%s", base, ENG_SIDECAR_SUFFIX) < 0)
		path = NULL;
	r = sidecar_try(io, base, path, err, hdr, ret);
	if (r != -ENOENT || !stem)
		return r;
	if (asprintf(&path, "%.*s%s", (int)stem, base, ENG_SIDECAR_SUFFIX) < 0)
		path = NULL;
	return sidecar_try(io, base, path, err, hdr, ret);
}

int eng_sidecar_check(struct eng_io *io, const char *base, const struct fmt_header *hdr,
		      struct fmt_error *err)
{
	bool ours = fmt_uuid_is_none(&hdr->store_id); /* a store's may be a copy (IB-3) */
	struct eng_stat st;
	int r = eng_io_stat(io, base, &st);

	if (r < 0)
		return fmt_fail(err, r, "%s: %s", base, strerror(-r));
	if (hdr->state != FMT_STATE_FROZEN)
		return fmt_fail(err, -EBUSY, "%s: the head of a store's disk, not a base", base);
	if (st.size != hdr->base_bytes || (ours && st.mtime_ns != hdr->base_mtime_ns))
		return fmt_fail(err, -EUCLEAN,
				"%s: changed since it became a base: %" PRIu64
				" bytes, modified %" PRId64 "; recorded %" PRIu64 ", %" PRId64
				" (SC-3)",
				base, st.size, st.mtime_ns, hdr->base_bytes, hdr->base_mtime_ns);
	return 0;
}

/* --- the directories --- */

int eng_finder_create(struct eng_io *io, const char *path, const char *base_dir,
		      struct eng_finder **ret)
{
	struct eng_finder *f = calloc(1, sizeof(*f));

	if (!f)
		return -ENOMEM;
	f->io = io;
	f->dirs[f->ndirs++] = eng_path_dir(path);
	if (base_dir)
		f->dirs[f->ndirs++] = strdup(base_dir);
	if (!f->dirs[0] || (base_dir && !f->dirs[1])) {
		eng_finder_destroy(f);
		return -ENOMEM;
	}
	*ret = f;
	return 0;
}

void eng_finder_destroy(struct eng_finder *f)
{
	if (!f)
		return;
	for (size_t i = 0; i < f->count; i++)
		free(f->files[i].path);
	free(f->files);
	free(f->dirs[0]);
	free(f->dirs[1]);
	free(f);
}

static int add_file(struct eng_finder *f, const struct fmt_header *hdr, char *path)
{
	if (f->count == f->cap) {
		size_t cap = f->cap ? f->cap * 2 : 16;
		struct image_file *p = realloc(f->files, cap * sizeof(*p));

		if (!p)
			return -ENOMEM;
		f->files = p;
		f->cap = cap;
	}
	f->files[f->count++] = (struct image_file){
		.id = hdr->layer_id,
		.kind = hdr->kind,
		.dir = f->dir,
		.path = path,
	};
	return 0;
}

static int look_at(void *arg, const char *name)
{
	struct eng_finder *f = arg;
	bool overlay = has_suffix(name, ".vmo");
	struct fmt_error why = {{0}};
	struct fmt_header hdr;
	char *path;
	int r = 0;

	if (!overlay && !has_suffix(name, ENG_SIDECAR_SUFFIX))
		return 0;
	if (f->count + f->bad >= FILES_MAX)
		return -E2BIG;
	if (asprintf(&path, "%s/%s", f->dirs[f->dir], name) < 0)
		return -ENOMEM;
	if (!is_file(f->io, path)) /* a FIFO would hold us up */
		goto out;
	if (read_header(f->io, path, &why, &hdr) < 0) {
		if (!f->bad++)
			f->first_bad = why;
		goto out;
	}
	if (overlay == (hdr.kind == FMT_KIND_OVERLAY)) {
		r = add_file(f, &hdr, path);
		if (r == 0)
			path = NULL;
	}
out:
	free(path);
	return r;
}

static int list_files(struct eng_finder *f, struct fmt_error *err)
{
	for (; !f->listed && f->dir < f->ndirs; f->dir++) {
		int r = eng_io_list(f->io, f->dirs[f->dir], look_at, f);

		if (r < 0)
			return fmt_fail(err, r, "%s: cannot look for parents here: %s",
					f->dirs[f->dir], strerror(-r));
	}
	f->listed = true;
	return 0;
}

/* The first directory that has it counts; two files with one id in it are nobody's parent. */
static int find_parent(struct eng_finder *f, const struct eng_layer *child, struct fmt_error *err,
		       const struct image_file **ret)
{
	const struct fmt_uuid *id = &child->hdr.parent_id;
	const struct image_file *found = NULL;
	char text[FMT_UUID_TEXT];
	int r = list_files(f, err);

	if (r < 0)
		return r;
	fmt_uuid_format(id, text);
	for (size_t i = 0; i < f->count; i++) {
		const struct image_file *file = &f->files[i];

		if (!fmt_uuid_equal(&file->id, id))
			continue;
		if (found && found->dir == file->dir)
			return fmt_fail(err, -ENOTUNIQ, "%s: both %s and %s are its parent %s",
					child->path, found->path, file->path, text);
		if (!found)
			found = file;
	}
	if (!found)
		return fmt_fail(err, -ENOENT, "%s: its parent %s is not in %s%s%s%s%s", child->path,
				text, f->dirs[0], f->ndirs > 1 ? " or " : "",
				f->ndirs > 1 ? f->dirs[1] : "",
				f->bad ? "; unreadable there: " : "",
				f->bad ? f->first_bad.text : "");
	*ret = found;
	return 0;
}

/* --- opening --- */

static uint32_t kind_of(const char *format)
{
	return !strcmp(format, "raw")     ? FMT_KIND_RAW
	       : !strcmp(format, "qcow2") ? FMT_KIND_QCOW2
	       : !strcmp(format, "vmo")   ? FMT_KIND_OVERLAY
					  : 0;
}

int eng_finder_open(struct eng_finder *f, const char *path, const char *format, bool writable,
		    struct fmt_error *err, struct eng_layer **ret)
{
	struct eng_layer_open how = {
		.kind = kind_of(format),
		.base_dirs = (const char *const *)f->dirs + 1,
		.base_dirs_count = f->ndirs - 1,
		.writable = writable,
	};
	int r = check_file(f->io, path, err);

	if (r < 0)
		return r;
	if (!how.kind)
		return fmt_fail(err, -EINVAL, "%s: format \"%s\", expected raw, qcow2 or vmo", path,
				format);
	if (how.kind == FMT_KIND_OVERLAY)
		how.path = path;
	else
		how.data_path = path;
	return eng_layer_open(f->io, &how, err, ret);
}

static int open_file(struct eng_finder *f, const struct image_file *file, struct fmt_error *err,
		     struct eng_layer **ret)
{
	struct eng_layer_open how = {
		.path = file->path,
		.kind = file->kind,
		.base_dirs = (const char *const *)f->dirs + 1,
		.base_dirs_count = f->ndirs - 1,
	};
	char *base = NULL;
	int r;

	if (file->kind != FMT_KIND_OVERLAY) {
		base = base_of(f->io, file->path, file->kind);
		if (!base)
			return -ENOMEM;
	}
	how.data_path = base;
	r = eng_layer_open(f->io, &how, err, ret);
	free(base);
	return r;
}

/* What the two headers say of each other (LH-7, SL-4). Generations fall, so there are no loops. */
static int check_parent(struct eng_io *io, const struct eng_layer *child,
			const struct eng_layer *parent, struct fmt_error *err)
{
	const struct fmt_header *c = &child->hdr, *p = &parent->hdr;
	int r = fmt_header_check_child(p, &c->parent_id, c->parent_hash);

	if (r == -ENOENT)
		return fmt_fail(err, -EUCLEAN, "%s: changed while it was opened", parent->path);
	if (r < 0)
		return fmt_fail(err, r, "%s: its parent %s has another seal hash (SL-4)",
				child->path, parent->path);
	if (p->generation >= c->generation)
		return fmt_fail(err, -EUCLEAN,
				"%s: generation %" PRIu64 ", its parent %s has %" PRIu64 " (LH-7)",
				child->path, c->generation, parent->path, p->generation);
	if (p->kind == FMT_KIND_OVERLAY && p->block_bits != c->block_bits)
		return fmt_fail(err, -EUCLEAN, "%s: blocks of 2^%u bytes, its parent %s has 2^%u",
				child->path, c->block_bits, parent->path, p->block_bits);
	if (p->size > c->size)
		return fmt_fail(err, -ENOTSUP,
				"%s: %" PRIu64 " bytes, smaller than its parent %s of %" PRIu64,
				child->path, c->size, parent->path, p->size);
	return p->kind == FMT_KIND_OVERLAY ? 0 : eng_sidecar_check(io, parent->data_path, p, err);
}

int eng_finder_open_parent(struct eng_finder *f, const struct eng_layer *child,
			   struct fmt_error *err, struct eng_layer **ret)
{
	const struct image_file *file = NULL;
	struct eng_layer *layer = NULL;
	int r = find_parent(f, child, err, &file);

	if (r == 0)
		r = open_file(f, file, err, &layer);
	if (r == 0)
		r = check_parent(f->io, child, layer, err);
	if (r == 0) {
		*ret = layer;
		layer = NULL;
	}
	eng_layer_put(layer);
	return r;
}

/* IM-3: what a journal of this boot still holds is not in the log. */
static int check_journal(struct eng_io *io, const struct eng_layer *layer, struct fmt_error *err)
{
	uint8_t boot[16];

	eng_io_boot_id(io, boot);
	if (!layer->hdr.journal_nonce || memcmp(layer->hdr.boot_id, boot, 16))
		return 0;
	return fmt_fail(err, -EBUSY,
			"%s: in use by its store, or not closed cleanly; open the store "
			"first (IM-3)",
			layer->path);
}

int eng_finder_open_chain(struct eng_finder *f, const char *path, const char *format, bool writable,
			  struct fmt_error *err, struct eng_layer ***ret, uint32_t *count)
{
	struct eng_layer **layers = NULL, *layer = NULL;
	uint32_t n = 0, cap = 0;
	int r = eng_finder_open(f, path, format, writable, err, &layer);

	while (r == 0) {
		if (n == cap) {
			struct eng_layer **p = realloc(layers, (cap = cap * 2 + 4) * sizeof(*p));

			if (!p) {
				eng_layer_put(layer);
				r = -ENOMEM;
				break;
			}
			layers = p;
		}
		layers[n++] = layer;
		r = check_journal(f->io, layer, err);
		if (r < 0 || fmt_uuid_is_none(&layer->hdr.parent_id))
			break;
		r = eng_finder_open_parent(f, layer, err, &layer);
	}
	for (uint32_t i = 0; i < n / 2; i++) {
		layer = layers[i];
		layers[i] = layers[n - 1 - i];
		layers[n - 1 - i] = layer;
	}
	if (r == 0) {
		*ret = layers;
		*count = n;
		return 0;
	}
	while (n)
		eng_layer_put(layers[--n]);
	free(layers);
	return r;
}
