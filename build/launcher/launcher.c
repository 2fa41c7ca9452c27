/* Where the process starts. One static program in three roles, so that a runner needs nothing of the host:
 *
 * carrier    the one file that is copied to a host: installs what is packed behind it, once, and becomes that
 * installed  `cronium-runner` of the installed form, with the bootloader's archive behind it: becomes the runner
 * helper     called by the name of a helper: becomes the helper client beside it
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launcher.h"

#define UNUSABLE "install.unusable"

const volatile struct carried carried = {.mark = "cronium-runner carries:"};

static int arguments;
static char **words;
static const unsigned char *file;

/* A refusal is one sentence and a code of docs/errors.md, as the runner's own are. */
static int say(const char *text, const char *code) {
    dprintf(STDERR_FILENO, EXECUTABLE ": %s [%s]\n", text, code);
    return EXIT_STATUS;
}

static int cannot_install(const char *why) {
    char text[2 * PATH_MAX + 100];
    snprintf(text, sizeof text, "the runner cannot be installed: %s", why);
    return say(text, UNUSABLE);
}

static int advise(void) {
    char text[2 * PATH_MAX + 200];
    snprintf(text, sizeof text,
             "the runner cannot be installed because %s: set CRONIUM_INSTALL_DIR to a directory that it may use", reason);
    return say(text, UNUSABLE);
}

/* The real path of the program's own file, also where /proc is not mounted. */
static int find_own_file(char path[PATH_MAX]) {
    ssize_t size = readlink("/proc/self/exe", path, PATH_MAX - 1);
    if (size > 0) {
        path[size] = '\0';
        return DONE;
    }
    const char *executed = (const char *)getauxval(AT_EXECFN);
    return executed != NULL && realpath(executed, path) != NULL ? DONE : FAILED;
}

static int start_below(const char *directory) {
    start_installed(directory, arguments, words);
    return refuse("%s cannot be executed (%s)", directory, strerror(errno));
}

static int install_below(const char *root) {
    char directory[PATH_MAX];
    int outcome = join(directory, root, form_folder());
    if (outcome == DONE)
        outcome = place_form(directory, file);
    return outcome == DONE ? start_below(directory) : outcome;
}

/* `install DIR`: into that directory only, so that it works where none of the usual directories does. */
static int install_into(const char *typed) {
    char directory[PATH_MAX];
    int outcome = absolute(directory, typed);
    if (outcome == DONE)
        outcome = make_parent(directory);
    if (outcome == DONE)
        outcome = place_form(directory, file);
    if (outcome == DONE)
        outcome = start_below(directory);
    return outcome == FAILED ? cannot_install(strerror(errno)) : advise();
}

static int map_own_file(const char *path) {
    struct stat found;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0 || fstat(descriptor, &found) != 0)
        return FAILED;
    if ((uint64_t)found.st_size < carried.pack + carried.pack_size ||
        (uint64_t)found.st_size < carried.list + carried.list_size)
        return refuse("this file is not whole; get the runner again");
    void *mapped = mmap(NULL, (size_t)found.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (mapped == MAP_FAILED)
        return FAILED;
    close(descriptor);
    file = mapped;
    return read_list((const char *)file + carried.list, carried.list_size);
}

static int carry(const char *path) {
    int outcome = map_own_file(path);
    if (outcome != DONE)
        return cannot_install(outcome == FAILED ? strerror(errno) : reason);
    if (arguments == 3 && strcmp(words[1], "install") == 0 && *words[2] != '-')
        return install_into(words[2]);
    for (int at = 2; at < arguments && strcmp(words[1], "install") == 0; at++) {
        if (strcmp(words[at], "--adopt") == 0) /* else the form that is to be adopted may be mended first */
            return say("an installed form adopts itself: start DIR/cronium-runner install --adopt DIR", "usage.invalid");
    }
    for_each_root(install_below);
    return advise();
}

/* Whether the name that the program was called by is a helper's. */
static bool is_helper(const char *called) {
    const char *slash = strrchr(called, '/'), *name = slash ? slash + 1 : called;
    return strncmp(name, "cronium.", 8) == 0 || strncmp(name, "cronium_", 8) == 0;
}

int main(int argc, char **argv) {
    char path[PATH_MAX], directory[PATH_MAX], client[PATH_MAX], text[PATH_MAX + 200];
    arguments = argc;
    words = argv;
    if (argc < 1 || find_own_file(path) != DONE || parent_of(directory, path) != DONE)
        return say("its own file cannot be found: start it by its whole path", UNUSABLE);
    if (carried.list_size != 0)
        return carry(path);
    if (is_helper(argv[0]) && join(client, directory, CLIENT) == DONE)
        execv(client, argv);
    else
        start_installed(directory, argc, argv);
    snprintf(text, sizeof text, "%s cannot be started (%s); install the runner again", directory, strerror(errno));
    return say(text, "install.damaged");
}
