// What src/cuda/instructions.cu has, written out from NVIDIA's description of each (PTX ISA: cp.async, ldmatrix, mma.m16n8k16).
#pragma once

#include "device.h"

typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;

struct F16 {
    u16 bits;
};

struct Bf16 {
    u16 bits;
};

inline float load(const float *x) { return *x; }
inline float load(const F16 *x) { return (float)bits_as<_Float16>(x->bits); }
inline float load(const Bf16 *x) { return bits_as<float>((u32)x->bits << 16); }
inline void store(float *y, float value) { *y = value; }
inline void store(F16 *y, float value) { y->bits = bits_as<u16>((_Float16)value); }

inline void store(Bf16 *y, float value) {
    const u32 bits = bits_as<u32>(value);
    y->bits = value != value ? 0x7fff : (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float power_of_two(float x) { return std::exp2(x); }

// Addresses in shared memory count from where the block's begins.
inline unsigned char *&shared_memory() {
    static unsigned char *begin;
    return begin;
}

inline u32 shared_address(const void *memory) {
    shared_memory() = (unsigned char *)memory;
    return 0;
}

inline void fetch(u32 to, const void *from, bool inside) { defer_copy(shared_memory() + to, from, inside); }
inline void fetched() { close_group(); }

template <int PENDING>
inline void await_fetched() {
    await_groups(PENDING);
}

// Matrix m has its rows where lanes 8 m to 8 m + 7 say. A lane gets two neighbours of a row, or of a column where they are turned.
template <bool TURNED>
inline void four_matrices(u32 (&to)[4], u32 at) {
    auto slots = shown(at);
    const u32 lane = threadIdx.x & 31, long_side = lane / 4, short_side = lane % 4 * 2;
    for (u32 m = 0; m < 4; ++m) {
        u16 two[2];
        for (u32 i = 0; i < 2; ++i) {
            const u32 row = TURNED ? short_side + i : long_side, column = TURNED ? long_side : short_side + i;
            std::memcpy(&two[i], shared_memory() + of_lane<u32>(slots, 8 * m + row) + 2 * column, 2);
        }
        to[m] = two[0] | (u32)two[1] << 16;
    }
    release();
}

inline void four(u32 (&to)[4], u32 at) { four_matrices<false>(to, at); }
inline void four_turned(u32 (&to)[4], u32 at) { four_matrices<true>(to, at); }

template <typename T>
inline float half_of(u32 both, u32 which) {
    const T value{(u16)(both >> 16 * which)};
    return load(&value);
}

// Lane 4 g + t has of a: rows g and g + 8, columns 2 t, 2 t + 1 and those plus 8; of b: rows likewise, column g; of the sums: rows
// g and g + 8, columns 2 t and 2 t + 1.
template <typename T>
inline void multiply(T, float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    struct Operands {
        u32 a[4], b[2];
    } own;
    std::memcpy(own.a, a, sizeof own.a);
    own.b[0] = b0;
    own.b[1] = b1;
    auto slots = shown(own);
    const u32 lane = threadIdx.x & 31;
    for (u32 i = 0; i < 4; ++i) {
        const u32 row = lane / 4, column = lane % 4 * 2 + i % 2;
        for (u32 k = 0; k < 16; ++k) {
            const auto left = of_lane<Operands>(slots, row * 4 + k % 8 / 2);
            const auto right = of_lane<Operands>(slots, column * 4 + k % 8 / 2);
            sum[i] += half_of<T>(left.a[i / 2 + 2 * (k / 8)], k % 2) * half_of<T>(right.b[k / 8], k % 2);
        }
    }
    release();
}

template <typename T>
inline u32 pair(T, float low, float high) {
    T halves[2];
    store(&halves[0], low);
    store(&halves[1], high);
    return halves[0].bits | (u32)halves[1].bits << 16;
}
