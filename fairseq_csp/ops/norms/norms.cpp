// Normalisation over the channels of (batch, channels, positions) on the CPU.
//
// A block of positions is read for its statistics and again, from the cache, for the result. All is
// computed in float32, for float64 in float64. Positions are contiguous.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "../blocks.h"

namespace {

using namespace fairseq_csp;

// positions of a block
constexpr int64_t kSpan = 256;

template <typename T>
using V = at::vec::Vectorized<Wide<T>>;

// One number for each channel; of one number, that for all of them.
template <typename W>
std::vector<W> per_channel(const at::Tensor& values, int64_t channels) {
  const at::Tensor wide = values.to(c10::CppTypeToScalarType<W>::value).contiguous();
  std::vector<W> numbers(channels, channels && wide.numel() ? *wide.const_data_ptr<W>() : W(0));
  if (wide.numel() == channels) {
    std::copy_n(wide.const_data_ptr<W>(), channels, numbers.begin());
  }
  return numbers;
}

struct Blocks {
  int64_t channels, positions, row, count;

  explicit Blocks(const at::Tensor& x)
      : channels(x.size(1)), positions(x.size(2)), row((positions + kSpan - 1) / kSpan),
        count(x.size(0) * row) {}

  int64_t first(int64_t item) const { return item % row * kSpan; }
  int64_t span(int64_t item) const { return std::min(kSpan, positions - first(item)); }

  template <typename T>
  T* of(T* data, const at::Tensor& x, int64_t item) const {
    return data + item / row * x.stride(0) + first(item);
  }
};

// The results of a statistic are (batch, 1, positions).
template <typename T>
void forward(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias, double eps,
    const at::Tensor& out, const at::Tensor& mean, const at::Tensor& inverse) {
  using W = Wide<T>;
  const Blocks blocks(x);
  const int64_t channels = blocks.channels;
  const bool centred = bias.has_value();
  const std::vector<W> scale = per_channel<W>(weight, channels);
  const std::vector<W> offset = centred ? per_channel<W>(*bias, channels) : std::vector<W>(channels);
  each_part(blocks.count, [&](int64_t, int64_t begin, int64_t end) {
    W centre[kSpan] = {}, total[kSpan];
    for (int64_t item = begin; item < end; ++item) {
      const T* from = blocks.of(x.const_data_ptr<T>(), x, item);
      T* to = blocks.of(out.data_ptr<T>(), out, item);
      const int64_t span = blocks.span(item);
      if (centred) {
        std::fill(centre, centre + kSpan, W(0));
        for (int64_t c = 0; c < channels; ++c) {
          each_block<T, 1, 0>(span, {from + c * x.stride(1)}, {}, [&](int64_t i, auto in, auto) {
            each_vector<V<T>>([&](int64_t j) {
              (V<T>::loadu(centre + i + j) + V<T>::loadu(in[0] + j)).store(centre + i + j);
            });
          });
        }
        for (W& number : centre) number /= W(channels);
      }
      std::fill(total, total + kSpan, W(0));
      for (int64_t c = 0; c < channels; ++c) {
        each_block<T, 1, 0>(span, {from + c * x.stride(1)}, {}, [&](int64_t i, auto in, auto) {
          each_vector<V<T>>([&](int64_t j) {
            const V<T> apart = V<T>::loadu(in[0] + j) - V<T>::loadu(centre + i + j);
            (V<T>::loadu(total + i + j) + apart * apart).store(total + i + j);
          });
        });
      }
      for (W& number : total) number = 1 / std::sqrt(number / W(channels) + W(eps));
      for (int64_t c = 0; c < channels; ++c) {
        const V<T> factor(scale[c]), beyond(offset[c]);
        each_block<T, 1, 1>(
            span, {from + c * x.stride(1)}, {to + c * out.stride(1)},
            [&](int64_t i, auto in, auto result) {
              each_vector<V<T>>([&](int64_t j) {
                const V<T> apart = V<T>::loadu(in[0] + j) - V<T>::loadu(centre + i + j);
                const V<T> normal = apart * V<T>::loadu(total + i + j);
                (normal * factor + beyond).store(result[0] + j);
              });
            });
      }
      if (centred) std::copy_n(centre, span, blocks.of(mean.data_ptr<W>(), mean, item));
      std::copy_n(total, span, blocks.of(inverse.data_ptr<W>(), inverse, item));
    }
  });
}

template <typename T>
void backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& mean,
    const at::Tensor& inverse, bool centred, const at::Tensor& grad_x, std::vector<double>& weights,
    std::vector<double>& biases) {
  using W = Wide<T>;
  const Blocks blocks(x);
  const int64_t channels = blocks.channels;
  const std::vector<W> scale = per_channel<W>(weight, channels);
  std::vector<double> partial(parts(blocks.count) * channels * 2);
  each_part(blocks.count, [&](int64_t part, int64_t begin, int64_t end) {
    double* sums = partial.data() + part * channels * 2;
    W centre[kSpan] = {}, factor[kSpan] = {}, average[kSpan], projected[kSpan];
    for (int64_t item = begin; item < end; ++item) {
      const T* incoming = blocks.of(grad.const_data_ptr<T>(), grad, item);
      const T* from = blocks.of(x.const_data_ptr<T>(), x, item);
      T* to = blocks.of(grad_x.data_ptr<T>(), grad_x, item);
      const int64_t span = blocks.span(item);
      if (centred) std::copy_n(blocks.of(mean.const_data_ptr<W>(), mean, item), span, centre);
      std::copy_n(blocks.of(inverse.const_data_ptr<W>(), inverse, item), span, factor);
      std::fill(average, average + kSpan, W(0));
      std::fill(projected, projected + kSpan, W(0));
      const auto normal = [&](const W* numbers, int64_t i) {
        return (V<T>::loadu(numbers) - V<T>::loadu(centre + i)) * V<T>::loadu(factor + i);
      };
      for (int64_t c = 0; c < channels; ++c) {
        const V<T> by(scale[c]);
        V<T> weight_sum(0), bias_sum(0);
        each_block<T, 2, 0>(
            span, {incoming + c * grad.stride(1), from + c * x.stride(1)}, {},
            [&](int64_t i, auto in, auto) {
              each_vector<V<T>>([&](int64_t j) {
                const V<T> given = V<T>::loadu(in[0] + j);
                const V<T> product = given * normal(in[1] + j, i + j);
                weight_sum = weight_sum + product;
                bias_sum = bias_sum + given;
                (V<T>::loadu(projected + i + j) + product * by).store(projected + i + j);
                if (centred) (V<T>::loadu(average + i + j) + given * by).store(average + i + j);
              });
            });
        sums[2 * c] += sum(weight_sum);
        sums[2 * c + 1] += sum(bias_sum);
      }
      for (W& number : average) number /= W(channels);
      for (W& number : projected) number /= W(channels);
      for (int64_t c = 0; c < channels; ++c) {
        const V<T> by(scale[c]);
        each_block<T, 2, 1>(
            span, {incoming + c * grad.stride(1), from + c * x.stride(1)},
            {to + c * grad_x.stride(1)}, [&](int64_t i, auto in, auto result) {
              each_vector<V<T>>([&](int64_t j) {
                const V<T> given = V<T>::loadu(in[0] + j) * by - V<T>::loadu(average + i + j);
                const V<T> along = normal(in[1] + j, i + j) * V<T>::loadu(projected + i + j);
                ((given - along) * V<T>::loadu(factor + i + j)).store(result[0] + j);
              });
            });
      }
    }
  });
  for (size_t k = 0; k < partial.size(); k += 2) {
    weights[k / 2 % channels] += partial[k];
    biases[k / 2 % channels] += partial[k + 1];
  }
}

template <typename Function>
void by_dtype(const at::Tensor& x, const Function& function) {
  TORCH_CHECK(has_rows(x),
      "inputs must be (batch, channels, positions), with contiguous positions");
  switch (x.scalar_type()) {
    case at::kFloat: function(float()); break;
    case at::kDouble: function(double()); break;
    case at::kBFloat16: function(at::BFloat16()); break;
    default: TORCH_CHECK(false, "numbers of ", x.scalar_type(), " have no kernel");
  }
}

// Layer norm with a bias, RMS norm without: the result, mean (empty without) and 1 / deviation.
std::tuple<at::Tensor, at::Tensor, at::Tensor> norm(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    double eps) {
  const at::Tensor out = at::empty(x.sizes(), x.options());
  const auto options = x.options().dtype(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  const at::Tensor inverse = at::empty({x.size(0), 1, x.size(2)}, options);
  const at::Tensor mean = bias ? at::empty_like(inverse) : at::empty({0}, options);
  by_dtype(x, [&](auto number) {
    forward<decltype(number)>(x, weight, bias, eps, out, mean, inverse);
  });
  return {out, mean, inverse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& mean,
    const at::Tensor& inverse) {
  const int64_t channels = x.size(1);
  const bool centred = mean.numel() > 0;
  const at::Tensor grad_x = at::empty(x.sizes(), x.options());
  std::vector<double> weights(channels), biases(channels);
  by_dtype(grad, [&](auto number) {
    backward<decltype(number)>(grad, x, weight, mean, inverse, centred, grad_x, weights, biases);
  });
  const auto narrow = [&](std::vector<double>& sums) {
    const int64_t count = sums.size();
    return at::from_blob(sums.data(), {count}, at::kDouble).to(weight.scalar_type(), false, true);
  };
  const at::Tensor grad_bias = narrow(biases);
  if (weight.numel() != channels) {
    double total = 0;
    for (const double number : weights) total += number;
    weights.assign(1, total);
  }
  return {grad_x, narrow(weights), grad_bias};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fairseq_csp_native, library) {
  library.def("norm(Tensor x, Tensor weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)");
  library.impl("norm", torch::dispatch(c10::DispatchKey::CPU, TORCH_FN(norm)));
  library.def("norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor mean, Tensor inverse) "
      "-> (Tensor, Tensor, Tensor)");
  library.impl("norm_backward", torch::dispatch(c10::DispatchKey::CPU, TORCH_FN(norm_backward)));
}
