/* Paths, and the sentence that says why something is refused. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launcher.h"

char reason[2 * PATH_MAX];

int refuse(const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(reason, sizeof reason, format, values);
    va_end(values);
    return REFUSED;
}

int join(char path[PATH_MAX], const char *folder, const char *name) {
    const char *between = folder[strlen(folder) - 1] == '/' ? "" : "/";
    if (snprintf(path, PATH_MAX, "%s%s%s", folder, between, name) < PATH_MAX)
        return DONE;
    errno = ENAMETOOLONG;
    return FAILED;
}

/* The folder that `path`, which is absolute, is in. */
int parent_of(char folder[PATH_MAX], const char *path) {
    size_t size = strlen(path);
    if (size >= PATH_MAX) {
        errno = ENAMETOOLONG;
        return FAILED;
    }
    memcpy(folder, path, size + 1);
    char *slash = strrchr(folder, '/');
    slash[slash == folder] = '\0';
    return DONE;
}

/* `typed` from the current directory on, without `.`, `..` and double slashes: os.path.abspath. */
int absolute(char path[PATH_MAX], const char *typed) {
    char from[PATH_MAX] = "/";
    if (*typed != '/' && getcwd(from, sizeof from) == NULL)
        return FAILED;
    if (strlen(from) + strlen(typed) + 2 > PATH_MAX) {
        errno = ENAMETOOLONG;
        return FAILED;
    }
    char *rest = from + strlen(from);
    *rest++ = '/';
    strcpy(rest, typed);
    size_t end = 0;
    char *saved, *name;
    for (name = strtok_r(from, "/", &saved); name != NULL; name = strtok_r(NULL, "/", &saved)) {
        if (strcmp(name, ".") == 0)
            continue;
        if (strcmp(name, "..") == 0) {
            while (end > 0 && path[--end] != '/')
                ;
            continue;
        }
        size_t size = strlen(name);
        path[end++] = '/';
        memcpy(path + end, name, size);
        end += size;
    }
    if (end == 0)
        path[end++] = '/';
    path[end] = '\0';
    return DONE;
}

/* All of a file, with a NUL behind it, from malloc; NULL with errno when it cannot be read. */
char *file_content(const char *path, size_t *size) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return NULL;
    size_t capacity = 1 << 16;
    char *content = malloc(capacity);
    *size = 0;
    while (content != NULL) {
        ssize_t count = read(file, content + *size, capacity - *size - 1);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0) {
            free(content);
            content = NULL;
        }
        if (count <= 0)
            break;
        *size += (size_t)count;
        if (*size + 1 == capacity) {
            char *larger = realloc(content, capacity *= 2);
            if (larger == NULL)
                free(content);
            content = larger;
        }
    }
    close(file);
    if (content != NULL)
        content[*size] = '\0';
    return content;
}
