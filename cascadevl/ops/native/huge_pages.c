// Memory in pages of 2 MiB rather than 4 KiB: whoever reads all weights for each token spends a third of the time on
// finding where their pages are, and the processor fetches ahead within a page only.

#include <stdint.h>

#if defined(__linux__)
#include <sys/mman.h>
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25  // Linux 6.1
#endif
#endif

// What lies there, and what is beside it in its pages, moves into huge ones; without such pages nothing changes.
void use_huge_pages(void *memory, int64_t num_bytes) {
#if defined(__linux__)
    const uintptr_t size = 2 << 20, end = (uintptr_t)memory + num_bytes;
    for (uintptr_t page = (uintptr_t)memory / size * size; page < end; page += size) {
        madvise((void *)page, size, MADV_HUGEPAGE);  // may reach beyond what is ours to advise on, and then fails
        madvise((void *)page, size, MADV_COLLAPSE);
    }
#endif
}
