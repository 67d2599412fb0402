/* SPDX-License-Identifier: MIT */
/*
 * backing.c - opens the file that an image names as its base (Q2-30 to Q2-36). The name is hostile.
 * It is never opened as it stands: a leading part of it must be one of the trusted directories (same
 * device and inode, however it is spelled), and what is opened is that directory's own, trusted path
 * followed by the rest, whose parts are real directories and, last, a regular file: no "..", no
 * symbolic link. Any thread; keeps nothing.
 */
#include "engine/layer/backing.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct search {
	struct eng_io *io;
	const char *name;        /* as stored */
	const char *const *dirs; /* trusted; the image's own first */
	size_t ndirs;
	struct fmt_error *err;
};

/* "@dir/@rest"; NULL: no memory. */
static char *join(const char *dir, const char *rest)
{
	size_t len = strlen(dir);
	char *path = malloc(len + strlen(rest) + 2);

	if (!path)
		return NULL;
	memcpy(path, dir, len);
	if (!len || dir[len - 1] != '/')
		path[len++] = '/';
	strcpy(path + len, rest);
	return path;
}

/* The directory part of @path, "." where it has none; free(). */
static char *directory_of(const char *path)
{
	const char *slash = strrchr(path, '/');

	if (!slash)
		return strdup(".");
	return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

/* Is one of @rest's parts ".."? */
static bool goes_up(const char *rest)
{
	while (*rest) {
		size_t len = strcspn(rest, "/");

		if (len == 2 && rest[0] == '.' && rest[1] == '.')
			return true;
		rest += len + (rest[len] == '/');
	}
	return false;
}

/* Everything between the trusted @dir and the last part of @path is a real directory (Q2-34). */
static int check_directories(const struct search *s, const char *dir, char *path)
{
	char *slash = path + strlen(dir);
	int r = 0;

	while (r == 0 && (slash = strchr(slash + 1, '/'))) {
		struct eng_file *file = NULL;

		*slash = '\0';
		r = eng_io_open(s->io, path, ENG_OPEN_NOFOLLOW, &file);
		eng_io_close(s->io, file);
		r = r == -EISDIR ? 0 : r < 0 ? r : -ENOTDIR; /* only files can be opened */
		if (r < 0)
			fmt_fail(s->err, r, "backing file \"%s\": %s: %s", s->name, path,
				 r == -ELOOP ? "a symbolic link" : strerror(-r));
		*slash = '/';
	}
	return r;
}

/* Opens @rest below the trusted @dir. */
static int open_below(const struct search *s, const char *dir, const char *rest,
		      struct eng_file **ret, struct eng_stat *st, char **ret_path)
{
	char *path = join(dir, rest);
	struct eng_file *file = NULL;
	int r = -ENOMEM;

	if (!path) {
		fmt_fail(s->err, r, "backing file \"%s\": out of memory", s->name);
		goto out;
	}
	r = check_directories(s, dir, path);
	if (r < 0)
		goto out;
	r = eng_io_open(s->io, path, ENG_OPEN_NOFOLLOW | ENG_OPEN_CACHED, &file);
	if (r == 0)
		r = eng_io_fstat(s->io, file, st);
	if (r == 0 && !st->is_regular)
		r = -EINVAL;
	if (r < 0) {
		fmt_fail(s->err, r, "backing file \"%s\": %s: %s", s->name, path,
			 r == -ELOOP    ? "a symbolic link"
			 : r == -EINVAL ? "not a regular file"
					: strerror(-r));
		goto out;
	}
	*ret = file;
	file = NULL;
	*ret_path = path;
	path = NULL;
out:
	eng_io_close(s->io, file);
	free(path);
	return r;
}

/* The trusted directory that @path is, NULL if none. */
static const char *trusted(const struct search *s, const char *path)
{
	struct eng_stat want, st;

	if (eng_io_stat(s->io, path, &want) < 0 || !want.is_dir)
		return NULL;
	for (size_t i = 0; i < s->ndirs; i++) {
		if (eng_io_stat(s->io, s->dirs[i], &st) == 0 && st.dev == want.dev &&
		    st.ino == want.ino)
			return s->dirs[i];
	}
	return NULL;
}

/* Q2-32: the longest leading part of the name that is a trusted directory decides. */
static int open_path(const struct search *s, struct eng_file **ret, struct eng_stat *st,
		     char **ret_path)
{
	char *full = s->name[0] == '/' ? strdup(s->name) : join(s->dirs[0], s->name);
	const char *dir = NULL, *rest = NULL;
	char *slash;
	int r = -ENOMEM;

	if (!full) {
		fmt_fail(s->err, r, "backing file \"%s\": out of memory", s->name);
		goto out;
	}
	for (char *end = full + strlen(full); !dir && end > full; end = slash) {
		slash = memrchr(full, '/', (size_t)(end - full));
		if (!slash || goes_up(slash + 1))
			break;
		rest = slash + 1;
		*slash = '\0';
		dir = trusted(s, slash == full ? "/" : full);
		*slash = '/';
	}
	r = dir ? open_below(s, dir, rest, ret, st, ret_path)
		: fmt_fail(s->err, -EACCES,
			   "backing file \"%s\": outside the image's directory and "
			   "the allowed ones",
			   s->name);
out:
	free(full);
	return r;
}

/* Q2-33: a plain name is looked for in the image's directory, then in the others, in order. */
static int open_plain(const struct search *s, struct eng_file **ret, struct eng_stat *st,
		      char **ret_path)
{
	int r = -ENOENT;

	for (size_t i = 0; r == -ENOENT && i < s->ndirs; i++)
		r = open_below(s, s->dirs[i], s->name, ret, st, ret_path);
	if (r == -ENOENT)
		fmt_fail(s->err, r, "backing file \"%s\": not in %s%s", s->name, s->dirs[0],
			 s->ndirs > 1 ? ", nor in the allowed directories" : "");
	return r;
}

/* Q2-31: what is not a path of a file. */
static int check_name(const char *name, struct fmt_error *err)
{
	const char *last = strrchr(name, '/') ? strrchr(name, '/') + 1 : name;

	if (name[strcspn(name, ":/")] == ':')
		return fmt_fail(err, -ENOTSUP,
				"backing file \"%s\": names a protocol, expected a "
				"file's path",
				name);
	if (!*last || !strcmp(last, ".") || !strcmp(last, ".."))
		return fmt_fail(err, -EINVAL, "backing file \"%s\": names a directory", name);
	return 0;
}

int eng_backing_open(struct eng_io *io, const char *image, const char *name,
		     const char *const *allowed, size_t nallowed, struct fmt_error *err,
		     struct eng_file **file, struct eng_stat *st, char **path)
{
	const char **dirs = calloc(nallowed + 1, sizeof(*dirs));
	char *own = directory_of(image);
	struct search s = {.io = io, .name = name, .dirs = dirs, .ndirs = nallowed + 1, .err = err};
	int r = -ENOMEM;

	if (!dirs || !own) {
		fmt_fail(err, r, "backing file \"%s\": out of memory", name);
		goto out;
	}
	dirs[0] = own;
	for (size_t i = 0; i < nallowed; i++)
		dirs[i + 1] = allowed[i];
	r = check_name(name, err);
	if (r == 0)
		r = strchr(name, '/') ? open_path(&s, file, st, path)
				      : open_plain(&s, file, st, path);
out:
	free(own);
	free(dirs);
	return r;
}
