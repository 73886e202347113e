// The moving average's kernel on the CPU, its circle, and the products of spectra.
//
// Each operator has the arguments of the function in Python of which it is the fast form.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "../blocks.h"

namespace {

using namespace fairseq_csp;

// lags of a block, as in kernel.py
constexpr int64_t kLags = 64;

template <typename T>
using V = at::vec::Vectorized<T>;

// One component of a channel: its weight, the logarithm of its decay, and what they come from.
struct Component {
  double p, s, beta, gamma, share, log_q, rest;
  bool bounded;

  template <typename T>
  Component(const T* delta, const T* alpha, const T* beta, const T* gamma, int64_t i, int64_t count)
      : p(1 / (1 + std::exp(-double(delta[i])))), s(1 / (1 + std::exp(-double(alpha[i])))),
        beta(beta[i]), gamma(gamma[i]), share(1 / std::sqrt(double(count))) {
    // the distance of q from 1, away from 1 itself, where log(q) is infinite
    const double most = 1 - double(std::numeric_limits<T>::epsilon());
    bounded = p * s > most;
    const double decay = bounded ? most : p * s;
    rest = 1 - decay;
    log_q = std::log1p(-decay);
  }

  double weight() const { return p * beta * gamma * share; }
};

// numbers[j] = factor * exp(j * step * rate)
template <typename T>
void powers(T rate, int64_t step, T factor, int64_t count, T* numbers) {
  for (int64_t j = 0; j < count; j += V<T>::size()) {
    const V<T> lags = V<T>::arange(T(j * step), T(step));
    const V<T> values = (lags * V<T>(rate)).exp() * V<T>(factor);
    values.store(numbers + j, std::min<int64_t>(V<T>::size(), count - j));
  }
}

// out[j] += factor * from[j]
template <typename T>
inline void add(const T* from, T factor, T* out) {
  for (int64_t j = 0; j < kLags; j += V<T>::size()) {
    (V<T>::loadu(out + j) + V<T>(factor) * V<T>::loadu(from + j)).store(out + j);
  }
}

template <typename T>
inline T dot(const T* a, const T* b) {
  V<T> total(0);
  for (int64_t j = 0; j < kLags; j += V<T>::size()) {
    total = total + V<T>::loadu(a + j) * V<T>::loadu(b + j);
  }
  return sum(total);
}

template <typename T>
void kernel_of(
    const at::Tensor& delta, const at::Tensor& alpha, const at::Tensor& beta,
    const at::Tensor& gamma, const at::Tensor& out) {
  const int64_t channels = gamma.size(0), components = gamma.size(1), length = out.size(1);
  const int64_t blocks = (length + kLags - 1) / kLags;
  at::parallel_for(0, channels, 16, [&](int64_t begin, int64_t end) {
    std::vector<T> coarse(blocks), line(blocks * kLags);
    T fine[kLags];
    for (int64_t k = begin; k < end; ++k) {
      std::fill(line.begin(), line.end(), T(0));
      for (int64_t n = 0; n < components; ++n) {
        const Component one(delta.const_data_ptr<T>(), alpha.const_data_ptr<T>(),
            beta.const_data_ptr<T>(), gamma.const_data_ptr<T>(), k * components + n, components);
        powers<T>(one.log_q, 1, 1, kLags, fine);
        powers<T>(one.log_q, kLags, one.weight(), blocks, coarse.data());
        for (int64_t a = 0; a < blocks; ++a) add(fine, coarse[a], line.data() + a * kLags);
      }
      std::copy_n(line.data(), length, out.data_ptr<T>() + k * length);
    }
  });
}

template <typename T>
void kernel_gradients(
    const at::Tensor& grad, const at::Tensor& delta, const at::Tensor& alpha,
    const at::Tensor& beta, const at::Tensor& gamma, const std::array<at::Tensor, 4>& out) {
  const int64_t channels = gamma.size(0), components = gamma.size(1), length = grad.size(1);
  const int64_t blocks = (length + kLags - 1) / kLags;
  at::parallel_for(0, channels, 16, [&](int64_t begin, int64_t end) {
    std::vector<T> coarse(blocks), line(blocks * kLags);
    T fine[kLags], by_fine[kLags];
    for (int64_t k = begin; k < end; ++k) {
      std::copy_n(grad.const_data_ptr<T>() + k * length, length, line.data());
      for (int64_t n = 0; n < components; ++n) {
        const int64_t i = k * components + n;
        const Component one(delta.const_data_ptr<T>(), alpha.const_data_ptr<T>(),
            beta.const_data_ptr<T>(), gamma.const_data_ptr<T>(), i, components);
        powers<T>(one.log_q, 1, 1, kLags, fine);
        powers<T>(one.log_q, kLags, 1, blocks, coarse.data());
        std::fill(by_fine, by_fine + kLags, T(0));
        // the gradients of the weight and, through the powers, of log(q)
        double of_weight = 0, of_log = 0;
        for (int64_t a = 0; a < blocks; ++a) {
          const double of_power = double(dot(line.data() + a * kLags, fine)) * coarse[a];
          of_weight += of_power;
          of_log += of_power * double(a * kLags);
          add(line.data() + a * kLags, coarse[a], by_fine);
        }
        for (int64_t b = 0; b < kLags; ++b) of_log += double(by_fine[b]) * fine[b] * double(b);
        of_log *= one.weight();
        of_weight *= one.share;
        const double of_decay = one.bounded ? 0 : -of_log / one.rest;
        const double of_p = of_decay * one.s + of_weight * one.beta * one.gamma;
        out[0].data_ptr<T>()[i] = T(of_p * one.p * (1 - one.p));
        out[1].data_ptr<T>()[i] = T(of_decay * one.p * one.s * (1 - one.s));
        out[2].data_ptr<T>()[i] = T(of_weight * one.p * one.gamma);
        out[3].data_ptr<T>()[i] = T(of_weight * one.p * one.beta);
      }
    }
  });
}

template <typename Function>
void by_dtype(const at::Tensor& x, const Function& function) {
  switch (x.scalar_type()) {
    case at::kFloat: function(float()); break;
    case at::kDouble: function(double()); break;
    default: TORCH_CHECK(false, "numbers of ", x.scalar_type(), " have no kernel");
  }
}

// In float32 or wider, contiguous.
at::Tensor wide(const at::Tensor& x) {
  return x.to(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).contiguous();
}

at::Tensor ema_kernel(
    const at::Tensor& delta, const at::Tensor& alpha, const at::Tensor& beta,
    const at::Tensor& gamma, int64_t length) {
  const at::Tensor first = wide(delta);
  const at::Tensor out = at::empty({gamma.size(0), length}, first.options());
  by_dtype(first, [&](auto number) {
    kernel_of<decltype(number)>(first, wide(alpha), wide(beta), wide(gamma), out);
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> ema_kernel_backward(
    const at::Tensor& grad, const at::Tensor& delta, const at::Tensor& alpha,
    const at::Tensor& beta, const at::Tensor& gamma) {
  const std::array<at::Tensor, 4> given{wide(delta), wide(alpha), wide(beta), wide(gamma)};
  std::array<at::Tensor, 4> out;
  for (int k = 0; k < 4; ++k) out[k] = at::empty_like(given[k]);
  by_dtype(given[0], [&](auto number) {
    kernel_gradients<decltype(number)>(
        grad.contiguous(), given[0], given[1], given[2], given[3], out);
  });
  const auto narrow = [](const at::Tensor& x, const at::Tensor& like) {
    return x.to(like.scalar_type());
  };
  return {narrow(out[0], delta), narrow(out[1], alpha), narrow(out[2], beta), narrow(out[3], gamma)};
}

at::Tensor circular_kernel(const at::Tensor& kernel, const at::Tensor& skip, int64_t size) {
  const int64_t dim = kernel.size(0) / 2, lags = kernel.size(1);
  const at::Tensor out = at::empty({dim, size}, kernel.options());
  const at::Tensor lines = kernel.contiguous(), here = skip.to(kernel.scalar_type()).contiguous();
  by_dtype(kernel, [&](auto number) {
    using T = decltype(number);
    for (int64_t d = 0; d < dim; ++d) {
      const T* back = lines.const_data_ptr<T>() + d * lags;
      const T* ahead = back + dim * lags;
      T* to = out.data_ptr<T>() + d * size;
      std::copy_n(back, lags, to);
      to[0] += ahead[0] + here.const_data_ptr<T>()[d];
      std::fill(to + lags, to + size - lags + 1, T(0));
      std::reverse_copy(ahead + 1, ahead + lags, to + size - lags + 1);
    }
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> circular_kernel_backward(const at::Tensor& grad, int64_t lags) {
  const int64_t dim = grad.size(0), size = grad.size(1);
  const at::Tensor out = at::empty({2 * dim, lags}, grad.options());
  const at::Tensor skip = at::empty({dim}, grad.options()), given = grad.contiguous();
  by_dtype(grad, [&](auto number) {
    using T = decltype(number);
    for (int64_t d = 0; d < dim; ++d) {
      const T* from = given.const_data_ptr<T>() + d * size;
      T* back = out.data_ptr<T>() + d * lags;
      T* ahead = back + dim * lags;
      std::copy_n(from, lags, back);
      std::reverse_copy(from + size - lags + 1, from + size, ahead + 1);
      ahead[0] = skip.data_ptr<T>()[d] = from[0];
    }
  });
  return {out, skip};
}

// Of the gradient's spectrum (batch, D, frequencies): its sum over the batch of products with the
// signal's conjugate, (D, frequencies); itself becomes its product with the kernel's conjugate.
at::Tensor spectra_backward(
    const at::Tensor& grad, const at::Tensor& signal, const at::Tensor& kernel) {
  const int64_t batch = grad.size(0), dim = grad.size(1), count = grad.size(2);
  TORCH_CHECK(grad.is_contiguous() && signal.is_contiguous() && kernel.is_contiguous() &&
      !signal.is_conj() && !kernel.is_conj(), "spectra must be contiguous");
  const at::Tensor total = at::empty_like(kernel);
  const auto multiply = [&](auto number) {
    using T = decltype(number);
    using Complex = c10::complex<T>;
    const auto numbers = [](const at::Tensor& x) {
      return reinterpret_cast<T*>(const_cast<Complex*>(x.const_data_ptr<Complex>()));
    };
    at::parallel_for(0, dim, 1, [&](int64_t begin, int64_t end) {
      for (int64_t d = begin; d < end; ++d) {
        T* __restrict sums = numbers(total) + 2 * d * count;
        const T* __restrict by = numbers(kernel) + 2 * d * count;
        std::fill(sums, sums + 2 * count, T(0));
        for (int64_t b = 0; b < batch; ++b) {
          T* __restrict given = numbers(grad) + 2 * (b * dim + d) * count;
          const T* __restrict other = numbers(signal) + 2 * (b * dim + d) * count;
          for (int64_t j = 0; j < 2 * count; j += 2) {
            const T re = given[j], im = given[j + 1];
            sums[j] += re * other[j] + im * other[j + 1];
            sums[j + 1] += im * other[j] - re * other[j + 1];
            given[j] = re * by[j] + im * by[j + 1];
            given[j + 1] = im * by[j] - re * by[j + 1];
          }
        }
      }
    });
  };
  if (grad.scalar_type() == at::kComplexDouble) {
    multiply(double());
  } else {
    multiply(float());
  }
  return total;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fairseq_csp_native, library) {
  const auto add = [&](const char* schema, const char* name, auto function) {
    library.def(schema);
    library.impl(name, torch::dispatch(c10::DispatchKey::CPU, function));
  };
  add("ema_kernel(Tensor delta, Tensor alpha, Tensor beta, Tensor gamma, int length) -> Tensor",
      "ema_kernel", TORCH_FN(ema_kernel));
  add("ema_kernel_backward(Tensor grad, Tensor delta, Tensor alpha, Tensor beta, Tensor gamma) "
      "-> (Tensor, Tensor, Tensor, Tensor)",
      "ema_kernel_backward", TORCH_FN(ema_kernel_backward));
  add("circular_kernel(Tensor kernel, Tensor skip, int size) -> Tensor", "circular_kernel",
      TORCH_FN(circular_kernel));
  add("circular_kernel_backward(Tensor grad, int lags) -> (Tensor, Tensor)",
      "circular_kernel_backward", TORCH_FN(circular_kernel_backward));
  add("spectra_backward(Tensor(a!) grad, Tensor signal, Tensor kernel) -> Tensor",
      "spectra_backward", TORCH_FN(spectra_backward));
}
