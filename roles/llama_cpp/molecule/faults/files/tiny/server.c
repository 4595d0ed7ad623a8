#include <stdio.h>
#include <string.h>

#include "help.h"
#include "status.h"

int main(int argc, char ** argv) {
    if (argc > 1 && strcmp(argv[1], "--list-devices") == 0) {
        return LIST_DEVICES_STATUS;
    }
    if (argc > 1 && strcmp(argv[1], "--help") == 0) {
        fputs(help, stdout);
        return 0;
    }
    fprintf(stderr, "version: 0 (%s)\nbuilt with GNU for tests\n", COMMIT);
    return 0;
}
