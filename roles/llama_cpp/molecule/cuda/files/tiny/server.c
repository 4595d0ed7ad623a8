#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "help.h"

/* The cards of the lab, in the order of CUDA_VISIBLE_DEVICES; /run/cuda-order: as a server that goes by the slots. */
static void list_devices(void) {
    const char * visible = getenv("CUDA_VISIBLE_DEVICES");
    FILE * slots = fopen("/run/cuda-order", "r");
    char wanted[512], line[256], uuid[64], name[64], bus[32];
    int count = 0;
    snprintf(wanted, sizeof wanted, "%s", visible ? visible : "");
    puts("Available devices:");
    for (char * word = strtok(wanted, ","); word; word = strtok(NULL, ",")) {
        FILE * cards = fopen("/etc/lab-gpus/cards", "r");
        while (cards && fgets(line, sizeof line, cards)) {
            unsigned mib;
            if (line[0] == '#' || sscanf(line, "%63[^|]|%63[^|]|%31[^|]|%u", uuid, name, bus, &mib) != 4) continue;
            if (slots || !strcmp(uuid, word)) printf("  CUDA%d: %s (%u MiB, %u MiB free)\n", count++, name, mib, mib);
        }
        if (cards) fclose(cards);
        if (slots) return;
    }
}

int main(int argc, char ** argv) {
    if (argc > 1 && strcmp(argv[1], "--list-devices") == 0) {
        list_devices();
    } else if (argc > 1 && strcmp(argv[1], "--help") == 0) {
        fputs(help, stdout);
    } else {
        fprintf(stderr, "version: 0 (%s)\nbuilt with GNU for tests\n", COMMIT);
    }
    return 0;
}
