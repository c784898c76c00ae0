// Dropout whose decisions are a hash of a seed and of the place of a value, so that nothing but the seed is kept for the
// backward pass.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>

#include "vector.h"

namespace unbraid {

struct Dropout {
  uint64_t seed = 0;
  uint32_t threshold = 0;
  float scale = 1;

  Dropout() = default;
  Dropout(const at::Tensor& seed, double p)
      : seed((uint64_t)seed.item<int64_t>()),
        threshold((uint32_t)std::min(p * 0x1p32, 0x1p32 - 1)),
        scale(p < 1 ? 1 / (1 - p) : 0) {}

  // Two words of key for a row of values that has this place.
  uint64_t key(int64_t a, int64_t b, int64_t c) const {
    uint64_t x = seed;
    for (const int64_t part : {a, b, c}) {
      x += 0x9E3779B97F4A7C15u + (uint64_t)part;
      x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
      x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
      x ^= x >> 31;
    }
    return x;
  }

  // The factors of LANES values of a row from this position on: 0 or scale.
  Vec factors(uint64_t key, int64_t position) const {
    WordVec counter;
    for (int lane = 0; lane < LANES; ++lane) counter[lane] = (uint32_t)position + lane;
    const WordVec words = random_words((uint32_t)key, (uint32_t)(key >> 32), counter);
    return words >= threshold ? splat(scale) : Vec{};
  }
};

template <typename T>
void drop(const T* from, int64_t size, const Dropout& dropout, T* to) {
  constexpr int64_t ROW = 4096;
  at::parallel_for(0, (size + ROW - 1) / ROW, 4, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const uint64_t key = dropout.key(0, 0, row);
      for (int64_t n = row * ROW; n < std::min(size, (row + 1) * ROW); n += LANES)
        store_row(to + n, load_row(from + n, size - n) * dropout.factors(key, n - row * ROW), size - n);
    }
  });
}

}  // namespace unbraid
