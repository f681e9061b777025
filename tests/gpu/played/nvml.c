/* NVIDIA's driver library of a box with one H200, for rehearsals of tests/gpu: NVML's C functions
 * that edged calls through pynvml. Files named by process ids in $EDGED_PLAYED_GPU hold the bytes
 * that the process takes; they count while it lives. */
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7 };
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu, compute; } Process;

static const unsigned long long TOTAL = 143771ull << 20, OWN = 600ull << 20;

static unsigned find(Process *into, unsigned room) {
    const char *place = getenv("EDGED_PLAYED_GPU");
    DIR *folder = place ? opendir(place) : NULL;
    unsigned found = 0;
    for (struct dirent *each; folder && (each = readdir(folder));) {
        char path[4096];
        unsigned pid = (unsigned)strtoul(each->d_name, NULL, 10);
        if (!pid || kill((int)pid, 0)) continue;
        snprintf(path, sizeof path, "%s/%s", place, each->d_name);
        FILE *file = fopen(path, "r");
        unsigned long long used = 0;
        if (file) {
            if (fscanf(file, "%llu", &used) != 1) used = 0;
            fclose(file);
        }
        if (found < room) into[found] = (Process){pid, used, ~0u, ~0u};
        found++;
    }
    if (folder) closedir(folder);
    return found;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == NOT_SUPPORTED ? "Not Supported" : "an error"; }

int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    snprintf(text, size, "550.127.05");
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned *count) { *count = 1; return OK; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)1;
    return index ? INVALID : OK;
}

int nvmlDeviceGetName(void *device, char *text, unsigned size) {
    (void)device;
    snprintf(text, size, "NVIDIA H200 (played)");
    return OK;
}

int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
    (void)device;
    Process processes[256];
    unsigned n = find(processes, 256);
    memory->total = TOTAL;
    memory->used = OWN;
    for (unsigned i = 0; i < n && i < 256; i++) memory->used += processes[i].used;
    memory->free = memory->used < TOTAL ? TOTAL - memory->used : 0;
    return OK;
}

int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    (void)device;
    *major = 9;
    *minor = 0;
    return OK;
}

int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    (void)device;
    *current = *pending = 0;
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Process *into) {
    (void)device;
    unsigned room = into ? *count : 0, found = find(into, room);
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : OK;
}
