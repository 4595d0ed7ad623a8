/* What the two stand-ins (nvml.c, device.c) share: the cards of the lab and the memory that is taken of them.
 *
 * Cards:   /etc/lab-gpus/cards, one a line, '|' between the fields of struct card; '#' begins a comment.
 * Memory:  /run/lab-gpus/<uuid>/<pid>: "<client pid> <bytes>". The process that plays the card for one client writes
 *          it and holds an flock on it, so a file without a lock is one whose process is gone. */
#ifndef LAB_CARDS_H
#define LAB_CARDS_H

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define LAB_CARDS "/etc/lab-gpus/cards"
#define LAB_FAULTS "/etc/lab-gpus/faults"
#define LAB_MEMORY "/run/lab-gpus"
#define LAB_MAX_CARDS 8
#define LAB_MIB (1024ULL * 1024ULL)

struct card {
    char uuid[64], name[64], pci_bus_id[32];
    unsigned long long total, baseline; /* bytes; baseline is what an idle card already holds */
    int major, minor, bus_width_bit, memory_clock_mhz, minor_number;
};

static int lab_read_cards(struct card *cards) {
    FILE *file = fopen(LAB_CARDS, "re");
    char line[512];
    int count = 0;
    if (!file) return 0;
    while (count < LAB_MAX_CARDS && fgets(line, sizeof line, file)) {
        struct card *c = &cards[count];
        unsigned long long total, baseline;
        if (line[0] == '#') continue;
        if (sscanf(line, "%63[^|]|%63[^|]|%31[^|]|%llu|%llu|%d.%d|%d|%d", c->uuid, c->name, c->pci_bus_id, &total,
                   &baseline, &c->major, &c->minor, &c->bus_width_bit, &c->memory_clock_mhz) != 9)
            continue;
        c->total = total * LAB_MIB;
        c->baseline = baseline * LAB_MIB;
        c->minor_number = count++;
    }
    fclose(file);
    return count;
}

struct holding {
    int client;
    unsigned long long bytes;
};

/* Reads what clients hold on a card; returns how many of them there are, at most `max` of them in `out`. */
static int lab_read_holdings(const char *uuid, struct holding *out, int max) {
    char path[512], text[64];
    int count = 0;
    snprintf(path, sizeof path, LAB_MEMORY "/%s", uuid);
    DIR *directory = opendir(path);
    if (!directory) return 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        if (entry->d_name[0] < '0' || entry->d_name[0] > '9') continue;
        int file = openat(dirfd(directory), entry->d_name, O_RDONLY | O_CLOEXEC);
        if (file < 0) continue;
        struct holding one = {0, 0};
        ssize_t size = pread(file, text, sizeof text - 1, 0);
        int alive = flock(file, LOCK_SH | LOCK_NB) != 0;
        close(file);
        if (!alive || size <= 0) continue;
        text[size] = 0;
        if (sscanf(text, "%d %llu", &one.client, &one.bytes) != 2 || one.bytes == 0) continue;
        if (count < max) out[count] = one;
        count++;
    }
    closedir(directory);
    return count;
}

/* What is taken of a card; all of it while there is a file full.<uuid>: another process holds the rest. */
static unsigned long long lab_used(const struct card *card) {
    char full[256];
    snprintf(full, sizeof full, LAB_FAULTS "/full.%s", card->uuid);
    if (access(full, F_OK) == 0) return card->total;
    struct holding held[64];
    int count = lab_read_holdings(card->uuid, held, 64);
    unsigned long long used = card->baseline;
    for (int i = 0; i < count && i < 64; i++) used += held[i].bytes;
    return used;
}

#endif
