// What lies between products, in one pass each over maps with channels last. Compiled by NVRTC where it runs, behind
// instructions.cu. Sums and functions are in float whatever the type.

// N neighbours, read or written at once: 16 bytes, or one element where rows do not divide so.
template <int N>
struct Row {
    float at[N];
};

template <int N, typename T>
__device__ inline Row<N> read(const T *x) {
    Row<N> row;
    if (N == 1) {
        row.at[0] = load(x);
    } else {
        const uint4 raw = *reinterpret_cast<const uint4 *>(x);
        const T *each = reinterpret_cast<const T *>(&raw);
#pragma unroll
        for (int i = 0; i < N; ++i) row.at[i] = load(each + i);
    }
    return row;
}

template <int N, typename T>
__device__ inline void write(T *y, const Row<N> &row) {
    if (N == 1) {
        store(y, row.at[0]);
    } else {
        uint4 raw;
        T *each = reinterpret_cast<T *>(&raw);
#pragma unroll
        for (int i = 0; i < N; ++i) store(each + i, row.at[i]);
        *reinterpret_cast<uint4 *>(y) = raw;
    }
}

__device__ inline float warp_sum(float value) {
    for (int apart = 16; apart > 0; apart >>= 1) value += __shfl_xor_sync(0xffffffffu, value, apart);
    return value;
}

// Group normalization in three passes: moments of stretches of pixels, what they come to for each channel, and that applied.
// x [B, pixels, channels]. No sum depends on which block comes first.

// Mean and squared deviations of each group over a stretch (x) of an item (y), to partial [B, stretches, groups]. To each channel
// is added its shift, [B, channels] or one for all, before anything else; it may be null. Shared: two floats for each channel and
// lane, of which there are as many as rows of a block's threads, one at least.
template <typename T, int N>
__device__ inline void group_norm_moments(const T *x, const T *shift, u32 shift_step, float2 *partial, u32 channels, u32 groups,
                                          u32 pixels, u32 stretch) {
    extern __shared__ float2 of_channels[];
    const u32 columns = channels / N;
    const u32 lanes = columns < blockDim.x ? blockDim.x / columns : 1;
    const u32 lane = columns < blockDim.x ? threadIdx.x / columns : 0;
    const u32 first = blockIdx.x * stretch;
    const u32 count = pixels - first < stretch ? pixels - first : stretch;
    const T *begin = x + ((u64)blockIdx.y * pixels + first) * channels;
    if (lane < lanes) {
        for (u32 column = threadIdx.x - lane * columns; column < columns; column += blockDim.x) {
            const T *at = begin + column * N;
            Row<N> origin, sum, squares;
            if (lane < count) origin = read<N>(at + (u64)lane * channels);
#pragma unroll
            for (int i = 0; i < N; ++i) sum.at[i] = squares.at[i] = 0.0f;
#pragma unroll 4
            for (u32 pixel = lane; pixel < count; pixel += lanes) {
                const Row<N> row = read<N>(at + (u64)pixel * channels);
#pragma unroll
                for (int i = 0; i < N; ++i) {
                    const float apart = row.at[i] - origin.at[i];
                    sum.at[i] += apart;
                    squares.at[i] = fmaf(apart, apart, squares.at[i]);
                }
            }
            const u32 n = lane < count ? (count - lane + lanes - 1) / lanes : 0;
            const float part = n ? 1.0f / (float)n : 0.0f;
#pragma unroll
            for (int i = 0; i < N; ++i) {
                const u32 channel = column * N + i;
                const float own = shift ? load(shift + (u64)blockIdx.y * shift_step + channel) : 0.0f;
                const float mean = n ? origin.at[i] + sum.at[i] * part + own : 0.0f;
                const float apart = n ? fmaxf(squares.at[i] - sum.at[i] * sum.at[i] * part, 0.0f) : 0.0f;
                of_channels[lane * channels + channel] = make_float2(mean, apart);
            }
        }
    }
    __syncthreads();
    const u32 width = channels / groups, parts = lanes * width;
    for (u32 group = threadIdx.x >> 5; group < groups; group += blockDim.x >> 5) {
        float sum = 0.0f;
        for (u32 i = threadIdx.x & 31; i < parts; i += 32) {
            const u32 of = i / width, n = of < count ? (count - of + lanes - 1) / lanes : 0;
            sum += (float)n * of_channels[of * channels + group * width + i % width].x;
        }
        const float mean = warp_sum(sum) / ((float)count * (float)width);
        sum = 0.0f;
        for (u32 i = threadIdx.x & 31; i < parts; i += 32) {
            const u32 of = i / width, n = of < count ? (count - of + lanes - 1) / lanes : 0;
            const float2 own = of_channels[of * channels + group * width + i % width];
            sum += own.y + (float)n * (own.x - mean) * (own.x - mean);
        }
        sum = warp_sum(sum);
        if ((threadIdx.x & 31) == 0) {
            partial[((u64)blockIdx.y * gridDim.x + blockIdx.x) * groups + group] = make_float2(mean, sum);
        }
    }
}

// A factor and an offset for each channel of an item (x), [B, 2, channels]. Shared: two floats for each group.
template <typename T>
__device__ inline void group_norm_factors(const float2 *partial, const float *weight, const float *bias, const T *shift,
                                          u32 shift_step, float *factors, u32 channels, u32 groups, u32 pixels, u32 stretch,
                                          float eps) {
    extern __shared__ float2 of_groups[];
    const u32 stretches = (pixels + stretch - 1) / stretch, width = channels / groups;
    const float2 *own = partial + (u64)blockIdx.x * stretches * groups;
    for (u32 group = threadIdx.x >> 5; group < groups; group += blockDim.x >> 5) {
        float sum = 0.0f;
        for (u32 i = threadIdx.x & 31; i < stretches; i += 32) {
            const u32 n = i + 1 < stretches ? stretch : pixels - i * stretch;
            sum += (float)n * own[i * groups + group].x;
        }
        const float mean = warp_sum(sum) / (float)pixels;
        sum = 0.0f;
        for (u32 i = threadIdx.x & 31; i < stretches; i += 32) {
            const u32 n = i + 1 < stretches ? stretch : pixels - i * stretch;
            const float2 part = own[i * groups + group];
            sum += part.y + (float)n * (float)width * (part.x - mean) * (part.x - mean);
        }
        sum = warp_sum(sum);
        if ((threadIdx.x & 31) == 0) {
            of_groups[group] = make_float2(mean, rsqrtf(sum / ((float)pixels * (float)width) + eps));
        }
    }
    __syncthreads();
    float *factor = factors + (u64)blockIdx.x * 2 * channels, *offset = factor + channels;
    for (u32 channel = threadIdx.x; channel < channels; channel += blockDim.x) {
        const float2 group = of_groups[channel / width];
        const float by = group.y * weight[channel];
        const float from = shift ? load(shift + (u64)blockIdx.x * shift_step + channel) : 0.0f;
        factor[channel] = by;
        offset[channel] = fmaf(from - group.x, by, bias[channel]);
    }
}

// y = x by its channel's factor and offset, and through SiLU. An item (y) in strides.
template <typename T, int N>
__device__ inline void group_norm_apply(const T *x, const float *factors, T *y, u32 channels, u32 pixels, u32 silu) {
    const u32 columns = channels / N, all = columns * pixels;
    const float *factor = factors + (u64)blockIdx.y * 2 * channels, *offset = factor + channels;
    const u64 begin = (u64)blockIdx.y * pixels * channels;
    for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < all; i += gridDim.x * blockDim.x) {
        Row<N> row = read<N>(x + begin + (u64)i * N);
        const u32 channel = i % columns * N;
#pragma unroll
        for (int j = 0; j < N; ++j) {
            const float value = fmaf(row.at[j], factor[channel + j], offset[channel + j]);
            row.at[j] = silu ? value / (1.0f + __expf(-value)) : value;
        }
        write<N>(y + begin + (u64)i * N, row);
    }
}

// x and y [rows, width]: each row normalized. A warp for each.
template <typename T, int N>
__device__ inline void layer_norm(const T *x, const T *weight, const T *bias, T *y, u32 rows, u32 width, float eps) {
    const u32 lane = threadIdx.x & 31, warps = blockDim.x >> 5, columns = width / N;
    for (u32 at = blockIdx.x * warps + (threadIdx.x >> 5); at < rows; at += gridDim.x * warps) {
        const T *own = x + (u64)at * width;
        float sum = 0.0f;
        for (u32 i = lane; i < columns; i += 32) {
            const Row<N> row = read<N>(own + i * N);
#pragma unroll
            for (int j = 0; j < N; ++j) sum += row.at[j];
        }
        const float mean = warp_sum(sum) / (float)width;
        sum = 0.0f;
        for (u32 i = lane; i < columns; i += 32) {
            const Row<N> row = read<N>(own + i * N);
#pragma unroll
            for (int j = 0; j < N; ++j) sum = fmaf(row.at[j] - mean, row.at[j] - mean, sum);
        }
        const float scale = rsqrtf(warp_sum(sum) / (float)width + eps);
        for (u32 i = lane; i < columns; i += 32) {
            Row<N> row = read<N>(own + i * N);
            const Row<N> by = read<N>(weight + i * N), from = read<N>(bias + i * N);
#pragma unroll
            for (int j = 0; j < N; ++j) row.at[j] = fmaf((row.at[j] - mean) * scale, by.at[j], from.at[j]);
            write<N>(y + (u64)at * width + i * N, row);
        }
    }
}

// x [rows, 2 * width], values before their gates, to y [rows, width]: values times the gates' GELU by the error function.
template <typename T, int N>
__device__ inline void geglu(const T *x, T *y, u64 rows, u32 width) {
    const u32 columns = width / N;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < rows * columns; i += (u64)gridDim.x * blockDim.x) {
        const u64 at = i / columns * 2 * width + i % columns * N;
        Row<N> value = read<N>(x + at);
        const Row<N> gate = read<N>(x + at + width);
#pragma unroll
        for (int j = 0; j < N; ++j) {
            value.at[j] *= 0.5f * gate.at[j] * (1.0f + erff(gate.at[j] * 0.70710678118654752f));
        }
        write<N>(y + i * N, value);
    }
}

// To y [rows, channels] is added the bias of each channel and, where it is not null, as many others.
template <typename T, int N>
__device__ inline void add_onto(T *y, const T *bias, const T *others, u64 rows, u32 channels) {
    const u32 columns = channels / N;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < rows * columns; i += (u64)gridDim.x * blockDim.x) {
        Row<N> row = read<N>(y + i * N);
        const Row<N> own = read<N>(bias + i % columns * N);
#pragma unroll
        for (int j = 0; j < N; ++j) row.at[j] += own.at[j];
        if (others) {
            const Row<N> other = read<N>(others + i * N);
#pragma unroll
            for (int j = 0; j < N; ++j) row.at[j] += other.at[j];
        }
        write<N>(y + i * N, row);
    }
}

// x [B, height, width, channels] to y [B, to_height, to_width, channels], each pixel by its nearest. A row (x) of an item (y).
template <typename T, int N>
__device__ inline void upsample(const T *x, T *y, u32 height, u32 width, u32 to_height, u32 to_width, u32 channels) {
    const u32 columns = channels / N, from = (u32)((u64)blockIdx.x * height / to_height);
    const T *row = x + ((u64)blockIdx.y * height + from) * width * channels;
    T *to = y + ((u64)blockIdx.y * to_height + blockIdx.x) * to_width * channels;
    for (u32 i = threadIdx.x; i < to_width * columns; i += blockDim.x) {
        const u32 pixel = i / columns, column = i % columns;
        const u32 at = (u32)((u64)pixel * width / to_width);
        write<N>(to + (u64)i * N, read<N>(row + ((u64)at * columns + column) * N));
    }
}

#define KERNELS(T, NAME, N)                                                                                               \
    extern "C" __global__ void group_norm_moments_##NAME(const T *x, const T *shift, u32 shift_step, float2 *partial,     \
                                                         u32 channels, u32 groups, u32 pixels, u32 stretch) {             \
        group_norm_moments<T, N>(x, shift, shift_step, partial, channels, groups, pixels, stretch);                       \
    }                                                                                                                     \
    extern "C" __global__ void group_norm_factors_##NAME(                                                                 \
        const float2 *partial, const float *weight, const float *bias, const T *shift, u32 shift_step, float *factors,    \
        u32 channels, u32 groups, u32 pixels, u32 stretch, float eps) {                                                   \
        group_norm_factors(partial, weight, bias, shift, shift_step, factors, channels, groups, pixels, stretch, eps);    \
    }                                                                                                                     \
    extern "C" __global__ void group_norm_apply_##NAME(const T *x, const float *factors, T *y, u32 channels, u32 pixels,  \
                                                       u32 silu) {                                                        \
        group_norm_apply<T, N>(x, factors, y, channels, pixels, silu);                                                    \
    }                                                                                                                     \
    extern "C" __global__ void layer_norm_##NAME(const T *x, const T *weight, const T *bias, T *y, u32 rows, u32 width,   \
                                                 float eps) {                                                             \
        layer_norm<T, N>(x, weight, bias, y, rows, width, eps);                                                           \
    }                                                                                                                     \
    extern "C" __global__ void geglu_##NAME(const T *x, T *y, u64 rows, u32 width) { geglu<T, N>(x, y, rows, width); }    \
    extern "C" __global__ void add_onto_##NAME(T *y, const T *bias, const T *others, u64 rows, u32 channels) {            \
        add_onto<T, N>(y, bias, others, rows, channels);                                                                  \
    }                                                                                                                     \
    extern "C" __global__ void upsample_##NAME(const T *x, T *y, u32 height, u32 width, u32 to_height, u32 to_width,      \
                                               u32 channels) {                                                            \
        upsample<T, N>(x, y, height, width, to_height, to_width, channels);                                               \
    }

KERNELS(float, f32, 4)
KERNELS(F16, f16, 8)
KERNELS(Bf16, bf16, 8)
// Of rows that do not divide into 16 bytes.
KERNELS(float, f32_each, 1)
KERNELS(F16, f16_each, 1)
KERNELS(Bf16, bf16_each, 1)
