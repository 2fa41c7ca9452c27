/* The installed form: what belongs to it, and how it gets into a directory, whole or not at all: as
 * cronium_runner/bundle.py, which has the format of the list of contents. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <zstd.h>

#include "launcher.h"

#define MAGIC "cronium-runner bundle 1\n"
#define SIGNERS "/etc/cronium-runner/allowed_signers"
#define SHA256_SIZE 64 /* characters */
#define ADOPTED_IS_DAMAGED \
    "has libraries that its owner exchanged, and is damaged: mend it and adopt it, or remove it"

struct entry {
    const char *path, *target; /* target: of a link only */
    mode_t mode;
    size_t size, offset;
    bool is_exchanged; /* in the directory that is looked at: `exchanged_size` is what it is to have there */
    size_t exchanged_size;
};

static struct entry *entries;
static size_t entry_count, content_size;
static const char *list;
static size_t list_size;
static char folder[256];
static const unsigned char *content;

static int damaged(void) {
    return refuse("this file is damaged; get the runner again");
}

static bool is_relative(const char *path) {
    return *path != '\0' && *path != '/' && strstr(path, "..") == NULL;
}

/* One line of the list, taken apart in place. */
static int read_entry(char *line) {
    struct entry entry = {0};
    char *kind = strsep(&line, " "), *end;
    if (strcmp(kind, "s") == 0)
        return DONE; /* digests: the installed form's own affair */
    if (strcmp(kind, "l") == 0) {
        entry.target = strsep(&line, " ");
    } else if (strcmp(kind, "f") == 0 || strcmp(kind, "p") == 0) {
        const char *mode = strsep(&line, " "), *size = line ? strsep(&line, " ") : NULL;
        if (size == NULL)
            return damaged();
        entry.mode = (mode_t)strtoul(mode, &end, 8);
        entry.size = strtoul(size, &end, 10);
        entry.offset = content_size;
        content_size += entry.size;
    } else {
        return damaged();
    }
    entry.path = line;
    if (line == NULL || !is_relative(line))
        return damaged();
    entries[entry_count++] = entry;
    return DONE;
}

static int read_identity(const char *line) {
    const char *id = strchr(line, ' '), *end = id ? strchr(id + 1, ' ') : NULL;
    if (end == NULL || (size_t)(end - line) >= sizeof folder || memchr(line, '/', (size_t)(end - line)) != NULL)
        return damaged();
    snprintf(folder, sizeof folder, "%.*s-%.*s", (int)(id - line), line, (int)(end - id - 1), id + 1);
    return DONE;
}

/* Takes the list of contents in; REFUSED when it is none. */
int read_list(const char *text, size_t size) {
    list = text;
    list_size = size;
    size_t lines = 0;
    for (size_t at = 0; at < size; at++)
        lines += text[at] == '\n';
    char *copy = malloc(size + 1), *rest = copy;
    entries = calloc(lines + 1, sizeof *entries);
    if (copy == NULL || entries == NULL)
        return FAILED;
    memcpy(copy, text, size);
    copy[size] = '\0';
    if (lines < 2 || text[size - 1] != '\n' || strncmp(text, MAGIC, strlen(MAGIC)) != 0)
        return damaged();
    strsep(&rest, "\n");
    int outcome = read_identity(strsep(&rest, "\n"));
    while (outcome == DONE && rest != NULL && *rest != '\0')
        outcome = read_entry(strsep(&rest, "\n"));
    return outcome;
}

/* The name of its directory below an install root: a build never replaces another that may be in use. */
const char *form_folder(void) {
    return folder;
}

/* Fills `content` from the pack in `file`, the mapped carrier, the first time that it is needed. */
static int unpack_content(const unsigned char *file) {
    if (content != NULL)
        return DONE;
    size_t size = list_size + content_size;
    unsigned char *made = malloc(size);
    if (made == NULL)
        return FAILED;
    if (ZSTD_decompress(made, size, file + carried.pack, carried.pack_size) != size || memcmp(made, list, list_size) != 0)
        return damaged();
    content = made + list_size;
    return DONE;
}

static bool is_link(const char *path, const char *target) {
    char found[PATH_MAX];
    ssize_t size = readlink(path, found, sizeof found);
    return size >= 0 && (size_t)size == strlen(target) && memcmp(found, target, (size_t)size) == 0;
}

/* Whether a file has the content that we carry. */
static int has_content(const char *path, const struct entry *entry, const unsigned char *file, bool *is_right) {
    int outcome = unpack_content(file);
    if (outcome != DONE)
        return outcome;
    size_t size = 0;
    char *found = file_content(path, &size);
    *is_right = found != NULL && size == entry->size && memcmp(found, content + entry->offset, size) == 0;
    free(found);
    return DONE;
}

/* Whether exchanged libraries are used: not by root, and not where what is signed runs only (see adopting.py). */
static bool may_be_adopted(void) {
    struct stat found;
    return geteuid() != 0 && lstat(SIGNERS, &found) != 0 && errno == ENOENT;
}

static bool is_exchangeable(const struct entry *entry, const char *path) {
    return entry->target == NULL && strcmp(entry->path, path) == 0 &&
           strncmp(path, LIBRARIES "/", strlen(LIBRARIES "/")) == 0 && strstr(path, ".so") != NULL;
}

/* `a SIZE SHA256 PATH`, taken apart in place: what an exchanged library has to be. */
static bool read_exchanged(char *line) {
    const char *kind = strsep(&line, " "), *size = strsep(&line, " "), *digest = line ? strsep(&line, " ") : NULL;
    char *end;
    if (line == NULL || strcmp(kind, "a") != 0 || strlen(digest) != SHA256_SIZE)
        return false;
    for (size_t at = 0; at < entry_count; at++) {
        if (is_exchangeable(&entries[at], line)) {
            entries[at].is_exchanged = true;
            entries[at].exchanged_size = strtoul(size, &end, 10);
            return *end == '\0' && end != size;
        }
    }
    return false;
}

/* Whether the list of contents in `directory` is ours, perhaps with exchanged libraries behind it, which are noted. */
static bool read_installed_list(const char *directory, bool *is_adopted) {
    char path[PATH_MAX];
    size_t size = 0;
    *is_adopted = false;
    for (size_t at = 0; at < entry_count; at++)
        entries[at].is_exchanged = false;
    char *text = join(path, directory, CONTENTS) == DONE ? file_content(path, &size) : NULL;
    bool is_ours = text != NULL && size >= list_size && memcmp(text, list, list_size) == 0;
    if (is_ours && size > list_size) {
        bool is_read = text[size - 1] == '\n' && may_be_adopted();
        text[size - 1] = '\0';
        char *rest = text + list_size;
        while (is_read && rest != NULL)
            is_read = read_exchanged(strsep(&rest, "\n"));
        *is_adopted = is_read;
        for (size_t at = 0; !is_read && at < entry_count; at++)
            entries[at].is_exchanged = false;
    }
    free(text);
    return is_ours;
}

static bool is_before(const struct timespec *first, const struct timespec *second) {
    return first->tv_sec != second->tv_sec ? first->tv_sec < second->tv_sec : first->tv_nsec < second->tv_nsec;
}

static bool is_equal(const struct timespec *first, const struct timespec *second) {
    return first->tv_sec == second->tv_sec && first->tv_nsec == second->tv_nsec;
}

/* Notes that all files are as they were built: they get one time, the list of contents last (see Bundle.stamp). */
static void stamp(const char *directory) {
    char path[PATH_MAX];
    struct timespec times[2];
    clock_gettime(CLOCK_REALTIME, &times[0]);
    times[1] = times[0];
    for (size_t at = 0; at < entry_count; at++) {
        if (entries[at].target == NULL &&
            (join(path, directory, entries[at].path) != DONE || utimensat(AT_FDCWD, path, times, 0) != 0))
            return; /* a read-only file system: each start compares contents */
    }
    if (join(path, directory, CONTENTS) == DONE)
        utimensat(AT_FDCWD, path, times, 0);
}

/* Whether all files and links are as they were built: types, modes, sizes, times; the content of those changed since. */
static int is_whole(const char *directory, const unsigned char *file, bool *whole) {
    char path[PATH_MAX];
    struct stat listing, found;
    bool has_changed = false, has_unread = false, is_right = true, is_adopted;
    *whole = false;
    if (!read_installed_list(directory, &is_adopted))
        return DONE;
    if (join(path, directory, CONTENTS) != DONE || lstat(path, &listing) != 0)
        return DONE;
    for (size_t at = 0; at < entry_count; at++) {
        const struct entry *entry = &entries[at];
        if (join(path, directory, entry->path) != DONE)
            return FAILED;
        if (entry->target != NULL) {
            if (!is_link(path, entry->target))
                return DONE;
            continue;
        }
        if (lstat(path, &found) != 0 || found.st_mode != (S_IFREG | entry->mode) ||
            (size_t)found.st_size != (entry->is_exchanged ? entry->exchanged_size : entry->size))
            return DONE;
        if (is_equal(&found.st_mtim, &listing.st_mtim) && !is_before(&listing.st_ctim, &found.st_ctim))
            continue;
        if (entry->is_exchanged) { /* only the runner itself has SHA-256, and looks before it starts anything */
            has_unread = true;
            continue;
        }
        has_changed = true;
        int outcome = has_content(path, entry, file, &is_right);
        if (outcome != DONE || !is_right)
            return outcome;
    }
    if (has_changed && !has_unread)
        stamp(directory);
    *whole = true;
    return DONE;
}

/* Whether `directory` is ours alone and holds all of the form; REFUSED when it is another account's. */
static int is_installed(const char *directory, const unsigned char *file, bool *installed) {
    int outcome = check_private(directory);
    *installed = false;
    if (outcome == FAILED && errno == ENOENT)
        return DONE;
    return outcome == DONE ? is_whole(directory, file, installed) : outcome;
}

/* Removes a directory and all below it. Links are removed, not followed. */
static void remove_tree(const char *path) {
    struct dirent *entry;
    struct stat found;
    char below[PATH_MAX];
    if (lstat(path, &found) != 0 || !S_ISDIR(found.st_mode)) {
        unlink(path);
        return;
    }
    DIR *names = opendir(path);
    while (names != NULL && (entry = readdir(names)) != NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
            join(below, path, entry->d_name) == DONE)
            remove_tree(below);
    }
    if (names != NULL)
        closedir(names);
    rmdir(path);
}

/* Makes the folders between `directory` and a file in it, with our mode whatever the umask. */
static int make_folders(const char *directory, char *path) {
    for (char *at = path + strlen(directory) + 1; (at = strchr(at, '/')) != NULL; at++) {
        *at = '\0';
        int outcome = make_one(path);
        *at = '/';
        if (outcome != DONE)
            return outcome;
    }
    return DONE;
}

static int write_file(const char *path, const void *bytes, size_t size, mode_t mode) {
    int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0)
        return FAILED;
    const char *rest = bytes;
    int outcome = DONE;
    while (size > 0 && outcome == DONE) {
        ssize_t count = write(file, rest, size);
        if (count >= 0) {
            rest += count;
            size -= (size_t)count;
        } else if (errno != EINTR) {
            outcome = FAILED;
        }
    }
    if (outcome == DONE && fchmod(file, mode) != 0)
        outcome = FAILED;
    int kept = errno;
    if (close(file) != 0 && outcome == DONE)
        return FAILED;
    errno = kept;
    return outcome;
}

static int fill(const char *directory, const unsigned char *file) {
    char path[PATH_MAX];
    int outcome = unpack_content(file);
    for (size_t at = 0; at < entry_count && outcome == DONE; at++) {
        const struct entry *entry = &entries[at];
        if ((outcome = join(path, directory, entry->path)) != DONE ||
            (outcome = make_folders(directory, path)) != DONE)
            break;
        if (entry->target == NULL)
            outcome = write_file(path, content + entry->offset, entry->size, entry->mode);
        else
            outcome = symlink(entry->target, path) == 0 ? DONE : FAILED;
    }
    if (outcome == DONE && (outcome = join(path, directory, CONTENTS)) == DONE)
        outcome = write_file(path, list, list_size, 0600);
    if (outcome == DONE)
        stamp(directory);
    return outcome;
}

static int move_into_place(const char *temporary, const char *directory, const unsigned char *file) {
    char aside[PATH_MAX];
    struct stat found;
    bool installed, is_adopted;
    if (snprintf(aside, sizeof aside, "%s.old", temporary) >= PATH_MAX) {
        errno = ENAMETOOLONG;
        return FAILED;
    }
    for (int round = 0; round < 3; round++) { /* one more for a damaged form moved away, one for a rival doing the same */
        if (rename(temporary, directory) == 0)
            return DONE;
        int kept = errno;
        if (lstat(directory, &found) != 0) {
            errno = kept;
            return FAILED;
        }
        int outcome = is_installed(directory, file, &installed);
        if (outcome != DONE || installed)
            return outcome;
        /* this very build, damaged: a cleaner of temporary files went through it, say */
        if (!read_installed_list(directory, &is_adopted) && strcmp(strrchr(directory, '/') + 1, folder) != 0)
            return refuse("%s already holds something else", directory);
        if (is_adopted) {
            refuse("%s " ADOPTED_IS_DAMAGED, directory);
            return FINAL;
        }
        if (rename(directory, aside) == 0)
            remove_tree(aside);
    }
    return refuse("%s keeps changing while the runner is being installed", directory);
}

/* A new directory beside `directory`; its name is unique and no secret. */
static int make_temporary(char temporary[PATH_MAX], const char *directory) {
    struct timespec now;
    for (unsigned attempt = 0; attempt < 100; attempt++) {
        clock_gettime(CLOCK_REALTIME, &now);
        unsigned number = (unsigned)now.tv_nsec ^ (unsigned)now.tv_sec << 8 ^ attempt;
        if (snprintf(temporary, PATH_MAX, "%s.%d-%08x.tmp", directory, getpid(), number) >= PATH_MAX) {
            errno = ENAMETOOLONG;
            return FAILED;
        }
        if (mkdir(temporary, PRIVATE) == 0)
            return chmod(temporary, PRIVATE) == 0 ? DONE : FAILED;
        if (errno != EEXIST)
            return FAILED;
    }
    return FAILED;
}

/* Makes `directory` the installed form, from the pack in `file`, the mapped carrier.
 *
 * Written beside it and renamed, so any number of processes may do this at once: one rename wins, the others find it. */
int place_form(const char *directory, const unsigned char *file) {
    char temporary[PATH_MAX];
    bool installed;
    int outcome = is_installed(directory, file, &installed);
    if (outcome != DONE || installed)
        return outcome;
    if ((outcome = make_temporary(temporary, directory)) != DONE)
        return outcome;
    if ((outcome = fill(temporary, file)) == DONE)
        outcome = move_into_place(temporary, directory, file);
    int kept = errno;
    remove_tree(temporary); /* gone when it was renamed */
    errno = kept;
    return outcome;
}
