// Rows of different lengths laid end to end, and apart again, on the CPU.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace {

using at::Tensor;

// Call function(row, channel, first position of the row when packed) for all rows of a bucket.
template <typename Function>
void each_row(
    at::IntArrayRef lengths, int64_t channels, int64_t first, const Function& function) {
  std::vector<int64_t> starts;
  for (const int64_t length : lengths) {
    starts.push_back(first);
    first += length;
  }
  const int64_t rows = int64_t(lengths.size());
  const int64_t longest = rows ? *std::max_element(lengths.begin(), lengths.end()) : 0;
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(longest, 1));
  at::parallel_for(0, rows * channels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      function(item / channels, item % channels, starts[item / channels]);
    }
  });
}

void check(const Tensor& x) {
  TORCH_CHECK(x.dim() == 3 && (x.stride(2) == 1 || x.size(2) < 2),
      "rows must be (batch, channels, positions) with contiguous positions");
}

int64_t sum(at::IntArrayRef lengths) {
  int64_t total = 0;
  for (const int64_t length : lengths) {
    TORCH_CHECK(length >= 0, "lengths must not be negative");
    total += length;
  }
  return total;
}

// (1, channels, sum of lengths) to one (rows, channels, longest) for each count of rows.
std::vector<Tensor> unpack_rows(
    const Tensor& packed, at::IntArrayRef lengths, at::IntArrayRef counts) {
  check(packed);
  TORCH_CHECK(packed.size(0) == 1 && packed.size(2) == sum(lengths) &&
      sum(counts) == int64_t(lengths.size()), "the lengths must be those of the packed rows");
  const int64_t channels = packed.size(1), number = packed.element_size();
  const char* from = static_cast<const char*>(packed.const_data_ptr());
  std::vector<Tensor> parts;
  int64_t row = 0, position = 0;
  for (const int64_t count : counts) {
    const at::IntArrayRef own = lengths.slice(row, count);
    const int64_t longest = count ? *std::max_element(own.begin(), own.end()) : 0;
    const Tensor part = at::empty({count, channels, longest}, packed.options());
    char* to = static_cast<char*>(part.data_ptr());
    each_row(own, channels, position, [&](int64_t row, int64_t channel, int64_t first) {
      const int64_t length = own[row];
      char* target = to + (row * channels + channel) * longest * number;
      std::memcpy(target, from + (channel * packed.stride(1) + first) * number, length * number);
      std::memset(target + length * number, 0, (longest - length) * number);
    });
    parts.push_back(part);
    row += count;
    position += sum(own);
  }
  return parts;
}

// What unpack_rows undoes; what stands beyond a row's length is left out.
Tensor pack_rows(const std::vector<Tensor>& parts, at::IntArrayRef lengths) {
  TORCH_CHECK(!parts.empty(), "there must be rows");
  const int64_t channels = parts[0].size(1), number = parts[0].element_size();
  const Tensor packed = at::empty({1, channels, sum(lengths)}, parts[0].options());
  char* to = static_cast<char*>(packed.data_ptr());
  int64_t row = 0, position = 0;
  for (const Tensor& part : parts) {
    check(part);
    TORCH_CHECK(part.size(1) == channels && part.scalar_type() == packed.scalar_type() &&
        row + part.size(0) <= int64_t(lengths.size()), "the parts must be of one kind");
    const at::IntArrayRef own = lengths.slice(row, part.size(0));
    TORCH_CHECK(own.empty() || *std::max_element(own.begin(), own.end()) <= part.size(2),
        "no row may be longer than its part");
    const char* from = static_cast<const char*>(part.const_data_ptr());
    each_row(own, channels, position, [&](int64_t row, int64_t channel, int64_t first) {
      const int64_t source = row * part.stride(0) + channel * part.stride(1);
      std::memcpy(to + (channel * packed.size(2) + first) * number, from + source * number,
          own[row] * number);
    });
    row += part.size(0);
    position += sum(own);
  }
  TORCH_CHECK(row == int64_t(lengths.size()), "there must be a length for each row");
  return packed;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fairseq_csp_native, library) {
  library.def("unpack_rows(Tensor packed, int[] lengths, int[] counts) -> Tensor[]");
  library.def("pack_rows(Tensor[] parts, int[] lengths) -> Tensor");
  library.impl("unpack_rows", c10::DispatchKey::CPU, TORCH_FN(unpack_rows));
  library.impl("pack_rows", c10::DispatchKey::CPU, TORCH_FN(pack_rows));
}
