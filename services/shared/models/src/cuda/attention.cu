// Attention that never holds a score matrix (Dao 2023): a block's queries stay in registers, keys and values go by in tiles, and the
// softmax is kept up as they do. On tensor cores, from compute capability 8.0 on; scores, sums and the softmax in float.
// Compiled by NVRTC behind instructions.cu, for one type and one width of a head: TYPE is F16 or Bf16, HEAD 16, 32, 64 or 128, and
// NAME what the kernel is called.

#define NONE __int_as_float(0xff800000)  // minus infinity

constexpr int WARPS = 4;
constexpr int TILES = HEAD <= 64 ? 2 : 1;  // of 16 queries, of a warp
constexpr int QUERIES = 16 * TILES * WARPS;
constexpr int KEYS = HEAD <= 64 ? 64 : 32;  // of a step
constexpr int CHUNKS = HEAD / 8;            // of 16 bytes, of a row
constexpr int TILE_BYTES = KEYS * HEAD * 2;

// Keys and values of up to 32 items, with as many rows each.
struct Items {
    const u16 *keys[32];
    const u16 *values[32];
    u32 rows[32];
};

// Where a chunk of a row lies in a tile: so that eight rows' chunks lie in different banks.
__device__ inline u32 place(int row, int chunk) {
    const int spread = CHUNKS >= 8 ? row & 7 : (row / (8 / (CHUNKS < 8 ? CHUNKS : 8))) & (CHUNKS - 1);
    return (u32)(row * CHUNKS + (chunk ^ spread)) * 16;
}

// Rows first.. of a matrix into a tile; those from limit on are zeros.
template <int ROWS>
__device__ inline void fetch_rows(u32 tile, const u16 *from, u64 step, int first, int limit) {
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += 32 * WARPS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const bool inside = first + row < limit;
        const u16 *source = from + (inside ? first + row : 0) * step + chunk * 8;
        fetch(tile + place(row, chunk), source, inside);
    }
}

// queries and out [B, rows, heads * HEAD], each with its own steps between rows and items; keys and values with key_step between
// rows. A block for some rows (x) of a head (y) of an item (z). scale is that of the scores, times log2(e).
extern "C" __global__ void __launch_bounds__(32 * WARPS)
    NAME(const u16 *queries, const __grid_constant__ Items items, u16 *out, u32 rows, u64 query_step, u64 query_item,
              u64 key_step, u64 out_step, u64 out_item, float scale) {
    __shared__ __align__(128) unsigned char memory[4 * TILE_BYTES];
    static_assert(QUERIES * HEAD * 2 <= 4 * TILE_BYTES, "the queries fit where keys and values will be");
    const u32 tiles = shared_address(memory);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int first = blockIdx.x * QUERIES;
    const u64 column = (u64)blockIdx.y * HEAD;
    const u16 *keys = items.keys[blockIdx.z] + column, *values = items.values[blockIdx.z] + column;
    const int count = items.rows[blockIdx.z], steps = (count + KEYS - 1) / KEYS;

    fetch_rows<QUERIES>(tiles, queries + blockIdx.z * query_item + column, query_step, first, rows);
    fetched();
    await_fetched<0>();
    __syncthreads();
    u32 query[TILES][HEAD / 16][4];
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int k = 0; k < HEAD / 16; ++k) {
            four(query[t][k], tiles + place((warp * TILES + t) * 16 + (lane & 15), 2 * k + (lane >> 4)));
        }
    }
    __syncthreads();

    float sums[TILES][HEAD / 8][4] = {};
    float most[TILES][2], total[TILES][2];
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
        most[t][0] = most[t][1] = NONE;
        total[t][0] = total[t][1] = 0.0f;
    }
    fetch_rows<KEYS>(tiles, keys, key_step, 0, count);
    fetch_rows<KEYS>(tiles + TILE_BYTES, values, key_step, 0, count);
    fetched();
    for (int step = 0; step < steps; ++step) {
        const u32 own = tiles + (step & 1) * 2 * TILE_BYTES;
        if (step + 1 < steps) {
            const u32 next = tiles + (~step & 1) * 2 * TILE_BYTES;
            fetch_rows<KEYS>(next, keys, key_step, (step + 1) * KEYS, count);
            fetch_rows<KEYS>(next + TILE_BYTES, values, key_step, (step + 1) * KEYS, count);
            fetched();
            await_fetched<1>();
        } else {
            await_fetched<0>();
        }
        __syncthreads();

        float scores[TILES][KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < HEAD / 16; ++k) {
#pragma unroll
            for (int n = 0; n < KEYS / 16; ++n) {
                u32 key[4];
                four(key, own + place(n * 16 + (lane & 7) + ((lane >> 4) << 3), 2 * k + ((lane >> 3) & 1)));
#pragma unroll
                for (int t = 0; t < TILES; ++t) {
                    multiply(TYPE(), scores[t][2 * n], query[t][k], key[0], key[1]);
                    multiply(TYPE(), scores[t][2 * n + 1], query[t][k], key[2], key[3]);
                }
            }
        }
        if ((step + 1) * KEYS > count) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) {
                const int at = step * KEYS + n * 8 + (lane & 3) * 2;
#pragma unroll
                for (int t = 0; t < TILES; ++t) {
                    if (at >= count) scores[t][n][0] = scores[t][n][2] = NONE;
                    if (at + 1 >= count) scores[t][n][1] = scores[t][n][3] = NONE;
                }
            }
        }

        u32 weights[TILES][KEYS / 16][4];
#pragma unroll
        for (int t = 0; t < TILES; ++t) {
            float now[2] = {most[t][0], most[t][1]};
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) {
                now[0] = fmaxf(now[0], fmaxf(scores[t][n][0], scores[t][n][1]));
                now[1] = fmaxf(now[1], fmaxf(scores[t][n][2], scores[t][n][3]));
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                now[half] = fmaxf(now[half], __shfl_xor_sync(0xffffffffu, now[half], 1));
                now[half] = fmaxf(now[half], __shfl_xor_sync(0xffffffffu, now[half], 2));
                const float keep = power_of_two((most[t][half] - now[half]) * scale);
                most[t][half] = now[half];
                total[t][half] *= keep;
#pragma unroll
                for (int d = 0; d < HEAD / 8; ++d) {
                    sums[t][d][2 * half] *= keep;
                    sums[t][d][2 * half + 1] *= keep;
                }
            }
            const float offset[2] = {now[0] * scale, now[1] * scale};
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    scores[t][n][i] = power_of_two(fmaf(scores[t][n][i], scale, -offset[i >> 1]));
                }
                total[t][0] += scores[t][n][0] + scores[t][n][1];
                total[t][1] += scores[t][n][2] + scores[t][n][3];
                weights[t][n / 2][(n & 1) * 2] = pair(TYPE(), scores[t][n][0], scores[t][n][1]);
                weights[t][n / 2][(n & 1) * 2 + 1] = pair(TYPE(), scores[t][n][2], scores[t][n][3]);
            }
        }
#pragma unroll
        for (int k = 0; k < KEYS / 16; ++k) {
#pragma unroll
            for (int d = 0; d < HEAD / 16; ++d) {
                u32 value[4];
                four_turned(value, own + TILE_BYTES + place(k * 16 + (lane & 15), 2 * d + (lane >> 4)));
#pragma unroll
                for (int t = 0; t < TILES; ++t) {
                    multiply(TYPE(), sums[t][2 * d], weights[t][k], value[0], value[1]);
                    multiply(TYPE(), sums[t][2 * d + 1], weights[t][k], value[2], value[3]);
                }
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (int t = 0; t < TILES; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float sum = total[t][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            const float part = 1.0f / sum;
            const int row = first + (warp * TILES + t) * 16 + half * 8 + (lane >> 2);
            if (row >= (int)rows) continue;
            u16 *to = out + blockIdx.z * out_item + row * out_step + column + (lane & 3) * 2;
#pragma unroll
            for (int d = 0; d < HEAD / 8; ++d) {
                *reinterpret_cast<u32 *>(to + d * 8) = pair(TYPE(), sums[t][d][2 * half] * part, sums[t][d][2 * half + 1] * part);
            }
        }
    }
}
