// The moving average on the CPU as the recurrence that it is, of as many channels at once as a vector
// has numbers.
//
// Of each component s(t) = q s(t-1) + x(t) - q^L x(t-L), where L is how far the average reaches, and the
// average is the sum of w s(t). All is computed in float32, with 1 - q in place of q, which in
// float32 may be 1 where its powers are not.

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../blocks.h"

namespace {

using namespace fairseq_csp;
using at::Tensor;

// channels that are computed together
constexpr int64_t kLanes = Vec::size();
// components whose states are kept in registers together: so many that one need not wait for another
constexpr int64_t kStates = 8, kSums = 4;
// positions that are summed up in float32
constexpr int64_t kSpan = 128;

// ---- components ----

// One component of a channel: its weight w, 1 - q, and what they come from.
struct Component {
  double p, s, beta, gamma, share, decay;
  bool bounded;

  Component(const float* delta, const float* alpha, const float* beta, const float* gamma,
      int64_t i, int64_t count)
      : p(1 / (1 + std::exp(-double(delta[i])))), s(1 / (1 + std::exp(-double(alpha[i])))),
        beta(beta[i]), gamma(gamma[i]), share(1 / std::sqrt(double(count))) {
    // the bound of the formula's logarithm of q
    const double most = 1 - double(std::numeric_limits<float>::epsilon());
    bounded = p * s > most;
    decay = bounded ? most : p * s;
  }

  double weight() const { return p * beta * gamma * share; }

  // q^count
  double power(int64_t count) const { return std::exp(double(count) * std::log1p(-decay)); }
};

// The parameters of one direction: delta, alpha, beta, gamma are (2 D, N).
struct Parameters {
  Tensor delta, alpha, beta, gamma, skip;
  int64_t dim, components, padded;

  Parameters(const Tensor& delta, const Tensor& alpha, const Tensor& beta, const Tensor& gamma,
      const Tensor& omega)
      : delta(wide(delta)), alpha(wide(alpha)), beta(wide(beta)), gamma(wide(gamma)),
        skip(wide(omega)), dim(omega.size(0)), components(gamma.size(1)),
        padded((components + kStates - 1) / kStates * kStates) {
    TORCH_CHECK(gamma.size(0) == 2 * dim && delta.numel() == gamma.numel() &&
        alpha.numel() == gamma.numel() && beta.numel() == gamma.numel(),
        "delta, alpha, beta and gamma must be of 2 D channels");
  }

  static Tensor wide(const Tensor& x) { return x.to(at::kFloat).contiguous(); }

  Component at(int64_t row, int64_t n) const {
    return Component(delta.const_data_ptr<float>(), alpha.const_data_ptr<float>(),
        beta.const_data_ptr<float>(), gamma.const_data_ptr<float>(), row * components + n,
        components);
  }
};

// What the recurrences of a group of channels need of a direction, a vector each component.
struct Constants {
  // -(1 - q), w, -q^L and -L q^(L-1)
  std::vector<float> decay, weight, tail, slope;

  // `cut`: whether a row is longer than the reach, without which there is no tail
  Constants(const Parameters& given, bool ahead, int64_t group, int64_t reach, bool cut)
      : decay(given.padded * kLanes, -1.f), weight(given.padded * kLanes),
        tail(given.padded * kLanes), slope(given.padded * kLanes) {
    const int64_t first = group * kLanes, count = std::min(kLanes, given.dim - first);
    for (int64_t c = 0; c < count; ++c) {
      for (int64_t n = 0; n < given.components; ++n) {
        const Component one = given.at((ahead ? given.dim : 0) + first + c, n);
        const int64_t i = n * kLanes + c;
        decay[i] = float(-one.decay);
        weight[i] = float(one.weight());
        if (!cut) continue;
        tail[i] = float(-one.power(reach));
        slope[i] = float(-double(reach) * one.power(reach - 1));
      }
    }
  }
};

inline void add(const Vec& from, double* to) {
  float numbers[kLanes];
  from.store(numbers);
  for (int64_t c = 0; c < kLanes; ++c) to[c] += numbers[c];
}

inline Vec load(const std::vector<float>& numbers, int64_t n) {
  return Vec::loadu(numbers.data() + n * kLanes);
}

// ---- rows ----

// Numbers of a group of channels, position by position.
struct Row {
  std::vector<float> numbers;

  float* at(int64_t position) { return numbers.data() + position * kLanes; }
  const float* at(int64_t position) const { return numbers.data() + position * kLanes; }

  void resize(int64_t positions) {
    numbers.resize((positions + kBlock - 1) / kBlock * kBlock * kLanes);
  }

  // Take them from `channels` rows of memory; further channels are 0.
  template <typename T>
  void read(const T* from, int64_t stride, int64_t channels, int64_t positions) {
    resize(positions);
    float buffer[kLanes][kBlock] = {};
    for (int64_t i = 0; i < positions; i += kBlock) {
      const int64_t here = std::min(kBlock, positions - i);
      for (int64_t c = 0; c < channels; ++c) {
        const float* found = fairseq_csp::load(from + c * stride + i, here, buffer[c]);
        if (found != buffer[c]) std::memcpy(buffer[c], found, sizeof(buffer[c]));
      }
      for (int64_t j = 0; j < kBlock; j += kLanes) {
        at::vec::transpose_mxn<float, kLanes, kLanes>(buffer[0] + j, kBlock, at(i + j), kLanes);
      }
    }
  }

  template <typename T>
  void write(T* to, int64_t stride, int64_t channels, int64_t positions) const {
    float buffer[kLanes][kBlock];
    for (int64_t i = 0; i < positions; i += kBlock) {
      const int64_t here = std::min(kBlock, positions - i);
      for (int64_t j = 0; j < kBlock; j += kLanes) {
        at::vec::transpose_mxn<float, kLanes, kLanes>(at(i + j), kLanes, buffer[0] + j, kBlock);
      }
      for (int64_t c = 0; c < channels; ++c) {
        if constexpr (std::is_same_v<T, float>) {
          std::memcpy(to + c * stride + i, buffer[c], here * sizeof(float));
        } else {
          store(buffer[c], here, to + c * stride + i);
        }
      }
    }
  }
};

// The order in which a recurrence takes the positions of a row.
struct Order {
  int64_t count, reach;
  bool ahead;

  // how far the position L before is
  int64_t back() const { return ahead ? reach : -reach; }

  // Call function(position, whether there is one L before) from the begin-th to the end-th.
  template <typename Function>
  void along(int64_t begin, int64_t end, const Function& function) const {
    const int64_t step = ahead ? -1 : 1, first = ahead ? count - 1 : 0;
    const int64_t begun = std::clamp(reach, begin, end);
    for (int64_t i = begin; i < begun; ++i) function(first + step * i, std::false_type());
    for (int64_t i = begun; i < end; ++i) function(first + step * i, std::true_type());
  }
};

// out += the average of x in one direction.
void average(const Row& x, Row& out, const Order& order, const Constants& given) {
  const int64_t padded = int64_t(given.decay.size()) / kLanes;
  for (int64_t first = 0; first < padded; first += kStates) {
    Vec state[kStates], decay[kStates], weight[kStates], tail[kStates];
    for (int64_t k = 0; k < kStates; ++k) {
      state[k] = Vec(0.f);
      decay[k] = load(given.decay, first + k);
      weight[k] = load(given.weight, first + k);
      tail[k] = load(given.tail, first + k);
    }
    order.along(0, order.count, [&](int64_t i, auto has_tail) {
      const Vec now = Vec::loadu(x.at(i));
      Vec sum(0.f), old;
      if constexpr (has_tail) old = Vec::loadu(x.at(i + order.back()));
      for (int64_t k = 0; k < kStates; ++k) {
        Vec added = now;
        if constexpr (has_tail) added = at::vec::fmadd(tail[k], old, now);
        state[k] = at::vec::fmadd(decay[k], state[k], state[k] + added);
        sum = at::vec::fmadd(weight[k], state[k], sum);
      }
      (Vec::loadu(out.at(i)) + sum).store(out.at(i));
    });
  }
}

// Sum up, over the positions, the products of the gradient with each component's state s, and with the
// derivative of s by q: a number a component and channel.
void sums(
    const Row& x, const Row& grad, const Order& order, const Constants& given,
    std::vector<double>& of_state, std::vector<double>& of_slope) {
  const int64_t padded = int64_t(given.decay.size()) / kLanes;
  for (int64_t first = 0; first < padded; first += kSums) {
    Vec state[kSums], slope[kSums];
    Vec decay[kSums], tail[kSums], by_tail[kSums];
    for (int64_t k = 0; k < kSums; ++k) {
      state[k] = slope[k] = Vec(0.f);
      decay[k] = load(given.decay, first + k);
      tail[k] = load(given.tail, first + k);
      by_tail[k] = load(given.slope, first + k);
    }
    std::fill_n(of_state.begin() + first * kLanes, kSums * kLanes, 0.);
    std::fill_n(of_slope.begin() + first * kLanes, kSums * kLanes, 0.);
    for (int64_t begin = 0; begin < order.count; begin += kSpan) {
      Vec states[kSums], slopes[kSums];
      for (int64_t k = 0; k < kSums; ++k) states[k] = slopes[k] = Vec(0.f);
      order.along(begin, std::min(begin + kSpan, order.count), [&](int64_t i, auto has_tail) {
        const Vec now = Vec::loadu(x.at(i)), by = Vec::loadu(grad.at(i));
        Vec old;
        if constexpr (has_tail) old = Vec::loadu(x.at(i + order.back()));
        for (int64_t k = 0; k < kSums; ++k) {
          Vec added = now, beside = state[k];
          if constexpr (has_tail) {
            added = at::vec::fmadd(tail[k], old, now);
            beside = at::vec::fmadd(by_tail[k], old, beside);
          }
          slope[k] = at::vec::fmadd(decay[k], slope[k], slope[k] + beside);
          state[k] = at::vec::fmadd(decay[k], state[k], state[k] + added);
          states[k] = at::vec::fmadd(by, state[k], states[k]);
          slopes[k] = at::vec::fmadd(by, slope[k], slopes[k]);
        }
      });
      for (int64_t k = 0; k < kSums; ++k) {
        add(states[k], of_state.data() + (first + k) * kLanes);
        add(slopes[k], of_slope.data() + (first + k) * kLanes);
      }
    }
  }
}

// ---- a batch ----

// Groups of channels of the rows of a batch, or of rows that lie end to end in one.
struct Items {
  int64_t dim, groups, count;
  std::vector<int64_t> lengths, first;

  Items(const Tensor& x, at::IntArrayRef packed)
      : dim(x.size(1)), groups((dim + kLanes - 1) / kLanes) {
    TORCH_CHECK(has_rows(x), "rows must be (batch, channels, positions) with contiguous positions");
    if (packed.empty()) {
      for (int64_t b = 0; b < x.size(0); ++b) add(x.size(2), b * x.stride(0));
    } else {
      int64_t next = 0;
      for (const int64_t length : packed) {
        add(length, next);
        next += length;
      }
      TORCH_CHECK(x.size(0) == 1 && next == x.size(2), "the lengths must be those of the packed rows");
    }
    count = groups * int64_t(lengths.size());
  }

  void add(int64_t length, int64_t place) {
    lengths.push_back(length);
    first.push_back(place);
  }

  int64_t row(int64_t item) const { return item % int64_t(lengths.size()); }
  int64_t group(int64_t item) const { return item / int64_t(lengths.size()); }
  int64_t channels(int64_t item) const { return std::min(kLanes, dim - group(item) * kLanes); }

  // the first number of an item in a tensor of the given strides, whose rows lie alike
  int64_t place(int64_t item, const Tensor& x) const {
    const int64_t start = lengths.size() && x.size(0) > 1 ? row(item) * x.stride(0) : first[row(item)];
    return start + group(item) * kLanes * x.stride(1);
  }
};

// Beyond its reach, what a row is long at the most.
int64_t reach_of(const std::optional<int64_t>& truncation) {
  const int64_t reach = truncation.value_or(std::numeric_limits<int32_t>::max());
  TORCH_CHECK(reach > 0, "the moving average must reach a position");
  return reach;
}

void skip_to(const Row& x, Row& out, int64_t n, const Parameters& given, int64_t group) {
  float skip[kLanes] = {};
  const int64_t first = group * kLanes;
  std::copy_n(given.skip.const_data_ptr<float>() + first, std::min(kLanes, given.dim - first), skip);
  const Vec factor = Vec::loadu(skip);
  out.resize(n);
  for (int64_t i = 0; i < n; ++i) (factor * Vec::loadu(x.at(i))).store(out.at(i));
}

// Both directions' constants of each group of channels.
std::vector<Constants> constants(const Parameters& given, const Items& items, int64_t reach) {
  const auto& lengths = items.lengths;
  const bool cut = std::any_of(lengths.begin(), lengths.end(), [&](int64_t n) { return n > reach; });
  std::vector<Constants> found;
  for (int64_t group = 0; group < items.groups; ++group) {
    for (const bool ahead : {false, true}) found.emplace_back(given, ahead, group, reach, cut);
  }
  return found;
}

Tensor moving_average(
    const Tensor& x, const Tensor& delta, const Tensor& alpha, const Tensor& beta,
    const Tensor& gamma, const Tensor& omega, std::optional<int64_t> truncation,
    at::IntArrayRef lengths) {
  const Items items(x, lengths);
  const Parameters given(delta, alpha, beta, gamma, omega);
  const int64_t reach = reach_of(truncation);
  const std::vector<Constants> both = constants(given, items, reach);
  const Tensor out = at::empty(x.sizes(), x.options());
  by_dtype(x, [&](auto number) {
    using T = decltype(number);
    each_part(items.count, [&](int64_t, int64_t begin, int64_t end) {
      Row from, to;
      for (int64_t item = begin; item < end; ++item) {
        const int64_t n = items.lengths[items.row(item)], group = items.group(item);
        const int64_t channels = items.channels(item);
        from.read(x.const_data_ptr<T>() + items.place(item, x), x.stride(1), channels, n);
        skip_to(from, to, n, given, group);
        average(from, to, {n, reach, false}, both[2 * group]);
        average(from, to, {n, reach, true}, both[2 * group + 1]);
        to.write(out.data_ptr<T>() + items.place(item, out), out.stride(1), channels, n);
      }
    });
  });
  return out;
}

// The gradients of x, delta, alpha, beta, gamma and omega.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> moving_average_backward(
    const Tensor& grad, const Tensor& x, const Tensor& delta, const Tensor& alpha,
    const Tensor& beta, const Tensor& gamma, const Tensor& omega, std::optional<int64_t> truncation,
    at::IntArrayRef lengths) {
  TORCH_CHECK(has_rows(grad) && grad.sizes() == x.sizes() && grad.scalar_type() == x.scalar_type(),
      "the gradient must be of the kind of the input");
  const Items items(x, lengths);
  const Parameters given(delta, alpha, beta, gamma, omega);
  const int64_t reach = reach_of(truncation);
  const std::vector<Constants> both = constants(given, items, reach);
  const Tensor grad_x = at::empty(x.sizes(), x.options());
  // of each part: what the gradients of w, of q, and of omega are made of
  const int64_t dim = items.dim, components = given.components;
  struct Sums { std::vector<double> weight, q, skip; };
  std::vector<Sums> totals(parts(items.count));
  for (Sums& total : totals) {
    total.weight.resize(2 * dim * components);
    total.q.resize(2 * dim * components);
    total.skip.resize(dim);
  }
  by_dtype(x, [&](auto number) {
    using T = decltype(number);
    each_part(items.count, [&](int64_t part, int64_t begin, int64_t end) {
      Row from, by, to;
      std::vector<double> of_state(given.padded * kLanes), of_slope(given.padded * kLanes);
      for (int64_t item = begin; item < end; ++item) {
        const int64_t n = items.lengths[items.row(item)], group = items.group(item);
        const int64_t channels = items.channels(item), channel = group * kLanes;
        from.read(x.const_data_ptr<T>() + items.place(item, x), x.stride(1), channels, n);
        by.read(grad.const_data_ptr<T>() + items.place(item, grad), grad.stride(1), channels, n);
        skip_to(by, to, n, given, group);
        // what looked back gives its gradient ahead
        average(by, to, {n, reach, true}, both[2 * group]);
        average(by, to, {n, reach, false}, both[2 * group + 1]);
        to.write(grad_x.data_ptr<T>() + items.place(item, grad_x), grad_x.stride(1), channels, n);
        for (const bool ahead : {false, true}) {
          sums(from, by, {n, reach, ahead}, both[2 * group + ahead], of_state, of_slope);
          for (int64_t c = 0; c < channels; ++c) {
            for (int64_t k = 0; k < components; ++k) {
              const int64_t i = ((ahead ? dim : 0) + channel + c) * components + k;
              totals[part].weight[i] += of_state[k * kLanes + c];
              totals[part].q[i] += of_slope[k * kLanes + c];
            }
          }
        }
        double skips[kLanes] = {};
        for (int64_t first = 0; first < n; first += kSpan) {
          Vec skip(0.f);
          for (int64_t i = first; i < std::min(first + kSpan, n); ++i) {
            skip = at::vec::fmadd(Vec::loadu(from.at(i)), Vec::loadu(by.at(i)), skip);
          }
          add(skip, skips);
        }
        for (int64_t c = 0; c < channels; ++c) totals[part].skip[channel + c] += skips[c];
      }
    });
  });
  const auto like = [](const Tensor& x) { return at::empty(x.sizes(), x.options().dtype(at::kFloat)); };
  const Tensor of_delta = like(delta), of_alpha = like(alpha), of_beta = like(beta);
  const Tensor of_gamma = like(gamma), of_omega = like(omega);
  for (int64_t row = 0; row < 2 * dim; ++row) {
    for (int64_t n = 0; n < components; ++n) {
      const int64_t i = row * components + n;
      double of_weight = 0, of_q = 0;
      for (const Sums& total : totals) {
        of_weight += total.weight[i];
        of_q += total.q[i];
      }
      const Component one = given.at(row, n);
      const double of_decay = one.bounded ? 0 : -of_q * one.weight();
      of_weight *= one.share;
      const double of_p = of_decay * one.s + of_weight * one.beta * one.gamma;
      of_delta.data_ptr<float>()[i] = float(of_p * one.p * (1 - one.p));
      of_alpha.data_ptr<float>()[i] = float(of_decay * one.p * one.s * (1 - one.s));
      of_beta.data_ptr<float>()[i] = float(of_weight * one.p * one.gamma);
      of_gamma.data_ptr<float>()[i] = float(of_weight * one.p * one.beta);
    }
  }
  for (int64_t c = 0; c < dim; ++c) {
    double sum = 0;
    for (const Sums& total : totals) sum += total.skip[c];
    of_omega.data_ptr<float>()[c] = float(sum);
  }
  const auto narrow = [](const Tensor& x, const Tensor& like) { return x.to(like.scalar_type()); };
  return {grad_x, narrow(of_delta, delta), narrow(of_alpha, alpha), narrow(of_beta, beta),
      narrow(of_gamma, gamma), narrow(of_omega, omega)};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fairseq_csp_native, library) {
  library.def(
      "moving_average(Tensor x, Tensor delta, Tensor alpha, Tensor beta, Tensor gamma, "
      "Tensor omega, int? truncation, int[] lengths) -> Tensor");
  library.def(
      "moving_average_backward(Tensor grad, Tensor x, Tensor delta, Tensor alpha, Tensor beta, "
      "Tensor gamma, Tensor omega, int? truncation, int[] lengths) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  library.impl("moving_average", c10::DispatchKey::CPU, TORCH_FN(moving_average));
  library.impl(
      "moving_average_backward", c10::DispatchKey::CPU, TORCH_FN(moving_average_backward));
}
