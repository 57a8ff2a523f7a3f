// Checks of the emulator: `selftest NAME` runs one and ends with "NAME: ok", or with the line that failed.
// nvcc must compile it too, which holds the emulator's names and signatures against CUDA's own.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "emulator.h"

#define REQUIRE(condition)                                                       \
    do {                                                                         \
        if (!(condition)) {                                                      \
            std::printf("%s:%d: %s is false\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                        \
        }                                                                        \
    } while (false)
#define CHECK(call) REQUIRE((call) == cudaSuccess)

namespace {

struct Stream {
    cudaStream_t handle;
    Stream() { CHECK(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking)); }
    ~Stream() { CHECK(cudaStreamDestroy(handle)); }
    operator cudaStream_t() const { return handle; }
    void wait() const { CHECK(cudaStreamSynchronize(handle)); }
};

template <typename T>
struct Device {
    T* data;
    std::size_t size;
    explicit Device(std::size_t size) : size(size) { CHECK(cudaMalloc(&data, size * sizeof(T))); }
    Device(const std::vector<T>& values) : Device(values.size()) {
        CHECK(cudaMemcpy(data, values.data(), size * sizeof(T), cudaMemcpyHostToDevice));
    }
    ~Device() { CHECK(cudaFree(data)); }
    std::vector<T> read() const {
        std::vector<T> values(size);
        CHECK(cudaMemcpy(values.data(), data, size * sizeof(T), cudaMemcpyDeviceToHost));
        return values;
    }
};

template <typename T>
struct Pinned {
    T* data;
    explicit Pinned(std::size_t size) { CHECK(cudaHostAlloc(&data, size * sizeof(T), cudaHostAllocDefault)); }
    ~Pinned() { CHECK(cudaFreeHost(data)); }
};

template <typename... Expected, typename... Actual>
cudaError_t launch(cudaStream_t stream, dim3 grid, dim3 block, void (*kernel)(Expected...),
                   Actual... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

__global__ void indices(uint4* out) {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] =
        make_uint4(threadIdx.x, threadIdx.y + 10 * threadIdx.z, blockIdx.x, blockIdx.y + 10 * blockIdx.z);
}

void test_indices() {
    const dim3 grid(3, 2, 2), block(5, 4, 3);
    Device<uint4> out(12 * 60);
    Stream stream;
    CHECK(launch(stream, grid, block, indices, out.data));
    stream.wait();
    const auto got = out.read();
    for (unsigned i = 0; i < got.size(); ++i) {
        const unsigned b = i / 60, t = i % 60;
        REQUIRE(got[i].x == t % 5 && got[i].y == t / 5 % 4 + 10 * (t / 20));
        REQUIRE(got[i].z == b % 3 && got[i].w == b / 3 % 2 + 10 * (b / 6));
    }
}

__global__ void reverse(int* out) {
    __shared__ int part[200];
    part[threadIdx.x] = out[blockIdx.x * blockDim.x + threadIdx.x];
    __syncthreads();
    out[blockIdx.x * blockDim.x + threadIdx.x] = part[blockDim.x - 1 - threadIdx.x];
}

template <typename T>
__global__ void sum(const T* __restrict__ in, T* __restrict__ out, int n) {
    __shared__ T part[256];
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    part[threadIdx.x] = i < n ? __ldg(in + i) : T(0);
    __syncthreads();
    for (unsigned step = blockDim.x / 2; step > 0; step /= 2) {
        if (threadIdx.x < step) part[threadIdx.x] += part[threadIdx.x + step];
        __syncthreads();
    }
    if (threadIdx.x == 0) atomicAdd(out, part[0]);
}

// Threads that have returned do not take part.
__global__ void votes(int* out) {
    const int i = static_cast<int>(threadIdx.x);
    if (i >= 70) return;
    const int count = __syncthreads_count(i % 3 == 0);
    const int all = __syncthreads_and(i < 70), not_all = __syncthreads_and(i < 69);
    const int any = __syncthreads_or(i == 69), none = __syncthreads_or(i == 70);
    out[i] = count == 24 && all && !not_all && any && !none;
}

void test_barriers() {
    Stream stream;
    std::vector<int> values(800);
    std::iota(values.begin(), values.end(), 0);
    Device<int> data(values);
    CHECK(launch(stream, 4, 200, reverse, data.data));
    stream.wait();
    const auto got = data.read();
    for (int i = 0; i < 800; ++i) REQUIRE(got[i] == i / 200 * 200 + 199 - i % 200);

    Device<int> total(std::vector<int>{0});
    CHECK(launch(stream, 4, 256, sum<int>, data.data, total.data, 800));
    stream.wait();
    REQUIRE(total.read()[0] == 799 * 800 / 2);

    Device<int> ok(70);
    CHECK(launch(stream, 1, 100, votes, ok.data));
    stream.wait();
    REQUIRE(ok.read() == std::vector<int>(70, 1));
}

// The reader's value is not there yet unless by chance: what the missing barrier would give on some GPU.
__global__ void no_barrier(int* out) {
    __shared__ int part[64];
    part[threadIdx.x] = static_cast<int>(threadIdx.x + 64 * blockIdx.x);
    out[blockIdx.x * 64 + threadIdx.x] = part[63 - threadIdx.x];
}

__global__ void append(unsigned* count, unsigned* out) {
    out[atomicAdd(count, 1u)] = blockIdx.x * blockDim.x + threadIdx.x;
}

void test_order() {
    Stream stream;
    Device<int> out(2 * 64);
    CHECK(launch(stream, 2, 64, no_barrier, out.data));
    stream.wait();
    const auto got = out.read();
    int stale = 0;
    for (int i = 0; i < 128; ++i) stale += got[i] != i / 64 * 64 + 63 - i % 64;
    REQUIRE(stale > 16 && stale < 112);

    std::set<std::vector<unsigned>> orders;
    for (unsigned seed : {1u, 2u, 2u}) {
        cuda_emulator::set_seed(seed);
        Device<unsigned> count(std::vector<unsigned>{0}), list(4 * 40);
        CHECK(launch(stream, 4, 40, append, count.data, list.data));
        stream.wait();
        auto order = list.read();
        orders.insert(order);
        std::sort(order.begin(), order.end());
        for (unsigned i = 0; i < 160; ++i) REQUIRE(order[i] == i);
    }
    REQUIRE(orders.size() == 2);
}

__global__ void warps(int* wrong) {
    const unsigned full = 0xffffffff;
    const int lane = static_cast<int>(threadIdx.x % 32), i = static_cast<int>(threadIdx.x);
    auto require = [&](bool right, int number) {
        if (!right) atomicExch(wrong, number);
    };
    require(__ballot_sync(full, lane % 5 == 0) == 0x42108421u, 1);
    require(__any_sync(full, lane == 31) && !__any_sync(full, i < 0), 2);
    require(__all_sync(full, i >= 0) && !__all_sync(full, lane < 31), 3);
    require(__shfl_sync(full, i, 7) == i - lane + 7 && __shfl_sync(full, i, 35) == i - lane + 3, 4);
    require(__shfl_sync(full, i, 2, 8) == i / 8 * 8 + 2, 5);
    require(__shfl_up_sync(full, i, 3) == (lane < 3 ? i : i - 3), 6);
    require(__shfl_up_sync(full, i, 1, 4) == (lane % 4 == 0 ? i : i - 1), 7);
    require(__shfl_down_sync(full, 1.5f * i, 2) == 1.5f * (lane > 29 ? i : i + 2), 8);
    require(__shfl_down_sync(full, -1.25 * i, 9, 16) == -1.25 * (lane % 16 > 6 ? i : i + 9), 9);
    require(__shfl_xor_sync(full, 0x100000000ll * i, 17) == 0x100000000ll * (i ^ 17), 10);
    require(__shfl_xor_sync(full, static_cast<unsigned long long>(i), 12, 8) ==
                static_cast<unsigned long long>((i ^ 12) / 8 * 8 > i ? i : i ^ 12),
            11);
    require(__match_any_sync(full, lane % 4) == 0x11111111u << lane % 4, 12);
    int same = -1;
    require(__match_all_sync(full, i / 32, &same) == full && same == 1, 13);
    require(__match_all_sync(full, i, &same) == 0 && same == 0, 14);
    require(__reduce_add_sync(full, lane) == 496 && __reduce_add_sync(full, -lane) == -496, 15);
    require(__reduce_min_sync(full, lane - 5) == -5 && __reduce_max_sync(full, lane - 40) == -9, 16);
    require(__reduce_min_sync(full, static_cast<unsigned>(lane - 5)) == 0, 17);
    require(__reduce_or_sync(full, 1u << lane) == full && __reduce_and_sync(full, ~0u - lane) == 0xffffffe0u,
            18);
    require(__reduce_xor_sync(full, static_cast<unsigned>(lane % 3)) == 1, 19);  // 11 ones, 10 twos
    // Two halves of a warp apart, in either order.
    const unsigned half_mask = lane < 16 ? 0x0000ffffu : 0xffff0000u;
    if (lane < 16)
        require(__reduce_add_sync(half_mask, 1) == 16, 20);
    else
        require(__ballot_sync(half_mask, 1) == half_mask, 21);
    __syncwarp();
    require((__activemask() >> lane & 1) == 1, 22);
    if (lane == 9) return;
    require(__ballot_sync(full, 1) == ~(1u << 9), 23);
}

void test_warps() {
    Stream stream;
    Device<int> wrong(std::vector<int>{0});
    for (unsigned seed = 0; seed < 5; ++seed) {
        cuda_emulator::set_seed(seed);
        CHECK(launch(stream, 3, 96, warps, wrong.data));
        stream.wait();
        REQUIRE(wrong.read()[0] == 0);
    }
}

struct Atomics {
    int added, lowest, highest, swapped;
    unsigned set, kept, exchanged, flipped;
    unsigned long long wide, wide_highest;
    float real;
    double precise;
};

__global__ void atomics(Atomics* a) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    atomicAdd(&a->added, i - 100);
    atomicMin(&a->lowest, -i);
    atomicMax(&a->highest, i);
    for (int seen = a->swapped;;) {
        const int old = atomicCAS(&a->swapped, seen, seen + 2);
        if (old == seen) break;
        seen = old;
    }
    atomicOr(&a->set, 1u << i % 32);
    atomicAnd(&a->kept, ~(1u << i % 16));
    atomicExch(&a->exchanged, 42u);
    atomicXor(&a->flipped, 1u << i % 32);
    atomicAdd(&a->wide, 1ull << 32);
    atomicMax(&a->wide_highest, static_cast<unsigned long long>(i) << 40);
    atomicAdd(&a->real, 0.5f);
    atomicAdd(&a->precise, 0.25);
}

void test_atomics() {
    Stream stream;
    Device<Atomics> data(std::vector<Atomics>{Atomics{0, 0, 0, 0, 0, 0xffffffff, 0, 0, 0, 0, 0, 0}});
    CHECK(launch(stream, 4, 128, atomics, data.data));
    stream.wait();
    const Atomics a = data.read()[0];
    REQUIRE(a.added == 511 * 512 / 2 - 51200 && a.lowest == -511 && a.highest == 511 && a.swapped == 1024);
    REQUIRE(a.set == 0xffffffff && a.kept == 0xffff0000 && a.exchanged == 42 && a.flipped == 0);
    REQUIRE(a.wide == 512ull << 32 && a.wide_highest == 511ull << 40 && a.real == 256 && a.precise == 128);
}

__global__ void arithmetic(int* wrong) {
    auto require = [&](bool right, int number) {
        if (!right) atomicExch(wrong, number);
    };
    require(__popc(0xf0f0u) == 8 && __popcll(~0ull) == 64, 1);
    require(__clz(1) == 31 && __clz(0) == 32 && __clzll(1) == 63, 2);
    require(__ffs(0) == 0 && __ffs(8) == 4 && __ffsll(1ll << 40) == 41, 3);
    require(__brev(1u) == 0x80000000u && __brev(0x12345678u) == 0x1e6a2c48u && __brevll(2ull) == 1ull << 62,
            4);
    require(__byte_perm(0x33221100u, 0x77665544u, 0x7410u) == 0x77441100u, 5);
    require(__byte_perm(0x80u, 0u, 0x1118u) == 0xffu, 6);
    require(__funnelshift_l(0x80000000u, 1u, 1) == 3u && __funnelshift_r(2u, 1u, 1) == 0x80000001u, 7);
    require(__umulhi(0x80000000u, 6u) == 3u && __mulhi(-1, 5) == -1, 8);
    require(__float_as_uint(-0.0f) == 0x80000000u && __uint_as_float(0x3f800000u) == 1.0f, 9);
    require(__float2int_rn(2.5f) == 2 && __float2int_rd(-0.5f) == -1 && __float2int_rz(-1.9f) == -1, 10);
    require(__float2int_rn(3e9f) == 2147483647 && __float2uint_rn(-1.0f) == 0 && __float2int_rn(NAN) == 0,
            11);
    require(min(3, 4u) == 3u && max(-1, 2) == 2 && min(NAN, 1.0f) == 1.0f && max(1.0f, 2.5) == 2.5, 12);
    require(__saturatef(NAN) == 0.0f && __saturatef(2.0f) == 1.0f && rsqrtf(4.0f) == 0.5f, 13);
    require(__fmul_rn(0.1f, 0.1f) == 0.1f * 0.1f && __fmaf_rn(0.1f, 10.0f, -1.0f) == 0x1p-26f, 14);
    require(alignof(uint4) == 16 && alignof(ushort4) == 8 && alignof(uchar4) == 4 && sizeof(float3) == 12,
            15);
}

void test_arithmetic() {
    Stream stream;
    Device<int> wrong(std::vector<int>{0});
    CHECK(launch(stream, 1, 1, arithmetic, wrong.data));
    stream.wait();
    REQUIRE(wrong.read()[0] == 0);
}

// To stdout: every half as float; to half: every float read from stdin.
void test_halves() {
    std::vector<float> values(65536);
    for (unsigned i = 0; i < values.size(); ++i)
        values[i] = __half2float(__ushort_as_half(static_cast<unsigned short>(i)));
    std::fwrite(values.data(), sizeof(float), values.size(), stdout);
    for (float value; std::fread(&value, sizeof value, 1, stdin) == 1;) {
        const unsigned short bits = __half_as_ushort(__float2half_rn(value));
        std::fwrite(&bits, sizeof bits, 1, stdout);
    }
    std::fflush(stdout);
    REQUIRE(__half_as_ushort(__half(1.0009765625 / 2 + 1.0 / 2 + 1e-12)) ==
            0x3c01);  // rounds once from double
    REQUIRE(__half_as_ushort(half(2.0f) * half(0.25f)) == 0x3800 && __hlt(half(-1.0f), half(0.0f)));
    REQUIRE(std::isinf(float(half(60000.0f) + half(60000.0f))) && sizeof(half2) == 4);
}

__global__ void increment(int* value, int by) { *value += by; }

void test_lazy() {
    Stream a, b;
    Device<int> value(std::vector<int>{1});
    Pinned<int> in(1), out(1);
    *in.data = 10, *out.data = -1;
    CHECK(cudaMemcpyAsync(value.data, in.data, sizeof(int), cudaMemcpyHostToDevice, a));
    CHECK(launch(a, 1, 1, increment, value.data, 5));
    CHECK(cudaMemcpyAsync(out.data, value.data, sizeof(int), cudaMemcpyDeviceToHost, a));
    *in.data = 20;  // too early
    b.wait();
    REQUIRE(*out.data == -1 && cudaStreamQuery(b) == cudaSuccess);
    a.wait();
    REQUIRE(*out.data == 25);

    int pageable = 30;
    CHECK(cudaMemcpyAsync(value.data, &pageable, sizeof(int), cudaMemcpyHostToDevice, a));
    pageable = 40;
    CHECK(launch(a, 1, 1, increment, value.data, 1));
    CHECK(cudaMemcpyAsync(&pageable, value.data, sizeof(int), cudaMemcpyDeviceToHost, a));
    REQUIRE(pageable == 31);

    // Polling gets on.
    CHECK(launch(a, 1, 1, increment, value.data, 1));
    REQUIRE(cudaStreamQuery(a) == cudaErrorNotReady && cudaGetLastError() == cudaErrorNotReady);
    while (cudaStreamQuery(a) == cudaErrorNotReady) {
    }
    REQUIRE(value.read()[0] == 32);

    cuda_emulator::set_order(cuda_emulator::Order::eager);
    CHECK(cudaMemcpyAsync(out.data, value.data, sizeof(int), cudaMemcpyDeviceToHost, a));
    REQUIRE(*out.data == 32);
}

void double_it(void* value) {
    *static_cast<int*>(value) *= 2;
    if (cudaDeviceSynchronize() != cudaErrorNotPermitted) std::abort();
}

void test_events() {
    for (const auto order :
         {cuda_emulator::Order::lazy, cuda_emulator::Order::eager, cuda_emulator::Order::random}) {
        cuda_emulator::set_order(order);
        Stream a, b;
        Device<int> value(std::vector<int>{0});
        Pinned<int> out(1);
        cudaEvent_t ready, start;
        CHECK(cudaEventCreateWithFlags(&ready, cudaEventDisableTiming));
        CHECK(cudaEventCreate(&start));
        CHECK(cudaEventSynchronize(ready));  // never recorded: nothing to wait for
        CHECK(cudaEventRecord(start, a));
        CHECK(launch(a, 1, 1, increment, value.data, 3));
        CHECK(cudaMemcpyAsync(out.data, value.data, sizeof(int), cudaMemcpyDeviceToHost, a));
        CHECK(cudaLaunchHostFunc(a, double_it, out.data));
        CHECK(cudaEventRecord(ready, a));
        CHECK(cudaStreamWaitEvent(b, ready));
        CHECK(cudaMemcpyAsync(value.data, out.data, sizeof(int), cudaMemcpyHostToDevice, b));
        if (order == cuda_emulator::Order::lazy) REQUIRE(cudaEventQuery(ready) == cudaErrorNotReady);
        b.wait();
        REQUIRE(*out.data == 6 && value.read()[0] == 6);
        CHECK(cudaEventQuery(ready));
        float ms = -1;
        REQUIRE(cudaEventElapsedTime(&ms, start, ready) == cudaErrorInvalidResourceHandle);
        CHECK(cudaEventRecord(start, b));
        REQUIRE(order == cuda_emulator::Order::eager || cudaEventQuery(start) == cudaErrorNotReady);
        CHECK(cudaEventSynchronize(start));
        CHECK(cudaEventElapsedTime(&ms, start, start));
        REQUIRE(ms == 0);
        CHECK(cudaEventDestroy(ready));
        CHECK(cudaEventDestroy(start));
        REQUIRE(cudaEventRecord(ready, a) == cudaErrorInvalidResourceHandle);
    }
}

void test_graph() {
    Stream stream, side;
    Device<int> value(2);
    Pinned<int> in(4), out(1);
    cudaEvent_t fork, join, inside;
    CHECK(cudaEventCreateWithFlags(&fork, cudaEventDisableTiming));
    CHECK(cudaEventCreateWithFlags(&join, cudaEventDisableTiming));
    CHECK(cudaEventCreate(&inside));
    std::iota(in.data, in.data + 4, 100);

    cudaGraph_t graph;
    cudaStreamCaptureStatus status;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed));
    CHECK(cudaStreamIsCapturing(stream, &status));
    REQUIRE(status == cudaStreamCaptureStatusActive);
    CHECK(cudaMemcpyAsync(value.data, in.data, sizeof(int), cudaMemcpyHostToDevice, stream));
    CHECK(cudaEventRecord(fork, stream));
    CHECK(cudaStreamWaitEvent(side, fork));
    CHECK(cudaMemsetAsync(value.data + 1, 0, sizeof(int), side));
    CHECK(cudaEventRecord(join, side));
    CHECK(launch(stream, 1, 1, increment, value.data, 1));
    CHECK(cudaStreamWaitEvent(stream, join));
    CHECK(launch(stream, 1, 1, increment, value.data, 10));
    CHECK(cudaEventRecordWithFlags(inside, stream, cudaEventRecordExternal));
    CHECK(cudaMemcpyAsync(out.data, value.data, sizeof(int), cudaMemcpyDeviceToHost, stream));
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaStreamIsCapturing(side, &status));
    REQUIRE(status == cudaStreamCaptureStatusNone);

    std::size_t count = 0;
    CHECK(cudaGraphGetNodes(graph, nullptr, &count));
    REQUIRE(count == 6);
    std::vector<cudaGraphNode_t> nodes(count);
    CHECK(cudaGraphGetNodes(graph, nodes.data(), &count));
    std::map<cudaGraphNodeType, std::vector<cudaGraphNode_t>> of_type;
    for (cudaGraphNode_t node : nodes) {
        cudaGraphNodeType type;
        CHECK(cudaGraphNodeGetType(node, &type));
        of_type[type].push_back(node);
    }
    REQUIRE(of_type[cudaGraphNodeTypeKernel].size() == 2 && of_type[cudaGraphNodeTypeMemcpy].size() == 2);
    cudaGraphNode_t upload = of_type[cudaGraphNodeTypeMemcpy][0];
    cudaMemcpy3DParms params;
    CHECK(cudaGraphMemcpyNodeGetParams(upload, &params));
    REQUIRE(params.srcPtr.ptr == in.data && params.dstPtr.ptr == value.data &&
            params.extent.width == sizeof(int));

    cudaGraphExec_t exec;
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    const std::size_t kernels = cuda_emulator::counters().kernels;
    auto replay = [&] {
        *out.data = -1;
        CHECK(cudaGraphLaunch(exec, stream));
        REQUIRE(*out.data == -1);
        CHECK(cudaEventSynchronize(inside));
        stream.wait();
        return *out.data;
    };
    REQUIRE(replay() == 111 && cuda_emulator::counters().kernels == kernels + 2);
    CHECK(cudaGraphExecMemcpyNodeSetParams1D(exec, upload, value.data, in.data + 2, sizeof(int),
                                             cudaMemcpyHostToDevice));
    REQUIRE(replay() == 113);
    // A pending launch keeps what it was launched with.
    CHECK(cudaGraphLaunch(exec, stream));
    REQUIRE(cudaGraphExecMemcpyNodeSetParams1D(exec, upload, value.data, in.data + 3, 2 * sizeof(int),
                                               cudaMemcpyDefault) ==
            cudaErrorInvalidValue);  // beyond pinned memory
    CHECK(cudaGraphExecMemcpyNodeSetParams1D(exec, upload, value.data, in.data + 3, sizeof(int),
                                             cudaMemcpyDefault));
    stream.wait();
    REQUIRE(*out.data == 113 && replay() == 114);
    // The last kernel only, or none.
    CHECK(cudaGraphNodeSetEnabled(exec, of_type[cudaGraphNodeTypeKernel][0], 0));
    REQUIRE(replay() == 113);
    CHECK(cudaGraphNodeSetEnabled(exec, of_type[cudaGraphNodeTypeKernel][1], 0));
    REQUIRE(replay() == 103);
    unsigned enabled = 7;
    CHECK(cudaGraphNodeGetEnabled(exec, of_type[cudaGraphNodeTypeKernel][1], &enabled));
    REQUIRE(enabled == 0);
    CHECK(cudaGraphNodeSetEnabled(exec, of_type[cudaGraphNodeTypeKernel][1], 1));
    REQUIRE(replay() == 113);

    int other = 0;
    REQUIRE(cudaGraphExecMemcpyNodeSetParams1D(exec, upload, value.data, &other, sizeof(int),
                                               cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    REQUIRE(cudaGraphNodeSetEnabled(exec, of_type[cudaGraphNodeTypeEventRecord][0], 0) ==
            cudaErrorInvalidValue);
    CHECK(cudaGraphDestroy(graph));
    REQUIRE(cudaGraphNodeSetEnabled(exec, upload, 0) == cudaErrorInvalidValue);
    REQUIRE(replay() == 113);
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaGraphExecDestroy(exec));
    stream.wait();
    REQUIRE(cudaGraphLaunch(exec, stream) == cudaErrorInvalidValue);
}

void test_capture_errors() {
    Stream stream, other;
    Device<int> value(std::vector<int>{0});
    cudaGraph_t graph;
    cudaEvent_t event;
    CHECK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    auto spoilt_by = [&](cudaStreamCaptureMode mode, cudaError_t error,
                         const std::function<cudaError_t()>& what) {
        CHECK(cudaStreamBeginCapture(stream, mode));
        CHECK(launch(stream, 1, 1, increment, value.data, 1));
        REQUIRE(what() == error && cudaGetLastError() == error);
        REQUIRE(launch(stream, 1, 1, increment, value.data, 1) == cudaErrorStreamCaptureInvalidated);
        REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated &&
                graph == nullptr);
    };
    const auto relaxed = cudaStreamCaptureModeRelaxed, global = cudaStreamCaptureModeGlobal;
    spoilt_by(relaxed, cudaErrorStreamCaptureUnsupported, [&] { return cudaStreamSynchronize(stream); });
    spoilt_by(relaxed, cudaErrorStreamCaptureUnsupported, [&] { return cudaStreamQuery(stream); });
    spoilt_by(relaxed, cudaErrorStreamCaptureUnsupported, [] { return cudaDeviceSynchronize(); });
    spoilt_by(global, cudaErrorStreamCaptureUnsupported, [] {
        int* pointer;
        return cudaMalloc(&pointer, 4);
    });
    CHECK(cudaEventRecord(event, other));
    spoilt_by(relaxed, cudaErrorStreamCaptureIsolation, [&] { return cudaStreamWaitEvent(stream, event); });
    spoilt_by(global, cudaErrorStreamCaptureUnsupported, [&] { return cudaEventQuery(event); });

    // Relaxed, memory may be had.
    CHECK(cudaStreamBeginCapture(stream, relaxed));
    Device<int> more(4);
    REQUIRE(cudaStreamEndCapture(other, &graph) == cudaErrorIllegalState);
    CHECK(cudaEventRecord(event, stream));
    REQUIRE(cudaEventSynchronize(event) == cudaErrorCapturedEvent);
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphDestroy(graph));

    // Work of another stream that never comes back.
    CHECK(cudaStreamBeginCapture(stream, relaxed));
    CHECK(cudaEventRecord(event, stream));
    CHECK(cudaStreamWaitEvent(other, event));
    CHECK(launch(other, 1, 1, increment, value.data, 1));
    REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureUnjoined);
    stream.wait();
    other.wait();
    REQUIRE(value.read()[0] == 0);
    REQUIRE(cudaStreamBeginCapture(nullptr, relaxed) == cudaErrorStreamCaptureUnsupported);
}

__global__ void write_at(unsigned char* data, long at) { data[at] = 1; }

void test_memory() {
    Stream stream;
    const auto before = cuda_emulator::counters();
    {
        Device<unsigned char> data(1000);
        Pinned<unsigned char> host(100);
        std::vector<unsigned char> plain(2000);
        REQUIRE(data.read() == std::vector<unsigned char>(1000, 0xa5) && host.data[99] == 0xa5);
        const auto now = cuda_emulator::counters();
        REQUIRE(now.device_bytes == before.device_bytes + 1000 &&
                now.pinned_bytes == before.pinned_bytes + 100);
        REQUIRE(now.mallocs == before.mallocs + 2 && now.bytes_to_host == before.bytes_to_host + 1000);
        auto copy = [&](void* to, const void* from, std::size_t count, cudaMemcpyKind kind) {
            return cudaMemcpyAsync(to, from, count, kind, stream);
        };
        REQUIRE(copy(data.data, plain.data(), 1001, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
        REQUIRE(copy(data.data + 999, plain.data(), 2, cudaMemcpyDefault) == cudaErrorInvalidValue);
        REQUIRE(copy(plain.data(), data.data, 10, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
        REQUIRE(copy(data.data, host.data, 101, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
        REQUIRE(copy(plain.data(), plain.data() + 9, 9, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
        REQUIRE(cudaMemsetAsync(plain.data(), 0, 9, stream) == cudaErrorInvalidValue);
        REQUIRE(cudaFree(data.data + 1) == cudaErrorInvalidValue &&
                cudaFreeHost(data.data) == cudaErrorInvalidValue);

        cudaPointerAttributes attributes;
        CHECK(cudaPointerGetAttributes(&attributes, data.data + 500));
        REQUIRE(attributes.type == cudaMemoryTypeDevice && attributes.devicePointer == data.data + 500);
        CHECK(cudaPointerGetAttributes(&attributes, host.data));
        REQUIRE(attributes.type == cudaMemoryTypeHost);
        CHECK(cudaPointerGetAttributes(&attributes, plain.data()));
        REQUIRE(attributes.type == cudaMemoryTypeUnregistered);
        CHECK(cudaHostRegister(plain.data(), plain.size(), cudaHostRegisterDefault));
        CHECK(cudaPointerGetAttributes(&attributes, plain.data() + 5));
        REQUIRE(attributes.type == cudaMemoryTypeHost);
        REQUIRE(cudaHostRegister(plain.data() + 9, 9, 0) == cudaErrorHostMemoryAlreadyRegistered);
        CHECK(cudaHostUnregister(plain.data()));

        std::iota(plain.begin(), plain.begin() + 60, 0);
        CHECK(cudaMemcpy2DAsync(data.data, 16, plain.data(), 20, 10, 3, cudaMemcpyHostToDevice, stream));
        stream.wait();
        const auto got = data.read();
        REQUIRE(got[9] == 9 && got[10] == 0xa5 && got[16] == 20 && got[41] == 49 && got[42] == 0xa5);
        REQUIRE(cudaMemcpy2DAsync(data.data, 16, plain.data(), 20, 17, 3, cudaMemcpyHostToDevice, stream) ==
                cudaErrorInvalidPitchValue);

        unsigned char* later;
        CHECK(cudaMallocAsync(&later, 64, stream));
        CHECK(cudaMemsetAsync(later, 3, 64, stream));
        CHECK(cudaFreeAsync(later, stream));
        stream.wait();
    }
    const auto after = cuda_emulator::counters();
    REQUIRE(after.device_bytes == before.device_bytes && after.pinned_bytes == before.pinned_bytes);
    REQUIRE(after.synchronizations == before.synchronizations + 2);
    CHECK(cudaFree(nullptr));
    cudaGetLastError();
}

void test_guards() {
    Stream stream;
    for (const long at : {-1l, 1000l, 1023l}) {
        Device<unsigned char> data(1000);
        CHECK(launch(stream, 1, 1, write_at, data.data, at));
        REQUIRE(cudaStreamSynchronize(stream) == cudaErrorIllegalAddress);
        REQUIRE(cudaDeviceSynchronize() == cudaErrorIllegalAddress);  // and so it stays
        REQUIRE(launch(stream, 1, 1, write_at, data.data, at) == cudaErrorIllegalAddress);
        cuda_emulator::reset();
        // Whole again, so that it can be freed.
        *(reinterpret_cast<volatile unsigned char*>(data.data) + at) = 0xbd;
    }
    // A copy that is still to run when its memory goes.
    Pinned<int> host(1);
    int* data;
    CHECK(cudaMallocAsync(&data, sizeof(int), stream));
    CHECK(cudaFreeAsync(data, stream));
    CHECK(cudaMemcpyAsync(data, host.data, sizeof(int), cudaMemcpyHostToDevice, stream));
    REQUIRE(cudaStreamSynchronize(stream) == cudaErrorIllegalAddress);
    cuda_emulator::reset();
}

// Under a sanitizer this ends the process with its report.
void test_overflow() {
    Stream stream;
    Device<unsigned char> data(1000);
    CHECK(launch(stream, 1, 1, write_at, data.data, 1000l));
    std::exit(cudaStreamSynchronize(stream) == cudaErrorIllegalAddress ? 3 : 1);
}

void test_faults() {
    Stream stream;
    Device<int> value(std::vector<int>{0});
    int* pointer = nullptr;
    cuda_emulator::set_device_memory(cuda_emulator::counters().device_bytes + 100);
    CHECK(cudaMalloc(&pointer, 100));
    CHECK(cudaFree(pointer));
    REQUIRE(cudaMalloc(&pointer, 101) == cudaErrorMemoryAllocation && pointer == nullptr);
    REQUIRE(cudaPeekAtLastError() == cudaErrorMemoryAllocation &&
            cudaGetLastError() == cudaErrorMemoryAllocation);
    REQUIRE(cudaGetLastError() == cudaSuccess);
    std::size_t free = 0, total = 0;
    CHECK(cudaMemGetInfo(&free, &total));
    REQUIRE(free == 100);
    cuda_emulator::set_pinned_memory(10);
    REQUIRE(cudaHostAlloc(&pointer, 11, 0) == cudaErrorMemoryAllocation);
    cuda_emulator::reset();

    cuda_emulator::fail_next_launch(cudaErrorLaunchOutOfResources);
    REQUIRE(launch(stream, 1, 1, increment, value.data, 1) == cudaErrorLaunchOutOfResources);
    CHECK(launch(stream, 1, 1, increment, value.data, 1));
    stream.wait();
    REQUIRE(value.read()[0] == 1);
    REQUIRE(launch(stream, 1, 1025, increment, value.data, 1) == cudaErrorInvalidConfiguration);
    REQUIRE(launch(stream, dim3(1, 65536), 1, increment, value.data, 1) == cudaErrorInvalidConfiguration);
    REQUIRE(launch(reinterpret_cast<cudaStream_t>(99), 1, 1, increment, value.data, 1) ==
            cudaErrorInvalidResourceHandle);

    cuda_emulator::fail_next_kernel(cudaErrorLaunchFailure);
    CHECK(launch(stream, 1, 1, increment, value.data, 1));
    REQUIRE(cudaStreamSynchronize(stream) == cudaErrorLaunchFailure &&
            cudaMalloc(&pointer, 1) == cudaErrorLaunchFailure);
    cuda_emulator::reset();
    stream.wait();

    int n = -1;
    cuda_emulator::set_driver(cuda_emulator::Driver::missing);
    REQUIRE(cudaGetDeviceCount(&n) == cudaErrorInsufficientDriver && n == 0);
    CHECK(cudaDriverGetVersion(&n));
    REQUIRE(n == 0);
    cuda_emulator::set_driver(cuda_emulator::Driver::too_old);
    REQUIRE(cudaSetDevice(0) == cudaErrorInsufficientDriver);
    CHECK(cudaDriverGetVersion(&n));
    REQUIRE(n > 0 && n < CUDART_VERSION);
    cuda_emulator::set_driver(cuda_emulator::Driver::without_device);
    REQUIRE(cudaGetDeviceCount(&n) == cudaErrorNoDevice);
    REQUIRE(std::string(cudaGetErrorName(cudaErrorNoDevice)) == "cudaErrorNoDevice");
    cuda_emulator::reset();
    CHECK(cudaGetDeviceCount(&n));
    cudaDeviceProp properties;
    CHECK(cudaGetDeviceProperties(&properties, 0));
    REQUIRE(n == 1 && properties.major == 7 && properties.minor == 5 && properties.multiProcessorCount == 8);
    int blocks = 0;
    CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, increment, 256, 0));
    REQUIRE(blocks == 4);
}

void test_environment() {
    int count;
    const cudaError_t error = cudaGetDeviceCount(&count);
    cuda_emulator::set_driver(cuda_emulator::Driver::present);
    std::size_t free, total = 0;
    CHECK(cudaMemGetInfo(&free, &total));
    std::printf("%s, then %zu bytes\n", cudaGetErrorName(error), total);
}

__global__ void some_threads_only() {
    if (threadIdx.x < 5)
        __syncthreads();
    else
        __syncwarp();
}
__global__ void lane_elsewhere() {
    if (threadIdx.x == 3)
        __syncthreads();
    else
        __ballot_sync(0xffffffff, 1);
}
__global__ void mask_without_self() { __ballot_sync(1, 1); }
__global__ void two_operations() {
    if (threadIdx.x % 2 == 0)
        __any_sync(0xffffffff, 1);
    else
        __all_sync(0xffffffff, 1);
}

void hangs(void (*kernel)()) {
    Stream stream;
    CHECK(launch(stream, 1, 40, kernel));
    stream.wait();
}

const std::map<std::string, std::function<void()>> tests{
    {"indices", test_indices},
    {"barriers", test_barriers},
    {"order", test_order},
    {"warps", test_warps},
    {"atomics", test_atomics},
    {"arithmetic", test_arithmetic},
    {"halves", test_halves},
    {"lazy", test_lazy},
    {"events", test_events},
    {"graph", test_graph},
    {"capture_errors", test_capture_errors},
    {"memory", test_memory},
    {"guards", test_guards},
    {"overflow", test_overflow},
    {"faults", test_faults},
    {"environment", test_environment},
    {"some_threads_only", [] { hangs(some_threads_only); }},
    {"lane_elsewhere", [] { hangs(lane_elsewhere); }},
    {"mask_without_self", [] { hangs(mask_without_self); }},
    {"two_operations", [] { hangs(two_operations); }},
};

}  // namespace

int main(int count, char** arguments) {
    const auto test = count == 2 ? tests.find(arguments[1]) : tests.end();
    REQUIRE(test != tests.end());
    test->second();
    std::fprintf(stderr, "%s: ok\n", arguments[1]);
}
