// The output, and of each row's softmax the largest score and the sum, block by block.
#pragma once

#include "blocks.h"

namespace unbraid {

// Rescales what came before and adds one block of keys to the running softmax of one row; leaves its weights.
template <typename T>
float softmax_row(
    const Problem<T>& problem, const KeyBlock<T>& keys, int64_t sequence, int64_t position, float* scores, float& most,
    float& total) {
  const int64_t size = keys.padded_size();
  Vec best = splat(-std::numeric_limits<float>::infinity());
  for (int64_t j = 0; j < size; j += LANES) {
    const Vec score = load(scores + j) + load(keys.mask + j);
    best = larger(score, best);
    store(scores + j, score);
  }
  const float now = std::max(most, largest(best));
  const Vec shift = splat(now);
  Vec sums{};
  for (int64_t j = 0; j < size; j += LANES) {
    const Vec weight = problem.weights(load(scores + j) - shift);
    sums += weight;
    store(scores + j, weight);
  }
  if (problem.drops()) {
    const uint64_t key = problem.dropout.key(sequence, keys.head, position);
    for (int64_t j = 0; j < size; j += LANES)
      store(scores + j, load(scores + j) * problem.dropout.factors(key, keys.block.position + j));
  }
  const float kept = most == now ? 1 : problem.weights(splat(most - now))[0];
  most = now;
  total = total * kept + sum(sums);
  return kept;
}

template <typename T>
void forward_item(
    const Problem<T>& problem, int64_t sequence, int64_t head, int64_t first, int64_t last, Scratch scratch, T* out,
    float* softmax) {
  const int64_t row = problem.query_row, padded = problem.padded, num_queries = last - first;
  KeyBlock<T> keys(problem, scratch);
  float* scores = take_scores(scratch);
  float* values = scratch.take(BLOCK * padded);
  float* query_rows = scratch.take(num_queries * BLOCK * row);
  float* sums = scratch.take(num_queries * BLOCK * padded);
  float* most = scratch.take(num_queries * BLOCK);
  float* total = scratch.take(num_queries * BLOCK);
  std::fill_n(most, num_queries * BLOCK, -std::numeric_limits<float>::infinity());
  std::fill_n(total, num_queries * BLOCK, 0.0f);
  for (int64_t n = 0; n < num_queries; ++n)
    problem.gather_queries(head, problem.queries.blocks[first + n], query_rows + n * BLOCK * row);
  const int64_t key_begin = problem.keys.first[sequence], key_end = problem.keys.first[sequence + 1];
  for (int64_t b = key_begin; b < key_end; ++b) {
    const Block& block = problem.keys.blocks[b];
    if (!problem.sees(problem.queries.blocks[last - 1], block)) break;
    keys.set(head, block);
    gather(problem.v + head * problem.width, problem.v_stride, problem.width, problem.keys, block, values, padded, 1);
    for (int64_t n = 0; n < num_queries; ++n) {
      const Block& queries = problem.queries.blocks[first + n];
      if (!problem.sees(queries, block)) continue;
      const int64_t rows = round_up(queries.size, ROWS), seen = keys.seen_by(queries);
      float* sum_rows = sums + n * BLOCK * padded;
      keys.score(queries, query_rows + n * BLOCK * row, scores);
      for (int64_t i = std::max<int64_t>(0, 1 - seen); i < queries.size; ++i) {
        const int64_t at = n * BLOCK + i;
        const float kept = softmax_row(
            problem, keys, sequence, queries.position + i, scores + i * SCORE_ROW, most[at], total[at]);
        if (b > key_begin && kept != 1)
          for (int64_t c = 0; c < padded; c += LANES)
            store(sum_rows + i * padded + c, load(sum_rows + i * padded + c) * kept);
      }
      for (int64_t i = queries.size; i < rows; ++i) std::fill_n(scores + i * SCORE_ROW, block.size, 0.0f);
      product_seen(
          rows, padded, block.size, seen, scores, SCORE_ROW, 1, values, padded, sum_rows, padded, b > key_begin);
    }
  }
  for (int64_t n = 0; n < num_queries; ++n) {
    const Block& block = problem.queries.blocks[first + n];
    float* sum_rows = sums + n * BLOCK * padded;
    for (int64_t i = 0; i < block.size; ++i)
      for (int64_t c = 0; c < padded; c += LANES) {
        float* at = sum_rows + i * padded + c;
        store(at, total[n * BLOCK + i] == 0 ? Vec{} : load(at) / total[n * BLOCK + i]);  // 0: it sees no key
      }
    scatter(sum_rows, padded, problem.queries, block, out + head * problem.width, problem.stride(), problem.width);
    for (int64_t r = block.begin; r < block.end; ++r) {
      const int64_t at = n * BLOCK + problem.queries.positions[r] - block.position;
      softmax[2 * (r * problem.heads + head)] = most[at];
      softmax[2 * (r * problem.heads + head) + 1] = total[at];
    }
  }
}

template <typename T>
void forward(const Problem<T>& problem, T* out, float* softmax) {
  struct Item {
    int64_t sequence, head, first, last;
  };
  // Wide items pack the keys less often; narrow ones share out a small batch. Each block of queries is computed alike.
  int64_t widest = 4;
  while (widest > 1 && problem.heads * (int64_t)problem.queries.blocks.size() < 4 * widest * at::get_num_threads())
    widest /= 2;
  std::vector<Item> items;
  std::vector<double> costs;
  for (int64_t b = 0; b < problem.queries.sequences(); ++b)
    for (int64_t first = problem.queries.first[b]; first < problem.queries.first[b + 1]; first += widest)
      for (int64_t h = 0; h < problem.heads; ++h) {
        const int64_t last = std::min(first + widest, problem.queries.first[b + 1]);
        items.push_back({b, h, first, last});
        const Block* keys = problem.keys.blocks.data();
        const auto seen = [&](const Block& block) { return problem.sees(problem.queries.blocks[last - 1], block); };
        costs.push_back(
            (double)(last - first) *
            std::count_if(keys + problem.keys.first[b], keys + problem.keys.first[b + 1], seen));
        if (last - first == 1) costs.back() *= (double)problem.queries.blocks[first].size / BLOCK;
      }
  const int64_t size = KeyBlock<T>::scratch_size(problem.query_row) + SCORES + BLOCK * problem.padded +
                       widest * BLOCK * (problem.query_row + problem.padded + 2) + 6 * 16;
  run_items(costs, size, [&](int64_t n, Scratch scratch) {
    const Item& item = items[n];
    forward_item(problem, item.sequence, item.head, item.first, item.last, scratch, out, softmax);
  });
}

}  // namespace unbraid
