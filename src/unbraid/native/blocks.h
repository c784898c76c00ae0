// Disentangled attention over packed rows, forward and backward, in blocks of queries and keys with an online softmax.
//
// The table of relative positions is spread out once per call to one column per DISTANCE. Along a row of the score
// matrix the distance falls by one from key to key, so the content-to-position scores of a block are a plain matrix
// product whose output runs along the diagonals: no gather, and in the backward pass no scatter. The
// position-to-content scores are the same with queries and keys exchanged. Beyond the distance from which all share
// one slot, the position terms fold into the keys and cost nothing.
//
// Blocks are cut by position, not by row: missing positions become zero rows and masked columns. The first position of
// a block is never missing; so a query that sees no later key sees the first positions of a block of keys, among them a
// key, or none.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "dropout.h"

namespace unbraid {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

constexpr int64_t BLOCK = 128;                         // queries and keys of a block
constexpr int64_t MARGIN = 2 * std::max(LANES, ROWS);  // what a diagonal product writes or reads beside its block
constexpr int64_t OVERSHOOT = 3 * 16;                  // distances that it reads beyond the block's own
constexpr int64_t SCORE_ROW = BLOCK + 3 * 16;          // an odd number of cache lines, which spreads over the cache
constexpr int64_t KEY_ROW = BLOCK + 16;
constexpr int64_t SCORES = (BLOCK + 2 * MARGIN) * SCORE_ROW;
constexpr int64_t GROUPS = 4;  // of sequences, whose position gradients are summed apart
constexpr double LN2 = 0.69314718055994531;

static_assert(SCORE_ROW >= BLOCK + ROWS + MARGIN && OVERSHOOT >= 2 * LANES + ROWS);

// Consecutive positions of one sequence, and the rows that stand there.
struct Block {
  int64_t position, size, begin, end;
};

// The rows of a packing, cut into blocks.
struct Rows {
  std::vector<Block> blocks;
  std::vector<int64_t> first;  // of each sequence, and one beyond the last
  const int64_t* positions;

  Rows(const Tensor& offsets, const Tensor& at) : positions(at.const_data_ptr<int64_t>()) {
    const int64_t *offset = offsets.const_data_ptr<int64_t>(), count = offsets.numel();
    TORCH_CHECK_VALUE(
        offsets.dim() == 1 && at.dim() == 1 && offsets.is_contiguous() && at.is_contiguous() && count > 0 &&
            offset[0] == 0 && offset[count - 1] == at.numel() && std::is_sorted(offset, offset + count),
        "offsets must rise from 0 to the number of positions.");
    first.push_back(0);
    for (int64_t sequence = 0; sequence + 1 < count; ++sequence) {
      const int64_t begin = offset[sequence], end = offset[sequence + 1];
      TORCH_CHECK_VALUE(
          std::adjacent_find(positions + begin, positions + end, std::greater_equal<>()) == positions + end,
          "positions must increase within a sequence.");
      for (int64_t row = begin; row < end;) {
        const int64_t* stop = std::lower_bound(positions + row, positions + end, positions[row] + BLOCK);
        const int64_t next = stop - positions;
        blocks.push_back({positions[row], positions[next - 1] - positions[row] + 1, row, next});
        row = next;
      }
      first.push_back(blocks.size());
    }
  }

  int64_t sequences() const { return first.size() - 1; }
  int64_t count(int64_t sequence) const { return first[sequence + 1] - first[sequence]; }
  int64_t begin(int64_t sequence) const { return blocks[first[sequence]].position; }
  int64_t end(int64_t sequence) const {
    const Block& last = blocks[first[sequence + 1] - 1];
    return last.position + last.size;
  }
};

// The slot of every distance that the blocks can ask for.
struct Distances {
  int64_t low, high;      // up to low, and from high on, all distances share a slot
  int64_t bottom, count;  // of the spread table: the first distance, and how many
  int64_t first_slot, num_slots;  // the range of slots in use
  std::vector<int64_t> slot;

  Distances(const Tensor& slots, int64_t table_size, const Rows& queries, const Rows& keys) {
    TORCH_CHECK_VALUE(queries.sequences() == keys.sequences(), "queries and keys must be of as many sequences.");
    TORCH_CHECK_VALUE(slots.dim() == 1 && slots.is_contiguous(), "slots must be one row.");
    const int64_t* given = slots.const_data_ptr<int64_t>();
    const int64_t zero = slots.numel() / 2;
    int64_t least = 0, most = 0;
    for (int64_t b = 0; b < queries.sequences(); ++b) {
      if (!queries.count(b) || !keys.count(b)) continue;
      least = std::min(least, queries.begin(b) - keys.end(b) + 1);
      most = std::max(most, queries.end(b) - 1 - keys.begin(b));
    }
    TORCH_CHECK_VALUE(-zero <= least && most < slots.numel() - zero, "slots has no entry for some distance.");
    for (int64_t d = least; d <= most; ++d)
      TORCH_CHECK_VALUE(0 <= given[d + zero] && given[d + zero] < table_size, "slots names a row beyond the table.");
    const auto [first, last] = std::minmax_element(given + least + zero, given + most + zero + 1);
    first_slot = *first, num_slots = *last - *first + 1;
    low = least, high = most;
    while (low < most && given[low + 1 + zero] == given[least + zero]) ++low;
    while (high > least && given[high - 1 + zero] == given[most + zero]) --high;
    // A block that is not far from its keys asks beyond low and high, but no farther than its own size and a rest.
    bottom = std::max(low - 2 * BLOCK, least) - OVERSHOOT;
    count = round_up(std::min(high + 2 * BLOCK, most) + OVERSHOOT - bottom, 32) + 16;
    for (int64_t d = bottom; d < bottom + count; ++d) slot.push_back(given[std::clamp(d, least, most) + zero]);
  }

  int64_t top() const { return bottom + count - 1; }
  int64_t slot_of(int64_t distance) const { return slot[std::clamp(distance, bottom, top()) - bottom]; }
};

// The rows of a block as floats, zeros where a position is missing, up to a whole number of steps.
template <typename T>
void gather(
    const T* from, int64_t stride, int64_t width, const Rows& rows, const Block& block, float* to, int64_t to_row,
    int64_t step) {
  const int64_t total = round_up(block.size, step);
  if (block.end - block.begin < total) std::fill_n(to, total * to_row, 0.0f);
  for (int64_t row = block.begin; row < block.end; ++row) {
    const T* source = from + row * stride;
    float* target = to + (rows.positions[row] - block.position) * to_row;
    for (int64_t c = 0; c < to_row; c += LANES) store(target + c, load_row(source + c, width - c));
  }
}

// Writes the rows that exist.
template <typename T>
void scatter(
    const float* from, int64_t from_row, const Rows& rows, const Block& block, T* to, int64_t stride, int64_t width) {
  for (int64_t row = block.begin; row < block.end; ++row) {
    const float* source = from + (rows.positions[row] - block.position) * from_row;
    for (int64_t c = 0; c < width; c += LANES) store_row(to + row * stride + c, load(source + c), width - c);
  }
}

// Everything that the work items of one call share.
template <typename T>
struct Problem {
  int64_t heads, width;
  int64_t q_stride, k_stride, v_stride;  // from row to row
  const T *q, *k, *v, *pos_k, *pos_q;
  const float* pos_pos;
  Rows queries, keys;
  int64_t table_size;
  Distances distances;
  Dropout dropout;
  bool causal;                // whether a query sees no key of a later position
  float scale;                // of a score
  float factor, factor_rest;  // scale / log(2), and the part of it that a float has no room for
  int64_t padded;     // width, in whole vectors
  int64_t query_row;  // width and a one, in whole vectors
  Tensor c2p, p2c;    // spread tables (heads, width or one more, distances), distances falling and rising

  Problem(
      const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& pos_k, const MaybeTensor& pos_q,
      const MaybeTensor& pos_pos, const Tensor& slots, const Tensor& query_offsets, const Tensor& query_positions,
      const Tensor& key_offsets, const Tensor& key_positions, const MaybeTensor& seed, double dropout_p, bool causal)
      : heads(q.size(1)),
        width(q.size(2)),
        q_stride(q.stride(0)),
        k_stride(k.stride(0)),
        v_stride(v.stride(0)),
        q(q.const_data_ptr<T>()),
        k(k.const_data_ptr<T>()),
        v(v.const_data_ptr<T>()),
        pos_k(pos_k ? pos_k->const_data_ptr<T>() : nullptr),
        pos_q(pos_q ? pos_q->const_data_ptr<T>() : nullptr),
        pos_pos(pos_pos ? pos_pos->const_data_ptr<float>() : nullptr),
        queries(query_offsets, query_positions),
        keys(key_offsets, key_positions),
        table_size(pos_k ? pos_k->size(0) : pos_q ? pos_q->size(0) : pos_pos ? pos_pos->size(0) : 0),
        distances(slots, table_size ? table_size : std::numeric_limits<int64_t>::max(), queries, keys),
        causal(causal),
        padded(round_up(width, LANES)),
        query_row(round_up(width + 1, LANES)) {
    const auto fits = [&](const Tensor& x, const Tensor& positions) {
      return x.dim() == 3 && x.size(0) == positions.numel() && x.size(1) == heads && x.size(2) == width &&
          (x.is_contiguous() || (x.stride(1) == width && x.stride(2) == 1));
    };
    TORCH_CHECK_VALUE(
        fits(q, query_positions) && fits(k, key_positions) && fits(v, key_positions),
        "q, k and v must have one row for each of their positions, and all the same heads and width.");
    const auto is_table = [&](const MaybeTensor& x, at::IntArrayRef sizes) {
      return !x || (x->sizes() == sizes && x->is_contiguous());
    };
    TORCH_CHECK_VALUE(
        is_table(pos_k, {table_size, heads, width}) && is_table(pos_q, {table_size, heads, width}) &&
            is_table(pos_pos, {table_size, heads}),
        "pos_k, pos_q and pos_pos must have the same rows, and the heads and width of q.");
    const int terms = 1 + (this->pos_k != nullptr) + (this->pos_q != nullptr) + (this->pos_pos != nullptr);
    const double exact = 1 / std::sqrt((double)width * terms);
    scale = exact;
    factor = exact / LN2;
    factor_rest = exact / LN2 / factor - 1;
    if (seed) dropout = Dropout(*seed, dropout_p);
    const auto floats = q.options().dtype(at::kFloat);
    c2p = at::empty({c2p_depth() ? heads : 0, c2p_depth(), distances.count}, floats);
    p2c = at::empty({this->pos_q ? heads : 0, width, distances.count}, floats);
    at::parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t h = begin; h < end; ++h) spread(h);
    });
  }

  // The weights, before their sum is known, of scores given as their distance from the largest.
  Vec weights(Vec scores) const { return exp2(scores * factor, factor_rest); }

  bool drops() const { return dropout.threshold > 0; }
  bool sees(const Block& queries, const Block& keys) const {
    return !causal || keys.position < queries.position + queries.size;
  }
  int64_t c2p_depth() const { return (pos_k ? width : 0) + (pos_pos ? 1 : 0); }
  int64_t c2p_row() const { return pos_pos ? query_row : padded; }  // of the sums of its gradients
  int64_t stride() const { return heads * width; }  // of the tables, the output and the gradients
  const float* c2p_table(int64_t h) const { return c2p.const_data_ptr<float>() + h * c2p.stride(0); }
  const float* p2c_table(int64_t h) const { return p2c.const_data_ptr<float>() + h * p2c.stride(0); }

  // The queries of a block, (size, query_row), with a one behind each.
  void gather_queries(int64_t h, const Block& block, float* to) const {
    gather(q + h * width, q_stride, width, queries, block, to, query_row, ROWS);
    for (int64_t i = 0; i < block.size; ++i) to[i * query_row + width] = 1;
  }

  void spread(int64_t h) {
    const int64_t count = distances.count;
    if (pos_k) spread_rows(pos_k + h * width, c2p.mutable_data_ptr<float>() + h * c2p.stride(0), true);
    if (pos_pos) {
      float* row = c2p.mutable_data_ptr<float>() + h * c2p.stride(0) + (c2p_depth() - 1) * count;
      for (int64_t n = 0; n < count; ++n) row[n] = pos_pos[distances.slot[count - 1 - n] * heads + h];
    }
    if (pos_q) spread_rows(pos_q + h * width, p2c.mutable_data_ptr<float>() + h * p2c.stride(0), false);
  }

  void spread_rows(const T* table, float* to, bool falling) {
    const int64_t count = distances.count;
    float rows[LANES * LANES];
    for (int64_t n = 0; n < count; n += LANES)
      for (int64_t c = 0; c < width; c += LANES) {
        const int64_t columns = std::min<int64_t>(LANES, width - c);
        for (int64_t r = 0; r < LANES; ++r) {
          const T* from = table + distances.slot[falling ? count - 1 - n - r : n + r] * stride() + c;
          store(rows + r * LANES, load_row(from, columns));
        }
        transpose(rows, LANES, rows, LANES, false);
        for (int64_t column = 0; column < columns; ++column)
          store(to + (c + column) * count + n, load(rows + column * LANES));
      }
  }
};

// Which of the products of a block a distance needs.
enum class Reach { NEAR, FAR_BEFORE, FAR_AFTER };

// The float buffers of one thread.
struct Scratch {
  float* next;
  float* take(int64_t size) {
    float* taken = next;
    next += round_up(size, 16);
    return taken;
  }
};

inline void transpose_block(
    const float* from, int64_t rows, int64_t columns, int64_t from_row, float* to, int64_t to_row) {
  for (int64_t r = 0; r < rows; r += LANES)
    for (int64_t c = 0; c < columns; c += LANES)
      transpose(from + r * from_row + c, from_row, to + c * to_row + r, to_row, false);
}

// One head of one block of keys, and the scores of a block of queries against it.
template <typename T>
struct KeyBlock {
  const Problem<T>& problem;
  int64_t head = 0;
  Block block{};
  Reach reach = Reach::NEAR;
  float *rows, *columns;          // (BLOCK, query_row) and its transpose (query_row, KEY_ROW)
  float *far_rows, *far_columns;  // the same with the position terms of a far distance folded in
  float* mask;                    // (BLOCK,) 0, or minus infinity where there is no key
  float* turned;                  // (BLOCK, SCORE_ROW) position-to-content scores, keys by queries

  KeyBlock(const Problem<T>& problem, Scratch& scratch)
      : problem(problem),
        rows(scratch.take(BLOCK * problem.query_row)),
        columns(scratch.take(problem.query_row * KEY_ROW)),
        far_rows(scratch.take(BLOCK * problem.query_row)),
        far_columns(scratch.take(problem.query_row * KEY_ROW)),
        mask(scratch.take(BLOCK)),
        turned(scratch.take(SCORES) + MARGIN) {}

  static int64_t scratch_size(int64_t query_row) {
    return BLOCK * query_row * 2 + query_row * KEY_ROW * 2 + BLOCK + SCORES + 6 * 16;
  }

  int64_t padded_size() const { return round_up(block.size, std::max(LANES, ROWS)); }

  void set(int64_t h, const Block& keys) {
    head = h;
    block = keys;
    reach = Reach::NEAR;
    const int64_t size = padded_size(), row = problem.query_row;
    gather(problem.k + h * problem.width, problem.k_stride, problem.width, problem.keys, keys, rows, row, size);
    transpose_block(rows, size, row, row, columns, KEY_ROW);
    std::fill_n(mask, size, -std::numeric_limits<float>::infinity());
    for (int64_t r = keys.begin; r < keys.end; ++r) mask[problem.keys.positions[r] - keys.position] = 0;
  }

  // How many positions the first of these queries sees, if no more than there are; each further one sees one more.
  int64_t seen_by(const Block& queries) const {
    return problem.causal ? queries.position - block.position + 1 : BLOCK;
  }

  // Writes a value wherever a query does not see a position.
  void fill_unseen(const Block& queries, float value, float* scores) const {
    const int64_t size = padded_size(), seen = seen_by(queries);
    for (int64_t i = 0; i < queries.size && seen + i < size; ++i, scores += SCORE_ROW)
      std::fill(scores + std::max<int64_t>(0, seen + i), scores + size, value);
  }

  Reach reach_of(const Block& queries) const {
    const int64_t shift = queries.position - block.position;
    if (shift - (block.size - 1) >= problem.distances.high) return Reach::FAR_AFTER;
    if (shift + queries.size - 1 <= problem.distances.low) return Reach::FAR_BEFORE;
    return Reach::NEAR;
  }

  int64_t far_slot(Reach side) const {
    return problem.distances.slot_of(side == Reach::FAR_AFTER ? problem.distances.high : problem.distances.low);
  }

  // q . k + q . pos_k + k . pos_q + pos_pos is (q, 1) . (k + pos_k, k . pos_q + pos_pos) where the slot is fixed.
  void fold(Reach side) {
    if (reach == side) return;
    reach = side;
    const int64_t slot = far_slot(side), width = problem.width, row = problem.query_row;
    const T* pos_k = problem.pos_k ? problem.pos_k + (slot * problem.heads + head) * width : nullptr;
    const T* pos_q = problem.pos_q ? problem.pos_q + (slot * problem.heads + head) * width : nullptr;
    const float pos_pos = problem.pos_pos ? problem.pos_pos[slot * problem.heads + head] : 0;
    for (int64_t r = 0; r < padded_size(); ++r) {
      const float* from = rows + r * row;
      float* to = far_rows + r * row;
      float last = pos_pos;
      for (int64_t c = 0; c < width; ++c) to[c] = from[c] + (pos_k ? (float)pos_k[c] : 0);
      if (pos_q)
        for (int64_t c = 0; c < width; ++c) last += from[c] * (float)pos_q[c];
      to[width] = last;
      std::fill(to + width + 1, to + row, 0.0f);
    }
    transpose_block(far_rows, padded_size(), row, row, far_columns, KEY_ROW);
  }

  // Where the columns of distances begin for rows first to first + ROWS - 1 of a product along the diagonal. Row r
  // writes what belongs to its place n at column n + r - (ROWS - 1).
  int64_t c2p_column(const Block& queries, int64_t first) const {
    return problem.distances.top() - (queries.position - block.position) - (first + ROWS - 1);
  }
  int64_t p2c_column(const Block& queries, int64_t first) const {
    return queries.position - block.position - problem.distances.bottom - (first + ROWS - 1);
  }

  // Fills scores (queries, SCORE_ROW), before scaling and masking, from the queries' rows (BLOCK, query_row); minus
  // infinity where a query does not see a position.
  void score(const Block& queries, const float* query_rows, float* scores) {
    score_all(queries, query_rows, scores);
    fill_unseen(queries, -std::numeric_limits<float>::infinity(), scores);
  }

  void score_all(const Block& queries, const float* query_rows, float* scores) {
    const int64_t num_queries = round_up(queries.size, ROWS), num_keys = padded_size(), row = problem.query_row;
    const Reach side = reach_of(queries);
    if (side != Reach::NEAR) {
      fold(side);
      product(
          num_queries, num_keys, problem.width + 1, query_rows, row, 1, far_columns, KEY_ROW, scores, SCORE_ROW, false);
      return;
    }
    product(num_queries, num_keys, problem.width, query_rows, row, 1, columns, KEY_ROW, scores, SCORE_ROW, false);
    const int64_t table_row = problem.distances.count;
    if (const int64_t depth = problem.c2p_depth()) {
      const float* from = query_rows + (problem.pos_k ? 0 : problem.width);
      const int64_t places = round_up(num_keys + ROWS - 1, LANES);
      for (int64_t i = 0; i < num_queries; i += ROWS)
        product(
            ROWS, places, depth, from + i * row, row, 1, problem.c2p_table(head) + c2p_column(queries, i), table_row,
            scores + i * SCORE_ROW - (ROWS - 1), SCORE_ROW + 1, true);
    }
    if (problem.pos_q) {
      const int64_t whole = round_up(queries.size, LANES), places = round_up(whole + ROWS - 1, LANES);
      for (int64_t j = 0; j < num_keys; j += ROWS)
        product(
            ROWS, places, problem.width, rows + j * row, row, 1, problem.p2c_table(head) + p2c_column(queries, j),
            table_row, turned + j * SCORE_ROW - (ROWS - 1), SCORE_ROW + 1, false);
      for (int64_t i = 0; i < whole; i += LANES)
        for (int64_t j = 0; j < num_keys; j += LANES)
          transpose(turned + j * SCORE_ROW + i, SCORE_ROW, scores + i * SCORE_ROW + j, SCORE_ROW, true);
    }
  }
};

// A buffer of scores whose first entry has the margins of a block on all sides.
inline float* take_scores(Scratch& scratch) { return scratch.take(SCORES) + MARGIN * SCORE_ROW + MARGIN; }

// Runs the items on all threads, the costly ones first, each thread with scratch of its own.
template <typename Run>
void run_items(std::vector<double> costs, int64_t scratch_size, const Run& run) {
  std::vector<int64_t> order(costs.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return costs[a] > costs[b]; });
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), order.size());
  const int64_t row = round_up(scratch_size, 16);
  const Tensor scratch = at::empty({threads, row}, at::kFloat);
  std::atomic<size_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t) {
    for (size_t n; (n = next++) < order.size();)
      run(order[n], Scratch{scratch.mutable_data_ptr<float>() + begin * row});
  });
}

}  // namespace unbraid
