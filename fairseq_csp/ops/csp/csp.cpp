// CSP on the CPU: each channel is shifted and sorted in one pass over its numbers.
//
// A sequence of n numbers is read from (i + read) mod n and written to (i + write) mod n, for i from 0,
// in blocks that are sorted (or unsorted) on the way. Where a block meets the end of the sequence it
// goes through a buffer, else straight from input to output.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Whether a stable sort that puts NaN last exchanges two neighbours.
template <bool descending, typename T>
inline bool out_of_order(T first, T second) {
  bool kept = descending ? first >= second : first <= second;
  return !kept & (second == second);
}

// ---- 16 pairs, and 16 bits for those that were exchanged ----
//
// Which bit stands for which pair is each processor's own.

constexpr int64_t kPairBlock = 32;

template <bool descending, typename T>
inline uint16_t sort_pairs(const T* x, T* y) {
  unsigned word = 0;
  for (int j = 0; j < 16; ++j) {
    T first = x[2 * j], second = x[2 * j + 1];
    bool swap = out_of_order<descending>(Wide<T>(first), Wide<T>(second));
    y[2 * j] = swap ? second : first;
    y[2 * j + 1] = swap ? first : second;
    word |= unsigned(swap) << j;
  }
  return uint16_t(word);
}

template <typename T>
inline void swap_pairs(const T* x, T* y, uint16_t word) {
  for (int j = 0; j < 16; ++j) {
    T first = x[2 * j], second = x[2 * j + 1];
    bool swap = word >> j & 1;
    y[2 * j] = swap ? second : first;
    y[2 * j + 1] = swap ? first : second;
  }
}

#if defined(__AVX512F__) && defined(__AVX512BW__)

template <bool descending>
inline uint16_t sort_pairs(const float* x, float* y) {
  constexpr int kMisplaced = descending ? _CMP_NGE_UQ : _CMP_NLE_UQ;
  unsigned word = 0;
  for (int half = 0; half < 2; ++half) {
    __m512 numbers = _mm512_loadu_ps(x + 16 * half);
    __m512 others = _mm512_permute_ps(numbers, 0xB1);
    __mmask16 swap = _mm512_mask_cmp_ps_mask(0x5555, numbers, others, kMisplaced);
    swap = _mm512_mask_cmp_ps_mask(swap, others, others, _CMP_ORD_Q);
    __mmask16 both = swap | swap << 1;
    _mm512_storeu_ps(y + 16 * half, _mm512_mask_mov_ps(numbers, both, others));
    word |= unsigned(swap) << half;
  }
  return uint16_t(word);
}

template <>
inline void swap_pairs(const float* x, float* y, uint16_t word) {
  for (int half = 0; half < 2; ++half) {
    __m512 numbers = _mm512_loadu_ps(x + 16 * half);
    unsigned swap = word >> half & 0x5555;
    __mmask16 both = swap | swap << 1;
    _mm512_storeu_ps(y + 16 * half, _mm512_mask_permute_ps(numbers, both, numbers, 0xB1));
  }
}

template <bool descending>
inline uint16_t sort_pairs(const double* x, double* y) {
  constexpr int kMisplaced = descending ? _CMP_NGE_UQ : _CMP_NLE_UQ;
  unsigned word = 0;
  for (int quarter = 0; quarter < 4; ++quarter) {
    __m512d numbers = _mm512_loadu_pd(x + 8 * quarter);
    __m512d others = _mm512_permute_pd(numbers, 0x55);
    __mmask8 swap = _mm512_mask_cmp_pd_mask(0x55, numbers, others, kMisplaced);
    swap = _mm512_mask_cmp_pd_mask(swap, others, others, _CMP_ORD_Q);
    __mmask8 both = swap | swap << 1;
    _mm512_storeu_pd(y + 8 * quarter, _mm512_mask_mov_pd(numbers, both, others));
    word |= unsigned(swap) << (quarter % 2 + 8 * (quarter / 2));
  }
  return uint16_t(word);
}

template <>
inline void swap_pairs(const double* x, double* y, uint16_t word) {
  for (int quarter = 0; quarter < 4; ++quarter) {
    __m512d numbers = _mm512_loadu_pd(x + 8 * quarter);
    unsigned swap = word >> (quarter % 2 + 8 * (quarter / 2)) & 0x55;
    __mmask8 both = swap | swap << 1;
    _mm512_storeu_pd(y + 8 * quarter, _mm512_mask_permute_pd(numbers, both, numbers, 0x55));
  }
}

// of 16-bit numbers a pair is one 32-bit lane, the first of the two in the lower half

inline void widen(__m512i pairs, __m512* first, __m512* second, const at::BFloat16*) {
  *first = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  *second = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(int(0xFFFF0000))));
}

inline void widen(__m512i pairs, __m512* first, __m512* second, const at::Half*) {
  *first = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pairs));
  *second = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(pairs, 16)));
}

template <bool descending, typename T>
inline uint16_t sort_lanes(const T* x, T* y) {
  constexpr int kMisplaced = descending ? _CMP_NGE_UQ : _CMP_NLE_UQ;
  __m512i pairs = _mm512_loadu_si512(x);
  __m512 first, second;
  widen(pairs, &first, &second, x);
  __mmask16 swap = _mm512_cmp_ps_mask(first, second, kMisplaced);
  swap = _mm512_mask_cmp_ps_mask(swap, second, second, _CMP_ORD_Q);
  _mm512_storeu_si512(y, _mm512_mask_rol_epi32(pairs, swap, pairs, 16));
  return swap;
}

template <typename T>
inline void swap_lanes(const T* x, T* y, uint16_t word) {
  __m512i pairs = _mm512_loadu_si512(x);
  _mm512_storeu_si512(y, _mm512_mask_rol_epi32(pairs, word, pairs, 16));
}

template <bool descending>
inline uint16_t sort_pairs(const at::BFloat16* x, at::BFloat16* y) {
  return sort_lanes<descending>(x, y);
}

template <bool descending>
inline uint16_t sort_pairs(const at::Half* x, at::Half* y) {
  return sort_lanes<descending>(x, y);
}

template <>
inline void swap_pairs(const at::BFloat16* x, at::BFloat16* y, uint16_t word) {
  swap_lanes(x, y, word);
}

template <>
inline void swap_pairs(const at::Half* x, at::Half* y, uint16_t word) {
  swap_lanes(x, y, word);
}

#elif defined(__AVX2__)

template <bool descending>
inline uint16_t sort_pairs(const float* x, float* y) {
  constexpr int kMisplaced = descending ? _CMP_NGE_UQ : _CMP_NLE_UQ;
  unsigned word = 0;
  for (int quarter = 0; quarter < 4; ++quarter) {
    __m256 numbers = _mm256_loadu_ps(x + 8 * quarter);
    __m256 others = _mm256_permute_ps(numbers, 0xB1);
    __m256 swap = _mm256_and_ps(
        _mm256_cmp_ps(numbers, others, kMisplaced), _mm256_cmp_ps(others, others, _CMP_ORD_Q));
    __m256 both = _mm256_moveldup_ps(swap);
    _mm256_storeu_ps(y + 8 * quarter, _mm256_blendv_ps(numbers, others, both));
    word |= unsigned(_mm256_movemask_ps(swap) & 0x55) << (quarter % 2 + 8 * (quarter / 2));
  }
  return uint16_t(word);
}

template <>
inline void swap_pairs(const float* x, float* y, uint16_t word) {
  const __m256i bits = _mm256_setr_epi32(1, 1, 4, 4, 16, 16, 64, 64);
  for (int quarter = 0; quarter < 4; ++quarter) {
    __m256 numbers = _mm256_loadu_ps(x + 8 * quarter);
    __m256 others = _mm256_permute_ps(numbers, 0xB1);
    __m256i swap = _mm256_set1_epi32(word >> (quarter % 2 + 8 * (quarter / 2)));
    __m256i both = _mm256_cmpeq_epi32(_mm256_and_si256(swap, bits), bits);
    _mm256_storeu_ps(y + 8 * quarter, _mm256_blendv_ps(numbers, others, _mm256_castsi256_ps(both)));
  }
}

#endif

// ---- 16 groups of 3 to 8 numbers, and a byte for where each came from in its group ----

constexpr int kLargestGroup = 8;

// Odd-even transposition: only neighbours are exchanged, so it is stable.
template <typename T>
inline void sort_groups(const T* x, T* y, uint8_t* kept, int group, bool descending) {
  using Key = Wide<T>;
  const Key sign = descending ? -1 : 1;
  using Index = std::conditional_t<sizeof(Key) == 8, int64_t, int32_t>;
  Key keys[kLargestGroup][16];
  Index indices[kLargestGroup][16];
  for (int k = 0; k < group; ++k) {
    for (int j = 0; j < 16; ++j) {
      keys[k][j] = sign * Key(x[j * group + k]);
      indices[k][j] = k;
    }
  }
  for (int round = 0; round < group; ++round) {
    for (int k = round % 2; k + 1 < group; k += 2) {
      for (int j = 0; j < 16; ++j) {
        Key first = keys[k][j], second = keys[k + 1][j];
        Index first_index = indices[k][j], second_index = indices[k + 1][j];
        bool swap = out_of_order<false>(first, second);
        keys[k][j] = swap ? second : first;
        keys[k + 1][j] = swap ? first : second;
        indices[k][j] = swap ? second_index : first_index;
        indices[k + 1][j] = swap ? first_index : second_index;
      }
    }
  }
  for (int j = 0; j < 16; ++j) {
    for (int k = 0; k < group; ++k) {
      y[j * group + k] = x[j * group + indices[k][j]];
      kept[j * group + k] = uint8_t(indices[k][j]);
    }
  }
}

// ---- a whole sequence ----

// Call function(first number's index, source, target) for each block of a sequence.
template <typename T, typename Function>
inline void in_blocks(
    const T* x, T* y, int64_t n, int64_t read, int64_t write, int64_t block,
    const Function& function) {
  T source_buffer[16 * kLargestGroup], target_buffer[16 * kLargestGroup];
  const int64_t read_end = n - read, write_end = n - write;
  for (int64_t i = 0; i < n; i += block) {
    const int64_t count = std::min(block, n - i);
    const T* source = source_buffer;
    if (count == block && (i + block <= read_end || i >= read_end)) {
      source = x + (i < read_end ? i + read : i - read_end);
    } else {
      for (int64_t j = 0; j < count; ++j) {
        source_buffer[j] = x[i + j < read_end ? i + j + read : i + j - read_end];
      }
      // stays behind every number of its group
      std::fill(source_buffer + count, source_buffer + block, T(std::numeric_limits<float>::quiet_NaN()));
    }
    if (count == block && (i + block <= write_end || i >= write_end)) {
      function(i, source, y + (i < write_end ? i + write : i - write_end));
    } else {
      function(i, source, target_buffer);
      for (int64_t j = 0; j < count; ++j) {
        y[i + j < write_end ? i + j + write : i + j - write_end] = target_buffer[j];
      }
    }
  }
}

template <typename T>
inline void shift(const T* x, T* y, int64_t n, int64_t read, int64_t write) {
  const int64_t by = (write - read + n) % n;
  std::memcpy(y + by, x, (n - by) * sizeof(T));
  std::memcpy(y, x + n - by, by * sizeof(T));
}

template <typename T>
void sort_sequence(
    const T* x, T* y, uint8_t* kept, int64_t n, int64_t read, int64_t write, int64_t group,
    bool descending) {
  if (group == 1) {
    shift(x, y, n, read, write);
  } else if (group == 2) {
    in_blocks(x, y, n, read, write, kPairBlock, [=](int64_t i, const T* source, T* target) {
      const uint16_t word =
          descending ? sort_pairs<true>(source, target) : sort_pairs<false>(source, target);
      std::memcpy(kept + i / 16, &word, 2);
    });
  } else {
    const int64_t block = 16 * group;
    in_blocks(x, y, n, read, write, block, [=](int64_t i, const T* source, T* target) {
      uint8_t last[16 * kLargestGroup];
      const bool whole = i + block <= n;
      sort_groups(source, target, whole ? kept + i : last, int(group), descending);
      if (!whole) std::memcpy(kept + i, last, n - i);
    });
  }
}

template <typename T>
void unsort_sequence(
    const T* x, T* y, const uint8_t* kept, int64_t n, int64_t read, int64_t write,
    int64_t group) {
  if (group == 1) {
    shift(x, y, n, read, write);
  } else if (group == 2) {
    in_blocks(x, y, n, read, write, kPairBlock, [=](int64_t i, const T* source, T* target) {
      uint16_t word;
      std::memcpy(&word, kept + i / 16, 2);
      swap_pairs(source, target, word);
    });
  } else {
    const int64_t block = 16 * group;
    in_blocks(x, y, n, read, write, block, [=](int64_t i, const T* source, T* target) {
      const int64_t count = std::min(block, n - i);
      for (int64_t first = 0; first < count; first += group) {
        const int64_t end = std::min(first + group, count);
        for (int64_t j = first; j < end; ++j) target[first + kept[i + j]] = source[j];
      }
    });
  }
}

// ---- a batch ----

// Where the sequences of a batch lie: each a row of it, or, of one row, end to end in it.
struct Sequences {
  int64_t count, channels, positions;
  const int64_t* length;
  // the first position of each when they are packed
  std::vector<int64_t> first;

  Sequences(const at::Tensor& values, const std::optional<at::Tensor>& lengths)
      : count(lengths ? lengths->numel() : values.size(0)), channels(values.size(1)),
        positions(values.size(2)), length(lengths ? lengths->const_data_ptr<int64_t>() : nullptr) {
    if (count == values.size(0)) return;
    for (int64_t k = 0, next = 0; k < count; next += length[k++]) first.push_back(next);
  }

  bool packed() const { return !first.empty(); }

  // Bytes that are kept of a channel: 16-bit words for pairs, a word begun by each sequence; a
  // byte a number for larger groups; nothing for groups of one.
  int64_t kept_size(int64_t group) const {
    if (group == 1) return 0;
    if (group > 2) return positions;
    return (positions + kPairBlock - 1) / kPairBlock * 2 + (packed() ? 2 * count : 0);
  }

  int64_t kept_first(int64_t sequence, int64_t group) const {
    if (!packed()) return 0;
    return group == 2 ? (first[sequence] / kPairBlock + sequence) * 2 : first[sequence];
  }
};

// function(x, y, kept, n, shift) for each channel of each sequence; what is beyond n becomes 0
template <typename T, typename Function>
void each_channel(
    const at::Tensor& values, const Sequences& sequences, const at::Tensor& shifts,
    const at::Tensor& out, const at::Tensor& kept, int64_t group, const Function& function) {
  const int64_t channels = sequences.channels, positions = sequences.positions;
  const int64_t count = sequences.count, kept_size = kept.size(2);
  const T* x = values.const_data_ptr<T>();
  T* y = out.data_ptr<T>();
  uint8_t* kept_data = kept.data_ptr<uint8_t>();
  const int32_t* shift = shifts.const_data_ptr<int32_t>();
  const bool shared = shifts.size(0) == 1, packed = sequences.packed();
  const int64_t mean = packed ? positions / count : positions;
  const int64_t grain = std::max<int64_t>(1, 16384 / std::max<int64_t>(mean, 1));
  at::parallel_for(0, count * channels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      // in the order in which they lie in memory
      const int64_t sequence = packed ? item % count : item / channels;
      const int64_t channel = packed ? item / count : item % channels;
      const int64_t n = sequences.length ? sequences.length[sequence] : positions;
      const int64_t row = packed ? channel : item, first = packed ? sequences.first[sequence] : 0;
      const int64_t batch = packed ? 0 : sequence;
      const T* source = x + batch * values.stride(0) + channel * values.stride(1) + first;
      T* target = y + row * positions + first;
      uint8_t* own = kept_data + row * kept_size + sequences.kept_first(sequence, group);
      const int64_t by = shift[shared ? channel : sequence * channels + channel];
      if (n > 0) function(source, target, own, n, by % n);
      if (!packed) std::memset(static_cast<void*>(target + n), 0, (positions - n) * sizeof(T));
    }
  });
}

template <typename Function>
void with_type(at::ScalarType type, const Function& function) {
  switch (type) {
    case at::kFloat: return function(float());
    case at::kDouble: return function(double());
    case at::kBFloat16: return function(at::BFloat16());
    case at::kHalf: return function(at::Half());
    default: TORCH_CHECK(false, "values of ", type, " have no kernel");
  }
}

Sequences check(
    const at::Tensor& values, const std::optional<at::Tensor>& lengths, const at::Tensor& shifts,
    int64_t group) {
  TORCH_CHECK(1 <= group && group <= kLargestGroup, "groups of ", group, " have no kernel");
  TORCH_CHECK(values.dim() == 3 && (values.stride(2) == 1 || values.size(2) < 2),
      "values must be (batch, channels, positions) with contiguous positions");
  TORCH_CHECK(!lengths || (lengths->is_contiguous() &&
      (lengths->numel() == values.size(0) || values.size(0) == 1)),
      "there must be a length for each sequence");
  const Sequences sequences(values, lengths);
  TORCH_CHECK(shifts.is_contiguous() && shifts.dim() == 2 && shifts.size(1) == values.size(1) &&
      (shifts.size(0) == sequences.count || (shifts.size(0) == 1 && !lengths)),
      "there must be a shift for each channel of each sequence");
  if (lengths) {
    const int64_t* length = lengths->const_data_ptr<int64_t>();
    TORCH_CHECK(std::all_of(length, length + lengths->numel(),
        [&](int64_t n) { return 0 <= n && n <= values.size(2); }),
        "lengths must be from 0 to the number of positions");
    TORCH_CHECK(!sequences.packed() ||
        std::accumulate(length, length + lengths->numel(), int64_t(0)) == values.size(2),
        "sequences that lie end to end must fill the row");
  }
  return sequences;
}

std::tuple<at::Tensor, at::Tensor> permute(
    const at::Tensor& values, const std::optional<at::Tensor>& lengths, const at::Tensor& shifts,
    int64_t group, bool shift_first, bool descending) {
  const Sequences sequences = check(values, lengths, shifts, group);
  const at::Tensor out = at::empty(values.sizes(), values.options());
  const at::Tensor kept = at::zeros({values.size(0), values.size(1), sequences.kept_size(group)},
      values.options().dtype(at::kByte));
  with_type(values.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    each_channel<T>(values, sequences, shifts, out, kept, group,
        [&](const T* x, T* y, uint8_t* kept, int64_t n, int64_t shift) {
          const int64_t read = shift_first ? (n - shift) % n : 0;
          const int64_t write = shift_first ? 0 : shift;
          sort_sequence(x, y, kept, n, read, write, group, descending);
        });
  });
  return {out, kept};
}

at::Tensor restore(
    const at::Tensor& grad, const std::optional<at::Tensor>& lengths, const at::Tensor& shifts,
    const at::Tensor& kept, int64_t group, bool shift_first) {
  const Sequences sequences = check(grad, lengths, shifts, group);
  const at::Tensor out = at::empty(grad.sizes(), grad.options());
  with_type(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    each_channel<T>(grad, sequences, shifts, out, kept, group,
        [&](const T* x, T* y, uint8_t* kept, int64_t n, int64_t shift) {
          const int64_t read = shift_first ? 0 : shift;
          const int64_t write = shift_first ? (n - shift) % n : 0;
          unsort_sequence(x, y, kept, n, read, write, group);
        });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fairseq_csp_native, library) {
  library.def(
      "csp_permute(Tensor values, Tensor? lengths, Tensor shifts, int group, bool shift_first, "
      "bool descending) -> (Tensor, Tensor)");
  library.def(
      "csp_restore(Tensor grad, Tensor? lengths, Tensor shifts, Tensor kept, int group, "
      "bool shift_first) -> Tensor");
  library.impl("csp_permute", c10::DispatchKey::CPU, TORCH_FN(permute));
  library.impl("csp_restore", c10::DispatchKey::CPU, TORCH_FN(restore));
}
