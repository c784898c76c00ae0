// The gradients, from weights computed anew out of what the forward pass kept of each softmax.
#pragma once

#include "blocks.h"

namespace unbraid {

// What a call of the backward pass reads and writes beside the problem.
template <typename T>
struct Gradients {
  const T *out, *out_grad;
  const float* softmax;
  T *q, *k, *v, *pos_k, *pos_q;
  float* pos_pos;
};

// The position gradients of one head and one group of sequences.
struct PositionSums {
  float *c2p, *p2c;  // (slots in use, c2p_row), (slots in use, padded)
};

template <typename T>
struct BackwardItem {
  const Problem<T>& problem;
  const Gradients<T>& gradients;
  const int64_t head, row, padded;
  PositionSums sums;
  KeyBlock<T> keys;
  float *weights, *score_grads;             // (BLOCK, SCORE_ROW)
  float *query_rows, *out_grads, *queries;  // of all queries: (row), (padded), (padded) gradient of q
  float *value_rows, *values;               // (BLOCK, padded) and its transpose (padded, KEY_ROW)
  float *key_grads, *value_grads;           // (BLOCK, row), (BLOCK, padded)
  float* window;                            // rows of the table for the distances of a block, or folded gradients
  float *mean, *most, *share;               // of all queries: out . out_grad, largest score, 1 / sum

  BackwardItem(
      const Problem<T>& problem, const Gradients<T>& gradients, int64_t head, PositionSums sums, int64_t num_queries,
      Scratch scratch)
      : problem(problem),
        gradients(gradients),
        head(head),
        row(problem.query_row),
        padded(problem.padded),
        sums(sums),
        keys(problem, scratch),
        weights(take_scores(scratch)),
        score_grads(take_scores(scratch)),
        query_rows(scratch.take(num_queries * BLOCK * row)),
        out_grads(scratch.take(num_queries * BLOCK * padded)),
        queries(scratch.take(num_queries * BLOCK * padded)),
        value_rows(scratch.take(BLOCK * padded)),
        values(scratch.take(padded * KEY_ROW)),
        key_grads(scratch.take(BLOCK * row)),
        value_grads(scratch.take(BLOCK * padded)),
        window(scratch.take(2 * (BLOCK + MARGIN) * row)),
        mean(scratch.take(num_queries * BLOCK)),
        most(scratch.take(num_queries * BLOCK)),
        share(scratch.take(num_queries * BLOCK)) {
    keys.head = head;
  }

  static int64_t scratch_size(const Problem<T>& problem, int64_t num_queries) {
    const int64_t row = problem.query_row, padded = problem.padded;
    return KeyBlock<T>::scratch_size(row) + 2 * SCORES + (BLOCK + 2 * (BLOCK + MARGIN)) * row +
           2 * BLOCK * padded + num_queries * BLOCK * (row + 2 * padded + 3) + padded * KEY_ROW + 12 * 16;
  }

  void run(int64_t sequence) {
    const int64_t offset = head * problem.width, stride = problem.stride(), width = problem.width;
    const int64_t first = problem.queries.first[sequence], last = problem.queries.first[sequence + 1];
    std::fill_n(queries, (last - first) * BLOCK * padded, 0.0f);
    for (int64_t n = first; n < last; ++n) gather_queries(problem.queries.blocks[n], (n - first) * BLOCK);
    for (int64_t b = problem.keys.first[sequence]; b < problem.keys.first[sequence + 1]; ++b) {
      const Block& block = problem.keys.blocks[b];
      keys.set(head, block);
      gather(problem.v + offset, problem.v_stride, width, problem.keys, block, value_rows, padded, keys.padded_size());
      transpose_block(value_rows, keys.padded_size(), padded, padded, values, KEY_ROW);
      std::fill_n(key_grads, BLOCK * row, 0.0f);
      std::fill_n(value_grads, BLOCK * padded, 0.0f);
      for (int64_t n = first; n < last; ++n)
        if (problem.sees(problem.queries.blocks[n], block))
          add_block(sequence, problem.queries.blocks[n], (n - first) * BLOCK);
      scatter(key_grads, row, problem.keys, block, gradients.k + offset, stride, width);
      scatter(value_grads, padded, problem.keys, block, gradients.v + offset, stride, width);
    }
    for (int64_t n = first; n < last; ++n)
      scatter(
          queries + (n - first) * BLOCK * padded, padded, problem.queries, problem.queries.blocks[n],
          gradients.q + offset, stride, width);
  }

  // What all blocks of keys need of a block of queries, whose first is number `at`.
  void gather_queries(const Block& block, int64_t at) {
    const int64_t offset = head * problem.width, stride = problem.stride(), width = problem.width;
    float* grads = out_grads + at * padded;
    problem.gather_queries(head, block, query_rows + at * row);
    gather(gradients.out_grad + offset, stride, width, problem.queries, block, grads, padded, ROWS);
    // A missing query has no weights.
    std::fill_n(mean + at, BLOCK, 0.0f);
    std::fill_n(most + at, BLOCK, std::numeric_limits<float>::infinity());
    std::fill_n(share + at, BLOCK, 0.0f);
    for (int64_t r = block.begin; r < block.end; ++r) {
      const int64_t i = problem.queries.positions[r] - block.position;
      const float* softmax = gradients.softmax + 2 * (r * problem.heads + head);
      most[at + i] = softmax[0];
      share[at + i] = 1 / softmax[1];
      const T* out = gradients.out + r * stride + offset;
      Vec products{};
      for (int64_t c = 0; c < width; c += LANES) products += load_row(out + c, width - c) * load(grads + i * padded + c);
      mean[at + i] = sum(products);
    }
  }

  // Everything that one block of queries, whose first is number `at`, adds against the present block of keys.
  void add_block(int64_t sequence, const Block& block, int64_t at) {
    const int64_t num_queries = round_up(block.size, ROWS), num_keys = keys.padded_size(), seen = keys.seen_by(block);
    const float *rows = query_rows + at * row, *grads = out_grads + at * padded;
    float* query_grads = queries + at * padded;
    keys.score(block, rows, weights);
    std::fill_n(score_grads - MARGIN * SCORE_ROW - MARGIN, SCORES, 0.0f);
    product(num_queries, num_keys, problem.width, grads, padded, 1, values, KEY_ROW, score_grads, SCORE_ROW, false);
    for (int64_t i = 0; i < num_queries; ++i) softmax_row(sequence, block.position + i, i, at + i);
    keys.fill_unseen(block, 0, score_grads);

    product_seeing(num_keys, padded, block.size, seen, weights, 1, SCORE_ROW, grads, padded, value_grads, padded, true);
    const Reach side = keys.reach_of(block);
    if (side != Reach::NEAR) return add_far(block, side, rows, query_grads);
    product_seen(
        num_queries, padded, keys.block.size, seen, score_grads, SCORE_ROW, 1, keys.rows, row, query_grads, padded,
        true);
    product_seeing(num_keys, padded, block.size, seen, score_grads, 1, SCORE_ROW, rows, row, key_grads, row, true);
    if (problem.c2p_depth()) add_c2p(block, rows, query_grads);
    if (problem.pos_q) add_p2c(block);
  }

  // From scores and the gradients of the dropped weights to dropped weights and the gradients of the scores.
  void softmax_row(int64_t sequence, int64_t position, int64_t i, int64_t query) {
    float *weight_row = weights + i * SCORE_ROW, *grad_row = score_grads + i * SCORE_ROW;
    const Vec shift = splat(most[query]);
    const uint64_t key = problem.drops() ? problem.dropout.key(sequence, head, position) : 0;
    for (int64_t j = 0; j < keys.padded_size(); j += LANES) {
      Vec grad = load(grad_row + j);
      const Vec weight = problem.weights(load(weight_row + j) + load(keys.mask + j) - shift) * share[query];
      if (problem.drops()) {
        const Vec kept = problem.dropout.factors(key, keys.block.position + j);
        store(weight_row + j, weight * kept);
        grad *= kept;
      } else {
        store(weight_row + j, weight);
      }
      store(grad_row + j, weight * (grad - mean[query]) * problem.scale);
    }
  }

  void add_far(const Block& block, Reach side, const float* rows, float* query_grads) {
    const int64_t num_queries = round_up(block.size, ROWS), num_keys = keys.padded_size(), width = problem.width;
    const int64_t slot = keys.far_slot(side), seen = keys.seen_by(block);
    const T* pos_q = problem.pos_q ? problem.pos_q + (slot * problem.heads + head) * width : nullptr;
    product_seen(
        num_queries, padded, keys.block.size, seen, score_grads, SCORE_ROW, 1, keys.far_rows, row, query_grads, padded,
        true);
    // The column after the last holds the sums of the score gradients: the queries carry a one there.
    product_seeing(num_keys, row, block.size, seen, score_grads, 1, SCORE_ROW, rows, row, window, row, false);
    const int64_t used = slot - problem.distances.first_slot;
    float* c2p = sums.c2p + used * problem.c2p_row();
    float* p2c = sums.p2c + used * padded;
    for (int64_t j = 0; j < keys.block.size; ++j) {
      const float *from = window + j * row, *key = keys.rows + j * row;
      const float total = from[width];
      float* to = key_grads + j * row;
      for (int64_t c = 0; c < width; ++c) to[c] += from[c];
      if (problem.c2p_depth())
        for (int64_t c = 0; c < width + (problem.pos_pos != nullptr); ++c) c2p[c] += from[c];
      if (!pos_q) continue;
      for (int64_t c = 0; c < width; ++c) {
        to[c] += total * (float)pos_q[c];
        p2c[c] += total * key[c];
      }
    }
  }

  // The rows of the table for count distances from this one on, into the window.
  void gather_window(const T* table, int64_t distance, int64_t step, int64_t count) {
    for (int64_t n = 0; n < count; ++n, distance += step) {
      const T* from = table + (problem.distances.slot_of(distance) * problem.heads + head) * problem.width;
      for (int64_t c = 0; c < padded; c += LANES) store(window + n * padded + c, load_row(from + c, problem.width - c));
    }
  }

  // The window's rows of sums for these distances, into the sums of their slots.
  void scatter_window(float* to, int64_t size, int64_t distance, int64_t step, int64_t count) {
    for (int64_t n = 0; n < count; ++n, distance += step) {
      float* total = to + (problem.distances.slot_of(distance) - problem.distances.first_slot) * size;
      const float* from = window + n * size;
      for (int64_t c = 0; c < size; c += LANES) store(total + c, load(total + c) + load(from + c));
    }
  }

  void add_c2p(const Block& block, const float* rows, float* query_grads) {
    const int64_t num_queries = round_up(block.size, ROWS), num_keys = keys.block.size;
    const int64_t column = keys.c2p_column(block, num_queries - ROWS), places = num_queries + num_keys - 1;
    const int64_t distance = problem.distances.top() - column, size = problem.c2p_row();
    if (problem.pos_k) {
      gather_window(problem.pos_k, distance, -1, places);
      for (int64_t i = 0; i < num_queries; i += ROWS)
        product(
            ROWS, padded, num_keys + ROWS - 1, score_grads + i * SCORE_ROW - (ROWS - 1), SCORE_ROW + 1, 1,
            window + (num_queries - ROWS - i) * padded, padded, query_grads + i * padded, padded, true);
    }
    for (int64_t n = 0; n < places; n += ROWS) {
      const int64_t begin = std::max<int64_t>(0, num_queries - ROWS - n);
      const int64_t end = std::min(block.size, num_queries - 1 - n + num_keys);
      product(
          ROWS, size, end - begin, score_grads + begin * SCORE_ROW + n - num_queries + 1 + begin, 1, SCORE_ROW + 1,
          rows + begin * row, row, window + n * size, size, false);
    }
    scatter_window(sums.c2p, size, distance, -1, places);
  }

  void add_p2c(const Block& block) {
    const int64_t num_keys = keys.padded_size();
    const int64_t distance = problem.distances.bottom + keys.p2c_column(block, num_keys - ROWS);
    const int64_t places = num_keys + block.size - 1;
    gather_window(problem.pos_q, distance, 1, places);
    for (int64_t j = 0; j < num_keys; j += ROWS)
      product(
          ROWS, padded, block.size + ROWS - 1, score_grads - (ROWS - 1) * SCORE_ROW + j, SCORE_ROW + 1, SCORE_ROW,
          window + (num_keys - ROWS - j) * padded, padded, key_grads + j * row, row, true);
    for (int64_t n = 0; n < places; n += ROWS) {
      const int64_t begin = std::max<int64_t>(0, num_keys - ROWS - n);
      const int64_t end = std::min(keys.block.size, num_keys - 1 - n + block.size);
      product(
          ROWS, padded, end - begin, score_grads + (n - num_keys + 1 + begin) * SCORE_ROW + begin, SCORE_ROW,
          SCORE_ROW + 1, keys.rows + begin * row, row, window + n * padded, padded, false);
    }
    scatter_window(sums.p2c, padded, distance, 1, places);
  }
};

// The sums of the groups, in a fixed order, as the gradients of the table.
template <typename T>
void collect_positions(
    const Problem<T>& problem, const Gradients<T>& gradients, int64_t head, const Tensor& c2p_sums,
    const Tensor& p2c_sums) {
  const int64_t heads = problem.heads, width = problem.width;
  const std::vector<float> zeros(problem.query_row, 0.0f);
  const auto total = [&](const Tensor& sums, int64_t slot) -> const float* {
    const int64_t used = slot - problem.distances.first_slot;
    if (used < 0 || used >= problem.distances.num_slots) return zeros.data();
    float* first = sums.mutable_data_ptr<float>() + head * sums.stride(1) + used * sums.stride(2);
    for (int64_t g = 1; g < sums.size(0); ++g)
      for (int64_t c = 0; c < sums.stride(2); c += LANES)
        store(first + c, load(first + c) + load(first + g * sums.stride(0) + c));
    return first;
  };
  const auto write = [&](const float* from, int64_t slot, T* to) {
    for (int64_t c = 0; c < width; c += LANES)
      store_row(to + (slot * heads + head) * width + c, load(from + c), width - c);
  };
  for (int64_t slot = 0; slot < problem.table_size; ++slot) {
    if (problem.c2p_depth()) {
      const float* from = total(c2p_sums, slot);
      if (problem.pos_k) write(from, slot, gradients.pos_k);
      if (problem.pos_pos) gradients.pos_pos[slot * heads + head] = from[width];
    }
    if (problem.pos_q) write(total(p2c_sums, slot), slot, gradients.pos_q);
  }
}

template <typename T>
void backward(const Problem<T>& problem, const Gradients<T>& gradients) {
  // Sequences are dealt out to groups by their cost alone, so the order of every sum is fixed.
  const int64_t num_sequences = problem.queries.sequences();
  const auto cost = [&](int64_t b) {
    double rows_q = 0, rows_k = 0;
    for (int64_t n = problem.queries.first[b]; n < problem.queries.first[b + 1]; ++n)
      rows_q += problem.queries.blocks[n].size;
    for (int64_t n = problem.keys.first[b]; n < problem.keys.first[b + 1]; ++n) rows_k += problem.keys.blocks[n].size;
    return rows_q * rows_k;
  };
  std::vector<int64_t> order(num_sequences);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return cost(a) > cost(b); });
  const int64_t num_groups = std::max<int64_t>(1, std::min(GROUPS, num_sequences));
  std::vector<std::vector<int64_t>> groups(num_groups);
  std::vector<double> group_costs(num_groups, 0.0);
  int64_t most_queries = 0;
  for (const int64_t b : order) {
    const int64_t g = std::min_element(group_costs.begin(), group_costs.end()) - group_costs.begin();
    groups[g].push_back(b);
    group_costs[g] += cost(b) + 1;
    most_queries = std::max(most_queries, problem.queries.count(b));
  }

  const int64_t heads = problem.heads, slots = problem.distances.num_slots;
  const bool c2p = problem.c2p_depth() > 0, p2c = problem.pos_q != nullptr;
  const Tensor c2p_sums = at::zeros({c2p ? num_groups : 0, heads, slots, problem.c2p_row()}, at::kFloat);
  const Tensor p2c_sums = at::zeros({p2c ? num_groups : 0, heads, slots, problem.padded}, at::kFloat);
  std::vector<double> costs;
  for (int64_t n = 0; n < num_groups * heads; ++n) costs.push_back(group_costs[n / heads]);
  run_items(costs, BackwardItem<T>::scratch_size(problem, most_queries), [&](int64_t n, Scratch scratch) {
    const int64_t g = n / heads, h = n % heads;
    const PositionSums sums{
        c2p_sums.mutable_data_ptr<float>() + (c2p ? g * c2p_sums.stride(0) + h * c2p_sums.stride(1) : 0),
        p2c_sums.mutable_data_ptr<float>() + (p2c ? g * p2c_sums.stride(0) + h * p2c_sums.stride(1) : 0)};
    BackwardItem<T> item(problem, gradients, h, sums, most_queries, scratch);
    for (const int64_t b : groups[g]) item.run(b);
  });
  at::parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) collect_positions(problem, gradients, h, c2p_sums, p2c_sums);
  });
}

}  // namespace unbraid
