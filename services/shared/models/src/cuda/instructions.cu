// Types, and what is one instruction of the device each: all that a processor would have to do otherwise. Compiled by NVRTC, without
// any header.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct F16 {
    u16 bits;
};

struct Bf16 {
    u16 bits;
};

__device__ inline float load(const float *x) { return *x; }

__device__ inline float load(const F16 *x) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x->bits));
    return value;
}

__device__ inline float load(const Bf16 *x) { return __uint_as_float((u32)x->bits << 16); }

__device__ inline void store(float *y, float value) { *y = value; }

__device__ inline void store(F16 *y, float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    y->bits = bits;
}

__device__ inline void store(Bf16 *y, float value) {
    const u32 bits = __float_as_uint(value);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    // To the nearest, ties to even.
    y->bits = nan ? 0x7fff : (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Where a block's memory lies.
__device__ inline u32 shared_address(const void *memory) { return (u32)__cvta_generic_to_shared(memory); }

// 16 bytes into shared memory, or as many zeros; they are there when they were awaited.
__device__ inline void fetch(u32 to, const void *from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0));
}

// What was fetched since the last call is one group.
__device__ inline void fetched() { asm volatile("cp.async.commit_group;"); }

// Until at most so many groups are on their way.
template <int PENDING>
__device__ inline void await_fetched() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING));
}

// Four 8 x 8 matrices of 16 bits; the lanes give their rows' addresses, eight by eight.
__device__ inline void four(u32 (&to)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at));
}

__device__ inline void four_turned(u32 (&to)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at));
}

#define OF_TYPE(T, NAME)                                                                                         \
    /* 16 x 16 by 16 x 8, added to 16 x 8 */                                                                     \
    __device__ inline void multiply(T, float(&sum)[4], const u32(&a)[4], u32 b0, u32 b1) {                       \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME                                      \
                     ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                      \
                     : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                    \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                            \
    }                                                                                                            \
    /* The first in the lower half */                                                                            \
    __device__ inline u32 pair(T, float low, float high) {                                                       \
        u32 both;                                                                                                \
        asm("cvt.rn." NAME "x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));                             \
        return both;                                                                                             \
    }

OF_TYPE(F16, "f16")
OF_TYPE(Bf16, "bf16")
