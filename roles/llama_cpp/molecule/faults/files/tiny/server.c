#include <stdio.h>
#include <string.h>

#include "status.h"

int main(int argc, char ** argv) {
    if (argc > 1 && strcmp(argv[1], "--list-devices") == 0) {
        return LIST_DEVICES_STATUS;
    }
    fprintf(stderr, "version: 0 (%s)\nbuilt with GNU for tests\n", COMMIT);
    return 0;
}
