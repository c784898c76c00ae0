// Vectors of floats, and the one matrix product that everything is made of.
//
// GCC and Clang lower these vector types to whatever the machine has (AVX-512, AVX2, NEON), so there is one text for
// all of them.
#pragma once

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace unbraid {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 8;
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 4;
#else
constexpr int LANES = 4, ROWS = 8;
#endif

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t IntVec __attribute__((vector_size(LANES * 4)));
typedef uint32_t WordVec __attribute__((vector_size(LANES * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(LANES * 2)));

inline int64_t round_up(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

inline Vec load(const float* from) {
  Vec value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline void store(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }

inline Vec load_all(const float* from) { return load(from); }

inline void store_all(float* to, Vec value) { store(to, value); }

inline Vec load_all(const c10::BFloat16* from) {
  HalfVec halves;
  std::memcpy(&halves, from, sizeof halves);
  return (Vec)(__builtin_convertvector(halves, WordVec) << 16);
}

// Rounds to nearest, ties to even.
inline void store_all(c10::BFloat16* to, Vec value) {
  const WordVec bits = (WordVec)value;
  const WordVec rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const HalfVec halves = __builtin_convertvector(value == value ? rounded : (WordVec{} + 0x7FC0u), HalfVec);
  std::memcpy(to, &halves, sizeof halves);
}

// The next LANES entries of a row with count left, zeros behind them.
template <typename T>
Vec load_row(const T* from, int64_t count) {
  if (count >= LANES) return load_all(from);
  Vec value{};
  for (int lane = 0; lane < count; ++lane) value[lane] = (float)from[lane];
  return value;
}

template <typename T>
void store_row(T* to, Vec value, int64_t count) {
  if (count >= LANES) return store_all(to, value);
  for (int lane = 0; lane < count; ++lane) to[lane] = (T)value[lane];
}

inline Vec splat(float value) { return value - Vec{}; }

inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

inline float sum(Vec value) {
  float total = 0;
  for (int lane = 0; lane < LANES; ++lane) total += value[lane];
  return total;
}

inline float largest(Vec value) {
  float best = value[0];
  for (int lane = 1; lane < LANES; ++lane) best = value[lane] > best ? value[lane] : best;
  return best;
}

// 2^(x + x * rest) for x below 127 and a tiny rest, to one unit in the last place; 0 below 2^-126.
inline Vec exp2(Vec x, float rest) {
  const Vec shift = splat(0x1.8p23f);  // adding it leaves the nearest integer in the low bits
  const Vec bounded = larger(x, splat(-127.0f));
  const Vec shifted = bounded + shift;
  const Vec f = bounded - (shifted - shift) + bounded * rest;
  // Taylor's terms of 2^f up to f^7 on [-1/2, 1/2].
  Vec p = splat(1.525273380e-5f);
  p = p * f + 1.540353039e-4f;
  p = p * f + 1.333355815e-3f;
  p = p * f + 9.618129108e-3f;
  p = p * f + 5.550410866e-2f;
  p = p * f + 2.402265070e-1f;
  p = p * f + 6.931471806e-1f;
  p = p * f + 1.0f;
  const IntVec power = ((IntVec)shifted - (IntVec)shift + 127) << 23;
  const Vec result = p * (Vec)power;
  // A NaN compares false twice and must stay one.
  return x < -126.0f ? Vec{} : (x == x ? result : x);
}

inline Vec polynomial(Vec x, const float (&coefficients)[7]) {
  Vec value = splat(coefficients[6]);
  for (int n = 5; n >= 0; --n) value = value * x + coefficients[n];
  return value;
}

// x (1 + erf(x / sqrt(2))) / 2, erf to 1.2e-7: up to 1 as an odd polynomial, beyond it as 1 - 2^polynomial, both fitted
// to the least largest error.
inline Vec gelu(Vec x) {
  const Vec z = x * 0.70710678f, magnitude = z < 0.0f ? -z : z, a = magnitude > 4.0f ? splat(4.0f) : magnitude;
  const Vec inner = z * polynomial(
      z * z, {1.12837911f, -0.37612626f, 0.1128360f, -0.026854444f, 5.1895352e-3f, -8.0208411e-4f, 7.8891193e-5f});
  const Vec outer = 1.0f - exp2(
      polynomial(
          a, {-5.1029411e-4f, -1.6259751f, -0.92076492f, -0.1486516f, 0.031458471f, -4.2409692e-3f, 2.6772797e-4f}), 0);
  return 0.5f * x * (1.0f + (a < 1.0f ? inner : z < 0.0f ? -outer : outer));
}

// Well mixed bits from two words of key and a counter (two rounds of multiply and shift).
inline WordVec random_words(uint32_t low, uint32_t high, WordVec counter) {
  WordVec x = counter * 0x9E3779B9u + low;
  x = (x ^ (x >> 16)) * 0x7FEB352Du;
  x ^= high;
  x = (x ^ (x >> 15)) * 0x846CA68Bu;
  return x ^ (x >> 16);
}

// The entries of a and b in turn, from this one on.
inline Vec interleave(Vec a, Vec b, int first) {
#if defined(__clang__)
  Vec mixed;
  for (int lane = 0; lane < LANES; ++lane) mixed[lane] = (lane % 2 ? b : a)[first + lane / 2];
  return mixed;
#else
  IntVec order;
  for (int lane = 0; lane < LANES; ++lane) order[lane] = first + lane / 2 + lane % 2 * LANES;
  return __builtin_shuffle(a, b, order);
#endif
}

// The transpose of LANES rows of LANES floats.
inline void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride, bool add) {
  Vec rows[LANES];
  for (int r = 0; r < LANES; ++r) rows[r] = load(from + r * from_stride);
  // Each perfect shuffle moves one bit of the index from row to column.
  for (int step = 1; step < LANES; step *= 2) {
    Vec next[LANES];
    for (int r = 0; r < LANES / 2; ++r) {
      next[2 * r] = interleave(rows[r], rows[r + LANES / 2], 0);
      next[2 * r + 1] = interleave(rows[r], rows[r + LANES / 2], LANES / 2);
    }
    std::memcpy(rows, next, sizeof rows);
  }
  for (int r = 0; r < LANES; ++r) {
    float* row = to + r * to_stride;
    store(row, add ? load(row) + rows[r] : rows[r]);
  }
}

template <int COLUMNS>
inline void product_block(
    int64_t depth, const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step, float* c,
    int64_t c_row, bool add) {
  Vec sums[ROWS][COLUMNS] = {};
  for (int64_t k = 0; k < depth; ++k, a += a_step, b += b_step) {
    Vec right[COLUMNS];
#pragma GCC unroll 8
    for (int n = 0; n < COLUMNS; ++n) {
      right[n] = load(b + n * LANES);
      __builtin_prefetch(b + n * LANES + 24 * b_step);
    }
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m) {
      const Vec left = splat(a[m * a_row]);
#pragma GCC unroll 8
      for (int n = 0; n < COLUMNS; ++n) sums[m][n] += left * right[n];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < COLUMNS; ++n) {
      float* to = c + m * c_row + n * LANES;
      store(to, add ? load(to) + sums[m][n] : sums[m][n]);
    }
}

// C (rows, columns) = A (rows, depth) B (depth, columns), or C += that. A and C may have any strides, so that they can
// run along the diagonals of a matrix: entry (m, k) of A stands at m * a_row + k * a_step. rows is a multiple of ROWS,
// columns of LANES.
inline void product(
    int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_row, int64_t a_step, const float* b,
    int64_t b_step, float* c, int64_t c_row, bool add) {
  for (int64_t n = 0, left = columns / LANES; left > 0;) {
    const int take = left == 1 ? 1 : left == 2 || left % 3 == 1 ? 2 : 3;
    for (int64_t m = 0; m < rows; m += ROWS) {
      const float* from = a + m * a_row;
      float* to = c + m * c_row + n;
      if (take == 3) product_block<3>(depth, from, a_row, a_step, b + n, b_step, to, c_row, add);
      else if (take == 2) product_block<2>(depth, from, a_row, a_step, b + n, b_step, to, c_row, add);
      else product_block<1>(depth, from, a_row, a_step, b + n, b_step, to, c_row, add);
    }
    left -= take;
    n += take * LANES;
  }
}

// The same where row m of A sees its first `seen` + m entries only: the others are not read, nor what they would be
// multiplied with, which need not be finite.
inline void product_seen(
    int64_t rows, int64_t columns, int64_t depth, int64_t seen, const float* a, int64_t a_row, int64_t a_step,
    const float* b, int64_t b_step, float* c, int64_t c_row, bool add) {
  if (seen >= depth) return product(rows, columns, depth, a, a_row, a_step, b, b_step, c, c_row, add);
  for (int64_t m = 0; m < rows; m += ROWS) {
    const int64_t by_all = std::clamp<int64_t>(seen + m, 0, depth);
    const int64_t by_some = std::clamp<int64_t>(seen + m + ROWS - 1, 0, depth);
    product(ROWS, columns, by_all, a + m * a_row, a_row, a_step, b, b_step, c + m * c_row, c_row, add);
    for (int64_t k = by_all; k < by_some; ++k)
      for (int64_t r = m + ROWS - 1; seen + r > k; --r) {
        const Vec left = splat(a[r * a_row + k * a_step]);
        for (int64_t n = 0; n < columns; n += LANES) {
          float* to = c + r * c_row + n;
          store(to, load(to) + left * load(b + k * b_step + n));
        }
      }
  }
}

// The same with A transposed: entry k of a row sees the first `seen` + k rows.
inline void product_seeing(
    int64_t rows, int64_t columns, int64_t depth, int64_t seen, const float* a, int64_t a_row, int64_t a_step,
    const float* b, int64_t b_step, float* c, int64_t c_row, bool add) {
  if (seen >= rows) return product(rows, columns, depth, a, a_row, a_step, b, b_step, c, c_row, add);
  // From the last row and entry to the first, each row sees its first ones.
  const int64_t row = rows - 1, step = depth - 1;
  product_seen(
      rows, columns, depth, seen + step - row, a + row * a_row + step * a_step, -a_row, -a_step, b + step * b_step,
      -b_step, c + row * c_row, -c_row, add);
}

}  // namespace unbraid
