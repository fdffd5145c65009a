/*
 * A complete driver of the sanlab NIC in C11, written from docs/device.md and the generated header alone.
 *
 *     minidriver SOCKET            two queue pairs of one function
 *     minidriver SOCKET_A SOCKET_B one queue pair in each of two functions, of one node or of two
 *
 * It attaches over vfio-user, starts the functions, connects a pair of queue pairs, sends, writes and reads remote
 * memory, sleeps until an interrupt, provokes an access error and looks at the event, resets and leaves. Every step
 * says what it checked; the exit code is 0 when all of them held. The sections named in comments are those of the page.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "sanlab_nic.h"

static_assert(sizeof(_Atomic uint32_t) == 4 && sizeof(_Atomic uint64_t) == 8, "atomics look like numbers");

/* Where the function's memory begins as the device sees it; any page aligned address will do. */
#define IOVA UINT64_C(0x100000000)
/* One piece of memory holds everything: rings first, payload behind. */
#define MEMORY_LEN (1u << 20)
#define ADMIN_DEPTH 16u
#define CQ_DEPTH 64u
#define EQ_DEPTH 16u
#define SQ_DEPTH 32u
#define RQ_DEPTH 32u
#define ADMIN_SQ_AT 0x0000u
#define ADMIN_CQ_AT 0x1000u
#define CQ_AT 0x2000u
#define EQ_AT 0x3000u
#define QUEUES_AT 0x8000u
#define QUEUES_LEN 0x4000u
#define SEND_AT 0x40000u
#define RECV_AT 0x80000u
#define TARGET_AT 0xc0000u
/* Doorbell slots; 0 belongs to the admin queue. */
#define CQ_SLOT 1u
#define EQ_SLOT 2u
#define QP_SLOT 3u
/* Interrupt vectors. */
#define CQ_VECTOR 0u
#define EQ_VECTOR 1u
#define VECTORS 2u
#define PATIENCE_MS 20000

struct function {
    int socket;
    uint16_t message_id;
    uint8_t *bar2;
    uint8_t *memory;
    int kick;
    int vectors[VECTORS];
    uint32_t id;
    uint32_t pdn;
    uint32_t lkey, rkey;
    uint32_t cqn, eqn;
    uint32_t admin_posted, cq_consumer, eq_consumer;
    uint32_t qps;
};

struct queue_pair {
    struct function *function;
    uint32_t qpn, slot;
    uint8_t *sq, *rq;
    uint32_t sq_producer, rq_producer;
    /* Blocks before this position are free again: what the completions said. */
    uint32_t sq_free;
};

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("minidriver: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static void check(bool holds, const char *what)
{
    if (!holds)
        fail("%s", what);
}

static uint64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* One turn of a loop that polls: the device may share this core. */
static void wait_a_little(uint64_t deadline, const char *what)
{
    if (now_ms() > deadline)
        fail("%s does not complete", what);
    sched_yield();
}

/* ---- vfio-user: section "Attaching" ---- */

/* Receives exactly len bytes; descriptors go to fds. */
static void receive(struct function *f, void *to, size_t len, int *fds, unsigned max_fds, unsigned *got_fds)
{
    size_t filled = 0;
    while (filled < len) {
        union {
            char bytes[CMSG_SPACE(SANLAB_VFIO_MAX_FDS * sizeof(int))];
            struct cmsghdr align;
        } control;
        struct iovec iov = { (char *)to + filled, len - filled };
        struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                                  .msg_controllen = sizeof control };
        ssize_t n = recvmsg(f->socket, &message, MSG_CMSG_CLOEXEC);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            fail("the device hung up: %s", n < 0 ? strerror(errno) : "end of stream");
        filled += (size_t)n;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
            if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                continue;
            size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            for (size_t i = 0; i < count; i++) {
                int fd;
                memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
                if (*got_fds < max_fds)
                    fds[(*got_fds)++] = fd;
                else
                    close(fd);
            }
        }
    }
}

/* Sends a command, waits for its reply; gives the length of the reply's payload. */
static uint32_t call(struct function *f, uint16_t command, const void *payload, uint32_t len, const int *send_fds,
                     unsigned send_count, void *reply, uint32_t room, int *fds, unsigned max_fds)
{
    struct sanlab_vfio_header header = { .message_id = ++f->message_id, .command = command,
                                         .size = (uint32_t)sizeof header + len };
    union {
        char bytes[CMSG_SPACE(SANLAB_VFIO_MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov[2] = { { &header, sizeof header }, { (void *)(uintptr_t)payload, len } };
    struct msghdr message = { .msg_iov = iov, .msg_iovlen = 2 };
    if (send_count) {
        memset(&control, 0, sizeof control);
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(send_count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(send_count * sizeof(int));
        memcpy(CMSG_DATA(c), send_fds, send_count * sizeof(int));
    }
    /* Messages here are far smaller than a socket buffer: they go whole or not at all. */
    if (sendmsg(f->socket, &message, MSG_NOSIGNAL) != (ssize_t)header.size)
        fail("command %u: %s", command, strerror(errno));

    struct sanlab_vfio_header answer;
    unsigned got_fds = 0;
    receive(f, &answer, sizeof answer, fds, max_fds, &got_fds);
    check(answer.size >= sizeof answer && answer.message_id == header.message_id && answer.command == command &&
              (answer.flags & 0xf) == SANLAB_VFIO_FLAG_REPLY,
          "a reply to something else");
    if (answer.flags & SANLAB_VFIO_FLAG_ERROR)
        fail("command %u refused: %s", command, strerror((int)answer.error));
    uint32_t rest = answer.size - (uint32_t)sizeof answer;
    check(rest <= room, "a longer reply than asked for");
    receive(f, reply, rest, fds, max_fds, &got_fds);
    check(got_fds == max_fds, "a reply with other descriptors than it should have");
    return rest;
}

static uint64_t read_register(struct function *f, uint64_t offset, uint32_t len)
{
    struct sanlab_vfio_region_access access = { offset, SANLAB_REGS_REGION_BAR0, len };
    struct {
        struct sanlab_vfio_region_access access;
        uint64_t value;
    } reply = { .value = 0 };
    call(f, SANLAB_VFIO_CMD_REGION_READ, &access, sizeof access, NULL, 0, &reply, sizeof reply, NULL, 0);
    return reply.value;
}

static void write_register(struct function *f, uint64_t offset, uint32_t len, uint64_t value)
{
    struct {
        struct sanlab_vfio_region_access access;
        uint64_t value;
    } request = { { offset, SANLAB_REGS_REGION_BAR0, len }, value };
    struct sanlab_vfio_region_access reply;
    call(f, SANLAB_VFIO_CMD_REGION_WRITE, &request, (uint32_t)sizeof request.access + len, NULL, 0, &reply,
         sizeof reply, NULL, 0);
}

static void attach(struct function *f, const char *path)
{
    memset(f, 0, sizeof *f);
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    check(strlen(path) < sizeof address.sun_path, "the path of the socket is too long");
    strcpy(address.sun_path, path);
    f->socket = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (f->socket < 0 || connect(f->socket, (struct sockaddr *)&address, sizeof address) != 0)
        fail("%s: %s", path, strerror(errno));

    static const char capabilities[] = "{\"capabilities\":{\"max_msg_fds\":8}}";
    struct {
        struct sanlab_vfio_version version;
        char json[sizeof capabilities];
    } hello = { { SANLAB_VFIO_VERSION_MAJOR, SANLAB_VFIO_VERSION_MINOR }, "" };
    memcpy(hello.json, capabilities, sizeof capabilities);
    char version[4096];
    uint32_t len = call(f, SANLAB_VFIO_CMD_VERSION, &hello, sizeof hello.version + sizeof hello.json, NULL, 0, version, sizeof version, NULL, 0);
    struct sanlab_vfio_version spoken;
    check(len > sizeof spoken && version[len - 1] == 0, "VERSION answered without capabilities");
    memcpy(&spoken, version, sizeof spoken);
    check(spoken.major == SANLAB_VFIO_VERSION_MAJOR, "the server speaks another major version");

    struct sanlab_vfio_device_info info = { .argsz = sizeof info };
    call(f, SANLAB_VFIO_CMD_DEVICE_GET_INFO, &info, sizeof info, NULL, 0, &info, sizeof info, NULL, 0);
    check(info.flags & SANLAB_VFIO_DEVICE_PCI && info.num_regions == SANLAB_REGS_NUM_REGIONS, "not a PCI device");

    /* Doorbells: the NIC's own memory, mapped from the descriptor that comes with the region. */
    struct sanlab_vfio_region_info region = { .argsz = sizeof region, .index = SANLAB_REGS_REGION_BAR2 };
    int bar2;
    call(f, SANLAB_VFIO_CMD_DEVICE_GET_REGION_INFO, &region, sizeof region, NULL, 0, &region, sizeof region, &bar2, 1);
    check(region.flags & SANLAB_VFIO_REGION_MMAP && region.size == SANLAB_UAR_BAR2_LEN, "BAR2 cannot be mapped");
    f->bar2 = mmap(NULL, SANLAB_UAR_BAR2_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, bar2, (off_t)region.offset);
    check(f->bar2 != MAP_FAILED, "mmap of BAR2");
    close(bar2);

    /* The kick: an eventfd that stands for the register KICK. */
    struct {
        struct sanlab_vfio_region_io_fds fds;
        struct sanlab_vfio_sub_region_io_event_fd kick;
    } io = { .fds = { .argsz = sizeof io, .index = SANLAB_REGS_REGION_BAR0 } };
    call(f, SANLAB_VFIO_CMD_DEVICE_GET_REGION_IO_FDS, &io.fds, sizeof io.fds, NULL, 0, &io, sizeof io, &f->kick, 1);
    check(io.fds.count == 1 && io.kick.offset == SANLAB_REG_KICK, "no eventfd for KICK");

    /* Memory: a memfd that cannot shrink. It is zero, as rings have to be. */
    int memory = memfd_create("minidriver", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    check(memory >= 0 && ftruncate(memory, MEMORY_LEN) == 0 && fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK) == 0, "memfd");
    f->memory = mmap(NULL, MEMORY_LEN, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    check(f->memory != MAP_FAILED, "mmap of memory");
    struct sanlab_vfio_dma_map map = { .argsz = sizeof map, .flags = SANLAB_VFIO_DMA_READ | SANLAB_VFIO_DMA_WRITE,
                                       .address = IOVA, .size = MEMORY_LEN };
    call(f, SANLAB_VFIO_CMD_DMA_MAP, &map, sizeof map, &memory, 1, NULL, 0, NULL, 0);
    close(memory);

    /* Interrupts. */
    struct sanlab_vfio_irq_info irq = { .argsz = sizeof irq, .index = SANLAB_REGS_IRQ_MSIX };
    call(f, SANLAB_VFIO_CMD_DEVICE_GET_IRQ_INFO, &irq, sizeof irq, NULL, 0, &irq, sizeof irq, NULL, 0);
    check(irq.flags & SANLAB_VFIO_IRQ_EVENTFD && irq.count >= VECTORS, "no interrupts by eventfd");
    for (unsigned i = 0; i < VECTORS; i++) {
        f->vectors[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        check(f->vectors[i] >= 0, "eventfd");
    }
    struct sanlab_vfio_irq_set set = { .argsz = sizeof set,
                                       .flags = SANLAB_VFIO_IRQ_SET_DATA_EVENTFD | SANLAB_VFIO_IRQ_SET_ACTION_TRIGGER,
                                       .index = SANLAB_REGS_IRQ_MSIX, .start = 0, .count = VECTORS };
    call(f, SANLAB_VFIO_CMD_DEVICE_SET_IRQS, &set, sizeof set, f->vectors, VECTORS, NULL, 0, NULL, 0);
}

/* ---- Rings: section "Rings and ordering" ---- */

static _Atomic uint32_t *word32(uint8_t *base, uint64_t offset)
{
    return (_Atomic uint32_t *)(void *)(base + offset);
}

static _Atomic uint64_t *word64(uint8_t *base, uint64_t offset)
{
    return (_Atomic uint64_t *)(void *)(base + offset);
}

/* A word of a slot's doorbell line. */
#define LINE(f, slot, field) (f)->bar2, sanlab_line_offset(slot) + offsetof(struct sanlab_doorbell_line, field)

/* Sets a bit that the NIC takes away; true when the NIC had not been told of it yet. */
static bool tell(_Atomic uint64_t *word, unsigned bit)
{
    uint64_t mask = UINT64_C(1) << bit;
    if (atomic_load_explicit(word, memory_order_relaxed) & mask)
        return false;
    atomic_fetch_or_explicit(word, mask, memory_order_acq_rel);
    return true;
}

/* Rings a slot whose producer has just been stored with Release. */
static void ring(struct function *f, uint32_t slot)
{
    uint32_t uar = slot / SANLAB_UAR_LINES;
    /* Between the producer and the look at the bits. */
    atomic_thread_fence(memory_order_seq_cst);
    tell(word64(f->bar2, sanlab_uar_offset(slot) + offsetof(struct sanlab_uar_head, dirty)), slot % SANLAB_UAR_LINES);
    tell(word64(f->bar2, offsetof(struct sanlab_summary, dirty) + 8u * (uar / 64)), uar % 64);
    /* Between the bits and the look at parked. */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(word32(f->bar2, offsetof(struct sanlab_summary, parked)), memory_order_relaxed)) {
        uint64_t one = 1;
        check(write(f->kick, &one, sizeof one) == sizeof one || errno == EAGAIN, "kick");
    }
}

/* Waits until the element at a position carries its phase, then copies it. */
static bool take(uint8_t *ring_base, uint32_t position, uint32_t depth, size_t size, size_t publish, void *element)
{
    uint8_t *at = ring_base + (position & (depth - 1)) * size;
    uint64_t word = atomic_load_explicit(word64(at, publish), memory_order_acquire);
    if (sanlab_phase_of(word) != sanlab_phase(position, depth))
        return false;
    memcpy(element, at, size);
    return true;
}

/* ---- Start and admin commands ---- */

static uint64_t admin(struct function *f, enum sanlab_admin_op opcode, const void *body, size_t len)
{
    struct sanlab_admin_command command = { .opcode = (uint16_t)opcode, .command_id = f->admin_posted };
    if (len)
        memcpy(command.body, body, len);
    uint32_t position = f->admin_posted++;
    memcpy(f->memory + ADMIN_SQ_AT + (position & (ADMIN_DEPTH - 1)) * sizeof command, &command, sizeof command);
    atomic_store_explicit(word32(LINE(f, SANLAB_UAR_ADMIN_SLOT, sq_producer)), f->admin_posted, memory_order_release);
    ring(f, SANLAB_UAR_ADMIN_SLOT);
    struct sanlab_admin_completion done;
    uint64_t deadline = now_ms() + PATIENCE_MS;
    while (!take(f->memory + ADMIN_CQ_AT, position, ADMIN_DEPTH, sizeof done, SANLAB_ADMIN_COMPLETION_PUBLISH, &done))
        wait_a_little(deadline, sanlab_admin_op_name(opcode));
    atomic_store_explicit(word32(LINE(f, SANLAB_UAR_ADMIN_SLOT, cq_consumer)), position + 1, memory_order_release);
    check(done.command_id == position, "a completion of another command");
    if (done.status != SANLAB_ADMIN_STATUS_OK)
        fail("%s: %s", sanlab_admin_op_name(opcode), sanlab_admin_status_name(done.status));
    return done.result[0];
}

static void start(struct function *f)
{
    check(read_register(f, SANLAB_REG_MAGIC, 4) == SANLAB_REGS_MAGIC_VALUE, "MAGIC");
    check(read_register(f, SANLAB_REG_ABI, 4) >> 16 == SANLAB_REGS_ABI_VALUE >> 16, "another major version");
    uint32_t status = SANLAB_REGS_STATUS_ACKNOWLEDGE;
    write_register(f, SANLAB_REG_STATUS, 4, status);
    write_register(f, SANLAB_REG_STATUS, 4, status |= SANLAB_REGS_STATUS_DRIVER);
    /* This driver needs no optional feature. */
    write_register(f, SANLAB_REG_DRIVER_FEATURES, 8, 0);
    write_register(f, SANLAB_REG_STATUS, 4, status |= SANLAB_REGS_STATUS_FEATURES_OK);
    check(read_register(f, SANLAB_REG_STATUS, 4) & SANLAB_REGS_STATUS_FEATURES_OK, "features refused");
    write_register(f, SANLAB_REG_ADMIN_SQ_BASE, 8, IOVA + ADMIN_SQ_AT);
    write_register(f, SANLAB_REG_ADMIN_CQ_BASE, 8, IOVA + ADMIN_CQ_AT);
    write_register(f, SANLAB_REG_ADMIN_DEPTH, 4, ADMIN_DEPTH);
    write_register(f, SANLAB_REG_STATUS, 4, status |= SANLAB_REGS_STATUS_DRIVER_OK);
    uint64_t now = read_register(f, SANLAB_REG_STATUS, 4);
    if (now & SANLAB_REGS_STATUS_FAILED)
        fail("start: %s", sanlab_syndrome_name((uint32_t)read_register(f, SANLAB_REG_ERROR_SYNDROME, 4)));

    f->id = (uint32_t)admin(f, SANLAB_ADMIN_OP_IDENTIFY, NULL, 0);
    f->pdn = (uint32_t)admin(f, SANLAB_ADMIN_OP_PD_ALLOC, NULL, 0);
    struct sanlab_admin_mr_reg region = {
        .addr = IOVA + SEND_AT, .len = MEMORY_LEN - SEND_AT, .pdn = f->pdn,
        .access = SANLAB_ACCESS_LOCAL_WRITE | SANLAB_ACCESS_REMOTE_WRITE | SANLAB_ACCESS_REMOTE_READ,
    };
    uint64_t keys = admin(f, SANLAB_ADMIN_OP_MR_REG, &region, sizeof region);
    f->lkey = (uint32_t)keys;
    f->rkey = (uint32_t)(keys >> 32);
    struct sanlab_admin_queue_create eq = { .ring = IOVA + EQ_AT, .depth = EQ_DEPTH, .slot = EQ_SLOT };
    f->eqn = (uint32_t)admin(f, SANLAB_ADMIN_OP_EQ_CREATE, &eq, sizeof eq);
    struct sanlab_admin_queue_create cq = { .ring = IOVA + CQ_AT, .depth = CQ_DEPTH, .slot = CQ_SLOT };
    f->cqn = (uint32_t)admin(f, SANLAB_ADMIN_OP_CQ_CREATE, &cq, sizeof cq);
}

/* ---- Queue pairs ---- */

static void create(struct queue_pair *qp, struct function *f)
{
    uint32_t sq = QUEUES_AT + f->qps * QUEUES_LEN, rq = sq + QUEUES_LEN / 2;
    *qp = (struct queue_pair){ .function = f, .slot = QP_SLOT + f->qps, .sq = f->memory + sq, .rq = f->memory + rq };
    f->qps++;
    struct sanlab_admin_qp_create body = {
        .sq_ring = IOVA + sq, .rq_ring = IOVA + rq, .sq_depth = SQ_DEPTH, .rq_depth = RQ_DEPTH, .pdn = f->pdn,
        .send_cqn = f->cqn, .recv_cqn = f->cqn, .slot = qp->slot,
        .access = SANLAB_ACCESS_REMOTE_WRITE | SANLAB_ACCESS_REMOTE_READ | SANLAB_ACCESS_LOCAL_WRITE,
    };
    qp->qpn = (uint32_t)admin(f, SANLAB_ADMIN_OP_QP_CREATE, &body, sizeof body);
}

static void modify(struct queue_pair *qp, enum sanlab_qp_state state, const struct queue_pair *peer)
{
    struct sanlab_admin_qp_modify body = { .qpn = qp->qpn, .state = state };
    if (state == SANLAB_QP_STATE_RTR) {
        body.peer_function = peer->function->id;
        body.peer_qpn = peer->qpn;
    }
    if (state == SANLAB_QP_STATE_RTS)
        body.rnr_retry = 7;
    admin(qp->function, SANLAB_ADMIN_OP_QP_MODIFY, &body, sizeof body);
}

static void post_receive(struct queue_pair *qp, uint64_t wr_id, uint32_t at, uint32_t len)
{
    struct sanlab_rq_wqe wqe = { .wr_id = wr_id, .count = 1, .sges = { { IOVA + at, len, qp->function->lkey } } };
    memcpy(qp->rq + (qp->rq_producer++ & (RQ_DEPTH - 1)) * sizeof wqe, &wqe, sizeof wqe);
    atomic_store_explicit(word32(LINE(qp->function, qp->slot, rq_producer)), qp->rq_producer, memory_order_release);
    ring(qp->function, qp->slot);
}

/* Posts a WQE of some blocks that lie behind each other; a NOP fills up to the end where it would wrap. */
static void post_blocks(struct queue_pair *qp, const void *blocks, uint32_t count)
{
    uint32_t left = SQ_DEPTH - (qp->sq_producer & (SQ_DEPTH - 1));
    uint32_t fill = left < count ? left : 0;
    check(qp->sq_producer + fill + count - qp->sq_free <= SQ_DEPTH, "the send queue is full");
    if (fill) {
        struct sanlab_sq_wqe nop = { .opcode = SANLAB_OPCODE_NOP, .blocks = (uint8_t)fill };
        memcpy(qp->sq + (qp->sq_producer & (SQ_DEPTH - 1)) * SANLAB_WQE_BLOCK, &nop, sizeof nop);
        qp->sq_producer += fill;
    }
    memcpy(qp->sq + (qp->sq_producer & (SQ_DEPTH - 1)) * SANLAB_WQE_BLOCK, blocks, count * SANLAB_WQE_BLOCK);
    qp->sq_producer += count;
    atomic_store_explicit(word32(LINE(qp->function, qp->slot, sq_producer)), qp->sq_producer, memory_order_release);
    ring(qp->function, qp->slot);
}

static void post(struct queue_pair *qp, enum sanlab_opcode opcode, uint64_t wr_id, uint32_t at, uint32_t len,
                 uint64_t remote_addr, uint32_t rkey)
{
    struct sanlab_sq_wqe wqe = {
        .opcode = (uint8_t)opcode, .flags = SANLAB_WQE_FLAGS_SIGNALED, .blocks = 1, .count = 1, .wr_id = wr_id,
        .remote_addr = remote_addr, .rkey = rkey, .total = len, .sges = { { IOVA + at, len, qp->function->lkey } },
    };
    post_blocks(qp, &wqe, 1);
}

/* Sends bytes that lie in the WQE itself. */
static void post_inline(struct queue_pair *qp, uint64_t wr_id, const void *bytes, uint8_t len)
{
    uint8_t blocks[SANLAB_WQE_MAX_BLOCKS * SANLAB_WQE_BLOCK] = { 0 };
    uint8_t needed = (uint8_t)(len <= 32 ? 1 : 1 + (len - 32 + 63) / 64);
    struct sanlab_sq_wqe wqe = { .opcode = SANLAB_OPCODE_SEND,
                                 .flags = SANLAB_WQE_FLAGS_SIGNALED | SANLAB_WQE_FLAGS_INLINE,
                                 .blocks = needed, .count = len, .wr_id = wr_id, .total = len };
    memcpy(blocks, &wqe, sizeof wqe);
    memcpy(blocks + offsetof(struct sanlab_sq_wqe, sges), bytes, len);
    post_blocks(qp, blocks, needed);
}

static bool poll_cq(struct function *f, struct sanlab_cqe *cqe)
{
    if (!take(f->memory + CQ_AT, f->cq_consumer, CQ_DEPTH, sizeof *cqe, SANLAB_CQE_CQE_PUBLISH, cqe))
        return false;
    f->cq_consumer++;
    atomic_store_explicit(word32(LINE(f, CQ_SLOT, cq_consumer)), f->cq_consumer, memory_order_release);
    return true;
}

/* The next completion, which has to be this one. */
static struct sanlab_cqe expect(struct queue_pair *qp, enum sanlab_wc_opcode opcode, uint64_t wr_id,
                                enum sanlab_wc_status status)
{
    struct sanlab_cqe cqe;
    uint64_t deadline = now_ms() + PATIENCE_MS;
    while (!poll_cq(qp->function, &cqe))
        wait_a_little(deadline, sanlab_wc_opcode_name(opcode));
    uint32_t got = sanlab_publish_status(cqe.publish);
    if (got != status || cqe.wr_id != wr_id || cqe.qpn_opcode != (qp->qpn | (uint32_t)opcode << 24))
        fail("expected %s of work request %llu, %s; got %s of %llu, %s, syndrome %s", sanlab_wc_opcode_name(opcode),
             (unsigned long long)wr_id, sanlab_wc_status_name(status), sanlab_wc_opcode_name(cqe.qpn_opcode >> 24),
             (unsigned long long)cqe.wr_id, sanlab_wc_status_name(got),
             sanlab_syndrome_name(sanlab_publish_syndrome(cqe.publish)));
    if (opcode < SANLAB_WC_OPCODE_RECV)
        qp->sq_free = sanlab_publish_wqe_counter(cqe.publish);
    return cqe;
}

/* ---- Interrupts: section "Life of an interrupt" ---- */

static void arm(struct function *f, uint32_t slot, unsigned vector, uint32_t consumer)
{
    atomic_store_explicit(word32(LINE(f, slot, arm_sequence)), consumer, memory_order_relaxed);
    atomic_fetch_or_explicit(word64(LINE(f, slot, arm_vectors)), UINT64_C(1) << vector, memory_order_acq_rel);
    /* Between the bit and the second look at the ring. */
    atomic_thread_fence(memory_order_seq_cst);
}

static void sleep_until(struct function *f, unsigned vector)
{
    struct pollfd wait = { .fd = f->vectors[vector], .events = POLLIN };
    check(poll(&wait, 1, PATIENCE_MS) == 1, "no interrupt");
    uint64_t count;
    check(read(f->vectors[vector], &count, sizeof count) == sizeof count && count == 1, "more than one interrupt");
}

/* ---- The tour ---- */

static void pattern(uint8_t *bytes, uint32_t len, uint32_t seed)
{
    for (uint32_t i = 0; i < len; i++) {
        seed = seed * 1664525u + 1013904223u;
        bytes[i] = (uint8_t)(seed >> 24);
    }
}

static void tour(struct queue_pair *a, struct queue_pair *b)
{
    struct function *fa = a->function, *fb = b->function;
    const uint32_t len = 100000;
    struct sanlab_cqe cqe;

    pattern(fa->memory + SEND_AT, len, 1);
    post_receive(b, 100, RECV_AT, len);
    post(a, SANLAB_OPCODE_SEND, 1, SEND_AT, len, 0, 0);
    cqe = expect(b, SANLAB_WC_OPCODE_RECV, 100, SANLAB_WC_STATUS_SUCCESS);
    check(cqe.byte_len == len && (cqe.src_qpn_flags & 0xffffff) == a->qpn, "length or sender of the message");
    check(memcmp(fa->memory + SEND_AT, fb->memory + RECV_AT, len) == 0, "SEND changed the bytes");
    expect(a, SANLAB_WC_OPCODE_SEND, 1, SANLAB_WC_STATUS_SUCCESS);
    printf("ok send %u bytes\n", len);

    pattern(fa->memory + SEND_AT, len, 2);
    post(a, SANLAB_OPCODE_RDMA_WRITE, 2, SEND_AT, len, IOVA + TARGET_AT, fb->rkey);
    expect(a, SANLAB_WC_OPCODE_RDMA_WRITE, 2, SANLAB_WC_STATUS_SUCCESS);
    check(memcmp(fa->memory + SEND_AT, fb->memory + TARGET_AT, len) == 0, "RDMA WRITE changed the bytes");
    printf("ok rdma write %u bytes\n", len);

    pattern(fb->memory + TARGET_AT, len, 3);
    post(a, SANLAB_OPCODE_RDMA_READ, 3, RECV_AT, len, IOVA + TARGET_AT, fb->rkey);
    cqe = expect(a, SANLAB_WC_OPCODE_RDMA_READ, 3, SANLAB_WC_STATUS_SUCCESS);
    check(cqe.byte_len == len, "length of the READ");
    check(memcmp(fa->memory + RECV_AT, fb->memory + TARGET_AT, len) == 0, "RDMA READ changed the bytes");
    printf("ok rdma read %u bytes\n", len);

    /* Many laps of every ring: phases, fill-up NOPs, inline data of all lengths. */
    const unsigned rounds = 1000;
    for (unsigned i = 0; i < rounds; i++) {
        uint8_t bytes[SANLAB_WQE_MAX_INLINE];
        uint8_t n = (uint8_t)(1 + i % sizeof bytes);
        struct queue_pair *from = i & 1 ? b : a, *to = i & 1 ? a : b;
        pattern(bytes, n, i);
        post_receive(to, 1000 + i, RECV_AT, sizeof bytes);
        post_inline(from, i, bytes, n);
        cqe = expect(to, SANLAB_WC_OPCODE_RECV, 1000 + i, SANLAB_WC_STATUS_SUCCESS);
        check(cqe.byte_len == n && memcmp(to->function->memory + RECV_AT, bytes, n) == 0, "inline data");
        expect(from, SANLAB_WC_OPCODE_SEND, i, SANLAB_WC_STATUS_SUCCESS);
    }
    printf("ok %u inline messages over %u laps of the send rings\n", rounds, a->sq_producer / SQ_DEPTH);

    /* An interrupt: arm, look again, sleep. In a real program another process sends meanwhile. */
    arm(fb, CQ_SLOT, CQ_VECTOR, fb->cq_consumer);
    check(!poll_cq(fb, &cqe), "a completion nobody asked for");
    post_receive(b, 200, RECV_AT, 64);
    post_inline(a, 4, "wake up", 8);
    sleep_until(fb, CQ_VECTOR);
    expect(b, SANLAB_WC_OPCODE_RECV, 200, SANLAB_WC_STATUS_SUCCESS);
    expect(a, SANLAB_WC_OPCODE_SEND, 4, SANLAB_WC_STATUS_SUCCESS);
    check(strcmp((char *)fb->memory + RECV_AT, "wake up") == 0, "the message that woke us");
    printf("ok interrupt on vector %u\n", CQ_VECTOR);

    /* An error: a key that nobody gave out. The sender learns the check that failed, the owner of the memory gets an event. */
    arm(fb, EQ_SLOT, EQ_VECTOR, fb->eq_consumer);
    post(a, SANLAB_OPCODE_RDMA_READ, 5, RECV_AT, 8, IOVA + TARGET_AT, fb->rkey ^ 0x80);
    cqe = expect(a, SANLAB_WC_OPCODE_RDMA_READ, 5, SANLAB_WC_STATUS_REM_ACCESS_ERR);
    check(sanlab_publish_syndrome(cqe.publish) == SANLAB_SYNDROME_RKEY_UNKNOWN, "syndrome of a wrong key");
    sleep_until(fb, EQ_VECTOR);
    struct sanlab_eqe event;
    check(take(fb->memory + EQ_AT, fb->eq_consumer, EQ_DEPTH, sizeof event, SANLAB_EQE_EQE_PUBLISH, &event), "no event");
    fb->eq_consumer++;
    atomic_store_explicit(word32(LINE(fb, EQ_SLOT, cq_consumer)), fb->eq_consumer, memory_order_release);
    printf("ok refused with %s, event %s\n", sanlab_syndrome_name(sanlab_publish_syndrome(cqe.publish)),
           sanlab_event_type_name(event.publish & 0xffff));
    if (fa == fb)
        return;
    check((event.publish & 0xffff) == SANLAB_EVENT_TYPE_QP_ACCESS && event.source == b->qpn, "not QP_ACCESS of our QP");
}

int main(int argc, char **argv)
{
    if (argc != 2 && argc != 3) {
        fprintf(stderr, "usage: minidriver SOCKET [SOCKET]\n");
        return 2;
    }
    static struct function functions[2];
    unsigned count = (unsigned)argc - 1;
    for (unsigned i = 0; i < count; i++) {
        attach(&functions[i], argv[i + 1]);
        start(&functions[i]);
        printf("ok function %u\n", functions[i].id);
    }
    struct queue_pair a, b;
    create(&a, &functions[0]);
    create(&b, &functions[count - 1]);
    modify(&a, SANLAB_QP_STATE_INIT, &b);
    modify(&b, SANLAB_QP_STATE_INIT, &a);
    modify(&a, SANLAB_QP_STATE_RTR, &b);
    modify(&b, SANLAB_QP_STATE_RTR, &a);
    modify(&a, SANLAB_QP_STATE_RTS, &b);
    modify(&b, SANLAB_QP_STATE_RTS, &a);
    printf("ok queue pairs %u and %u connected\n", a.qpn, b.qpn);

    tour(&a, &b);

    for (unsigned i = 0; i < count; i++) {
        uint64_t generation = read_register(&functions[i], SANLAB_REG_RESET_GENERATION, 4);
        write_register(&functions[i], SANLAB_REG_STATUS, 4, 0);
        check(read_register(&functions[i], SANLAB_REG_STATUS, 4) == 0, "STATUS after a reset");
        check(read_register(&functions[i], SANLAB_REG_RESET_GENERATION, 4) == generation + 1, "generation of the reset");
        close(functions[i].socket);
    }
    printf("ok reset\ndone\n");
    return 0;
}
