/* The helper client: sends the words it was called with to the execution's supervisor, prints what comes back.
 *
 * One small static program, linked under every helper's name. It knows PROTOCOL.md and nothing else: no grammar, no
 * values, no messages but those for a supervisor that doesn't answer. Built with
 *   zig cc -target x86_64-linux-musl -Os -static -s client.c      (and aarch64-linux-musl)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { CHUNK = 1 << 20 };

static int supervisor; /* the connection */

static void fail(const char *sentence, const char *detail) {
    dprintf(2, "Error: %s%s%s\n", sentence, detail ? ": " : "", detail ? detail : "");
    _exit(1);
}

static void gone(void) { fail("the supervisor of this execution is gone", NULL); }

static void *allocate(void *old, size_t size) {
    void *memory = realloc(old, size ? size : 1);
    if (!memory) fail("out of memory", NULL);
    return memory;
}

static unsigned char *put_length(unsigned char *at, size_t length) {
    for (int shift = 24; shift >= 0; shift -= 8) *at++ = (unsigned char)(length >> shift);
    return at;
}

/* Returns 0 when the supervisor no longer listens: it may have answered before, so that is no error yet. */
static int send_all(const unsigned char *bytes, size_t left) {
    while (left) {
        ssize_t sent = send(supervisor, bytes, left, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0) return 0;
        bytes += sent, left -= (size_t)sent;
    }
    return 1;
}

static int write_all(int descriptor, const unsigned char *bytes, size_t left) {
    while (left) {
        ssize_t written = write(descriptor, bytes, left);
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) return 0;
        bytes += written, left -= (size_t)written;
    }
    return 1;
}

static void receive(unsigned char *to, size_t left) {
    while (left) {
        ssize_t got = read(supervisor, to, left);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) gone();
        to += got, left -= (size_t)got;
    }
}

static void send_stdin(void) {
    unsigned char *chunk = allocate(NULL, 4 + CHUNK);
    for (;;) {
        ssize_t got = read(0, chunk + 4, CHUNK);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) fail("standard input cannot be read", strerror(errno));
        put_length(chunk, (size_t)got);
        if (!send_all(chunk, 4 + (size_t)got) || got == 0) break; /* a chunk of length 0 ends it */
    }
    free(chunk);
}

static void send_words(int count, char **words) {
    size_t size = 8;
    for (int i = 0; i < count; i++) size += 4 + strlen(words[i]);
    unsigned char *request = allocate(NULL, size), *at = request;
    memcpy(at, "CRH1", 4);
    at = put_length(at + 4, (size_t)count);
    for (int i = 0; i < count; i++) {
        size_t length = strlen(words[i]);
        at = put_length(at, length);
        memcpy(at, words[i], length);
        at += length;
    }
    send_all(request, size);
    free(request);
}

static void call_supervisor(const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = getenv("CRONIUM_SOCKET");
    if (!path || !*path) {
        dprintf(2, "Error: %s works only inside a job: CRONIUM_SOCKET is not set\n", name);
        _exit(1);
    }
    if (strlen(path) >= sizeof address.sun_path) fail("no supervisor answers at CRONIUM_SOCKET", "the path is too long");
    strcpy(address.sun_path, path);
    supervisor = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    /* A caller may have closed a standard stream; the connection must not take its place. */
    if (supervisor >= 0 && supervisor <= 2) {
        int low = supervisor;
        supervisor = fcntl(low, F_DUPFD_CLOEXEC, 3);
        close(low);
    }
    if (supervisor < 0 || connect(supervisor, (struct sockaddr *)&address, sizeof address) < 0)
        fail("no supervisor answers at CRONIUM_SOCKET", strerror(errno));
}

int main(int count, char **words) {
    unsigned char head[5], *content = NULL, *output = NULL;
    size_t output_size = 0;
    if (count < 1) return 1;
    char *slash = strrchr(words[0], '/');
    if (slash) words[0] = slash + 1;
    call_supervisor(words[0]);
    send_words(count, words);
    for (;;) {
        receive(head, sizeof head);
        size_t length = (size_t)head[1] << 24 | (size_t)head[2] << 16 | (size_t)head[3] << 8 | head[4];
        if (head[0] == 'O') { /* held back: a failed call leaves nothing on standard output */
            output = allocate(output, output_size + length);
            receive(output + output_size, length);
            output_size += length;
            continue;
        }
        content = allocate(content, length);
        receive(content, length);
        if (head[0] == 'I') send_stdin();
        if (head[0] == 'E') write_all(2, content, length);
        if (head[0] == 'X') {
            if (!write_all(1, output, output_size)) fail("standard output cannot be written", strerror(errno));
            return length ? content[0] : 1;
        }
    }
}
