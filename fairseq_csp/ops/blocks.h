// What the CPU kernels share: blocks of numbers in float32 or wider, dropout, work for threads.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace fairseq_csp {

// the numbers of a block are independent of one another
#define EACH(j) _Pragma("omp simd") for (int j = 0; j < kBlock; ++j)

constexpr int64_t kBlock = 64;
using Vec = at::vec::Vectorized<float>;
using In = const float* const*;
using Out = float* const*;

// what numbers are computed in
template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// ---- numbers ----

// Where a block's numbers are read from: its place in a tensor, or the buffer it is copied to.
template <typename T>
inline const T* load(const T* from, int64_t count, T* buffer) {
  if (count == kBlock) return from;
  std::memcpy(buffer, from, count * sizeof(T));
  std::fill(buffer + count, buffer + kBlock, T(0));
  return buffer;
}

inline const float* load(const at::BFloat16* from, int64_t count, float* buffer) {
  at::BFloat16 part[kBlock];
  if (count < kBlock) from = load<at::BFloat16>(from, count, part);
  uint32_t bits[kBlock];
  EACH(j) bits[j] = uint32_t(from[j].x) << 16;
  std::memcpy(buffer, bits, sizeof(bits));
  return buffer;
}

// Where a block's numbers are written to, before store().
template <typename T>
inline T* place(T* to, int64_t count, T* buffer) {
  return count == kBlock ? to : buffer;
}

inline float* place(at::BFloat16*, int64_t, float* buffer) { return buffer; }

template <typename T>
inline void store(const T* buffer, int64_t count, T* to) {
  if (count < kBlock) std::memcpy(to, buffer, count * sizeof(T));
}

inline void store(const float* buffer, int64_t count, at::BFloat16* to) {
  uint32_t bits[kBlock];
  uint16_t half[kBlock];
  std::memcpy(bits, buffer, sizeof(bits));
  EACH(j) {
    // to the nearest, ties to even; NaN stays NaN
    const uint32_t rounded = (bits[j] + 0x7FFF + (bits[j] >> 16 & 1)) >> 16;
    const bool nan = (bits[j] & 0x7FFFFFFF) > 0x7F800000;
    half[j] = nan ? 0x7FC0 : uint16_t(rounded);
  }
  // a copy of known size is a few instructions, not a call
  if (count == kBlock) {
    std::memcpy(to, half, sizeof(half));
  } else {
    std::memcpy(to, half, count * sizeof(uint16_t));
  }
}

inline Vec sigmoid(const Vec& x) { return Vec(1.f) / (Vec(1.f) + x.neg().exp()); }

// The derivative of silu(x), where gate is sigmoid(x).
inline Vec silu_slope(const Vec& x, const Vec& gate) {
  return gate * (Vec(1.f) + x * (Vec(1.f) - gate));
}

// Call function with a number of a tensor's dtype, float32 or bfloat16.
template <typename Function>
inline void by_dtype(const at::Tensor& x, const Function& function) {
  switch (x.scalar_type()) {
    case at::kFloat: function(float()); break;
    case at::kBFloat16: function(at::BFloat16()); break;
    default: TORCH_CHECK(false, "numbers of ", x.scalar_type(), " have no kernel");
  }
}

// ---- dropout ----

inline uint64_t mixed(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

// factor * x, and 0 where the factor is, for infinities too
inline Vec keep(const float* factor, const Vec& x) {
  const Vec factors = Vec::loadu(factor), zero(0.f);
  return Vec::blendv(zero, factors * x, factors != zero);
}

// Seeds are tensors, so that a graph does not take them for constants; none stands for 0.
using Seed = std::optional<at::Tensor>;

inline int64_t number_of(const Seed& seed) {
  return seed.has_value() ? seed->item<int64_t>() : 0;
}

// What is kept of one channel, and by what it is multiplied.
struct Dropout {
  uint32_t key, threshold;
  float scale;
  bool active;

  Dropout(double p, uint64_t seed, int64_t row) {
    const uint64_t draw = mixed(seed + mixed(uint64_t(row) + 0x9E3779B97F4A7C15u));
    key = uint32_t(draw);
    active = p > 0;
    // 16 bits a number; the threshold is rounded at random, so that p is exact
    threshold = uint32_t(p * 65536 + double(draw >> 40) / double(1 << 24));
    scale = p < 1 ? float(1 / (1 - p)) : 0.f;
  }

  // The factors of the numbers from position first on, 0 or the scale.
  void factors(int64_t first, float* to) const {
    // copies, which what is written cannot change: else the loops are not vectorised everywhere
    const uint32_t own = key, least = threshold;
    const float kept = scale;
    uint32_t bits[kBlock / 2];
    for (int j = 0; j < kBlock / 2; ++j) {
      uint32_t x = (uint32_t(first) / 2 + j) * 0x9E3779B1u + own;
      x = (x ^ x >> 16) * 0x7FEB352Du;
      x = (x ^ x >> 15) * 0x846CA68Bu;
      x = (x ^ x >> 16) + own;
      x = (x ^ x >> 15) * 0x2C1B3C6Du;
      bits[j] = x ^ x >> 16;
    }
    for (int j = 0; j < kBlock / 2; ++j) {
      to[j] = (bits[j] & 0xFFFF) < least ? 0.f : kept;
      to[j + kBlock / 2] = bits[j] >> 16 < least ? 0.f : kept;
    }
  }
};

// ---- rows and threads ----

// Whether a tensor is (batch, channels, positions) with contiguous positions, or empty.
inline bool has_rows(const at::Tensor& tensor) {
  return tensor.dim() == 3 && (tensor.stride(2) == 1 || tensor.size(2) < 2 || !tensor.numel());
}

// Call function(j) for the first number of each vector of a block.
template <typename V = Vec, typename Function>
inline void each_vector(const Function& function) {
  for (int64_t j = 0; j < kBlock; j += V::size()) function(j);
}

// Call function(i, in, out) for each block of a row; beyond its end the inputs are 0.
template <typename T, size_t inputs, size_t outputs, typename Function>
inline void each_block(
    int64_t count, const std::array<const T*, inputs>& source,
    const std::array<T*, outputs>& target, const Function& function) {
  Wide<T> in_buffer[std::max<size_t>(inputs, 1)][kBlock];
  Wide<T> out_buffer[std::max<size_t>(outputs, 1)][kBlock];
  const Wide<T>* in[std::max<size_t>(inputs, 1)];
  Wide<T>* out[std::max<size_t>(outputs, 1)];
  for (int64_t i = 0; i < count; i += kBlock) {
    const int64_t here = std::min(kBlock, count - i);
    for (size_t k = 0; k < inputs; ++k) in[k] = load(source[k] + i, here, in_buffer[k]);
    for (size_t k = 0; k < outputs; ++k) out[k] = place(target[k] + i, here, out_buffer[k]);
    function(i, in, out);
    for (size_t k = 0; k < outputs; ++k) store(out[k], here, target[k] + i);
  }
}

template <typename V>
inline typename V::value_type sum(const V& vector) {
  typename V::value_type numbers[V::size()], total = 0;
  vector.store(numbers);
  for (const auto number : numbers) total += number;
  return total;
}

// Into how many parts, one for each thread, a number of items is divided.
inline int64_t parts(int64_t items) {
  return std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), items));
}

// Call function(part, begin, end) for each part: what is summed up is so in the same order always.
template <typename Function>
inline void each_part(int64_t items, const Function& function) {
  const int64_t count = parts(items);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      function(part, items * part / count, items * (part + 1) / count);
    }
  });
}

}  // namespace fairseq_csp
