// Attention weights on the CPU: from a block of scores what multiplies the values, dropout
// included, and back, to the bias of each distance too. Both in place, a query at a time, so that a block is read and written once.
//
// Scores are (batch, queries, keys), contiguous, float32 or bfloat16; all is computed in float32.

#include <torch/library.h>

#include <limits>
#include <string>
#include <vector>

#include "../blocks.h"

namespace {

using namespace fairseq_csp;
using at::Tensor;

// ---- functions of scores ----

// of all scores of a query
struct Softmax {};

struct Laplace {
  // (1 + erf((x - mean) / (deviation sqrt 2))) / 2, as published (arXiv 2209.10655, section 3.3)
  static constexpr float kMean = 0.707107f, kDeviation = 0.282095f;
  static constexpr float kFactor = 0.70710678f / kDeviation, kSlope = 0.56418958f * kFactor;

  static Vec scaled(const Vec& x) { return (x - Vec(kMean)) * Vec(kFactor); }
  static Vec value(const Vec& x) { return Vec(0.5f) * (Vec(1.f) + scaled(x).erf()); }
  static Vec slope(const Vec& x) {
    const Vec z = scaled(x);
    return Vec(kSlope) * (z * z).neg().exp();
  }
};

struct SquaredRelu {
  // of NaN NaN, as PyTorch's relu
  static Vec relu(const Vec& x) { return at::vec::maximum(x, Vec(0.f)); }
  static Vec value(const Vec& x) { return relu(x) * relu(x); }
  static Vec slope(const Vec& x) { return Vec(2.f) * relu(x); }
};

// ---- rows ----

constexpr float kNone = -std::numeric_limits<float>::infinity();

// Numbers of a row between passes, in whole blocks.
using Buffer = std::vector<float>;

void fit(Buffer& buffer, int64_t count) { buffer.resize((count + kBlock - 1) / kBlock * kBlock); }

// Call function(i, how many) for each block of a row.
template <typename Function>
void blocks(int64_t count, const Function& function) {
  for (int64_t i = 0; i < count; i += kBlock) function(i, std::min(kBlock, count - i));
}

// Where a block's numbers are read from; beyond the row's end they are `fill`.
template <typename T>
const float* block(const T* from, int64_t here, float* buffer, float fill) {
  const float* const found = load(from, here, buffer);
  if (here < kBlock) std::fill(buffer + here, buffer + kBlock, fill);
  return found;
}

float largest(const Vec& vector) {
  float numbers[Vec::size()], found = kNone;
  vector.store(numbers);
  for (const float number : numbers) found = number > found || number != number ? number : found;
  return found;
}

// Powers of a row's scores, the largest of them 1, and the reciprocal of their sum.
template <typename T>
float powers(const T* scores, int64_t count, float* to) {
  float buffer[kBlock];
  Vec most(kNone), total(0.f);
  blocks(count, [&](int64_t i, int64_t here) {
    const float* const x = block(scores + i, here, buffer, kNone);
    each_vector([&](int64_t j) { most = at::vec::maximum(most, Vec::loadu(x + j)); });
  });
  const Vec shift(largest(most));
  blocks(count, [&](int64_t i, int64_t here) {
    const float* const x = block(scores + i, here, buffer, kNone);
    each_vector([&](int64_t j) {
      const Vec power = (Vec::loadu(x + j) - shift).exp();
      power.store(to + i + j);
      total = total + power;
    });
  });
  return 1.f / sum(total);
}

// The factors of dropout in a block of a row.
struct Factors {
  float numbers[kBlock];

  Factors() { std::fill(numbers, numbers + kBlock, 1.f); }

  const float* at(const Dropout& dropout, int64_t first) {
    if (dropout.active) dropout.factors(first, numbers);
    return numbers;
  }
};

template <typename T>
void forward(Softmax, T* scores, int64_t count, const Dropout dropout, Buffer& powers_of) {
  float buffer[kBlock];
  Factors factors;
  fit(powers_of, count);
  const float* const from = powers_of.data();
  const Vec factor(powers(scores, count, powers_of.data()));
  blocks(count, [&](int64_t i, int64_t here) {
    const float* const kept = factors.at(dropout, i);
    float* const to = place(scores + i, here, buffer);
    each_vector([&](int64_t j) { keep(kept + j, Vec::loadu(from + i + j) * factor).store(to + j); });
    store(to, here, scores + i);
  });
}

template <typename F, typename T>
void forward(F, T* scores, int64_t count, const Dropout dropout, Buffer&) {
  Factors factors;
  each_block<T, 1, 1>(count, {scores}, {scores}, [&](int64_t i, In in, Out out) {
    const float* const kept = factors.at(dropout, i);
    each_vector([&](int64_t j) { keep(kept + j, F::value(Vec::loadu(in[0] + j))).store(out[0] + j); });
  });
}

template <typename T>
void backward(
    Softmax, T* scores, T* grad, int64_t count, const Dropout dropout, Buffer& weights,
    Buffer& gradients) {
  float buffer[kBlock], out_buffer[kBlock];
  Factors factors;
  fit(weights, count);
  fit(gradients, count);
  float *const w = weights.data(), *const g = gradients.data();
  const Vec factor(powers(scores, count, w));
  Vec total(0.f);
  blocks(count, [&](int64_t i, int64_t here) {
    const float* const kept = factors.at(dropout, i);
    const float* const by = block(grad + i, here, buffer, 0.f);
    float* const to = place(scores + i, here, out_buffer);
    each_vector([&](int64_t j) {
      const Vec weight = Vec::loadu(w + i + j) * factor, incoming = keep(kept + j, Vec::loadu(by + j));
      total = at::vec::fmadd(weight, incoming, total);
      weight.store(w + i + j);
      incoming.store(g + i + j);
      keep(kept + j, weight).store(to + j);
    });
    store(to, here, scores + i);
  });
  const Vec mean(sum(total));
  blocks(count, [&](int64_t i, int64_t here) {
    float* const to = place(grad + i, here, buffer);
    each_vector([&](int64_t j) {
      (Vec::loadu(w + i + j) * (Vec::loadu(g + i + j) - mean)).store(to + j);
    });
    store(to, here, grad + i);
  });
}

template <typename F, typename T>
void backward(
    F, T* scores, T* grad, int64_t count, const Dropout dropout, Buffer&, Buffer&) {
  Factors factors;
  each_block<T, 2, 2>(count, {scores, grad}, {scores, grad}, [&](int64_t i, In in, Out out) {
    const float* const kept = factors.at(dropout, i);
    each_vector([&](int64_t j) {
      const Vec score = Vec::loadu(in[0] + j), incoming = keep(kept + j, Vec::loadu(in[1] + j));
      keep(kept + j, F::value(score)).store(out[0] + j);
      (incoming * F::slope(score)).store(out[1] + j);
    });
  });
}

// ---- a block ----

template <typename Function>
void by_kind(const std::string& kind, const Function& function) {
  if (kind == "softmax") {
    function(Softmax());
  } else if (kind == "laplace") {
    function(Laplace());
  } else if (kind == "relu2") {
    function(SquaredRelu());
  } else {
    TORCH_CHECK(false, "there is no kernel for ", kind);
  }
}

void check(const Tensor& scores, at::IntArrayRef lengths) {
  TORCH_CHECK(scores.dim() == 3 && scores.is_contiguous(),
      "scores must be (batch, queries, keys), contiguous");
  TORCH_CHECK(int64_t(lengths.size()) == scores.size(0), "there must be a length for each sequence");
  for (const int64_t length : lengths) {
    TORCH_CHECK(0 <= length && length <= scores.size(2), "a length is not within the keys");
  }
}

// Call what make() gives, once a thread, with each query of a block and its valid keys.
template <typename Function>
void each_query(const Tensor& scores, at::IntArrayRef lengths, const Function& make) {
  const int64_t queries = scores.size(1);
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(scores.size(2), 1));
  at::parallel_for(0, scores.size(0) * queries, grain, [&](int64_t begin, int64_t end) {
    auto function = make();
    for (int64_t row = begin; row < end; ++row) function(row, lengths[row / queries]);
  });
}

// scores = dropout(f(scores)), 0 for padded keys
void score_weights_(
    Tensor& scores, at::IntArrayRef lengths, c10::string_view kind, double p, const Seed& seed) {
  check(scores, lengths);
  const int64_t keys = scores.size(2), number = number_of(seed);
  by_dtype(scores, [&](auto example) {
    using T = decltype(example);
    by_kind(std::string(kind), [&](auto f) {
      T* const all = scores.data_ptr<T>();
      each_query(scores, lengths, [&] {
        return [=, buffer = Buffer()](int64_t row, int64_t count) mutable {
          T* const place = all + row * keys;
          if (count) forward(f, place, count, Dropout(p, uint64_t(number), row), buffer);
          std::fill(place + count, place + keys, T(0));
        };
      });
    });
  });
}

// scores = dropout(f(scores)), and the gradient of that becomes the one of the scores
void score_weights_backward_(
    Tensor& scores, Tensor& grad, at::IntArrayRef lengths, c10::string_view kind, double p,
    const Seed& seed) {
  check(scores, lengths);
  TORCH_CHECK(grad.sizes() == scores.sizes() && grad.is_contiguous() &&
      grad.scalar_type() == scores.scalar_type(), "the gradient must be of the kind of the scores");
  const int64_t keys = scores.size(2), number = number_of(seed);
  by_dtype(scores, [&](auto example) {
    using T = decltype(example);
    by_kind(std::string(kind), [&](auto f) {
      T *const all = scores.data_ptr<T>(), *const all_grad = grad.data_ptr<T>();
      each_query(scores, lengths, [&] {
        return [=, one = Buffer(), other = Buffer()](int64_t row, int64_t count) mutable {
          T *const place = all + row * keys, *const grad_place = all_grad + row * keys;
          const Dropout dropout(p, uint64_t(number), row);
          if (count) backward(f, place, grad_place, count, dropout, one, other);
          std::fill(place + count, place + keys, T(0));
          std::fill(grad_place + count, grad_place + keys, T(0));
        };
      });
    });
  });
}

// line[i + j] += pairs[b, i, j], each thread for a part of the line
void add_diagonals_(Tensor& line, const Tensor& pairs) {
  TORCH_CHECK(pairs.dim() == 3 && pairs.is_contiguous(), "pairs must be (batch, rows, columns), contiguous");
  const int64_t rows = pairs.size(1), columns = pairs.size(2);
  TORCH_CHECK(line.scalar_type() == at::kFloat && line.dim() == 1 && line.stride(0) == 1 &&
      line.size(0) == rows + columns - 1, "the line must be rows + columns - 1 of float32");
  by_dtype(pairs, [&](auto example) {
    using T = decltype(example);
    const T* const all = pairs.const_data_ptr<T>();
    float* const to = line.data_ptr<float>();
    at::parallel_for(0, line.size(0), 1024, [&](int64_t begin, int64_t end) {
      for (int64_t row = 0; row < pairs.size(0) * rows; ++row) {
        const int64_t i = row % rows, first = std::max(begin - i, int64_t(0));
        const T* const from = all + row * columns;
        float* const sums = to + i;
        for (int64_t j = first; j < std::min(end - i, columns); ++j) sums[j] += float(from[j]);
      }
    });
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fairseq_csp_native, library) {
  library.def(
      "score_weights_(Tensor(a!) scores, int[] lengths, str kind, float p, Tensor? seed) -> ()");
  library.def(
      "score_weights_backward_(Tensor(a!) scores, Tensor(b!) grad, int[] lengths, str kind, "
      "float p, Tensor? seed) -> ()");
  library.def("add_diagonals_(Tensor(a!) line, Tensor pairs) -> ()");
  library.impl("add_diagonals_", c10::DispatchKey::CPU, TORCH_FN(add_diagonals_));
  library.impl("score_weights_", c10::DispatchKey::CPU, TORCH_FN(score_weights_));
  library.impl("score_weights_backward_", c10::DispatchKey::CPU, TORCH_FN(score_weights_backward_));
}
