// What lies between products, in one pass each. Compiled by NVRTC where it runs, without any header: so halves are read and
// written here. Sums and functions are in float whatever the type.

struct F16 {
    unsigned short bits;
};

struct Bf16 {
    unsigned short bits;
};

__device__ inline float load(const float *x) { return *x; }

__device__ inline float load(const F16 *x) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x->bits));
    return value;
}

__device__ inline float load(const Bf16 *x) { return __uint_as_float((unsigned int)x->bits << 16); }

__device__ inline void store(float *y, float value) { *y = value; }

__device__ inline void store(F16 *y, float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    y->bits = bits;
}

__device__ inline void store(Bf16 *y, float value) {
    const unsigned int bits = __float_as_uint(value);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    // To the nearest, ties to even.
    y->bits = nan ? 0x7fff : (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// The sum over a block of up to 1024 threads, a multiple of 32, for each of them.
__device__ inline float block_sum(float value) {
    __shared__ float warps[32];
    for (int apart = 16; apart > 0; apart >>= 1) value += __shfl_xor_sync(0xffffffffu, value, apart);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    __syncthreads();  // whoever still reads the sums before
    if (lane == 0) warps[warp] = value;
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < (int)(blockDim.x >> 5); ++i) sum += warps[i];
    return sum;
}

// x and y [B, C, pixels]; weight and bias [C]. A block for each group (x) of each item (y).
template <typename T>
__device__ inline void group_norm(const T *x, const float *weight, const float *bias, T *y, unsigned int channels_per_group,
                                  unsigned long long pixels, float eps, unsigned int silu) {
    const unsigned long long length = channels_per_group * pixels;
    const unsigned long long begin = ((unsigned long long)blockIdx.y * gridDim.x + blockIdx.x) * length;
    const unsigned int first = blockIdx.x * channels_per_group;
    float sum = 0.0f;
    for (unsigned long long i = threadIdx.x; i < length; i += blockDim.x) sum += load(x + begin + i);
    const float mean = block_sum(sum) / (float)length;
    sum = 0.0f;
    for (unsigned long long i = threadIdx.x; i < length; i += blockDim.x) {
        const float apart = load(x + begin + i) - mean;
        sum += apart * apart;
    }
    const float scale = rsqrtf(block_sum(sum) / (float)length + eps);
    for (unsigned int channel = 0; channel < channels_per_group; ++channel) {
        const float factor = scale * weight[first + channel];
        const float shift = bias[first + channel] - mean * factor;
        const unsigned long long row = begin + channel * pixels;
        for (unsigned long long i = threadIdx.x; i < pixels; i += blockDim.x) {
            const float value = fmaf(load(x + row + i), factor, shift);
            store(y + row + i, silu ? value / (1.0f + expf(-value)) : value);
        }
    }
}

// x [rows, 2 * width], values before their gates, to y [rows, width]: values times the gates' GELU by the error function.
template <typename T>
__device__ inline void geglu(const T *x, T *y, unsigned long long rows, unsigned long long width) {
    const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < rows * width; i += step) {
        const unsigned long long at = i / width * 2 * width + i % width;
        const float gate = load(x + at + width);
        store(y + i, load(x + at) * 0.5f * gate * (1.0f + erff(gate * 0.70710678118654752f)));
    }
}

#define KERNELS(T, NAME)                                                                                                  \
    extern "C" __global__ void group_norm_##NAME(const T *x, const float *weight, const float *bias, T *y,                \
                                                 unsigned int channels_per_group, unsigned long long pixels, float eps,   \
                                                 unsigned int silu) {                                                     \
        group_norm(x, weight, bias, y, channels_per_group, pixels, eps, silu);                                            \
    }                                                                                                                     \
    extern "C" __global__ void geglu_##NAME(const T *x, T *y, unsigned long long rows, unsigned long long width) {        \
        geglu(x, y, rows, width);                                                                                         \
    }

KERNELS(float, f32)
KERNELS(F16, f16)
KERNELS(Bf16, bf16)
