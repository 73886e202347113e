// What a layer does at each position by itself, block of positions by block, on the CPU.
//
// Linear maps, activations, gates, dropout and residuals: a block's numbers stay in the cache from
// the first map to the last, and what a backward pass sums up over the positions, the gradients of
// weights and biases, is summed there too. Tensors are (batch, channels, positions) with contiguous
// positions, float32 or bfloat16; sums are kept in float32 or wider.

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "blocks.h"

namespace {

using namespace fairseq_csp;
using at::Tensor;

// positions of a block: its matrices are large enough to multiply at full speed, and fit the cache
constexpr int64_t kWideSpan = 256, kHalfSpan = 1024;

inline Vec silu(const Vec& x, const Vec& gate) { return x * gate; }

// The blocks of positions of a batch.
struct Blocks {
  int64_t size, row, count, positions;

  explicit Blocks(const Tensor& x)
      : size(x.element_size() == 2 ? kHalfSpan : kWideSpan), row((x.size(2) + size - 1) / size),
        count(x.size(0) * row), positions(x.size(2)) {}

  int64_t batch(int64_t item) const { return item / row; }
  int64_t first(int64_t item) const { return item % row * size; }
  int64_t span(int64_t item) const { return std::min(size, positions - first(item)); }

  // (channels, positions of the block), a view
  Tensor of(const Tensor& x, int64_t item) const {
    return x.select(0, batch(item)).narrow(1, first(item), span(item));
  }
};

template <typename T>
inline T* row(const Tensor& block, int64_t channel) {
  return const_cast<T*>(block.const_data_ptr<T>()) + channel * block.stride(0);
}

inline void multiply(Tensor out, const Tensor& a, const Tensor& b) { at::mm_out(out, a, b); }

inline void multiply_add(Tensor out, const Tensor& a, const Tensor& b) {
  at::addmm_out(out, out, a, b);
}

std::vector<float> floats(const Tensor& x) {
  const Tensor wide = x.to(at::kFloat).contiguous();
  return {wide.const_data_ptr<float>(), wide.const_data_ptr<float>() + wide.numel()};
}

// The gradients of a linear map, summed up over the positions: those of its weight in float32.
struct MapGradients {
  Tensor weight, product;
  std::vector<double> bias;

  explicit MapGradients(const Tensor& like)
      : weight(at::zeros(like.sizes(), like.options().dtype(at::kFloat))), bias(like.size(0)) {
    if (like.scalar_type() != at::kFloat) product = at::empty(like.sizes(), like.options());
  }

  // Add grad (outputs, positions) times input (inputs, positions).
  void add(const Tensor& grad, const Tensor& input) {
    if (!product.defined()) {
      multiply_add(weight, grad, input.t());
      return;
    }
    multiply(product, grad, input.t());
    const at::BFloat16* from = product.const_data_ptr<at::BFloat16>();
    float* to = weight.data_ptr<float>();
    for (int64_t i = 0, count = weight.numel(); i < count; ++i) to[i] += float(from[i]);
  }
};

std::vector<MapGradients> for_each_part(int64_t items, const Tensor& weight) {
  std::vector<MapGradients> gradients;
  for (int64_t k = 0; k < parts(items); ++k) gradients.emplace_back(weight);
  return gradients;
}

// Sum what each part has, in the order of the parts, in the dtypes of weight and bias.
std::tuple<Tensor, Tensor> total(
    const std::vector<MapGradients>& parts, const Tensor& weight, const Tensor& bias) {
  Tensor sum = parts[0].weight;
  std::vector<double> biases = parts[0].bias;
  for (size_t k = 1; k < parts.size(); ++k) {
    sum.add_(parts[k].weight);
    for (size_t c = 0; c < biases.size(); ++c) biases[c] += parts[k].bias[c];
  }
  const Tensor narrow = at::empty({int64_t(biases.size())}, bias.options().dtype(at::kDouble));
  std::copy(biases.begin(), biases.end(), narrow.data_ptr<double>());
  return {sum.to(weight.scalar_type()), narrow.to(bias.scalar_type())};
}

// By which numbers of a channel are multiplied from position first on, block of 64 by block.
struct Kept {
  Dropout dropout;
  int64_t first;
  float factors[kBlock];

  Kept(double p, int64_t seed, int64_t channel, int64_t first)
      : dropout(p, uint64_t(seed), channel), first(first) {
    std::fill(factors, factors + kBlock, 1.f);
  }

  const float* at(int64_t i) {
    if (dropout.active) dropout.factors(first + i, factors);
    return factors;
  }
};

// to = dropout(silu(from)) of a block, whose rows are the batch's from `channel` on.
template <typename T>
void activate(
    const Tensor& from, const Tensor& to, double p, int64_t seed, int64_t channel, int64_t first) {
  for (int64_t c = 0; c < from.size(0); ++c) {
    Kept kept(p, seed, channel + c, first);
    each_block<T, 1, 1>(from.size(1), {row<T>(from, c)}, {row<T>(to, c)},
        [&](int64_t i, In in, Out out) {
          const float* factors = kept.at(i);
          each_vector([&](int64_t j) {
            const Vec x = Vec::loadu(in[0] + j);
            keep(factors + j, silu(x, sigmoid(x))).store(out[0] + j);
          });
        });
  }
}

template <typename Function>
void by_dtype(const std::vector<Tensor>& given, const Function& function) {
  for (const Tensor& tensor : given) {
    TORCH_CHECK(has_rows(tensor) && tensor.scalar_type() == given[0].scalar_type(),
        "inputs must be of one dtype and (batch, channels, positions), with contiguous positions");
  }
  fairseq_csp::by_dtype(given[0], function);
}

// ---- linear map ----

std::tuple<Tensor, Tensor> linear_gradients(const Tensor& grad, const Tensor& x, const Tensor& weight) {
  const Blocks blocks(x);
  std::vector<MapGradients> gradients = for_each_part(blocks.count, weight);
  by_dtype({grad, x}, [&](auto number) {
    using T = decltype(number);
    each_part(blocks.count, [&](int64_t part, int64_t begin, int64_t end) {
      at::AutoDispatchBelowADInplaceOrView guard;
      MapGradients& own = gradients[part];
      for (int64_t item = begin; item < end; ++item) {
        const Tensor given = blocks.of(grad, item);
        for (int64_t c = 0; c < grad.size(1); ++c) {
          Vec sums(0.f);
          each_block<T, 1, 0>(blocks.span(item), {row<T>(given, c)}, {}, [&](int64_t, In in, Out) {
            each_vector([&](int64_t j) { sums = sums + Vec::loadu(in[0] + j); });
          });
          own.bias[c] += sum(sums);
        }
        own.add(given, blocks.of(x, item));
      }
    });
  });
  return total(gradients, weight, weight);
}

// ---- linear map and activation ----

// dropout(silu(weight x + bias)), and weight x.
std::tuple<Tensor, Tensor> linear_silu(
    const Tensor& x, const Tensor& weight, const Tensor& bias, double p, const Seed& drawn) {
  const Blocks blocks(x);
  const int64_t seed = number_of(drawn), outputs = weight.size(0);
  const Tensor out = at::empty({x.size(0), outputs, x.size(2)}, x.options());
  const Tensor inner = at::empty(out.sizes(), x.options());
  const std::vector<float> biases = floats(bias);
  by_dtype({x}, [&](auto number) {
    using T = decltype(number);
    each_part(blocks.count, [&](int64_t, int64_t begin, int64_t end) {
      at::AutoDispatchBelowADInplaceOrView guard;
      for (int64_t item = begin; item < end; ++item) {
        const Tensor sums = blocks.of(inner, item), to = blocks.of(out, item);
        multiply(sums, weight, blocks.of(x, item));
        for (int64_t c = 0; c < outputs; ++c) {
          const Vec offset(biases[c]);
          Kept kept(p, seed, blocks.batch(item) * outputs + c, blocks.first(item));
          each_block<T, 1, 1>(blocks.span(item), {row<T>(sums, c)}, {row<T>(to, c)},
              [&](int64_t i, In in, Out out) {
                const float* factors = kept.at(i);
                each_vector([&](int64_t j) {
                  const Vec x = Vec::loadu(in[0] + j) + offset;
                  keep(factors + j, silu(x, sigmoid(x))).store(out[0] + j);
                });
              });
        }
      }
    });
  });
  return {out, inner};
}

// The gradients of x, weight and bias.
std::tuple<Tensor, Tensor, Tensor> linear_silu_backward(
    const Tensor& grad, const Tensor& x, const Tensor& inner, const Tensor& weight,
    const Tensor& bias, double p, const Seed& drawn) {
  const Blocks blocks(x);
  const int64_t seed = number_of(drawn), outputs = weight.size(0);
  const Tensor grad_x = at::empty(x.sizes(), x.options());
  const std::vector<float> biases = floats(bias);
  std::vector<MapGradients> gradients = for_each_part(blocks.count, weight);
  by_dtype({grad, x, inner}, [&](auto number) {
    using T = decltype(number);
    each_part(blocks.count, [&](int64_t part, int64_t begin, int64_t end) {
      at::AutoDispatchBelowADInplaceOrView guard;
      MapGradients& own = gradients[part];
      const Tensor room = at::empty({outputs, blocks.size}, x.options());
      for (int64_t item = begin; item < end; ++item) {
        const int64_t span = blocks.span(item);
        const Tensor given = blocks.of(grad, item), sums = blocks.of(inner, item);
        const Tensor change = room.narrow(1, 0, span);
        for (int64_t c = 0; c < outputs; ++c) {
          const Vec offset(biases[c]);
          Kept kept(p, seed, blocks.batch(item) * outputs + c, blocks.first(item));
          Vec total(0.f);
          each_block<T, 2, 1>(span, {row<T>(given, c), row<T>(sums, c)}, {row<T>(change, c)},
              [&](int64_t i, In in, Out out) {
                const float* factors = kept.at(i);
                each_vector([&](int64_t j) {
                  const Vec x = Vec::loadu(in[1] + j) + offset;
                  const Vec slope = silu_slope(x, sigmoid(x));
                  const Vec grad = keep(factors + j, Vec::loadu(in[0] + j) * slope);
                  total = total + grad;
                  grad.store(out[0] + j);
                });
              });
          own.bias[c] += sum(total);
        }
        own.add(change, blocks.of(x, item));
        multiply(blocks.of(grad_x, item), weight.t(), change);
      }
    });
  });
  const auto [grad_weight, grad_bias] = total(gradients, weight, bias);
  return {grad_x, grad_weight, grad_bias};
}

// ---- feed-forward block ----

// residual + dropout(weight2 silu(weight1 x + bias1) + bias2), and weight1 x.
std::tuple<Tensor, Tensor> feed_forward(
    const Tensor& x, const Tensor& residual, const Tensor& weight1, const Tensor& bias1,
    const Tensor& weight2, const Tensor& bias2, double p, const Seed& drawn) {
  const Blocks blocks(x);
  const int64_t seed = number_of(drawn);
  const int64_t hidden = weight1.size(0), dim = weight2.size(0);
  const Tensor out = at::empty({x.size(0), dim, x.size(2)}, x.options());
  const Tensor inner = at::empty({x.size(0), hidden, x.size(2)}, x.options());
  const std::vector<float> first_bias = floats(bias1), second_bias = floats(bias2);
  by_dtype({x, residual}, [&](auto number) {
    using T = decltype(number);
    each_part(blocks.count, [&](int64_t, int64_t begin, int64_t end) {
      at::AutoDispatchBelowADInplaceOrView guard;
      const Tensor room = at::empty({hidden, blocks.size}, x.options());
      for (int64_t item = begin; item < end; ++item) {
        const int64_t span = blocks.span(item);
        const Tensor sums = blocks.of(inner, item), active = room.narrow(1, 0, span);
        const Tensor to = blocks.of(out, item), beside = blocks.of(residual, item);
        multiply(sums, weight1, blocks.of(x, item));
        for (int64_t c = 0; c < hidden; ++c) {
          const Vec bias(first_bias[c]);
          each_block<T, 1, 1>(span, {row<T>(sums, c)}, {row<T>(active, c)},
              [&](int64_t, In in, Out out) {
                each_vector([&](int64_t j) {
                  const Vec x = Vec::loadu(in[0] + j) + bias;
                  silu(x, sigmoid(x)).store(out[0] + j);
                });
              });
        }
        multiply(to, weight2, active);
        for (int64_t c = 0; c < dim; ++c) {
          const Vec bias(second_bias[c]);
          Kept kept(p, seed, blocks.batch(item) * dim + c, blocks.first(item));
          each_block<T, 2, 1>(span, {row<T>(to, c), row<T>(beside, c)}, {row<T>(to, c)},
              [&](int64_t i, In in, Out out) {
                const float* factors = kept.at(i);
                each_vector([&](int64_t j) {
                  const Vec x = keep(factors + j, Vec::loadu(in[0] + j) + bias);
                  (x + Vec::loadu(in[1] + j)).store(out[0] + j);
                });
              });
        }
      }
    });
  });
  return {out, inner};
}

// The gradients of x, with the residual's where that is x, and of weights and biases.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> feed_forward_backward(
    const Tensor& grad, const Tensor& x, const Tensor& inner, const Tensor& weight1,
    const Tensor& bias1, const Tensor& weight2, const Tensor& bias2, double p, const Seed& drawn,
    bool residual_is_x) {
  const Blocks blocks(x);
  const int64_t seed = number_of(drawn);
  const int64_t hidden = weight1.size(0), dim = weight2.size(0);
  const Tensor grad_x = at::empty(x.sizes(), x.options());
  const std::vector<float> first_bias = floats(bias1);
  std::vector<MapGradients> first = for_each_part(blocks.count, weight1);
  std::vector<MapGradients> second = for_each_part(blocks.count, weight2);
  by_dtype({grad, x, inner}, [&](auto number) {
    using T = decltype(number);
    each_part(blocks.count, [&](int64_t part, int64_t begin, int64_t end) {
      at::AutoDispatchBelowADInplaceOrView guard;
      const Tensor dropped_room = at::empty({dim, blocks.size}, x.options());
      const Tensor active_room = at::empty({hidden, blocks.size}, x.options());
      const Tensor change_room = at::empty({hidden, blocks.size}, x.options());
      for (int64_t item = begin; item < end; ++item) {
        const int64_t span = blocks.span(item);
        const Tensor given = blocks.of(grad, item), sums = blocks.of(inner, item);
        const Tensor from = blocks.of(x, item), to = blocks.of(grad_x, item);
        const Tensor dropped = dropped_room.narrow(1, 0, span);
        const Tensor active = active_room.narrow(1, 0, span);
        const Tensor change = change_room.narrow(1, 0, span);
        for (int64_t c = 0; c < dim; ++c) {
          Kept kept(p, seed, blocks.batch(item) * dim + c, blocks.first(item));
          Vec bias(0.f);
          each_block<T, 1, 1>(span, {row<T>(given, c)}, {row<T>(dropped, c)},
              [&](int64_t i, In in, Out out) {
                const float* factors = kept.at(i);
                each_vector([&](int64_t j) {
                  const Vec grad = keep(factors + j, Vec::loadu(in[0] + j));
                  bias = bias + grad;
                  grad.store(out[0] + j);
                });
              });
          second[part].bias[c] += sum(bias);
        }
        multiply(change, weight2.t(), dropped);
        for (int64_t c = 0; c < hidden; ++c) {
          const Vec offset(first_bias[c]);
          Vec bias(0.f);
          each_block<T, 2, 2>(span, {row<T>(sums, c), row<T>(change, c)},
              {row<T>(active, c), row<T>(change, c)}, [&](int64_t, In in, Out out) {
                each_vector([&](int64_t j) {
                  const Vec x = Vec::loadu(in[0] + j) + offset, gate = sigmoid(x);
                  const Vec grad = Vec::loadu(in[1] + j) * silu_slope(x, gate);
                  bias = bias + grad;
                  silu(x, gate).store(out[0] + j);
                  grad.store(out[1] + j);
                });
              });
          first[part].bias[c] += sum(bias);
        }
        second[part].add(dropped, active);
        first[part].add(change, from);
        multiply(to, weight1.t(), change);
        if (!residual_is_x) continue;
        for (int64_t c = 0; c < x.size(1); ++c) {
          each_block<T, 2, 1>(span, {row<T>(to, c), row<T>(given, c)}, {row<T>(to, c)},
              [&](int64_t, In in, Out out) {
                each_vector([&](int64_t j) {
                  (Vec::loadu(in[0] + j) + Vec::loadu(in[1] + j)).store(out[0] + j);
                });
              });
        }
      }
    });
  });
  const auto [grad_weight1, grad_bias1] = total(first, weight1, bias1);
  const auto [grad_weight2, grad_bias2] = total(second, weight2, bias2);
  return {grad_x, grad_weight1, grad_bias1, grad_weight2, grad_bias2};
}

// ---- MEGA's gates ----

// With a = dropout(silu(average)): update, reset and direct are maps of a (the rows of `weight` and
// `bias`, in this order), inner = direct + out_weight (silu(reset) * mixed), and the result is
// residual + sigmoid(update) * (dropout(silu(inner)) - residual). Biases are added where a map's
// result is used: what is returned for the backward pass is without.
std::tuple<Tensor, Tensor, Tensor, Tensor> gated_mixing(
    const Tensor& average, const Tensor& mixed, const Tensor& residual, const Tensor& weight,
    const Tensor& bias, const Tensor& out_weight, const Tensor& out_bias, double p, const Seed& drawn,
    const Seed& out_drawn) {
  const Blocks blocks(average);
  const int64_t seed = number_of(drawn), out_seed = number_of(out_drawn);
  const int64_t dim = average.size(1), hidden = mixed.size(1);
  const auto make = [&](int64_t channels) {
    return at::empty({average.size(0), channels, average.size(2)}, average.options());
  };
  const Tensor out = make(dim), update = make(dim), reset = make(hidden), inner = make(dim);
  const Tensor update_weight = weight.narrow(0, 0, dim), reset_weight = weight.narrow(0, dim, hidden);
  const Tensor direct_weight = weight.narrow(0, dim + hidden, dim);
  const std::vector<float> biases = floats(bias), out_biases = floats(out_bias);
  by_dtype({average, mixed, residual}, [&](auto number) {
    using T = decltype(number);
    each_part(blocks.count, [&](int64_t, int64_t begin, int64_t end) {
      at::AutoDispatchBelowADInplaceOrView guard;
      const Tensor active_room = at::empty({dim, blocks.size}, average.options());
      const Tensor gated_room = at::empty({hidden, blocks.size}, average.options());
      for (int64_t item = begin; item < end; ++item) {
        const int64_t span = blocks.span(item), first = blocks.first(item);
        const int64_t channel = blocks.batch(item) * dim;
        const Tensor from = blocks.of(average, item), values = blocks.of(mixed, item);
        const Tensor updates = blocks.of(update, item), resets = blocks.of(reset, item);
        const Tensor inners = blocks.of(inner, item), beside = blocks.of(residual, item);
        const Tensor to = blocks.of(out, item);
        const Tensor active = active_room.narrow(1, 0, span);
        const Tensor gated = gated_room.narrow(1, 0, span);
        activate<T>(from, active, p, seed, channel, first);
        multiply(updates, update_weight, active);
        multiply(resets, reset_weight, active);
        multiply(inners, direct_weight, active);
        for (int64_t c = 0; c < hidden; ++c) {
          const Vec offset(biases[dim + c]);
          each_block<T, 2, 1>(span, {row<T>(resets, c), row<T>(values, c)}, {row<T>(gated, c)},
              [&](int64_t, In in, Out out) {
                each_vector([&](int64_t j) {
                  const Vec x = Vec::loadu(in[0] + j) + offset;
                  (silu(x, sigmoid(x)) * Vec::loadu(in[1] + j)).store(out[0] + j);
                });
              });
        }
        multiply_add(inners, out_weight, gated);
        for (int64_t c = 0; c < dim; ++c) {
          const Vec update_bias(biases[c]), inner_bias(biases[dim + hidden + c] + out_biases[c]);
          Kept kept(p, out_seed, channel + c, first);
          each_block<T, 3, 1>(span, {row<T>(updates, c), row<T>(inners, c), row<T>(beside, c)},
              {row<T>(to, c)}, [&](int64_t i, In in, Out out) {
                const float* factors = kept.at(i);
                each_vector([&](int64_t j) {
                  const Vec gate = sigmoid(Vec::loadu(in[0] + j) + update_bias);
                  const Vec x = Vec::loadu(in[1] + j) + inner_bias;
                  const Vec residual = Vec::loadu(in[2] + j);
                  const Vec candidate = keep(factors + j, silu(x, sigmoid(x)));
                  (residual + gate * (candidate - residual)).store(out[0] + j);
                });
              });
        }
      }
    });
  });
  return {out, update, reset, inner};
}

// The gradients of average, mixed, residual, weight, bias, out_weight, out_bias.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gated_mixing_backward(
    const Tensor& grad, const Tensor& average, const Tensor& mixed, const Tensor& residual,
    const Tensor& update, const Tensor& reset, const Tensor& inner, const Tensor& weight,
    const Tensor& bias, const Tensor& out_weight, const Tensor& out_bias, double p, const Seed& drawn,
    const Seed& out_drawn) {
  const Blocks blocks(average);
  const int64_t seed = number_of(drawn), out_seed = number_of(out_drawn);
  const int64_t dim = average.size(1), hidden = mixed.size(1), rows = 2 * dim + hidden;
  const auto like = [](const Tensor& x) { return at::empty(x.sizes(), x.options()); };
  const Tensor grad_average = like(average), grad_mixed = like(mixed), grad_residual = like(residual);
  const std::vector<float> biases = floats(bias), out_biases = floats(out_bias);
  std::vector<MapGradients> maps = for_each_part(blocks.count, weight);
  std::vector<MapGradients> out_maps = for_each_part(blocks.count, out_weight);
  by_dtype({grad, average, mixed, residual, update, reset, inner}, [&](auto number) {
    using T = decltype(number);
    each_part(blocks.count, [&](int64_t part, int64_t begin, int64_t end) {
      at::AutoDispatchBelowADInplaceOrView guard;
      MapGradients &map = maps[part], &out_map = out_maps[part];
      const auto room = [&](int64_t channels) {
        return at::empty({channels, blocks.size}, average.options());
      };
      const Tensor change_room = room(rows), active_room = room(dim);
      const Tensor gated_room = room(hidden), through_room = room(hidden);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t span = blocks.span(item), first = blocks.first(item);
        const int64_t channel = blocks.batch(item) * dim;
        const Tensor given = blocks.of(grad, item), from = blocks.of(average, item);
        const Tensor values = blocks.of(mixed, item), beside = blocks.of(residual, item);
        const Tensor updates = blocks.of(update, item), resets = blocks.of(reset, item);
        const Tensor inners = blocks.of(inner, item), to = blocks.of(grad_average, item);
        const Tensor to_mixed = blocks.of(grad_mixed, item);
        const Tensor to_residual = blocks.of(grad_residual, item);
        const Tensor change = change_room.narrow(1, 0, span);
        const Tensor inner_change = change.narrow(0, dim + hidden, dim);
        const Tensor active = active_room.narrow(1, 0, span);
        const Tensor gated = gated_room.narrow(1, 0, span);
        const Tensor through = through_room.narrow(1, 0, span);
        for (int64_t c = 0; c < dim; ++c) {
          const Vec update_bias(biases[c]), inner_bias(biases[dim + hidden + c] + out_biases[c]);
          Vec update_sum(0.f), inner_sum(0.f);
          Kept kept(p, out_seed, channel + c, first);
          each_block<T, 4, 3>(span,
              {row<T>(given, c), row<T>(updates, c), row<T>(inners, c), row<T>(beside, c)},
              {row<T>(to_residual, c), row<T>(change, c), row<T>(inner_change, c)},
              [&](int64_t i, In in, Out out) {
                const float* factors = kept.at(i);
                each_vector([&](int64_t j) {
                  const Vec grad = Vec::loadu(in[0] + j);
                  const Vec gate = sigmoid(Vec::loadu(in[1] + j) + update_bias);
                  const Vec x = Vec::loadu(in[2] + j) + inner_bias, slope = sigmoid(x);
                  const Vec rest = Vec(1.f) - gate;
                  const Vec apart = keep(factors + j, silu(x, slope)) - Vec::loadu(in[3] + j);
                  const Vec of_update = grad * gate * rest * apart;
                  const Vec of_inner = keep(factors + j, grad * gate * silu_slope(x, slope));
                  update_sum = update_sum + of_update;
                  inner_sum = inner_sum + of_inner;
                  (grad * rest).store(out[0] + j);
                  of_update.store(out[1] + j);
                  of_inner.store(out[2] + j);
                });
              });
          map.bias[c] += sum(update_sum);
          map.bias[dim + hidden + c] += sum(inner_sum);
          out_map.bias[c] += sum(inner_sum);
        }
        multiply(through, out_weight.t(), inner_change);
        for (int64_t c = 0; c < hidden; ++c) {
          const Vec offset(biases[dim + c]);
          Vec bias(0.f);
          each_block<T, 3, 3>(span, {row<T>(through, c), row<T>(resets, c), row<T>(values, c)},
              {row<T>(change, dim + c), row<T>(to_mixed, c), row<T>(gated, c)},
              [&](int64_t, In in, Out out) {
                each_vector([&](int64_t j) {
                  const Vec grad = Vec::loadu(in[0] + j), mixed = Vec::loadu(in[2] + j);
                  const Vec x = Vec::loadu(in[1] + j) + offset, gate = sigmoid(x);
                  const Vec of_reset = grad * mixed * silu_slope(x, gate);
                  bias = bias + of_reset;
                  of_reset.store(out[0] + j);
                  (grad * silu(x, gate)).store(out[1] + j);
                  (silu(x, gate) * mixed).store(out[2] + j);
                });
              });
          map.bias[dim + c] += sum(bias);
        }
        out_map.add(inner_change, gated);
        activate<T>(from, active, p, seed, channel, first);
        map.add(change, active);
        multiply(to, weight.t(), change);
        for (int64_t c = 0; c < dim; ++c) {
          Kept kept(p, seed, channel + c, first);
          each_block<T, 2, 1>(span, {row<T>(to, c), row<T>(from, c)}, {row<T>(to, c)},
              [&](int64_t i, In in, Out out) {
                const float* factors = kept.at(i);
                each_vector([&](int64_t j) {
                  const Vec x = Vec::loadu(in[1] + j);
                  const Vec slope = silu_slope(x, sigmoid(x));
                  keep(factors + j, Vec::loadu(in[0] + j) * slope).store(out[0] + j);
                });
              });
        }
      }
    });
  });
  const auto [grad_weight, grad_bias] = total(maps, weight, bias);
  const auto [grad_out_weight, grad_out_bias] = total(out_maps, out_weight, out_bias);
  return {grad_average, grad_mixed, grad_residual, grad_weight, grad_bias, grad_out_weight,
      grad_out_bias};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fairseq_csp_native, library) {
  const auto add = [&](const char* schema, const char* name, auto function) {
    library.def(schema);
    library.impl(name, torch::dispatch(c10::DispatchKey::CPU, function));
  };
  add("linear_gradients(Tensor grad, Tensor x, Tensor weight) -> (Tensor, Tensor)",
      "linear_gradients", TORCH_FN(linear_gradients));
  add("linear_silu(Tensor x, Tensor weight, Tensor bias, float p, Tensor? seed) -> (Tensor, Tensor)",
      "linear_silu", TORCH_FN(linear_silu));
  add("linear_silu_backward(Tensor grad, Tensor x, Tensor inner, Tensor weight, Tensor bias, "
      "float p, Tensor? seed) -> (Tensor, Tensor, Tensor)",
      "linear_silu_backward", TORCH_FN(linear_silu_backward));
  add("feed_forward(Tensor x, Tensor residual, Tensor weight1, Tensor bias1, Tensor weight2, "
      "Tensor bias2, float p, Tensor? seed) -> (Tensor, Tensor)",
      "feed_forward", TORCH_FN(feed_forward));
  add("feed_forward_backward(Tensor grad, Tensor x, Tensor inner, Tensor weight1, Tensor bias1, "
      "Tensor weight2, Tensor bias2, float p, Tensor? seed, bool residual_is_x) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)",
      "feed_forward_backward", TORCH_FN(feed_forward_backward));
  add("gated_mixing(Tensor average, Tensor mixed, Tensor residual, Tensor weight, Tensor bias, "
      "Tensor out_weight, Tensor out_bias, float p, Tensor? seed, Tensor? out_seed) -> "
      "(Tensor, Tensor, Tensor, Tensor)",
      "gated_mixing", TORCH_FN(gated_mixing));
  add("gated_mixing_backward(Tensor grad, Tensor average, Tensor mixed, Tensor residual, "
      "Tensor update, Tensor reset, Tensor inner, Tensor weight, Tensor bias, Tensor out_weight, "
      "Tensor out_bias, float p, Tensor? seed, Tensor? out_seed) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
      "gated_mixing_backward", TORCH_FN(gated_mixing_backward));
}
