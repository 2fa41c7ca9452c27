/* The launcher: the static program in front of the runner. What each file does is said at its top.
 *
 * Functions that can fail return DONE, REFUSED (`reason` says why, in a form that follows "because") or FAILED (errno
 * says why); FINAL is REFUSED where nothing else may be tried instead. The rules and the sentences are those of cronium_runner's `location`, `safe_path` and `bundle`.
 */
#ifndef LAUNCHER_H
#define LAUNCHER_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum outcome { DONE = 0, REFUSED = -1, FAILED = -2, FINAL = -3 };

#define PRIVATE 0700 /* the mode of every directory that the launcher makes */
#define EXIT_STATUS 125 /* of a runner that could not begin, as everywhere in the runner */
#define EXECUTABLE "cronium-runner"
#define LIBRARIES "_internal"
#define CLIENT "helpers/client"
#define CONTENTS "contents"

/* What the build writes into the program itself: a carrier's list of contents and pack are behind the program, at these
 * offsets; in an installed form all of it is zero. Whatever else is added to the file makes no difference. The pack is
 * one zstd stream with a checksum: the list once more, then the content of each file. */
struct carried {
    char mark[24];
    uint64_t list, list_size;
    uint64_t pack, pack_size;
};
extern const volatile struct carried carried;

/* paths.c: texts and paths */
extern char reason[2 * PATH_MAX];
int refuse(const char *format, ...) __attribute__((format(printf, 1, 2)));
int join(char path[PATH_MAX], const char *folder, const char *name);
int parent_of(char folder[PATH_MAX], const char *path);
int absolute(char path[PATH_MAX], const char *typed);
char *file_content(const char *path, size_t *size);

/* safe_path.c */
int check_safe(const char *path);
int make_safe(const char *path);
int make_one(const char *path);

/* install_root.c */
int check_private(const char *path);
int make_private(const char *path);
int make_parent(const char *path);
int check_executable(const char *path);
int for_each_root(int (*attempt)(const char *root));

/* form.c */
int read_list(const char *text, size_t size);
const char *form_folder(void);
int place_form(const char *directory, const unsigned char *file);

/* start.c */
void start_installed(const char *directory, int argc, char **argv);

#endif
