/* A stand-in for libnvidia-ml.so.1: NVML's ABI as nvidia-ml-py calls it, over the cards of /etc/lab-gpus/cards.
 *
 * Memory of a card is its baseline plus what the processes that play it hold (cards.h). Faults are switched on by files
 * in /etc/lab-gpus/faults: missing.<uuid> (not enumerated), lost.<uuid> (NVML_ERROR_GPU_IS_LOST on every question but
 * its handle), full.<uuid> (cards.h), version-mismatch (nvmlInit fails), swapped (enumerated in reverse order). What is
 * not here is answered by nvidia-ml-py itself with "Function Not Found", as an older driver would. */
#include <pthread.h>

#include "cards.h"

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    GPU_IS_LOST = 15, LIB_RM_VERSION_MISMATCH = 18
};
#define CLOCK_MEM 2
#define DRIVER "/etc/lab-gpus/driver" /* version of the driver, and of the newest CUDA that it serves as NVML counts it */

struct pci { /* nvmlPciInfo_t, v3 */
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
};
struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
struct process { unsigned pid; unsigned long long bytes; unsigned gpu_instance, compute_instance; };

static struct card all[LAB_MAX_CARDS], *visible[LAB_MAX_CARDS];
static int visible_count, initialized;
static pthread_mutex_t initializing = PTHREAD_MUTEX_INITIALIZER;

static int fault(const char *name, const char *uuid) {
    char path[256];
    snprintf(path, sizeof path, LAB_FAULTS "/%s%s%s", name, uuid ? "." : "", uuid ? uuid : "");
    return access(path, F_OK) == 0;
}

static int copy(char *out, unsigned size, const char *text) {
    if (strlen(text) + 1 > size) return INSUFFICIENT_SIZE;
    strcpy(out, text);
    return SUCCESS;
}

static int check(const struct card *card) {
    if (!initialized) return UNINITIALIZED;
    if (!card) return INVALID_ARGUMENT;
    return fault("lost", card->uuid) ? GPU_IS_LOST : SUCCESS;
}

#define CHECKED(card) do { int code = check(card); if (code) return code; } while (0)

static void find_cards(void) {
    int count = lab_read_cards(all), reverse = fault("swapped", NULL);
    visible_count = 0;
    for (int i = 0; i < count; i++) {
        struct card *card = &all[reverse ? count - 1 - i : i];
        if (!fault("missing", card->uuid)) visible[visible_count++] = card;
    }
}

/* NVML counts its initializations, and ends with as many shutdowns: threads need not know of each other. */
int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (fault("version-mismatch", NULL)) return LIB_RM_VERSION_MISMATCH;
    pthread_mutex_lock(&initializing);
    if (!initialized++) find_cards();
    pthread_mutex_unlock(&initializing);
    return SUCCESS;
}
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) {
    pthread_mutex_lock(&initializing);
    int code = initialized ? SUCCESS : UNINITIALIZED;
    if (initialized) initialized--;
    pthread_mutex_unlock(&initializing);
    return code;
}

const char *nvmlErrorString(int code) {
    switch (code) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case GPU_IS_LOST: return "GPU is lost";
    case LIB_RM_VERSION_MISMATCH: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

static void read_driver(char version[32], int *cuda) {
    FILE *file = fopen(DRIVER, "re");
    if (!file || fscanf(file, "%31s %d", version, cuda) != 2) {
        strcpy(version, "580.126.09");
        *cuda = 13000;
    }
    if (file) fclose(file);
}
int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    char version[32];
    int cuda;
    read_driver(version, &cuda);
    return copy(out, size, version);
}
int nvmlSystemGetNVMLVersion(char *out, unsigned size) {
    char version[32], whole[48];
    int cuda;
    read_driver(version, &cuda);
    snprintf(whole, sizeof whole, "%d.%s", cuda / 1000, version);
    return copy(out, size, whole);
}
int nvmlSystemGetCudaDriverVersion_v2(int *out) {
    char version[32];
    read_driver(version, out);
    return SUCCESS;
}
int nvmlSystemGetCudaDriverVersion(int *out) { return nvmlSystemGetCudaDriverVersion_v2(out); }

int nvmlDeviceGetCount_v2(unsigned *out) {
    if (!initialized) return UNINITIALIZED;
    *out = (unsigned)visible_count;
    return SUCCESS;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct card **out) {
    if (!initialized) return UNINITIALIZED;
    if (index >= (unsigned)visible_count) return INVALID_ARGUMENT;
    *out = visible[index];
    return SUCCESS;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, struct card **out) {
    if (!initialized) return UNINITIALIZED;
    for (int i = 0; i < visible_count; i++)
        if (!strcmp(visible[i]->uuid, uuid)) { *out = visible[i]; return SUCCESS; }
    return NOT_FOUND;
}

/* A lost card still has its handle and can say who it was, as with the real library. */
int nvmlDeviceGetUUID(struct card *card, char *out, unsigned size) {
    return initialized ? copy(out, size, card->uuid) : UNINITIALIZED;
}
int nvmlDeviceGetName(struct card *card, char *out, unsigned size) { CHECKED(card); return copy(out, size, card->name); }
int nvmlDeviceGetMinorNumber(struct card *card, unsigned *out) {
    CHECKED(card);
    *out = (unsigned)card->minor_number;
    return SUCCESS;
}
int nvmlDeviceGetPciInfo_v3(struct card *card, struct pci *out) {
    CHECKED(card);
    memset(out, 0, sizeof *out);
    sscanf(card->pci_bus_id, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    snprintf(out->bus_id, sizeof out->bus_id, "%s", card->pci_bus_id);
    snprintf(out->bus_id_legacy, sizeof out->bus_id_legacy, "%04X:%02X:%02X.0", out->domain & 0xffff, out->bus & 0xff,
             out->device & 0xff);
    return SUCCESS;
}
int nvmlDeviceGetCudaComputeCapability(struct card *card, int *major, int *minor) {
    CHECKED(card);
    *major = card->major;
    *minor = card->minor;
    return SUCCESS;
}
int nvmlDeviceGetMemoryBusWidth(struct card *card, unsigned *out) {
    CHECKED(card);
    *out = (unsigned)card->bus_width_bit;
    return SUCCESS;
}
int nvmlDeviceGetMaxClockInfo(struct card *card, int type, unsigned *out) {
    CHECKED(card);
    if (type != CLOCK_MEM) return NOT_SUPPORTED;
    *out = (unsigned)card->memory_clock_mhz;
    return SUCCESS;
}
int nvmlDeviceGetClockInfo(struct card *card, int type, unsigned *out) { return nvmlDeviceGetMaxClockInfo(card, type, out); }

int nvmlDeviceGetMemoryInfo(struct card *card, struct memory *out) {
    CHECKED(card);
    out->total = card->total;
    out->used = lab_used(card);
    out->free = out->used < out->total ? out->total - out->used : 0;
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo_v2(struct card *card, struct memory_v2 *out) {
    struct memory memory;
    int code = nvmlDeviceGetMemoryInfo(card, &memory);
    if (code) return code;
    out->total = memory.total;
    out->reserved = card->baseline;
    out->used = memory.used - card->baseline;
    out->free = memory.free;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(struct card *card, unsigned *count, struct process *out) {
    CHECKED(card);
    struct holding held[64];
    int found = lab_read_holdings(card->uuid, held, 64);
    unsigned room = *count;
    *count = (unsigned)found;
    if (found > 64 || (unsigned)found > room) return INSUFFICIENT_SIZE;
    for (int i = 0; i < found; i++)
        out[i] = (struct process){(unsigned)held[i].client, held[i].bytes, 0xffffffffu, 0xffffffffu};
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v2(struct card *card, unsigned *count, struct process *out) {
    return nvmlDeviceGetComputeRunningProcesses_v3(card, count, out);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(struct card *card, unsigned *count, struct process *out) {
    (void)out;
    CHECKED(card);
    *count = 0;
    return SUCCESS;
}
