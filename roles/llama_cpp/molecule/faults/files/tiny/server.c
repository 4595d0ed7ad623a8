#include <stdio.h>
#include <string.h>

#include "status.h"

/* Every flag that a tier's command line may hold. */
static const char * help =
    "--model\n"
    "--alias\n"
    "--host\n"
    "--port\n"
    "--api-key-file\n"
    "--rpc\n"
    "--device\n"
    "--n-gpu-layers\n"
    "--split-mode\n"
    "--tensor-split\n"
    "--ctx-size\n"
    "--parallel\n"
    "--cache-type-k\n"
    "--cache-type-v\n"
    "--ubatch-size\n"
    "--flash-attn\n"
    "--n-cpu-moe\n"
    "--override-tensor\n"
    "--cache-ram\n"
    "--fit\n"
    "--offline\n"
    ;

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
