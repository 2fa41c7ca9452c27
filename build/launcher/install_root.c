/* Which directories may hold installed runners, and whether one can be trusted: as cronium_runner/location.py. */
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher.h"

/* `path` is a directory of this account with mode 0700, and no link. FAILED when it is absent. */
int check_private(const char *path) {
    struct stat found;
    if (lstat(path, &found) != 0)
        return FAILED;
    if (!S_ISDIR(found.st_mode))
        return refuse("%s is not a directory", path);
    if (found.st_uid != geteuid())
        return refuse("%s belongs to uid %u, not to us (uid %u)", path, found.st_uid, geteuid());
    if ((found.st_mode & 07777) != PRIVATE)
        return refuse("%s has mode %04o, not 0700", path, found.st_mode & 07777);
    return DONE;
}

static int cannot_be_made(const char *path, int outcome) {
    return outcome == FAILED ? refuse("%s cannot be made (%s)", path, strerror(errno)) : outcome;
}

static int make_or_check(const char *path) {
    struct stat found;
    char above[PATH_MAX];
    int outcome = DONE;
    if (lstat(path, &found) != 0) {
        if ((outcome = parent_of(above, path)) == DONE && (outcome = make_safe(above)) == DONE)
            outcome = make_one(path);
    }
    if (outcome == DONE)
        outcome = check_private(path);
    return outcome == DONE ? check_safe(path) : outcome;
}

/* Make `path` a directory that only we can change, or find it to be one. */
int make_private(const char *path) {
    return cannot_be_made(path, make_or_check(path));
}

/* Files in the directory `path` can be executed: it is not mounted noexec. */
int check_executable(const char *path) {
    struct statvfs found;
    if (statvfs(path, &found) != 0)
        return FAILED;
    return found.f_flag & ST_NOEXEC ? refuse("%s is on a file system mounted noexec", path) : DONE;
}

/* Make the folder that `path` goes into, where no other user can exchange files and files can be executed. */
int make_parent(const char *path) {
    char above[PATH_MAX];
    int outcome = parent_of(above, path);
    if (outcome == DONE)
        outcome = make_safe(above);
    if (outcome == DONE)
        outcome = check_executable(above);
    return cannot_be_made(above, outcome);
}

static bool is_directory(const char *path) {
    struct stat found;
    return stat(path, &found) == 0 && S_ISDIR(found.st_mode);
}

/* The sixth field of what the host's own getent says of an account that /etc/passwd does not know: one of a directory
 * service. Its modules are made for the host's C library, which a static program cannot load. */
static bool ask_getent(char home[PATH_MAX]) {
    char uid[16], answer[2 * PATH_MAX];
    size_t size = 0;
    ssize_t count = 0;
    int ends[2], status;
    pid_t child;
    char *words[] = {"getent", "passwd", uid, NULL}, *environment[] = {"PATH=/usr/bin:/bin", NULL};
    posix_spawn_file_actions_t actions;
    snprintf(uid, sizeof uid, "%u", geteuid());
    if (pipe2(ends, O_CLOEXEC) != 0)
        return false;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
    bool has_begun = posix_spawn(&child, "/usr/bin/getent", &actions, NULL, words, environment) == 0 ||
                     posix_spawn(&child, "/bin/getent", &actions, NULL, words, environment) == 0;
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    while (has_begun && size < sizeof answer - 1 &&
           (count = read(ends[0], answer + size, sizeof answer - 1 - size)) > 0)
        size += (size_t)count;
    close(ends[0]);
    if (!has_begun || waitpid(child, &status, 0) != child || status != 0)
        return false;
    answer[size] = '\0';
    char *rest = answer, *found = NULL;
    for (int number = 0; number < 6 && rest != NULL; number++)
        found = strsep(&rest, ":");
    if (rest == NULL || strlen(found) >= PATH_MAX)
        return false;
    strcpy(home, found);
    return true;
}

static bool find_home(char home[PATH_MAX]) {
    struct passwd *account = getpwuid(geteuid());
    if (account == NULL)
        return ask_getent(home);
    if (strlen(account->pw_dir) >= PATH_MAX)
        return false;
    strcpy(home, account->pw_dir);
    return true;
}

/* All that was refused until now, in one sentence. */
struct refusals {
    char text[8 * PATH_MAX];
    size_t size;
};

static void remember(struct refusals *refusals, const char *root, int outcome) {
    if (outcome == FAILED)
        refuse("%s cannot be used (%s)", root, strerror(errno));
    size_t left = sizeof refusals->text - refusals->size;
    int size = snprintf(refusals->text + refusals->size, left, "%s%s", refusals->size ? "; " : "", reason);
    if (size > 0)
        refusals->size += (size_t)size < left ? (size_t)size : left - 1;
}

static int attempt_at(const char *root, int (*attempt)(const char *root), struct refusals *refusals) {
    int outcome = make_private(root);
    if (outcome == DONE)
        outcome = check_executable(root);
    if (outcome == DONE)
        outcome = attempt(root);
    if (outcome != DONE)
        remember(refusals, root, outcome);
    return outcome;
}

static bool is_over(int outcome) {
    return outcome == DONE || outcome == FINAL;
}

/* `attempt` for each root until it succeeds for one that is private and executable; REFUSED names all that were tried.
 *
 * CRONIUM_INSTALL_DIR stands alone. The home directory is the password database's, because $HOME differs between a
 * login and an SSH channel. Then the directories that the system has for all, the one that survives a reboot first. */
int for_each_root(int (*attempt)(const char *root)) {
    static struct refusals refusals;
    char root[PATH_MAX], home[PATH_MAX], above[PATH_MAX], name[64];
    int outcome;
    const char *chosen = getenv("CRONIUM_INSTALL_DIR");
    if (chosen != NULL && *chosen != '\0') {
        if (absolute(root, chosen) != DONE)
            return refuse("%s cannot be used (%s)", chosen, strerror(errno));
        return attempt_at(root, attempt, &refusals);
    }
    if (find_home(home) && *home == '/' && is_directory(home)) {
        for (int at = 0; at < 2; at++) {
            const char *below = at == 0 ? ".local/lib/cronium-runner" : ".cache/cronium-runner";
            if (join(root, home, below) == DONE && is_over(outcome = attempt_at(root, attempt, &refusals)))
                return outcome;
        }
    }
    snprintf(above, sizeof above, "/run/user/%u", geteuid());
    snprintf(name, sizeof name, "cronium-runner-%u", geteuid());
    const char *probed[] = {"/var/tmp", above, "/dev/shm", "/tmp"};
    for (size_t at = 0; at < sizeof probed / sizeof *probed; at++) {
        if (is_directory(probed[at]) && join(root, probed[at], name) == DONE &&
            is_over(outcome = attempt_at(root, attempt, &refusals)))
            return outcome;
    }
    if (refusals.size == 0)
        return refuse("there is no directory to install it in");
    snprintf(reason, sizeof reason, "%s", refusals.text);
    return REFUSED;
}
