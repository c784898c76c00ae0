// Linear layers for inference: y = x W^T + b, the weight packed once into panels that one pass of the product reads in
// order.
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

constexpr int PANEL = 3 * LANES;     // outputs of a panel
constexpr int64_t ROW_BLOCK = 128;   // rows that share a panel while it is in the cache
constexpr int64_t DEPTH_BLOCK = 256;  // inputs whose products are summed in one go

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

// One block of rows times one panel: sums (rows, PANEL). A part of the panel in floats is held in place of another type.
template <typename T>
void panel_product(
    int64_t rows, int64_t inputs, const float* x, int64_t x_row, const T* panel, float* part, float* sums) {
  for (int64_t i = 0; i < inputs; i += DEPTH_BLOCK) {
    const int64_t depth = std::min(DEPTH_BLOCK, inputs - i);
    const float* right = part;
    if constexpr (std::is_same_v<T, float>) right = panel + i * PANEL;
    else
      for (int64_t n = 0; n < depth * PANEL; n += LANES) store(part + n, load_all(panel + i * PANEL + n));
    for (int64_t m = 0; m < rows; m += ROWS)
      product_block<3>(depth, x + m * x_row + i, x_row, 1, right, PANEL, sums + m * PANEL, PANEL, i > 0);
  }
}

template <typename T>
void multiply(const Tensor& x, const T* panels, const T* bias, int64_t outputs, T* y) {
  const int64_t rows = x.size(0), inputs = x.size(1), x_row = x.stride(0);
  const T* from = x.const_data_ptr<T>();
  const int64_t num_panels = (outputs + PANEL - 1) / PANEL, num_blocks = (rows + ROW_BLOCK - 1) / ROW_BLOCK;
  const int64_t threads = at::get_num_threads();
  // A few panels at a time for each thread, so that all end together.
  const int64_t group = std::clamp<int64_t>(num_blocks * num_panels / (8 * threads), 1, num_panels);
  const int64_t num_groups = (num_panels + group - 1) / group;
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const Tensor scratch = at::empty({ROW_BLOCK * inputs + (ROW_BLOCK + DEPTH_BLOCK) * PANEL}, at::kFloat);
    float* sums = scratch.mutable_data_ptr<float>();
    float *part = sums + ROW_BLOCK * PANEL, *floats = part + DEPTH_BLOCK * PANEL;
    int64_t held = -1;
    for (int64_t item; (item = next++) < num_blocks * num_groups;) {
      const int64_t block = item / num_groups, first = block * ROW_BLOCK;
      const int64_t count = std::min(ROW_BLOCK, rows - first), whole = round_up(count, ROWS);
      if (block != held) {
        for (int64_t m = 0; m < count; ++m)
          for (int64_t i = 0; i < inputs; i += LANES)
            store_row(floats + m * inputs + i, load_row(from + (first + m) * x_row + i, inputs - i), inputs - i);
        std::fill_n(floats + count * inputs, (whole - count) * inputs, 0.0f);
        held = block;
      }
      const int64_t begin = item % num_groups * group;
      for (int64_t p = begin; p < std::min(begin + group, num_panels); ++p) {
        panel_product(whole, inputs, floats, inputs, panels + p * inputs * PANEL, part, sums);
        for (int64_t m = 0; m < count; ++m)
          for (int64_t c = 0; c < PANEL; c += LANES) {
            const int64_t o = p * PANEL + c, left = outputs - o;
            if (left <= 0) break;
            store_row(y + (first + m) * outputs + o, load(sums + m * PANEL + c) + load_row(bias + o, left), left);
          }
      }
    }
  });
}

}  // namespace unbraid
