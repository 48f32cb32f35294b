// Just enough of CUDA to run the project's .cu files on a CPU: for their values, barriers and index arithmetic, not for
// their speed. Threads of a block are fibers, which change places only where they wait for each other; blocks of a
// cooperative launch are threads of the system, those of another run one after another. Threads take turns in an order
// that changes with every turn, and shared memory starts as garbage, so that a forgotten barrier shows as a wrong
// value. A barrier that some threads of a block or warp never reach ends the program, and so does a write beyond the
// shared memory asked for. What it cannot show: races that need a GPU's weaker order of memory, limits of resources,
// and accesses beyond an array of global memory (-fsanitize=address shows those; ignore its note on no_return).
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ thread_local  // a block is one thread of the system
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace cuda_on_host {

constexpr int kWarp = 32;
constexpr size_t kStack = 64 << 10;          // bytes a fiber
constexpr size_t kSharedMemory = 256 << 10;  // bytes a block, more than any device has

// The device that kernels find; a test changes it to reach other plans.
struct Device {
  int multiprocessors = 3;
  int shared_memory = 48 << 10;  // bytes a block
  unsigned grid = UINT_MAX;      // blocks a launch: with fewer than it asked for, kernels have to loop over their tasks
};
inline Device device;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "cuda_on_host: %s\n", what);
  std::abort();
}

// All blocks of a cooperative launch meet here.
class GridBarrier {
 public:
  explicit GridBarrier(unsigned blocks) : blocks_(blocks) {}
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const unsigned turn = turn_;
    if (++arrived_ == blocks_) {
      arrived_ = 0;
      ++turn_;
      all_arrived_.notify_all();
    } else {
      const auto done = [&] { return turn_ != turn; };
      if (!all_arrived_.wait_for(lock, std::chrono::minutes(1), done)) fail("a block never came to the grid's barrier");
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_arrived_;
  const unsigned blocks_;
  unsigned arrived_ = 0, turn_ = 0;
};

enum class Waits { kNo, kForWarp, kForBlock, kForGrid, kEnded };

// One block: its threads, and whom each waits for.
class Block {
 public:
  Block(unsigned threads, GridBarrier* grid, std::function<void()> kernel)
      : kernel_(std::move(kernel)), grid_(grid), fibers_(threads) {
    static thread_local std::vector<char> stacks;  // of the block that this thread of the system runs
    stacks.resize(threads * kStack);
    for (unsigned i = 0; i < threads; ++i) {
      getcontext(&fibers_[i].start);
      fibers_[i].start.uc_stack = {};
      fibers_[i].start.uc_stack.ss_sp = stacks.data() + i * kStack;
      fibers_[i].start.uc_stack.ss_size = kStack;
      makecontext(&fibers_[i].start, &Block::enter, 0);
    }
  }

  void run();
  void wait(Waits waits) {
    fibers_[current_].waits = waits;
    if (_setjmp(fibers_[current_].here) == 0) _longjmp(scheduler_, 1);
  }
  // The value that lane `from` of this warp has given; lanes beyond the warp give one's own.
  template <class T>
  T exchange(T value, int from) {
    static_assert(sizeof(T) == sizeof(uint32_t));
    const unsigned me = current_;
    std::memcpy(&fibers_[me].given, &value, sizeof value);
    wait(Waits::kForWarp);
    T got = value;
    if (from < kWarp) std::memcpy(&got, &fibers_[me / kWarp * kWarp + from].given, sizeof got);
    wait(Waits::kForWarp);
    return got;
  }

 private:
  struct Fiber {
    ucontext_t start;
    jmp_buf here;  // where it waits, once it has started: quicker to change than a ucontext_t
    bool started = false;
    Waits waits = Waits::kNo;
    uint32_t given = 0;
  };

  static void enter();
  void resume(unsigned thread);
  bool all(unsigned begin, unsigned end, Waits waits) const {
    return std::all_of(fibers_.begin() + begin, fibers_.begin() + end,
                       [&](const Fiber& f) { return f.waits == waits; });
  }
  void release(unsigned begin, unsigned end) {
    for (unsigned i = begin; i < end; ++i) fibers_[i].waits = Waits::kNo;
  }
  bool step(unsigned turn);
  bool release_warps();

  std::function<void()> kernel_;
  GridBarrier* grid_;
  std::vector<Fiber> fibers_;
  jmp_buf scheduler_;
  unsigned current_ = 0;
};

inline thread_local Block* block;

}  // namespace cuda_on_host

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_host {

inline void Block::enter() {
  block->kernel_();
  block->fibers_[block->current_].waits = Waits::kEnded;
  _longjmp(block->scheduler_, 1);
}

inline void Block::resume(unsigned thread) {
  current_ = thread;
  threadIdx.x = thread;
  if (_setjmp(scheduler_) != 0) return;
  if (fibers_[thread].started) _longjmp(fibers_[thread].here, 1);
  fibers_[thread].started = true;
  setcontext(&fibers_[thread].start);
}

// Lets every thread that waits for nobody run until it does.
inline bool Block::step(unsigned turn) {
  const unsigned threads = static_cast<unsigned>(fibers_.size());
  bool any = false;
  for (unsigned i = 0; i < threads; ++i) {
    const unsigned thread = turn % 2 ? threads - 1 - i : (i + turn * 37) % threads;
    if (fibers_[thread].waits != Waits::kNo) continue;
    any = true;
    resume(thread);
  }
  return any;
}

inline bool Block::release_warps() {
  bool any = false;
  for (unsigned first = 0; first < fibers_.size(); first += kWarp) {
    const unsigned end = std::min<unsigned>(first + kWarp, fibers_.size());
    if (!all(first, end, Waits::kForWarp)) continue;
    release(first, end);
    any = true;
  }
  return any;
}

inline void Block::run() {
  const unsigned threads = static_cast<unsigned>(fibers_.size());
  for (unsigned turn = blockIdx.x;; ++turn) {
    if (step(turn) || release_warps()) continue;
    if (all(0, threads, Waits::kEnded)) return;
    if (all(0, threads, Waits::kForGrid) && grid_) {
      grid_->wait();
    } else if (!all(0, threads, Waits::kForBlock)) {
      fail("threads of a block wait at different barriers");
    }
    release(0, threads);
  }
}

}  // namespace cuda_on_host

inline void __syncthreads() { cuda_on_host::block->wait(cuda_on_host::Waits::kForBlock); }
inline float __shfl_down_sync(unsigned, float value, int offset) {
  return cuda_on_host::block->exchange(value, static_cast<int>(threadIdx.x % cuda_on_host::kWarp) + offset);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return cuda_on_host::block->exchange(value, static_cast<int>(threadIdx.x % cuda_on_host::kWarp) ^ mask);
}
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

namespace cooperative_groups {
struct grid_group {
  void sync() const { cuda_on_host::block->wait(cuda_on_host::Waits::kForGrid); }
};
inline grid_group this_grid() { return {}; }
}  // namespace cooperative_groups

using __half = _Float16;
inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __float2half_rn(float x) { return static_cast<__half>(x); }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  if (x != x) return {0x7fff};
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidValue };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrCooperativeLaunch
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
};

inline const char* cudaGetErrorString(cudaError_t) { return "invalid value"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int) {
  *value = name == cudaDevAttrMultiProcessorCount            ? cuda_on_host::device.multiprocessors
           : name == cudaDevAttrMaxSharedMemoryPerBlockOptin ? cuda_on_host::device.shared_memory
                                                             : 1;
  return cudaSuccess;
}
template <class... P>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*)(P...)) {
  return attributes->sharedSizeBytes = 0, cudaSuccess;
}
template <class... P>
cudaError_t cudaFuncSetAttribute(void (*)(P...), cudaFuncAttribute, int bytes) {
  return bytes <= cuda_on_host::device.shared_memory ? cudaSuccess : cudaErrorInvalidValue;
}
template <class... P>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(P...), int, size_t) {
  return *blocks = 1, cudaSuccess;
}

// The block's dynamic shared memory, of kSharedMemory bytes: the program defines it beside the kernels. Null where no
// kernel has any.
unsigned char* dynamic_shared_memory();

namespace cuda_on_host {

inline void run_block(const cudaLaunchConfig_t& config, unsigned index, GridBarrier* grid,
                      const std::function<void()>& kernel) {
  blockIdx = dim3(index);
  blockDim = config.blockDim;
  gridDim = config.gridDim;
  unsigned char* const shared = dynamic_shared_memory();
  if (shared == nullptr && config.dynamicSmemBytes > 0) fail("the program defines no dynamic shared memory");
  unsigned char* const end = shared == nullptr ? shared : shared + kSharedMemory;
  std::fill(shared, end, 0xff);  // NaN
  Block here(config.blockDim.x, grid, kernel);
  block = &here;
  here.run();
  const auto is_garbage = [](unsigned char byte) { return byte == 0xff; };
  if (!std::all_of(shared + config.dynamicSmemBytes, end, is_garbage)) {
    fail("a block wrote beyond its shared memory");
  }
}

}  // namespace cuda_on_host

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A... arguments) {
  using namespace cuda_on_host;
  unsigned blocks = config->gridDim.x;
  const bool cooperative = config->numAttrs > 0;
  if (blocks == 0 || config->dynamicSmemBytes > static_cast<size_t>(device.shared_memory)) return cudaErrorInvalidValue;
  if (cooperative && blocks > static_cast<unsigned>(device.multiprocessors)) return cudaErrorInvalidValue;
  const std::function<void()> run = [&] { kernel(arguments...); };
  if (!cooperative) {
    cudaLaunchConfig_t capped = *config;
    capped.gridDim.x = blocks = std::min(blocks, device.grid);
    for (unsigned b = 0; b < blocks; ++b) run_block(capped, b, nullptr, run);
    return cudaSuccess;
  }
  GridBarrier barrier(blocks);
  std::vector<std::thread> threads;
  for (unsigned b = 0; b < blocks; ++b) threads.emplace_back([&, b] { run_block(*config, b, &barrier, run); });
  for (std::thread& thread : threads) thread.join();
  return cudaSuccess;
}
