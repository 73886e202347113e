// Activations, gates, dropout and residuals on the CPU, each of them in one pass.
//
// Tensors are (batch, channels, positions) with contiguous positions, float32 or bfloat16; all is
// computed in float32. What is dropped follows from a seed, the channel and the position, so that a
// backward pass draws it again instead of reading it.

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "../blocks.h"

namespace {

using namespace fairseq_csp;

// ---- a batch ----

template <typename T, size_t inputs, size_t outputs, typename Function>
void run(
    const std::array<at::Tensor, inputs>& from, const std::array<at::Tensor, outputs>& to, double p,
    int64_t seed, const Function& function) {
  const int64_t channels = to[0].size(1), positions = to[0].size(2);
  const int64_t rows = to[0].size(0) * channels;
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(positions, 1));
  at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    float factors[kBlock];
    std::fill(factors, factors + kBlock, 1.f);
    for (int64_t row = begin; row < end; ++row) {
      const auto offset = [&](const at::Tensor& tensor) {
        return row / channels * tensor.stride(0) + row % channels * tensor.stride(1);
      };
      std::array<const T*, inputs> source;
      std::array<T*, outputs> target;
      for (size_t k = 0; k < inputs; ++k) source[k] = from[k].template const_data_ptr<T>() + offset(from[k]);
      for (size_t k = 0; k < outputs; ++k) target[k] = to[k].template data_ptr<T>() + offset(to[k]);
      const Dropout dropout(p, uint64_t(seed), row);
      each_block<T>(positions, source, target, [&](int64_t i, In in, Out out) {
        if (dropout.active) dropout.factors(i, factors);
        function(in, out, factors);
      });
    }
  });
}

template <size_t inputs, size_t outputs, typename Function>
std::array<at::Tensor, outputs> pointwise(
    const std::array<at::Tensor, inputs>& from, double p, const Seed& seed, const Function& function) {
  for (const at::Tensor& tensor : from) {
    TORCH_CHECK(has_rows(tensor) && tensor.sizes() == from[0].sizes() &&
        tensor.scalar_type() == from[0].scalar_type(),
        "inputs must be of one dtype and shape (batch, channels, positions), with contiguous positions");
  }
  std::array<at::Tensor, outputs> to;
  for (at::Tensor& tensor : to) tensor = at::empty(from[0].sizes(), from[0].options());
  const int64_t number = number_of(seed);
  by_dtype(from[0], [&](auto one) { run<decltype(one)>(from, to, p, number, function); });
  return to;
}

// silu(x) * factor
at::Tensor silu_product(const at::Tensor& x, const at::Tensor& factor) {
  return pointwise<2, 1>({x, factor}, 0, std::nullopt, [](In in, Out out, const float*) {
    each_vector([=](int64_t j) {
      const Vec x = Vec::loadu(in[0] + j), factor = Vec::loadu(in[1] + j);
      (x * sigmoid(x) * factor).store(out[0] + j);
    });
  })[0];
}

std::tuple<at::Tensor, at::Tensor> silu_product_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& factor) {
  auto to = pointwise<3, 2>({grad, x, factor}, 0, std::nullopt, [](In in, Out out, const float*) {
    each_vector([=](int64_t j) {
      const Vec grad = Vec::loadu(in[0] + j), x = Vec::loadu(in[1] + j), gate = sigmoid(x);
      (grad * Vec::loadu(in[2] + j) * silu_slope(x, gate)).store(out[0] + j);
      (grad * x * gate).store(out[1] + j);
    });
  });
  return {to[0], to[1]};
}

// dropout(silu(x))
at::Tensor silu_dropout(const at::Tensor& x, double p, const Seed& seed) {
  return pointwise<1, 1>({x}, p, seed, [](In in, Out out, const float* kept) {
    each_vector([=](int64_t j) {
      const Vec x = Vec::loadu(in[0] + j);
      keep(kept + j, x * sigmoid(x)).store(out[0] + j);
    });
  })[0];
}

at::Tensor silu_dropout_backward(
    const at::Tensor& grad, const at::Tensor& x, double p, const Seed& seed) {
  return pointwise<2, 1>({grad, x}, p, seed, [](In in, Out out, const float* kept) {
    each_vector([=](int64_t j) {
      const Vec grad = Vec::loadu(in[0] + j), x = Vec::loadu(in[1] + j);
      keep(kept + j, grad * silu_slope(x, sigmoid(x))).store(out[0] + j);
    });
  })[0];
}

at::Tensor dropout(const at::Tensor& x, double p, const Seed& seed) {
  return pointwise<1, 1>({x}, p, seed, [](In in, Out out, const float* kept) {
    each_vector([=](int64_t j) { keep(kept + j, Vec::loadu(in[0] + j)).store(out[0] + j); });
  })[0];
}

// dropout(x) + residual
at::Tensor dropout_add(
    const at::Tensor& x, const at::Tensor& residual, double p, const Seed& seed) {
  return pointwise<2, 1>({x, residual}, p, seed, [](In in, Out out, const float* kept) {
    each_vector([=](int64_t j) {
      (keep(kept + j, Vec::loadu(in[0] + j)) + Vec::loadu(in[1] + j)).store(out[0] + j);
    });
  })[0];
}

// residual + sigmoid(update) * (dropout(silu(direct + mixed)) - residual)
at::Tensor gated_residual(
    const at::Tensor& residual, const at::Tensor& update, const at::Tensor& direct,
    const at::Tensor& mixed, double p, const Seed& seed) {
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
    const at::Tensor& direct, const at::Tensor& mixed, double p, const Seed& seed) {
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
  add("silu_dropout(Tensor x, float p, Tensor? seed) -> Tensor", "silu_dropout", TORCH_FN(silu_dropout));
  add("silu_dropout_backward(Tensor grad, Tensor x, float p, Tensor? seed) -> Tensor",
      "silu_dropout_backward", TORCH_FN(silu_dropout_backward));
  add("dropout(Tensor x, float p, Tensor? seed) -> Tensor", "dropout", TORCH_FN(dropout));
  add("dropout_add(Tensor x, Tensor residual, float p, Tensor? seed) -> Tensor", "dropout_add",
      TORCH_FN(dropout_add));
  add("gated_residual(Tensor residual, Tensor update, Tensor direct, Tensor mixed, float p, "
      "Tensor? seed) -> Tensor",
      "gated_residual", TORCH_FN(gated_residual));
  add("gated_residual_backward(Tensor grad, Tensor residual, Tensor update, Tensor direct, "
      "Tensor mixed, float p, Tensor? seed) -> (Tensor, Tensor, Tensor)",
      "gated_residual_backward", TORCH_FN(gated_residual_backward));
}
