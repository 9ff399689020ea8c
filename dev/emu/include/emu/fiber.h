// A fiber: a stack of its own and the place where its execution stands. switch_fiber() leaves the registers
// on one stack and goes on with another: a few instructions in user space, where swapcontext() would ask the
// kernel for the signal mask each time. Other CPUs than x86-64 and aarch64 use swapcontext().
// AddressSanitizer is told of every switch, so that it knows the stacks.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
#if defined(__AVX512F__) // the registers that switch_fiber() has to name beyond those of every x86-64
#define EMU_WIDE_REGISTERS                                                                                   \
    "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26",       \
        "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7",
#else
#define EMU_WIDE_REGISTERS
#endif
#elif defined(__aarch64__) && !defined(EMU_UCONTEXT)
// void emu_switch_stack(void** save, void* load): the stack pointer goes to *save, execution goes on at load.
extern "C" void emu_switch_stack(void** save, void* load);
asm(R"(
    .pushsection .text
    .weak emu_switch_stack
    .type emu_switch_stack, %function
    .p2align 4
emu_switch_stack:
    stp x29, x30, [sp, #-160]!
    stp x19, x20, [sp, #16]
    stp x21, x22, [sp, #32]
    stp x23, x24, [sp, #48]
    stp x25, x26, [sp, #64]
    stp x27, x28, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #16]
    ldp x21, x22, [sp, #32]
    ldp x23, x24, [sp, #48]
    ldp x25, x26, [sp, #64]
    ldp x27, x28, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    ldp x29, x30, [sp], #160
    ret
    .size emu_switch_stack, . - emu_switch_stack
    .popsection
)");
#else
#ifndef EMU_UCONTEXT // which can be asked for on any CPU
#define EMU_UCONTEXT
#endif
#include <ucontext.h>
#endif

#define EMU_INLINE __attribute__((always_inline)) inline // down to the switch, all is part of the kernel

namespace emu {

struct Fiber {
#ifndef EMU_UCONTEXT
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
    const void* bottom = nullptr; // the stack, for AddressSanitizer
    size_t size = 0;
    void* fake_stack = nullptr;
};

// The pages of one fiber's stack; they cost memory only when touched. Sanitized frames are larger.
#ifdef EMU_ASAN
constexpr size_t stack_bytes = 512 << 10;
#else
constexpr size_t stack_bytes = 128 << 10;
#endif
constexpr size_t guard_bytes = 4096;

// Makes `fiber` start in entry() at its first switch. The stack has a page below it that cannot be touched,
// so that an overflow is a clean fault. `number` staggers the tops of the stacks: at equal distances they
// would all fall into the same few sets of the cache.
inline void create_fiber(Fiber& fiber, void (*entry)(), unsigned number) {
    char* pages = static_cast<char*>(mmap(nullptr, guard_bytes + stack_bytes, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (pages == MAP_FAILED || mprotect(pages, guard_bytes, PROT_NONE) != 0) {
        fprintf(stderr, "emu: out of memory for the stack of a thread\n");
        abort();
    }
    fiber.bottom = pages + guard_bytes;
    fiber.size = stack_bytes;
    [[maybe_unused]] char* top = pages + guard_bytes + stack_bytes - number % 16 * (13 * 64);
#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
    void** slots = reinterpret_cast<void**>(top) - 2; // where to go, and a null return address
    slots[0] = reinterpret_cast<void*>(entry);
    slots[1] = nullptr;
    fiber.stack_pointer = slots;
#elif defined(__aarch64__) && !defined(EMU_UCONTEXT)
    void** slots = reinterpret_cast<void**>(top) - 20;
    for (int i = 0; i < 20; i++) slots[i] = nullptr;
    slots[1] = reinterpret_cast<void*>(entry); // x30
    fiber.stack_pointer = slots;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = pages + guard_bytes;
    fiber.context.uc_stack.ss_size = stack_bytes;
    makecontext(&fiber.context, entry, 0);
#endif
}

// Inlined into the kernel: the processor then sees, in place of a chain of returns that it would predict
// from the calls of another fiber, one indirect jump, which it predicts from the path that led there.
EMU_INLINE void switch_fiber(Fiber& from, Fiber& to) {
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
    void **save = &from.stack_pointer, *load = to.stack_pointer;
    asm volatile("pushq %%rbp\n\t"
                 "leaq 1f(%%rip), %%rcx\n\t"
                 "pushq %%rcx\n\t"
                 "movq %%rsp, (%0)\n\t"
                 "movq %1, %%rsp\n\t"
                 "popq %%rcx\n\t"
                 "jmpq *%%rcx\n\t"
                 "1:\n\t"
                 "popq %%rbp"
                 : "+D"(save), "+S"(load)
                 :
                 : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0",
                   "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                   "xmm12", "xmm13", "xmm14", "xmm15", EMU_WIDE_REGISTERS "memory", "cc");
#elif defined(__aarch64__) && !defined(EMU_UCONTEXT)
    emu_switch_stack(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.context, &to.context);
#endif
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// The first thing a fiber does; `home` is the fiber (here: the system's thread) it was switched to from,
// whose stack becomes known on this occasion.
inline void fiber_started([[maybe_unused]] Fiber& home) {
#ifdef EMU_ASAN
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (!home.bottom) home.bottom = bottom, home.size = size;
#endif
}

} // namespace emu
