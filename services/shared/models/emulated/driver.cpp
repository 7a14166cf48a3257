// The driver and the libraries, as far as the project and candle call them, on the processor: memory that ends where its page does, and
// is full of NaN until it is written; the project's kernels by their own sources; candle's and the libraries' results by plain loops.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "call.h"
#include "instructions.h"

namespace {
constexpr int OK = 0, NOT_FOUND = 500, INVALID = 1;
std::map<uintptr_t, std::pair<void *, size_t>> &memory() {
    static auto &all = *new std::map<uintptr_t, std::pair<void *, size_t>>();  // outlives the threads
    return all;
}

// Any thread may ask; kernels go one at a time.
std::recursive_mutex one_at_a_time;
typedef std::lock_guard<std::recursive_mutex> Turn;

int take(uintptr_t *at, size_t bytes) {
    const Turn turn(one_at_a_time);
    const size_t page = sysconf(_SC_PAGESIZE), room = (bytes + 15) / 16 * 16, pages = (room + page - 1) / page * page + page;
    auto begin = (unsigned char *)mmap(nullptr, pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (begin == MAP_FAILED) return 2;
    mprotect(begin + pages - page, page, PROT_NONE);
    memset(begin, 0xff, pages - page);
    *at = (uintptr_t)begin + pages - page - room;
    memory()[*at] = {begin, pages};
    return OK;
}

// Memory of the host's that copies reach when an event behind them is awaited, and not before.
struct Copy {
    void *to;
    std::vector<unsigned char> bytes;
    u64 number;
};
auto &pinned = *new std::map<uintptr_t, size_t>();
auto &on_their_way = *new std::vector<Copy>();
u64 copies;

struct Event {
    unsigned flags;  // 2: it tells no time
    u64 copies = 0;
    bool is_recorded = false;
    std::chrono::steady_clock::time_point at;
};

// What was asked for before the event, in order.
void arrive(u64 up_to) {
    const Turn turn(one_at_a_time);
    for (const auto &copy : on_their_way)
        if (copy.number <= up_to) memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
    std::erase_if(on_their_way, [&](const Copy &copy) { return copy.number <= up_to; });
}

int give(uintptr_t at) {
    const Turn turn(one_at_a_time);
    const auto found = memory().find(at);
    if (found == memory().end()) return INVALID;
    munmap(found->second.first, found->second.second);
    memory().erase(found);
    return OK;
}

// candle's kernels: elements one after another, each found by its dimensions and strides.

struct Shape {
    size_t rank;
    const size_t *dims, *strides;
    size_t at(size_t i) const {
        if (!dims) return i;
        size_t place = 0;
        for (size_t d = rank; d-- > 0; i /= dims[d]) place += i % dims[d] * strides[d];
        return place;
    }
};

template <typename To, typename From>
void cast(size_t count, size_t rank, const size_t *info, const From *x, To *y) {
    const Shape shape{rank, info, info ? info + rank : nullptr};
    for (size_t i = 0; i < count; ++i) store(y + i, load(x + shape.at(i)));
}

template <typename T>
void affine(size_t count, size_t rank, const size_t *info, const T *x, T *y, T factor, T offset) {
    const Shape shape{rank, info, info ? info + rank : nullptr};
    for (size_t i = 0; i < count; ++i) {
        T product;
        store(&product, load(x + shape.at(i)) * load(&factor));
        store(y + i, load(&product) + load(&offset));
    }
}

template <typename T, float F(float)>
void unary(size_t count, size_t rank, const size_t *info, const T *x, T *y) {
    const Shape shape{rank, info, info ? info + rank : nullptr};
    for (size_t i = 0; i < count; ++i) store(y + i, F(load((x ? x : y) + (x ? shape.at(i) : i))));
}

template <typename T, float F(float, float)>
void binary(size_t count, size_t rank, const size_t *info, const T *a, const T *b, T *y) {
    const Shape left{rank, info, info ? info + rank : nullptr}, right{rank, info, info ? info + 2 * rank : nullptr};
    for (size_t i = 0; i < count; ++i) store(y + i, F(load(a + left.at(i)), load(b + right.at(i))));
}

template <typename T>
void copy2d(const T *x, T *y, u32 rows, u32 width, u32 from_step, u32 to_step) {
    for (size_t row = 0; row < rows; ++row) memcpy(y + row * to_step, x + row * from_step, width * sizeof(T));
}

template <typename T>
void softmax(const T *x, T *y, int width) {
    for (size_t row = 0; row < gridDim.x; ++row) {
        const T *own = x + row * width;
        float most = load(own), sum = 0;
        for (int i = 1; i < width; ++i) most = fmaxf(most, load(own + i));
        for (int i = 0; i < width; ++i) sum += std::exp(load(own + i) - most);
        for (int i = 0; i < width; ++i) store(y + row * width + i, std::exp(load(own + i) - most) / sum);
    }
}

// The dimensions that are summed up come last.
template <typename T>
void fast_sum(size_t count, size_t of_each, size_t rank, const size_t *info, const T *x, T *y) {
    const Shape shape{rank, info, info ? info + rank : nullptr};
    for (size_t i = 0; i < count / of_each; ++i) {
        double sum = 0;
        for (size_t j = 0; j < of_each; ++j) sum += load(x + shape.at(i * of_each + j));
        store(y + i, (float)sum);
    }
}

// Of the middle dimension of x, those that are named.
template <typename T>
void index_select(size_t count, size_t, const size_t *, const u32 *ids, const T *x, T *y, size_t, size_t from, size_t named,
                  size_t inner) {
    for (size_t i = 0; i < count; ++i) {
        const size_t id = ids[i / inner % named];
        if (id >= from) abort();
        y[i] = x[(i / (named * inner) * from + id) * inner + i % inner];
    }
}

template <typename T>
void index_add(const u32 *ids, size_t named, const T *x, T *y, size_t outer, size_t, size_t into, size_t inner) {
    for (size_t i = 0; i < outer; ++i)
        for (size_t j = 0; j < named; ++j) {
            if (ids[j] >= into) abort();
            for (size_t k = 0; k < inner; ++k) {
                T *at = y + (i * into + ids[j]) * inner + k;
                store(at, load(at) + load(x + (i * named + j) * inner + k));
            }
        }
}

template <typename T>
void fast_max(size_t count, size_t of_each, size_t rank, const size_t *info, const T *x, T *y) {
    const Shape shape{rank, info, info ? info + rank : nullptr};
    for (size_t i = 0; i < count / of_each; ++i) {
        float most = load(x + shape.at(i * of_each));
        for (size_t j = 1; j < of_each; ++j) most = fmaxf(most, load(x + shape.at(i * of_each + j)));
        store(y + i, most);
    }
}

// The count is that of the results here.
template <typename T>
void fast_sum_small(size_t count, size_t of_each, size_t rank, const size_t *info, const T *x, T *y) {
    fast_sum(count * of_each, of_each, rank, info, x, y);
}

template <typename T>
void const_set(size_t count, size_t rank, const size_t *info, T value, T *y) {
    const Shape shape{rank, info, info ? info + rank : nullptr};
    for (size_t i = 0; i < count; ++i) y[shape.at(i)] = value;
}

template <typename T>
void power(size_t count, size_t rank, const size_t *info, T by, const T *x, T *y) {
    const Shape shape{rank, info, info ? info + rank : nullptr};
    for (size_t i = 0; i < count; ++i) store(y + i, std::pow(load(x + shape.at(i)), load(&by)));
}

template <typename T, bool F(float, float)>
void compare(size_t count, size_t rank, const size_t *info, const T *a, const T *b, uint8_t *y) {
    const Shape left{rank, info, info ? info + rank : nullptr}, right{rank, info, info ? info + 2 * rank : nullptr};
    for (size_t i = 0; i < count; ++i) y[i] = F(load(a + left.at(i)), load(b + right.at(i)));
}

template <typename T>
void cast_from_u8(size_t count, size_t rank, const size_t *info, const uint8_t *x, T *y) {
    const Shape shape{rank, info, info ? info + rank : nullptr};
    for (size_t i = 0; i < count; ++i) store(y + i, (float)x[shape.at(i)]);
}

template <typename T>
void where(size_t count, size_t rank, const size_t *info, const uint8_t *is, const T *a, const T *b, T *y) {
    const auto strides = [&](size_t i) { return Shape{rank, info, info ? info + i * rank : nullptr}; };
    for (size_t i = 0; i < count; ++i) y[i] = is[strides(1).at(i)] ? a[strides(2).at(i)] : b[strides(3).at(i)];
}

// Pictures [B, C, H, W] by their dimensions and strides.
struct Pictures {
    const size_t *info;
    size_t dim(size_t i) const { return info[i]; }
    size_t at(size_t n, size_t c, size_t h, size_t w) const {
        return n * info[4] + c * info[5] + h * info[6] + w * info[7];
    }
};

template <typename T>
void conv2d(size_t, size_t to_width, size_t to_height, size_t stride, size_t padding, size_t dilation, const size_t *info,
            const T *x, const T *weight, T *y) {
    const Pictures from{info}, kernel{info + 8};
    size_t at = 0;
    for (size_t n = 0; n < from.dim(0); ++n)
        for (size_t k = 0; k < kernel.dim(0); ++k)
            for (size_t h = 0; h < to_height; ++h)
                for (size_t w = 0; w < to_width; ++w, ++at) {
                    double sum = 0;
                    for (size_t r = 0; r < kernel.dim(2); ++r)
                        for (size_t s = 0; s < kernel.dim(3); ++s) {
                            const size_t row = h * stride + r * dilation - padding, column = w * stride + s * dilation - padding;
                            if (row >= from.dim(2) || column >= from.dim(3)) continue;  // below zero, too
                            for (size_t c = 0; c < from.dim(1); ++c)
                                sum += (double)load(x + from.at(n, c, row, column)) * load(weight + kernel.at(k, c, r, s));
                        }
                    store(y + at, (float)sum);
                }
}

template <typename T>
void conv_transpose2d(size_t, size_t to_width, size_t to_height, size_t stride, size_t padding, size_t, size_t dilation,
                      const size_t *info, const T *x, const T *weight, T *y) {
    const Pictures from{info}, kernel{info + 8};
    size_t at = 0;
    for (size_t n = 0; n < from.dim(0); ++n)
        for (size_t k = 0; k < kernel.dim(1); ++k)
            for (size_t h = 0; h < to_height; ++h)
                for (size_t w = 0; w < to_width; ++w, ++at) {
                    double sum = 0;
                    for (size_t r = 0; r < kernel.dim(2); ++r)
                        for (size_t s = 0; s < kernel.dim(3); ++s) {
                            const long down = (long)(h + padding) - (long)(r * dilation);
                            const long right = (long)(w + padding) - (long)(s * dilation);
                            if (down < 0 || right < 0 || down % stride || right % stride) continue;
                            const size_t row = down / stride, column = right / stride;
                            if (row >= from.dim(2) || column >= from.dim(3)) continue;
                            for (size_t c = 0; c < from.dim(1); ++c)
                                sum += (double)load(x + from.at(n, c, row, column)) * load(weight + kernel.at(c, k, r, s));
                        }
                    store(y + at, (float)sum);
                }
}

template <typename T>
void upsample_nearest2d(size_t to_first, size_t to_second, double first, double second, const size_t *info, const T *x, T *y) {
    const Pictures from{info};
    size_t at = 0;
    for (size_t n = 0; n < from.dim(0); ++n)
        for (size_t c = 0; c < from.dim(1); ++c)
            for (size_t i = 0; i < to_first; ++i)
                for (size_t j = 0; j < to_second; ++j, ++at) {
                    const size_t row = std::min((size_t)(i * first), from.dim(2) - 1);
                    y[at] = x[from.at(n, c, row, std::min((size_t)(j * second), from.dim(3) - 1))];
                }
}

template <typename T>
void avg_pool2d(size_t, size_t high, size_t wide, size_t down, size_t right, const size_t *info, const T *x, T *y) {
    const Pictures from{info};
    size_t at = 0;
    for (size_t n = 0; n < from.dim(0); ++n)
        for (size_t c = 0; c < from.dim(1); ++c)
            for (size_t i = 0; i < (from.dim(2) - high) / down + 1; ++i)
                for (size_t j = 0; j < (from.dim(3) - wide) / right + 1; ++j, ++at) {
                    double sum = 0;
                    for (size_t r = 0; r < high; ++r)
                        for (size_t s = 0; s < wide; ++s) sum += load(x + from.at(n, c, i * down + r, j * right + s));
                    store(y + at, (float)(sum / (high * wide)));
                }
}

float exponential(float x) { return std::exp(x); }
float error_function(float x) { return std::erf(x); }
float logarithm(float x) { return std::log(x); }
float root(float x) { return std::sqrt(x); }
float negative(float x) { return -x; }
float absolute(float x) { return std::fabs(x); }
float sign(float x) { return (float)((x > 0) - (x < 0)); }
float reciprocal(float x) { return 1.0f / x; }
bool equal(float a, float b) { return a == b; }
bool unequal(float a, float b) { return a != b; }
bool less(float a, float b) { return a < b; }
bool at_most(float a, float b) { return a <= b; }
bool greater(float a, float b) { return a > b; }
bool at_least(float a, float b) { return a >= b; }
float same(float x) { return x; }
float silu(float x) { return x / (1.0f + std::exp(-x)); }
float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }
float square(float x) { return x * x; }
float gelu_erf(float x) { return 0.5f * x * (1.0f + std::erf(x * 0.70710678f)); }
float add(float a, float b) { return a + b; }
float larger(float a, float b) { return fmaxf(a, b); }
float smaller(float a, float b) { return fminf(a, b); }
float subtract(float a, float b) { return a - b; }
float times(float a, float b) { return a * b; }
float divide(float a, float b) { return a / b; }

std::map<std::string, Kernel> &of_candle() {
    static std::map<std::string, Kernel> all;
    return all;
}

template <typename T>
void keep_candles(const std::string &type) {
    auto &all = of_candle();
    all["cast_" + type + "_f32"] = Call<cast<float, T>>::run;
    all["cast_" + type + "_f16"] = Call<cast<F16, T>>::run;
    all["cast_" + type + "_bf16"] = Call<cast<Bf16, T>>::run;
    all["affine_" + type] = Call<affine<T>>::run;
    all["ucopy_" + type] = Call<unary<T, same>>::run;
    all["usilu_" + type] = Call<unary<T, silu>>::run;
    all["usigmoid_" + type] = Call<unary<T, sigmoid>>::run;
    all["is_u32_" + type] = Call<index_select<T>>::run;
    all["ia_u32_" + type] = Call<index_add<T>>::run;
    all["fast_max_" + type] = Call<fast_max<T>>::run;
    all["fast_sum_small_" + type] = Call<fast_sum_small<T>>::run;
    all["const_set_" + type] = Call<const_set<T>>::run;
    all["upowf_" + type] = Call<power<T>>::run;
    all["cast_u8_" + type] = Call<cast_from_u8<T>>::run;
    all["where_u8_" + type] = Call<where<T>>::run;
    all["conv2d_" + type] = Call<conv2d<T>>::run;
    all["conv_transpose2d_" + type] = Call<conv_transpose2d<T>>::run;
    all["upsample_nearest2d_" + type] = Call<upsample_nearest2d<T>>::run;
    all["avg_pool2d_" + type] = Call<avg_pool2d<T>>::run;
    all["uexp_" + type] = Call<unary<T, exponential>>::run;
    all["uerf_" + type] = Call<unary<T, error_function>>::run;
    all["ulog_" + type] = Call<unary<T, logarithm>>::run;
    all["usqrt_" + type] = Call<unary<T, root>>::run;
    all["uneg_" + type] = Call<unary<T, negative>>::run;
    all["uabs_" + type] = Call<unary<T, absolute>>::run;
    all["usign_" + type] = Call<unary<T, sign>>::run;
    all["urecip_" + type] = Call<unary<T, reciprocal>>::run;
    all["eq_" + type] = Call<compare<T, equal>>::run;
    all["ne_" + type] = Call<compare<T, unequal>>::run;
    all["lt_" + type] = Call<compare<T, less>>::run;
    all["le_" + type] = Call<compare<T, at_most>>::run;
    all["gt_" + type] = Call<compare<T, greater>>::run;
    all["ge_" + type] = Call<compare<T, at_least>>::run;
    all["usqr_" + type] = Call<unary<T, square>>::run;
    all["ugelu_erf_" + type] = Call<unary<T, gelu_erf>>::run;
    all["badd_" + type] = Call<binary<T, add>>::run;
    all["bsub_" + type] = Call<binary<T, subtract>>::run;
    all["bmul_" + type] = Call<binary<T, times>>::run;
    all["bdiv_" + type] = Call<binary<T, divide>>::run;
    all["bmaximum_" + type] = Call<binary<T, larger>>::run;
    all["bminimum_" + type] = Call<binary<T, smaller>>::run;
    all["copy2d_" + type] = Call<copy2d<T>>::run;
    all["softmax_" + type] = Call<softmax<T>>::run;
    all["fast_sum_" + type] = Call<fast_sum<T>>::run;
}

// cudaDataType: 0 is float, 2 half, 14 bfloat.
bool is_known(int type) { return type == 0 || type == 2 || type == 14; }

float number(int type, const void *x, size_t i) {
    switch (type) {
        case 2: return load((const F16 *)x + i);
        case 14: return load((const Bf16 *)x + i);
        default: return load((const float *)x + i);
    }
}

void put(int type, void *y, size_t i, double value) {
    switch (type) {
        case 2: return store((F16 *)y + i, (float)value);
        case 14: return store((Bf16 *)y + i, (float)value);
        default: return store((float *)y + i, (float)value);
    }
}

__attribute__((optimize("O3", "associative-math", "no-signed-zeros", "no-trapping-math"))) double dot(const float *a, const float *b, size_t length) {
    double sum = 0;
    for (size_t i = 0; i < length; ++i) sum += (double)a[i] * b[i];
    return sum;
}

struct Matrix {
    int type;
    size_t rows, columns;
    long step;
};

struct Product {
    int turned[2];
    int epilogue = 1;
    const void *bias = nullptr;
};

struct Convolution {
    int padding[2], stride[2], dilation[2], mode;
};

// [N, C, H, W], each with its step.
struct Map {
    int type, dims[4];
    long steps[4];
    Map() = default;
    Map(int type, int format, int n, int c, int h, int w) : type(type), dims{n, c, h, w}, steps{(long)c * h * w} {
        const long last[] = {1, (long)w * c, c}, first[] = {(long)h * w, w, 1};
        std::copy_n(format == 1 ? last : first, 3, steps + 1);
    }
    size_t at(size_t n, size_t c, size_t h, size_t w) const {
        return n * steps[0] + c * steps[1] + h * steps[2] + w * steps[3];
    }
    bool has_channels_last() const { return dims[1] > 1 && steps[1] == 1; }
    // cudnnDataType: 0 is float, 2 half, 9 bfloat.
    int cuda_type() const { return type == 9 ? 14 : type; }
};
}  // namespace

extern "C" {
int cuInit(unsigned) {
    keep_candles<float>("f32");
    keep_candles<F16>("f16");
    keep_candles<Bf16>("bf16");
    return OK;
}
int cuGetExportTable(const void **, const void *) { return NOT_FOUND; }  // NVRTC asks
int cuDeviceGet(int *device, int) { return *device = 0, OK; }
int cuDeviceGetAttribute(int *value, int attribute, int) {
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : 1;  // compute capability 9.0, and that there are pools
    return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int) { return *context = (void *)1, OK; }
int cuDevicePrimaryCtxRelease_v2(int) { return OK; }
int cuCtxSetCurrent(void *) { return OK; }
int cuCtxGetCurrent(void **context) { return *context = (void *)1, OK; }
int cuCtxSynchronize() { return arrive(~0ull), OK; }
int cuStreamCreate(void **stream, unsigned) { return *stream = (void *)16, OK; }
int cuStreamDestroy_v2(void *) { return OK; }
int cuStreamSynchronize(void *) { return arrive(~0ull), OK; }
int cuStreamWaitEvent(void *, void *, unsigned) { return OK; }
int cuStreamIsCapturing(void *, int *status) { return *status = 0, OK; }
int cuEventCreate(void **event, unsigned flags) { return *event = new Event{flags}, OK; }
int cuEventDestroy_v2(void *event) { return delete (Event *)event, OK; }
int cuEventRecord(void *event, void *) {
    const Turn turn(one_at_a_time);
    const auto recorded = (Event *)event;
    return recorded->copies = copies, recorded->at = std::chrono::steady_clock::now(), recorded->is_recorded = true, OK;
}
int cuEventSynchronize(void *event) { return arrive(((Event *)event)->copies), OK; }
int cuEventElapsedTime_v2(float *ms, void *first, void *last) {
    const Event &from = *(Event *)first, &to = *(Event *)last;
    const bool timed = !((from.flags | to.flags) & 2) && from.is_recorded && to.is_recorded;
    return *ms = std::chrono::duration<float, std::milli>(to.at - from.at).count(), timed ? OK : INVALID;
}
int cuEventElapsedTime(float *ms, void *first, void *last) { return cuEventElapsedTime_v2(ms, first, last); }
int cuMemHostAlloc(void **at, size_t bytes, unsigned) {
    const Turn turn(one_at_a_time);
    *at = malloc(bytes);
    memset(*at, 0xff, bytes);
    return pinned[(uintptr_t)*at] = bytes, OK;
}
int cuMemFreeHost(void *at) {
    const Turn turn(one_at_a_time);
    const auto found = pinned.find((uintptr_t)at);
    if (found == pinned.end()) return INVALID;
    // What is still to arrive there would be written to whatever comes to lie there.
    for (const auto &copy : on_their_way)
        if ((uintptr_t)copy.to - found->first < found->second) return INVALID;
    return pinned.erase(found), free(at), OK;
}
int cuGetErrorString(int error, const char **text) {
    static char said[32];
    snprintf(said, sizeof said, "emulated error %d", error);
    return *text = said, OK;
}
int cuDeviceGetDefaultMemPool(void **pool, int) { return *pool = (void *)1, OK; }
int cuMemPoolSetAttribute(void *, int attribute, void *value) {
    return attribute == 4 && *(u64 *)value == ~0ull ? OK : INVALID;
}
int cuMemAllocAsync(uintptr_t *at, size_t bytes, void *) { return take(at, bytes); }
int cuMemAlloc_v2(uintptr_t *at, size_t bytes) { return take(at, bytes); }
int cuMemFreeAsync(uintptr_t at, void *) { return give(at); }
int cuMemFree_v2(uintptr_t at) { return give(at); }
int cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t bytes, void *) {
    return memcpy((void *)to, from, bytes), OK;
}
int cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t bytes, void *) {
    const Turn turn(one_at_a_time);
    const auto next = pinned.upper_bound((uintptr_t)to);
    const bool is_pinned = next != pinned.begin() && (uintptr_t)to < std::prev(next)->first + std::prev(next)->second;
    if (!is_pinned) return arrive(~0ull), memcpy(to, (void *)from, bytes), OK;
    const auto begin = (const unsigned char *)from;
    return on_their_way.push_back({to, {begin, begin + bytes}, ++copies}), OK;
}
int cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, void *) {
    return memcpy((void *)to, (void *)from, bytes), OK;
}
int cuMemsetD8Async(uintptr_t to, unsigned char value, size_t bytes, void *) {
    return memset((void *)to, value, bytes), OK;
}
int cuModuleLoadData(void **module, const void *image) {
    // What NVRTC made of the sources is not looked at: it is text for a device.
    return *module = (void *)image, image ? OK : INVALID;
}
int cuModuleUnload(void *) { return OK; }
int cuModuleGetFunction(void **function, void *, const char *name) {
    for (auto all : {&kernels(), &of_candle()}) {
        const auto found = all->find(name);
        if (found != all->end()) return *function = &*found, OK;
    }
    fprintf(stderr, "no kernel %s is emulated\n", name);
    return NOT_FOUND;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *, void **arguments, void **) {
    const auto &[name, kernel] = *(std::pair<const std::string, Kernel> *)function;
    if (gx * gy * gz == 0 || bx * by * bz == 0 || bx * by * bz > 1024 || shared > 48 << 10) return INVALID;
    const Turn turn(one_at_a_time);
    if (kernels().count(name)) {
        // Shared memory begins as whatever was there.
        extern float2 of_channels[], of_groups[];
        memset((void *)of_channels, 0xff, 1 << 19);
        memset((void *)of_groups, 0xff, 1 << 15);
        run_blocks({gx, gy, gz}, {bx, by, bz}, [&] { kernel(arguments); });
    } else {
        gridDim = {gx, gy, gz};
        kernel(arguments);
    }
    return OK;
}

int curandCreateGenerator(void **generator, int) { return *generator = (void *)1, OK; }
int curandDestroyGenerator(void *) { return OK; }
int curandSetPseudoRandomGeneratorSeed(void *, u64) { return OK; }
int curandSetStream(void *, void *) { return OK; }

int cublasCreate_v2(void **handle) { return *handle = (void *)1, OK; }
int cublasDestroy_v2(void *) { return OK; }
int cublasSetStream_v2(void *, void *) { return OK; }
int cublasGemmStridedBatchedEx(void *, int turn_a, int turn_b, int m, int n, int k, const void *alpha, const void *a, int type,
                               int lda, long step_a, const void *b, int, int ldb, long step_b, const void *beta, void *c, int,
                               int ldc, long step_c, int batch, int, int) {
    if (!is_known(type) || *(float *)alpha != 1.0f || *(float *)beta != 0.0f) return INVALID;
    std::vector<float> rows((size_t)m * k), columns((size_t)n * k);
    for (int item = 0; item < batch; ++item) {
        for (int i = 0; i < k; ++i) {
            for (int row = 0; row < m; ++row) {
                const size_t at = turn_a ? (size_t)row * lda + i : (size_t)i * lda + row;
                rows[(size_t)row * k + i] = number(type, a, item * step_a + at);
            }
            for (int column = 0; column < n; ++column) {
                const size_t at = turn_b ? (size_t)i * ldb + column : (size_t)column * ldb + i;
                columns[(size_t)column * k + i] = number(type, b, item * step_b + at);
            }
        }
        for (int column = 0; column < n; ++column)
            for (int row = 0; row < m; ++row)
                put(type, c, item * step_c + (size_t)column * ldc + row,
                    dot(&rows[(size_t)row * k], &columns[(size_t)column * k], k));
    }
    return OK;
}

int cublasLtCreate(void **handle) { return *handle = (void *)1, OK; }
int cublasLtMatrixLayoutCreate(void **layout, int type, u64 rows, u64 columns, long step) {
    return *layout = new Matrix{type, rows, columns, step}, OK;
}
int cublasLtMatmulDescCreate(void **product, int compute, int scale) {
    return *product = new Product(), compute == 68 && scale == 0 ? OK : INVALID;  // float throughout
}
int cublasLtMatmulDescSetAttribute(void *product, int attribute, const void *value, size_t bytes) {
    auto own = (Product *)product;
    switch (attribute) {
        case 3: return own->turned[0] = *(int *)value, bytes == 4 ? OK : INVALID;
        case 4: return own->turned[1] = *(int *)value, bytes == 4 ? OK : INVALID;
        case 7: return own->epilogue = *(int *)value, bytes == 4 ? OK : INVALID;
        case 8: return own->bias = *(void **)value, bytes == 8 ? OK : INVALID;
        default: return INVALID;
    }
}
int cublasLtMatmulPreferenceCreate(void **preference) { return *preference = (void *)1, OK; }
int cublasLtMatmulPreferenceDestroy(void *) { return OK; }
int cublasLtMatmulPreferenceSetAttribute(void *, int attribute, const void *, size_t bytes) {
    return (attribute == 1 && bytes == 8) || (attribute >= 5 && attribute <= 8 && bytes == 4) ? OK : INVALID;
}
struct Found {
    u64 algorithm[8];
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};
int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *, void *, void *, void *, void *, int, Found *found, int *count) {
    *found = {};
    found->algorithm[0] = 42;
    return *count = 1, OK;
}
int cublasLtMatmul(void *, void *description, const void *alpha, const void *a, void *of_a, const void *b, void *of_b,
                   const void *beta, const void *c, void *of_c, void *d, void *of_d, const u64 *algorithm, void *workspace, size_t,
                   void *) {
    const auto &product = *(Product *)description;
    const auto &A = *(Matrix *)of_a, &B = *(Matrix *)of_b, &C = *(Matrix *)of_c, &D = *(Matrix *)of_d;
    if (!is_known(A.type) || A.type != B.type || A.type != C.type || A.type != D.type) return INVALID;
    const size_t inner = product.turned[0] ? A.rows : A.columns, rows = product.turned[0] ? A.columns : A.rows;
    const bool fits = B.rows == inner && D.rows == rows && D.columns == B.columns && !product.turned[1] && algorithm[0] == 42;
    if (!fits || !workspace || (product.epilogue != 1 && product.epilogue != 4)) return INVALID;
    if (product.epilogue == 4 && !product.bias) return INVALID;
    std::vector<float> left(rows * inner), right(D.columns * inner);
    for (size_t i = 0; i < inner; ++i) {
        for (size_t row = 0; row < rows; ++row)
            left[row * inner + i] = number(A.type, a, product.turned[0] ? row * A.step + i : i * A.step + row);
        for (size_t column = 0; column < D.columns; ++column)
            right[column * inner + i] = number(A.type, b, column * B.step + i);
    }
    for (size_t column = 0; column < D.columns; ++column)
        for (size_t row = 0; row < rows; ++row) {
            double sum = dot(&left[row * inner], &right[column * inner], inner) * *(float *)alpha;
            if (*(float *)beta != 0.0f) sum += *(float *)beta * number(A.type, c, column * C.step + row);
            if (product.epilogue == 4) sum += number(A.type, product.bias, row);
            put(A.type, d, column * D.step + row, sum);
        }
    return OK;
}

int cudnnCreate(void **handle) { return *handle = (void *)1, OK; }
int cudnnDestroy(void *) { return OK; }
int cudnnSetStream(void *, void *) { return OK; }
int cudnnCreateTensorDescriptor(void **map) { return *map = new Map(), OK; }
int cudnnDestroyTensorDescriptor(void *map) { return delete (Map *)map, OK; }
int cudnnCreateFilterDescriptor(void **map) { return *map = new Map(), OK; }
int cudnnDestroyFilterDescriptor(void *map) { return delete (Map *)map, OK; }
int cudnnCreateConvolutionDescriptor(void **convolution) { return *convolution = new Convolution(), OK; }
int cudnnDestroyConvolutionDescriptor(void *convolution) { return delete (Convolution *)convolution, OK; }
int cudnnSetTensor4dDescriptor(void *map, int format, int type, int n, int c, int h, int w) {
    return *(Map *)map = {type, format, n, c, h, w}, OK;
}
int cudnnSetTensor4dDescriptorEx(void *map, int type, int n, int c, int h, int w, int of_n, int of_c, int of_h, int of_w) {
    auto &own = *(Map *)map = {type, 0, n, c, h, w};
    const long steps[] = {of_n, of_c, of_h, of_w};
    return std::copy_n(steps, 4, own.steps), OK;
}
int cudnnSetFilter4dDescriptor(void *map, int type, int format, int n, int c, int h, int w) {
    return *(Map *)map = {type, format, n, c, h, w}, OK;
}
int cudnnSetConvolution2dDescriptor(void *convolution, int pad_h, int pad_w, int stride_h, int stride_w, int dilation_h,
                                    int dilation_w, int mode, int) {
    *(Convolution *)convolution = {{pad_h, pad_w}, {stride_h, stride_w}, {dilation_h, dilation_w}, mode};
    return mode == 1 ? OK : INVALID;  // not turned around
}
int cudnnSetConvolutionMathType(void *, int) { return OK; }
struct Performance {
    int algorithm, status;
    float time;
    size_t memory;
    int determinism, math, reserved[3];
};
int cudnnGetConvolutionForwardAlgorithm_v7(void *, void *, void *, void *, void *of_y, int, int *count, Performance *found) {
    *found = {};
    found->algorithm = 1;
    // cuDNN does not do everything with channels last; here it does no maps of three.
    const auto &Y = *(Map *)of_y;
    if (Y.has_channels_last() && Y.dims[1] == 3) found->status = 3000;
    return *count = 1, OK;
}
int cudnnGetConvolutionForwardWorkspaceSize(void *, void *, void *, void *, void *, int, size_t *bytes) {
    return *bytes = 4096, OK;
}
int cudnnConvolutionForward(void *, const void *alpha, void *of_x, const void *x, void *of_w, const void *w, void *of_convolution,
                            int algorithm, void *workspace, size_t bytes, const void *beta, void *of_y, void *y) {
    const auto &X = *(Map *)of_x, &W = *(Map *)of_w, &Y = *(Map *)of_y;
    const auto &own = *(Convolution *)of_convolution;
    const bool ready = algorithm == 1 && workspace && bytes == 4096 && *(float *)alpha == 1.0f && *(float *)beta == 0.0f;
    if (!ready || X.type != W.type || X.type != Y.type || !is_known(X.cuda_type())) return 3;
    const auto side = [&](int i) {
        return (X.dims[2 + i] + 2 * own.padding[i] - own.dilation[i] * (W.dims[2 + i] - 1) - 1) / own.stride[i] + 1;
    };
    const bool fits = X.dims[1] == W.dims[1] && Y.dims[0] == X.dims[0] && Y.dims[1] == W.dims[0];
    if (!fits || Y.dims[2] != side(0) || Y.dims[3] != side(1)) return 3;
    // Both with channels last.
    const int type = X.cuda_type(), channels = X.dims[1];
    const auto turned = [&](const Map &map, const void *from) {
        std::vector<float> to;
        for (int n = 0; n < map.dims[0]; ++n)
            for (int h = 0; h < map.dims[2]; ++h)
                for (int v = 0; v < map.dims[3]; ++v)
                    for (int c = 0; c < map.dims[1]; ++c) to.push_back(number(type, from, map.at(n, c, h, v)));
        return to;
    };
    const auto pixels = turned(X, x), weights = turned(W, w);
    for (int n = 0; n < Y.dims[0]; ++n)
        for (int h = 0; h < Y.dims[2]; ++h)
            for (int v = 0; v < Y.dims[3]; ++v)
                for (int k = 0; k < Y.dims[1]; ++k) {
                    double sum = 0;
                    for (int r = 0; r < W.dims[2]; ++r)
                        for (int s = 0; s < W.dims[3]; ++s) {
                            const int at_h = h * own.stride[0] + r * own.dilation[0] - own.padding[0];
                            const int at_w = v * own.stride[1] + s * own.dilation[1] - own.padding[1];
                            if (at_h < 0 || at_w < 0 || at_h >= X.dims[2] || at_w >= X.dims[3]) continue;
                            sum += dot(&pixels[(((size_t)n * X.dims[2] + at_h) * X.dims[3] + at_w) * channels],
                                       &weights[(((size_t)k * W.dims[2] + r) * W.dims[3] + s) * channels], channels);
                        }
                    put(type, y, Y.at(n, k, h, v), sum);
                }
    return OK;
}
}
