#include "device.h"

#include <cstdlib>
#include <deque>
#include <vector>

Place threadIdx, blockIdx, blockDim, gridDim;

extern "C" void switch_fibre(void **save, void *to);
asm(R"(
.text
switch_fibre:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

namespace {
constexpr size_t STACK = 128 << 10;

struct Copy {
    void *to;
    const void *from;
    bool inside;
};

struct Fibre {
    void *top;
    bool done;
    std::deque<std::vector<Copy>> groups;
    std::vector<Copy> open;
};

struct Barrier {
    unsigned arrived, generation;
};

std::vector<Fibre> fibres;
std::vector<unsigned char> stacks;
std::vector<Barrier> warps;
std::vector<unsigned char[32][SLOT]> *slots_of_warps;
Barrier whole;
unsigned current, left;
void *outside;
const std::function<void()> *body;

void go_to(unsigned next) {
    void **save = &fibres[current].top;
    current = next;
    threadIdx.x = next;
    switch_fibre(save, fibres[next].top);
    threadIdx.x = current;
}

unsigned next_alive() {
    unsigned next = current;
    do next = next + 1 == fibres.size() ? 0 : next + 1;
    while (fibres[next].done);
    return next;
}

void fibre() {
    (*body)();
    fibres[current].done = true;
    if (--left == 0) {
        void *nowhere;
        switch_fibre(&nowhere, outside);
    }
    go_to(next_alive());
    abort();
}

void wait(Barrier &barrier, unsigned threads) {
    const unsigned generation = barrier.generation;
    if (++barrier.arrived == threads) {
        barrier.arrived = 0;
        ++barrier.generation;
        return;
    }
    unsigned turns = 0;
    while (barrier.generation == generation) {
        const unsigned next = next_alive();
        if (next == current || ++turns > 1000000) abort();  // nobody comes
        const unsigned own = current;
        go_to(next);
        current = own;
        threadIdx.x = own;
    }
}
}  // namespace

void __syncthreads() { wait(whole, blockDim.x); }
void warp_barrier() { wait(warps[threadIdx.x / 32], 32); }
unsigned char (*warp_slots())[SLOT] { return (*slots_of_warps)[threadIdx.x / 32]; }

void run_blocks(Place grid, Place block, const std::function<void()> &kernel) {
    body = &kernel;
    gridDim = grid;
    blockDim = block;
    stacks.resize(STACK * block.x);
    std::vector<unsigned char[32][SLOT]> slots(block.x / 32 + 1);
    slots_of_warps = &slots;
    for (blockIdx.z = 0; blockIdx.z < grid.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
                fibres.assign(block.x, {});
                warps.assign(block.x / 32 + 1, {});
                whole = {};
                left = block.x;
                for (unsigned i = 0; i < block.x; ++i) {
                    auto top = (uintptr_t)(stacks.data() + STACK * (i + 1)) & ~(uintptr_t)15;
                    void **frame = (void **)(top - 64);
                    frame[6] = (void *)fibre;  // what the switch returns to, after six registers
                    fibres[i].top = frame;
                }
                current = 0;
                threadIdx = {0, 0, 0};
                switch_fibre(&outside, fibres[0].top);
            }
}

void defer_copy(void *to, const void *from, bool inside) { fibres[current].open.push_back({to, from, inside}); }

void close_group() {
    auto &own = fibres[current];
    own.groups.push_back(std::move(own.open));
    own.open.clear();
}

void await_groups(int pending) {
    auto &groups = fibres[current].groups;
    for (; (int)groups.size() > pending; groups.pop_front())
        for (const auto &copy : groups.front()) {
            if (((uintptr_t)copy.from | (uintptr_t)copy.to) & 15) abort();  // 16 bytes lie at multiples of 16
            if (copy.inside) memcpy(copy.to, copy.from, 16);
            else memset(copy.to, 0, 16);
        }
}
