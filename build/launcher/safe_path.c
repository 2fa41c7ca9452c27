/* Whether another user could exchange a directory or what is above it: cronium_runner/safe_path.py says the rule, and
 * tests/safe_path_cases.json has the cases that both are tested with. */
#include <errno.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launcher.h"

#define MAX_LINKS 40 /* the kernel's own limit of links on one path (path_resolution(7)) */
#define OTHERS_WRITE (S_IWGRP | S_IWOTH)

struct place {
    char *path;
    struct stat found;
};

/* The places on the way to a path, from the root down. */
struct chain {
    struct place places[PATH_MAX / 2];
    size_t count;
    bool has_changed; /* whether one was tightened */
};

/* Field `wanted` of a line of /etc/passwd or /etc/group, of which there are at least four; NULL when there are fewer. */
static const char *field(const char *line, size_t size, int wanted, size_t *field_size) {
    const char *start = line, *end = line + size, *found = NULL;
    int number = 0;
    for (const char *at = line; at <= end; at++) {
        if (at < end && *at != ':')
            continue;
        if (number++ == wanted) {
            found = start;
            *field_size = (size_t)(at - start);
        }
        start = at + 1;
    }
    return number >= 4 ? found : NULL;
}

static bool has_field(const char *line, size_t size, int number, const char *text, size_t text_size) {
    size_t field_size;
    const char *found = field(line, size, number, &field_size);
    return found != NULL && field_size == text_size && memcmp(found, text, text_size) == 0;
}

#define EACH_LINE(text, size, line, line_size)                                                                         \
    for (const char *line = text, *end_ = (text) + (size), *next_ = line;                                              \
         line < end_ && (next_ = memchr(line, '\n', (size_t)(end_ - line)), next_ = next_ ? next_ : end_, true);       \
         line = next_ + 1)                                                                                             \
        for (size_t line_size = (size_t)(next_ - line), once_ = 1; once_; once_ = 0)

/* Whether a member of the account's group is the account itself, under any of its names, or root. */
static bool is_own_name(const char *name, size_t size, const char *own, const char *uid, const char *accounts,
                        size_t accounts_size) {
    if (own != NULL && strlen(own) == size && memcmp(own, name, size) == 0)
        return true;
    EACH_LINE(accounts, accounts_size, line, line_size) {
        if (has_field(line, line_size, 0, name, size) &&
            (has_field(line, line_size, 2, uid, strlen(uid)) || has_field(line, line_size, 2, "0", 1)))
            return true;
    }
    return false;
}

static bool has_other_member(const char *gid, const char *uid, const char *own, const char *accounts, size_t size) {
    EACH_LINE(accounts, size, line, line_size) {
        if (!has_field(line, line_size, 2, uid, strlen(uid)) && !has_field(line, line_size, 2, "0", 1) &&
            has_field(line, line_size, 3, gid, strlen(gid)))
            return true;
    }
    size_t groups_size = 0;
    char *groups = file_content("/etc/group", &groups_size);
    bool is_known = false, has_other = false;
    EACH_LINE(groups, groups_size, line, line_size) {
        size_t members_size, name_size;
        const char *members = field(line, line_size, 3, &members_size);
        if (members == NULL || !has_field(line, line_size, 2, gid, strlen(gid)))
            continue;
        is_known = true;
        for (const char *name = members; name < members + members_size; name += name_size + 1) {
            const char *comma = memchr(name, ',', (size_t)(members + members_size - name));
            name_size = (size_t)((comma ? comma : members + members_size) - name);
            has_other |= name_size > 0 && !is_own_name(name, name_size, own, uid, accounts, size);
        }
    }
    free(groups);
    return has_other || !is_known;
}

/* Whether `group` is the account's primary group and no other account is a member. */
static bool is_private_group(gid_t group) {
    struct passwd *account = getpwuid(geteuid());
    if (group != (account ? account->pw_gid : getegid()))
        return false;
    char gid[16], uid[16];
    snprintf(gid, sizeof gid, "%u", group);
    snprintf(uid, sizeof uid, "%u", geteuid());
    size_t size = 0;
    char *accounts = file_content("/etc/passwd", &size);
    bool is_private = !has_other_member(gid, uid, account ? account->pw_name : NULL, accounts, size);
    free(accounts);
    return is_private;
}

static bool may_be_tightened(const struct place *place) {
    char below[PATH_MAX + 1];
    snprintf(below, sizeof below, "%s/", place->path);
    return S_ISDIR(place->found.st_mode) && place->found.st_mode & OTHERS_WRITE && place->found.st_uid == geteuid() &&
           strstr(below, "/.local/") != NULL;
}

static int refuse_place(const struct place *place) {
    const char *path = place->path;
    unsigned mode = place->found.st_mode & 07777, owner = place->found.st_uid, group = place->found.st_gid;
    if (owner != 0 && owner != geteuid())
        return refuse("%s belongs to uid %u, who could exchange what is in it", path, owner);
    if (S_ISLNK(place->found.st_mode))
        return refuse("%s is a link in a directory that every user may write", path);
    if (mode & S_IWOTH)
        return refuse("%s can be written by every user (mode %04o) (`chmod g-w,o-w %s` changes that)", path, mode, path);
    if (mode & S_IWGRP)
        return refuse("%s can be written by group %u (mode %04o) (`chmod g-w %s` changes that)", path, group, mode, path);
    if (owner != geteuid())
        return refuse("%s (mode %04o, uid %u) is in a directory that every user may write", path, mode, owner);
    return refuse("%s (mode %04o, uid %u) is in a directory that every user may write (`chmod 700 %s` changes that)",
                  path, mode, owner, path);
}

static int refuse_or_tighten(struct chain *chain, const struct place *place) {
    if (!may_be_tightened(place) || chmod(place->path, place->found.st_mode & 07777 & ~OTHERS_WRITE) != 0)
        return refuse_place(place);
    chain->has_changed = true;
    return DONE;
}

static int judge(struct chain *chain) {
    uid_t uid = geteuid();
    bool is_closed = false; /* a directory above is the account's and has mode 0700 */
    bool is_sticky = false; /* the one above is writable by everybody, and sticky */
    for (size_t at = 0; at < chain->count; at++) {
        const struct place *place = &chain->places[at];
        mode_t mode = place->found.st_mode & 07777;
        bool is_closed_itself = place->found.st_uid == uid && mode == PRIVATE, is_faulty = false;
        if ((place->found.st_uid != 0 && place->found.st_uid != uid) || (is_sticky && !is_closed_itself))
            is_faulty = true;
        is_sticky = false;
        if (mode & OTHERS_WRITE && !S_ISLNK(place->found.st_mode)) {
            if (mode & S_ISVTX && place->found.st_uid == 0)
                is_sticky = true;
            else if (mode & S_IWOTH || !(is_closed || is_private_group(place->found.st_gid)))
                is_faulty = true;
        }
        if (is_faulty && refuse_or_tighten(chain, place) != DONE)
            return REFUSED;
        is_closed = is_closed || is_closed_itself;
    }
    return DONE;
}

static void drop(struct chain *chain, size_t kept) {
    while (chain->count > kept)
        free(chain->places[--chain->count].path);
}

static int add(struct chain *chain, const char *name) {
    char path[PATH_MAX];
    if (join(path, chain->count ? chain->places[chain->count - 1].path : "/", name) != DONE)
        return FAILED;
    struct place *place = &chain->places[chain->count];
    if (lstat(path, &place->found) != 0 || (place->path = strdup(path)) == NULL)
        return FAILED;
    chain->count++;
    return DONE;
}

/* Puts what the link at the chain's end leads to in front of the `rest` of the path, and takes the link off. */
static int follow(struct chain *chain, char **rest, char *unread) {
    char target[PATH_MAX];
    ssize_t size = readlink(chain->places[chain->count - 1].path, target, sizeof target - 1);
    if (size < 0)
        return FAILED;
    target[size] = '\0';
    drop(chain, *target == '/' ? 1 : chain->count - 1);
    char *longer = malloc((size_t)size + strlen(unread) + 2);
    if (longer == NULL)
        return FAILED;
    sprintf(longer, "%s/%s", target, unread);
    free(*rest);
    *rest = longer;
    return DONE;
}

/* Links are resolved here, one by one, so `rest` need not be a real path. It is freed. */
static int walk(struct chain *chain, char *rest) {
    int links = 0, outcome = add(chain, "");
    char *name, *unread = rest;
    while (outcome == DONE && (name = strsep(&unread, "/")) != NULL) {
        if (*name == '\0' || strcmp(name, ".") == 0)
            continue;
        if (strcmp(name, "..") == 0) {
            drop(chain, chain->count > 1 ? chain->count - 1 : 1);
            continue;
        }
        if ((outcome = add(chain, name)) != DONE || !S_ISLNK(chain->places[chain->count - 1].found.st_mode))
            continue;
        if (++links > MAX_LINKS) {
            errno = ELOOP;
            outcome = FAILED;
        } else if ((outcome = judge(chain)) == DONE) {
            outcome = follow(chain, &rest, unread ? unread : "");
            unread = rest;
        }
    }
    free(rest);
    return outcome == DONE ? judge(chain) : outcome;
}

static int check_once(const char *path, bool *has_changed) {
    struct chain *chain = calloc(1, sizeof *chain);
    char *rest = strdup(path);
    int outcome = chain && rest ? walk(chain, rest) : FAILED;
    if (chain == NULL)
        return FAILED;
    *has_changed = chain->has_changed;
    int kept = errno;
    drop(chain, 0);
    free(chain);
    errno = kept;
    return outcome;
}

/* Check `path` and everything above it; tighten what may be tightened. */
int check_safe(const char *path) {
    bool has_changed = false;
    int outcome = check_once(path, &has_changed);
    if (outcome == DONE && has_changed) /* what is below counts as it is once no other user can change it */
        outcome = check_once(path, &has_changed);
    return outcome;
}

/* Make `path` and what is missing above it, after what is there has passed. */
int make_safe(const char *path) {
    char there[PATH_MAX], missing[PATH_MAX];
    struct stat found;
    if (join(there, path, "") != DONE)
        return FAILED;
    size_t size = strlen(path);
    strcpy(there, path);
    while (lstat(there, &found) != 0 && strcmp(there, "/") != 0) {
        strcpy(missing, there);
        parent_of(there, missing);
    }
    int outcome = check_safe(there);
    strcpy(missing, path);
    for (size_t at = strcmp(there, "/") == 0 ? 0 : strlen(there); outcome == DONE && at < size; at++) {
        char *slash = strchr(missing + at + 1, '/');
        if (slash != NULL)
            *slash = '\0';
        outcome = make_one(missing);
        at = strlen(missing) - 1;
        if (slash != NULL)
            *slash = '/';
    }
    return outcome;
}

/* Make one directory with mode 0700 whatever the umask; one that is there is left as it is. */
int make_one(const char *path) {
    if (mkdir(path, PRIVATE) != 0)
        return errno == EEXIST ? DONE : FAILED;
    return chmod(path, PRIVATE) == 0 ? DONE : FAILED; /* the umask may have taken the owner's own rights away */
}
