// A device's blocks on the processor: each thread of a block is a fibre, which goes on until it waits for the others. For kernels'
// sources to be compiled behind.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(threads)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct Place {
    unsigned x, y, z;
};

extern Place threadIdx, blockIdx, blockDim, gridDim;

struct float2 {
    float x, y;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline float2 make_float2(float x, float y) { return {x, y}; }

template <typename To, typename From>
To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline float __uint_as_float(unsigned bits) { return bits_as<float>(bits); }
inline float __int_as_float(unsigned bits) { return bits_as<float>(bits); }
inline unsigned __float_as_uint(float value) { return bits_as<unsigned>(value); }
inline float __expf(float x) { return std::exp(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

// A block's barrier, and a warp's.
void __syncthreads();
void warp_barrier();

constexpr unsigned SLOT = 64;

// Of each lane of the warp, what it has put there.
unsigned char (*warp_slots())[SLOT];

// What each lane has, to be read by all of the warp until `release`.
template <typename T>
inline const unsigned char (*shown(const T &own))[SLOT] {
    static_assert(sizeof(T) <= SLOT);
    std::memcpy(warp_slots()[threadIdx.x & 31], &own, sizeof own);
    warp_barrier();
    return warp_slots();
}

template <typename T>
inline T of_lane(const unsigned char (*slots)[SLOT], unsigned lane) {
    T value;
    std::memcpy(&value, slots[lane], sizeof value);
    return value;
}

inline void release() { warp_barrier(); }

inline float __shfl_xor_sync(unsigned, float value, int apart) {
    auto slots = shown(value);
    const float other = of_lane<float>(slots, (threadIdx.x & 31) ^ apart);
    release();
    return other;
}

// Runs a kernel's blocks one after another.
void run_blocks(Place grid, Place block, const std::function<void()> &kernel);

// Copies that a thread has asked for and not awaited yet.
void defer_copy(void *to, const void *from, bool inside);
void close_group();
void await_groups(int pending);
