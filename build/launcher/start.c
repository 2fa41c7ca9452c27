/* Becoming the installed runner: its own dynamic linker and C library, PyInstaller's bootloader, the same arguments.
 *
 * The bootloader is told that it need not start itself anew, and takes the launcher, which its archive is
 * behind, for its own file. What the login has for the dynamic linker is put aside under other names, so that nothing
 * of it is loaded into the runner; cronium_runner's `environment` gives it back to scripts. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launcher.h"

#ifdef __aarch64__
#define LINKER "ld-linux-aarch64.so.1"
#else
#define LINKER "ld-linux-x86-64.so.2"
#endif

extern char **environ;

static const char *const PUT_ASIDE[] = {"LD_LIBRARY_PATH", "LD_PRELOAD", "LD_AUDIT"};
static const char *const BOOTLOADERS[] = {"_PYI_", "_MEIPASS", "PYINSTALLER_"};

static bool is_bootloaders(const char *variable) {
    for (size_t at = 0; at < sizeof BOOTLOADERS / sizeof *BOOTLOADERS; at++) {
        if (strncmp(variable, BOOTLOADERS[at], strlen(BOOTLOADERS[at])) == 0)
            return true;
    }
    return false;
}

static void clear_bootloaders(void) {
    char **kept = environ;
    for (char **variable = environ; *variable != NULL; variable++) {
        if (!is_bootloaders(*variable))
            *kept++ = *variable;
    }
    *kept = NULL;
}

static int set_environment(const char *executable) {
    char name[64];
    clear_bootloaders();
    for (size_t at = 0; at < sizeof PUT_ASIDE / sizeof *PUT_ASIDE; at++) {
        const char *value = getenv(PUT_ASIDE[at]);
        snprintf(name, sizeof name, "CRONIUM_LOGIN_%s", PUT_ASIDE[at]);
        if ((value == NULL ? unsetenv(name) : setenv(name, value, 1)) != 0 || unsetenv(PUT_ASIDE[at]) != 0)
            return FAILED;
    }
    return setenv("_PYI_ARCHIVE_FILE", executable, 1) != 0 || setenv("_PYI_PARENT_PROCESS_LEVEL", "-1", 1) != 0 ||
                   setenv("_PYI_LINUX_PROCESS_NAME", EXECUTABLE, 1) != 0
               ? FAILED
               : DONE;
}

/* Replaces this process by the runner in `directory`, a real path; returns, with errno, when that cannot be. */
void start_installed(const char *directory, int argc, char **argv) {
    static char libraries[PATH_MAX], linker[PATH_MAX], bootloader[PATH_MAX], executable[PATH_MAX];
    char **words = calloc((size_t)argc + 8, sizeof *words);
    if (words == NULL || join(libraries, directory, LIBRARIES) != DONE || join(linker, libraries, LINKER) != DONE ||
        join(bootloader, libraries, "boot") != DONE || join(executable, directory, EXECUTABLE) != DONE ||
        set_environment(executable) != DONE)
        return;
    char *first[] = {linker, "--argv0", executable, "--library-path", libraries, bootloader};
    memcpy(words, first, sizeof first);
    for (int at = 1; at < argc; at++)
        words[sizeof first / sizeof *first + (size_t)at - 1] = argv[at];
    execve(linker, words, environ);
}
