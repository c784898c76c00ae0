// Linear layers for inference: y = x W^T + b or its GELU, the weight packed once into panels that one pass of the
// product reads in order.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "vector.h"

namespace unbraid {

using at::Tensor;

constexpr int PANEL = 3 * LANES;      // outputs of a panel
constexpr int64_t ROW_BLOCK = 128;    // rows and inputs of a block of x, which stays in the cache for many panels
constexpr int64_t DEPTH_BLOCK = 128;
constexpr int64_t MOST_PANELS = 32;   // whose sums stay there as well

// W (outputs, inputs) as (panels, inputs, PANEL), zeros behind the last output.
template <typename T>
void pack_panels(const Tensor& weight, T* to) {
  const int64_t outputs = weight.size(0), inputs = weight.size(1), row = weight.stride(0), step = weight.stride(1);
  const T* from = weight.const_data_ptr<T>();
  at::parallel_for(0, (outputs + PANEL - 1) / PANEL, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel)
      for (int64_t i = 0; i < inputs; ++i)
        for (int64_t o = panel * PANEL; o < (panel + 1) * PANEL; ++o)
          to[(panel * inputs + i) * PANEL + o % PANEL] = o < outputs ? from[o * row + i * step] : T(0);
  });
}

// The rows of a block of x as floats, zeros below them up to a whole number of steps.
template <typename T>
void copy_block(const T* x, int64_t x_row, int64_t rows, int64_t depth, float* to) {
  for (int64_t m = 0; m < rows; ++m)
    for (int64_t i = 0; i < depth; i += LANES)
      store_row(to + m * depth + i, load_row(x + m * x_row + i, depth - i), depth - i);
  std::fill_n(to + rows * depth, (round_up(rows, ROWS) - rows) * depth, 0.0f);
}

// Rows of floats, and how far they stand apart.
struct FloatRows {
  const float* first;
  int64_t row;
};

template <typename T>
FloatRows as_rows(const T* x, int64_t x_row, int64_t rows, int64_t depth, float* to) {
  if constexpr (std::is_same_v<T, float>)
    if (rows % ROWS == 0) return {x, x_row};
  copy_block(x, x_row, rows, depth, to);
  return {to, depth};
}

inline const float* as_floats(const float* from, int64_t, float*) { return from; }

inline const float* as_floats(const c10::BFloat16* from, int64_t size, float* to) {
  for (int64_t n = 0; n < size; n += LANES) store(to + n, load_all(from + n));
  return to;
}

template <typename T>
void multiply(const Tensor& x, const T* panels, const T* bias, bool with_gelu, int64_t outputs, T* y) {
  const int64_t rows = x.size(0), inputs = x.size(1), x_row = x.stride(0);
  const T* from = x.const_data_ptr<T>();
  const int64_t num_panels = (outputs + PANEL - 1) / PANEL, num_blocks = (rows + ROW_BLOCK - 1) / ROW_BLOCK;
  // A few panels at a time for each thread, so that all end together.
  const int64_t threads = at::get_num_threads();
  const int64_t group = std::clamp<int64_t>(num_blocks * num_panels / (2 * threads), 1, MOST_PANELS);
  const int64_t num_groups = (num_panels + group - 1) / group;
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const Tensor scratch = at::empty({ROW_BLOCK * (DEPTH_BLOCK + group * PANEL) + DEPTH_BLOCK * PANEL}, at::kFloat);
    float* block = scratch.mutable_data_ptr<float>();
    float *part = block + ROW_BLOCK * DEPTH_BLOCK, *all_sums = part + DEPTH_BLOCK * PANEL;
    for (int64_t item; (item = next++) < num_blocks * num_groups;) {
      const int64_t first = item / num_groups * ROW_BLOCK, count = std::min(ROW_BLOCK, rows - first);
      const int64_t begin = item % num_groups * group, end = std::min(begin + group, num_panels);
      for (int64_t i = 0; i < inputs; i += DEPTH_BLOCK) {
        const int64_t depth = std::min(DEPTH_BLOCK, inputs - i);
        const FloatRows left = as_rows(from + first * x_row + i, x_row, count, depth, block);
        for (int64_t p = begin; p < end; ++p) {
          const float* panel = as_floats(panels + (p * inputs + i) * PANEL, depth * PANEL, part);
          for (int64_t m = 0; m < count; m += ROWS) {
            float* sums = all_sums + ((p - begin) * ROW_BLOCK + m) * PANEL;
            product_block<3>(depth, left.first + m * left.row, left.row, 1, panel, PANEL, sums, PANEL, i > 0);
            if (i + depth < inputs) continue;
            for (int64_t r = 0; r < std::min<int64_t>(ROWS, count - m); ++r)
              for (int64_t o = p * PANEL; o < std::min((p + 1) * PANEL, outputs); o += LANES) {
                const Vec sum = load(sums + r * PANEL + o - p * PANEL) + load_row(bias + o, outputs - o);
                store_row(y + (first + m + r) * outputs + o, with_gelu ? gelu(sum) : sum, outputs - o);
              }
          }
        }
      }
    }
  });
}

}  // namespace unbraid
