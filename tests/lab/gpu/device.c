/* Preloaded into the engine's own ggml-rpc-server, so that it plays one card (environment LAB_GPU_UUID):
 *
 *  - it has the card's memory: sysconf(_SC_PHYS_PAGES), which ggml takes for a device's memory, is what is free on the
 *    card, and an allocation beyond it fails, as cudaMalloc does;
 *  - it serves many clients: the stock server serves one at a time, so every accepted connection gets a process of its
 *    own, as every process that uses CUDA gets a context of its own;
 *  - what a long prompt takes besides the buffers (ggml's CPU backend has it from new[]) ends the process when the card has
 *    no room for it, as it does in the CUDA backend's pool;
 *  - what it holds for a client is written down with the client's pid, for the stand-in of NVML to report (cards.h). */
#define _GNU_SOURCE
#include "cards.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define SMALLEST_BUFFER (64 * 1024) /* what is smaller is the server's own, not a device buffer */
#define POOL LAB_MIB /* what is smaller, as for a prompt of some tokens, is there since the load */
#define MAX_BUFFERS 4096

static struct { void *address; size_t size; } buffers[MAX_BUFFERS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int slots; /* how many of them were ever in use */
static unsigned long long held;
static int ledger = -1, client;
static char ledger_path[512];

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static int own_card(struct card *out) {
    struct card cards[LAB_MAX_CARDS];
    const char *uuid = getenv("LAB_GPU_UUID");
    int count = lab_read_cards(cards);
    for (int i = 0; uuid && i < count; i++)
        if (!strcmp(cards[i].uuid, uuid)) { *out = cards[i]; return 1; }
    return 0;
}

static unsigned long long free_bytes(void) {
    struct card card;
    if (!own_card(&card)) return 0;
    unsigned long long used = lab_used(&card);
    return used < card.total ? card.total - used : 0;
}

long sysconf(int name) {
    static long (*next)(int);
    if (!next) next = (long (*)(int))real("sysconf");
    return name == _SC_PHYS_PAGES ? (long)(free_bytes() / (unsigned long long)next(_SC_PAGE_SIZE)) : next(name);
}

/* The pid at the other end of a TCP connection within this host: the owner of the socket that is bound to its port. */
static int pid_of_port(unsigned port) {
    char line[512], path[300], target[64], wanted[64] = "";
    FILE *table = fopen("/proc/net/tcp", "re");
    while (table && fgets(line, sizeof line, table)) {
        unsigned local;
        unsigned long inode;
        if (sscanf(line, " %*d: %*8x:%x %*8x:%*x %*x %*s %*s %*s %*s %*s %lu", &local, &inode) == 2 && local == port && inode)
            snprintf(wanted, sizeof wanted, "socket:[%lu]", inode);
    }
    if (table) fclose(table);
    DIR *processes = wanted[0] ? opendir("/proc") : NULL;
    int found = 0;
    for (struct dirent *p; processes && !found && (p = readdir(processes));) {
        if (p->d_name[0] < '1' || p->d_name[0] > '9') continue;
        snprintf(path, sizeof path, "/proc/%s/fd", p->d_name);
        DIR *files = opendir(path);
        for (struct dirent *f; files && !found && (f = readdir(files));) {
            ssize_t size = readlinkat(dirfd(files), f->d_name, target, sizeof target - 1);
            if (size <= 0) continue;
            target[size] = 0;
            if (!strcmp(target, wanted)) found = atoi(p->d_name);
        }
        if (files) closedir(files);
    }
    if (processes) closedir(processes);
    return found;
}

static void write_down(void) {
    char text[64];
    /* Always as long, so that it is written over at once: whoever reads meanwhile finds no empty file. */
    int size = snprintf(text, sizeof text, "%10d %20llu\n", client, held);
    if (ledger >= 0 && pwrite(ledger, text, (size_t)size, 0) != size) _exit(1);
}

static void open_ledger(const struct sockaddr_in *peer) {
    umask(022);
    mkdir(LAB_MEMORY, 0755);
    int size = snprintf(ledger_path, sizeof ledger_path, LAB_MEMORY "/%s", getenv("LAB_GPU_UUID"));
    mkdir(ledger_path, 0755);
    snprintf(ledger_path + size, sizeof ledger_path - (size_t)size, "/%d", getpid());
    client = pid_of_port(ntohs(peer->sin_port));
    ledger = open(ledger_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (ledger < 0 || flock(ledger, LOCK_EX)) _exit(1);
    write_down();
}

int accept(int socket, struct sockaddr *address, socklen_t *length) {
    static int (*next)(int, struct sockaddr *, socklen_t *);
    if (!next) next = (int (*)(int, struct sockaddr *, socklen_t *))real("accept");
    if (ledger >= 0) { /* the one client of this process has left */
        unlink(ledger_path);
        _exit(0);
    }
    signal(SIGCHLD, SIG_IGN);  /* children are not waited for */
    for (;;) {
        struct sockaddr_in peer;
        socklen_t size = sizeof peer;
        int connection = next(socket, (struct sockaddr *)&peer, &size);
        if (connection < 0) return connection;
        pid_t child = fork();
        if (child != 0) {
            close(connection);
            if (child < 0) perror("fork");
            continue;
        }
        close(socket);
        open_ledger(&peer);
        if (address && length) memcpy(address, &peer, *length < size ? *length : size);
        return connection;
    }
}

int posix_memalign(void **out, size_t alignment, size_t size) {
    static int (*next)(void **, size_t, size_t);
    if (!next) next = (int (*)(void **, size_t, size_t))real("posix_memalign");
    if (ledger < 0 || size < SMALLEST_BUFFER) return next(out, alignment, size);
    if (size > free_bytes()) return ENOMEM;
    int code = next(out, alignment, size);
    if (code) return code;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_BUFFERS; i++)
        if (!buffers[i].address) {
            if (i >= slots) slots = i + 1;
            buffers[i].address = *out;
            buffers[i].size = size;
            held += size;
            write_down();
            break;
        }
    pthread_mutex_unlock(&lock);
    return 0;
}

void *_Znam(size_t size) { /* operator new[] */
    static void *(*next)(size_t);
    if (!next) next = (void *(*)(size_t))real("_Znam");
    if (ledger >= 0 && size >= POOL && size > free_bytes()) {
        fprintf(stderr, "out of memory: %zu bytes for a computation\n", size);
        abort();
    }
    return next(size);
}

void free(void *address) {
    static void (*next)(void *);
    if (!next) next = (void (*)(void *))real("free");
    if (address && ledger >= 0) {
        pthread_mutex_lock(&lock);
        for (int i = 0; i < slots; i++)
            if (buffers[i].address == address) {
                buffers[i].address = NULL;
                held -= buffers[i].size;
                write_down();
                break;
            }
        pthread_mutex_unlock(&lock);
    }
    next(address);
}
