/* A ring of one's own for `sanlab bench ring --subject ./my_ring.so`: cc -O2 -shared -fPIC -o my_ring.so my_ring.c */
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct ring {
    uint32_t mask, size;
    _Alignas(128) _Atomic uint32_t producer;
    _Alignas(128) _Atomic uint32_t consumer;
    _Alignas(128) unsigned char elements[];
};

size_t sanlab_ring_bytes(uint32_t depth, uint32_t size) { return sizeof(struct ring) + (size_t)depth * size; }
int sanlab_ring_spans_processes(void) { return 1; }

int sanlab_ring_init(void *memory, uint32_t depth, uint32_t size) {
    struct ring *r = memory;
    r->mask = depth - 1, r->size = size;
    return 0;
}

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

size_t sanlab_ring_push(void *memory, const void *from, size_t count) {
    struct ring *r = memory;
    uint32_t at = atomic_load_explicit(&r->producer, memory_order_relaxed);
    uint32_t used = at - atomic_load_explicit(&r->consumer, memory_order_acquire);
    count = smaller(count, r->mask + 1 - used);
    for (size_t i = 0; i < count; i++)
        memcpy(r->elements + (size_t)((at + i) & r->mask) * r->size, (const char *)from + i * r->size, r->size);
    atomic_store_explicit(&r->producer, at + (uint32_t)count, memory_order_release);
    return count;
}

size_t sanlab_ring_pop(void *memory, void *to, size_t count) {
    struct ring *r = memory;
    uint32_t at = atomic_load_explicit(&r->consumer, memory_order_relaxed);
    count = smaller(count, atomic_load_explicit(&r->producer, memory_order_acquire) - at);
    for (size_t i = 0; i < count; i++)
        memcpy((char *)to + i * r->size, r->elements + (size_t)((at + i) & r->mask) * r->size, r->size);
    atomic_store_explicit(&r->consumer, at + (uint32_t)count, memory_order_release);
    return count;
}
