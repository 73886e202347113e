// Activations, gates, dropout and residuals on the CPU, each of them in one pass.
//
// Tensors are (batch, channels, positions) with contiguous positions, float32 or bfloat16; all is
// computed in float32. What is dropped follows from a seed, the channel and the position, so that a
// backward pass draws it again instead of reading it.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <tuple>

namespace {

// the numbers of a block are independent of one another
#define EACH(j) _Pragma("omp simd") for (int j = 0; j < kBlock; ++j)

constexpr int64_t kBlock = 64;
using Vec = at::vec::Vectorized<float>;
using In = const float* const*;
using Out = float* const*;

// ---- numbers ----

// Where a block's numbers are read from: its place in a tensor, or the buffer it is copied to.
inline const float* load(const float* from, int64_t count, float* buffer) {
  if (count == kBlock) return from;
  std::memcpy(buffer, from, count * sizeof(float));
  std::fill(buffer + count, buffer + kBlock, 0.f);
  return buffer;
}

inline const float* load(const at::BFloat16* from, int64_t count, float* buffer) {
  uint16_t half[kBlock] = {};
  std::memcpy(half, from, count * sizeof(uint16_t));
  uint32_t bits[kBlock];
  EACH(j) bits[j] = uint32_t(half[j]) << 16;
  std::memcpy(buffer, bits, sizeof(bits));
  return buffer;
}

// Where a block's numbers are written to, before store().
inline float* place(float* to, int64_t count, float* buffer) {
  return count == kBlock ? to : buffer;
}

inline float* place(at::BFloat16*, int64_t, float* buffer) { return buffer; }

inline void store(const float* buffer, int64_t count, float* to) {
  if (count < kBlock) std::memcpy(to, buffer, count * sizeof(float));
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
  std::memcpy(to, half, count * sizeof(uint16_t));
}

inline Vec sigmoid(const Vec& x) { return Vec(1.f) / (Vec(1.f) + x.neg().exp()); }

// The derivative of silu(x), where gate is sigmoid(x).
inline Vec silu_slope(const Vec& x, const Vec& gate) {
  return gate * (Vec(1.f) + x * (Vec(1.f) - gate));
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
    uint32_t bits[kBlock / 2];
    for (int j = 0; j < kBlock / 2; ++j) {
      uint32_t x = (uint32_t(first) / 2 + j) * 0x9E3779B1u + key;
      x = (x ^ x >> 16) * 0x7FEB352Du;
      x = (x ^ x >> 15) * 0x846CA68Bu;
      x = (x ^ x >> 16) + key;
      x = (x ^ x >> 15) * 0x2C1B3C6Du;
      bits[j] = x ^ x >> 16;
    }
    for (int j = 0; j < kBlock / 2; ++j) {
      to[j] = (bits[j] & 0xFFFF) < threshold ? 0.f : scale;
      to[j + kBlock / 2] = bits[j] >> 16 < threshold ? 0.f : scale;
    }
  }
};

// ---- a batch ----

template <typename T, size_t inputs, size_t outputs, typename Function>
void run(
    const std::array<at::Tensor, inputs>& from, const std::array<at::Tensor, outputs>& to, double p,
    int64_t seed, const Function& function) {
  const int64_t channels = to[0].size(1), positions = to[0].size(2);
  const int64_t rows = to[0].size(0) * channels;
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(positions, 1));
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    float in_buffer[inputs][kBlock], out_buffer[outputs][kBlock], factors[kBlock];
    const float* in[inputs];
    float* out[outputs];
    std::fill(factors, factors + kBlock, 1.f);
    for (int64_t row = begin; row < end; ++row) {
      const auto offset = [&](const at::Tensor& tensor) {
        return row / channels * tensor.stride(0) + row % channels * tensor.stride(1);
      };
      const T* source[inputs];
      T* target[outputs];
      for (size_t k = 0; k < inputs; ++k) source[k] = from[k].template const_data_ptr<T>() + offset(from[k]);
      for (size_t k = 0; k < outputs; ++k) target[k] = to[k].template data_ptr<T>() + offset(to[k]);
      const Dropout dropout(p, uint64_t(seed), row);
      for (int64_t i = 0; i < positions; i += kBlock) {
        const int64_t count = std::min(kBlock, positions - i);
        for (size_t k = 0; k < inputs; ++k) in[k] = load(source[k] + i, count, in_buffer[k]);
        for (size_t k = 0; k < outputs; ++k) out[k] = place(target[k] + i, count, out_buffer[k]);
        if (dropout.active) dropout.factors(i, factors);
        function(in, out, factors);
        for (size_t k = 0; k < outputs; ++k) store(out[k], count, target[k] + i);
      }
    }
  });
}

template <size_t inputs, size_t outputs, typename Function>
std::array<at::Tensor, outputs> pointwise(
    const std::array<at::Tensor, inputs>& from, double p, int64_t seed, const Function& function) {
  for (const at::Tensor& tensor : from) {
    TORCH_CHECK(tensor.dim() == 3 && tensor.sizes() == from[0].sizes() &&
        tensor.scalar_type() == from[0].scalar_type() &&
        (tensor.stride(2) == 1 || tensor.size(2) < 2),
        "inputs must be of one dtype and shape (batch, channels, positions), with contiguous positions");
  }
  std::array<at::Tensor, outputs> to;
  for (at::Tensor& tensor : to) tensor = at::empty(from[0].sizes(), from[0].options());
  switch (from[0].scalar_type()) {
    case at::kFloat: run<float>(from, to, p, seed, function); break;
    case at::kBFloat16: run<at::BFloat16>(from, to, p, seed, function); break;
    default: TORCH_CHECK(false, "numbers of ", from[0].scalar_type(), " have no kernel");
  }
  return to;
}

// Call function(j) for the first number of each vector of a block.
template <typename Function>
inline void each_vector(const Function& function) {
  for (int64_t j = 0; j < kBlock; j += Vec::size()) function(j);
}

// silu(x) * factor
at::Tensor silu_product(const at::Tensor& x, const at::Tensor& factor) {
  return pointwise<2, 1>({x, factor}, 0, 0, [](In in, Out out, const float*) {
    each_vector([=](int64_t j) {
      const Vec x = Vec::loadu(in[0] + j), factor = Vec::loadu(in[1] + j);
      (x * sigmoid(x) * factor).store(out[0] + j);
    });
  })[0];
}

std::tuple<at::Tensor, at::Tensor> silu_product_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& factor) {
  auto to = pointwise<3, 2>({grad, x, factor}, 0, 0, [](In in, Out out, const float*) {
    each_vector([=](int64_t j) {
      const Vec grad = Vec::loadu(in[0] + j), x = Vec::loadu(in[1] + j), gate = sigmoid(x);
      (grad * Vec::loadu(in[2] + j) * silu_slope(x, gate)).store(out[0] + j);
      (grad * x * gate).store(out[1] + j);
    });
  });
  return {to[0], to[1]};
}

// dropout(silu(x))
at::Tensor silu_dropout(const at::Tensor& x, double p, int64_t seed) {
  return pointwise<1, 1>({x}, p, seed, [](In in, Out out, const float* kept) {
    each_vector([=](int64_t j) {
      const Vec x = Vec::loadu(in[0] + j);
      keep(kept + j, x * sigmoid(x)).store(out[0] + j);
    });
  })[0];
}

at::Tensor silu_dropout_backward(
    const at::Tensor& grad, const at::Tensor& x, double p, int64_t seed) {
  return pointwise<2, 1>({grad, x}, p, seed, [](In in, Out out, const float* kept) {
    each_vector([=](int64_t j) {
      const Vec grad = Vec::loadu(in[0] + j), x = Vec::loadu(in[1] + j);
      keep(kept + j, grad * silu_slope(x, sigmoid(x))).store(out[0] + j);
    });
  })[0];
}

at::Tensor dropout(const at::Tensor& x, double p, int64_t seed) {
  return pointwise<1, 1>({x}, p, seed, [](In in, Out out, const float* kept) {
    each_vector([=](int64_t j) { keep(kept + j, Vec::loadu(in[0] + j)).store(out[0] + j); });
  })[0];
}

// dropout(x) + residual
at::Tensor dropout_add(
    const at::Tensor& x, const at::Tensor& residual, double p, int64_t seed) {
  return pointwise<2, 1>({x, residual}, p, seed, [](In in, Out out, const float* kept) {
    each_vector([=](int64_t j) {
      (keep(kept + j, Vec::loadu(in[0] + j)) + Vec::loadu(in[1] + j)).store(out[0] + j);
    });
  })[0];
}

// residual + sigmoid(update) * (dropout(silu(direct + mixed)) - residual)
at::Tensor gated_residual(
    const at::Tensor& residual, const at::Tensor& update, const at::Tensor& direct,
    const at::Tensor& mixed, double p, int64_t seed) {
  return pointwise<4, 1>({residual, update, direct, mixed}, p, seed,
      [](In in, Out out, const float* kept) {
        each_vector([=](int64_t j) {
          const Vec residual = Vec::loadu(in[0] + j), gate = sigmoid(Vec::loadu(in[1] + j));
          const Vec sum = Vec::loadu(in[2] + j) + Vec::loadu(in[3] + j);
          const Vec candidate = keep(kept + j, sum * sigmoid(sum));
          (residual + gate * (candidate - residual)).store(out[0] + j);
        });
      })[0];
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> gated_residual_backward(
    const at::Tensor& grad, const at::Tensor& residual, const at::Tensor& update,
    const at::Tensor& direct, const at::Tensor& mixed, double p, int64_t seed) {
  auto to = pointwise<5, 3>({grad, residual, update, direct, mixed}, p, seed,
      [](In in, Out out, const float* kept) {
        each_vector([=](int64_t j) {
          const Vec grad = Vec::loadu(in[0] + j), residual = Vec::loadu(in[1] + j);
          const Vec gate = sigmoid(Vec::loadu(in[2] + j)), rest = Vec(1.f) - gate;
          const Vec sum = Vec::loadu(in[3] + j) + Vec::loadu(in[4] + j), inner = sigmoid(sum);
          (grad * rest).store(out[0] + j);
          (grad * gate * rest * (keep(kept + j, sum * inner) - residual)).store(out[1] + j);
          keep(kept + j, grad * gate * silu_slope(sum, inner)).store(out[2] + j);
        });
      });
  return {to[0], to[1], to[2]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fairseq_csp_native, library) {
  const auto add = [&](const char* schema, const char* name, auto function) {
    library.def(schema);
    library.impl(name, torch::dispatch(c10::DispatchKey::CPU, function));
  };
  add("silu_product(Tensor x, Tensor factor) -> Tensor", "silu_product", TORCH_FN(silu_product));
  add("silu_product_backward(Tensor grad, Tensor x, Tensor factor) -> (Tensor, Tensor)",
      "silu_product_backward", TORCH_FN(silu_product_backward));
  add("silu_dropout(Tensor x, float p, int seed) -> Tensor", "silu_dropout", TORCH_FN(silu_dropout));
  add("silu_dropout_backward(Tensor grad, Tensor x, float p, int seed) -> Tensor",
      "silu_dropout_backward", TORCH_FN(silu_dropout_backward));
  add("dropout(Tensor x, float p, int seed) -> Tensor", "dropout", TORCH_FN(dropout));
  add("dropout_add(Tensor x, Tensor residual, float p, int seed) -> Tensor", "dropout_add",
      TORCH_FN(dropout_add));
  add("gated_residual(Tensor residual, Tensor update, Tensor direct, Tensor mixed, float p, "
      "int seed) -> Tensor",
      "gated_residual", TORCH_FN(gated_residual));
  add("gated_residual_backward(Tensor grad, Tensor residual, Tensor update, Tensor direct, "
      "Tensor mixed, float p, int seed) -> (Tensor, Tensor, Tensor)",
      "gated_residual_backward", TORCH_FN(gated_residual_backward));
}
