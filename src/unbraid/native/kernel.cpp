// The operators whose schemas stand in unbraid/attention/native.py, dropout.py and linear.py.

#include <torch/library.h>

#include "backward.h"
#include "forward.h"
#include "linear.h"

namespace unbraid {
namespace {

template <typename Run>
void with_type(const Tensor& q, const Run& run) {
  if (q.scalar_type() == at::kFloat) return run(float{});
  TORCH_CHECK_VALUE(q.scalar_type() == at::kBFloat16, "the native kernel serves float32 and bfloat16 only.");
  run(at::BFloat16{});
}

std::tuple<Tensor, Tensor> attention_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& pos_k, const MaybeTensor& pos_q,
    const MaybeTensor& pos_pos, const Tensor& slots, const Tensor& query_offsets, const Tensor& query_positions,
    const Tensor& key_offsets, const Tensor& key_positions, const MaybeTensor& seed, double dropout_p, bool causal) {
  Tensor out = at::empty(q.sizes(), q.options());
  Tensor softmax = at::empty({q.size(0), q.size(1), 2}, q.options().dtype(at::kFloat));
  with_type(q, [&](auto zero) {
    using T = decltype(zero);
    const Problem<T> problem(
        q, k, v, pos_k, pos_q, pos_pos, slots, query_offsets, query_positions, key_offsets, key_positions, seed,
        dropout_p, causal);
    forward(problem, out.mutable_data_ptr<T>(), softmax.mutable_data_ptr<float>());
  });
  return {out, softmax};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& out_grad, const Tensor& out, const Tensor& softmax, const Tensor& q, const Tensor& k, const Tensor& v,
    const MaybeTensor& pos_k, const MaybeTensor& pos_q, const MaybeTensor& pos_pos, const Tensor& slots,
    const Tensor& query_offsets, const Tensor& query_positions, const Tensor& key_offsets,
    const Tensor& key_positions, const MaybeTensor& seed, double dropout_p, bool causal) {
  const auto like = [&](const MaybeTensor& tensor) {
    return tensor ? at::empty(tensor->sizes(), tensor->options()) : at::empty({0}, q.options());
  };
  const Tensor q_grad = like(q), k_grad = like(k), v_grad = like(v);
  const Tensor pos_k_grad = like(pos_k), pos_q_grad = like(pos_q), pos_pos_grad = like(pos_pos);
  with_type(q, [&](auto zero) {
    using T = decltype(zero);
    const Problem<T> problem(
        q, k, v, pos_k, pos_q, pos_pos, slots, query_offsets, query_positions, key_offsets, key_positions, seed,
        dropout_p, causal);
    const Gradients<T> gradients{
        out.const_data_ptr<T>(),
        out_grad.const_data_ptr<T>(),
        softmax.const_data_ptr<float>(),
        q_grad.mutable_data_ptr<T>(),
        k_grad.mutable_data_ptr<T>(),
        v_grad.mutable_data_ptr<T>(),
        pos_k ? pos_k_grad.mutable_data_ptr<T>() : nullptr,
        pos_q ? pos_q_grad.mutable_data_ptr<T>() : nullptr,
        pos_pos ? pos_pos_grad.mutable_data_ptr<float>() : nullptr};
    backward(problem, gradients);
  });
  return {q_grad, k_grad, v_grad, pos_k_grad, pos_q_grad, pos_pos_grad};
}

Tensor dropout(const Tensor& x, const Tensor& seed, double p) {
  const Tensor rows = x.contiguous(), y = at::empty(x.sizes(), x.options());
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    drop(rows.const_data_ptr<T>(), rows.numel(), Dropout(seed, p), y.mutable_data_ptr<T>());
  });
  return y;
}

Tensor pack_linear(const Tensor& weight) {
  const int64_t panels = (weight.size(0) + PANEL - 1) / PANEL;
  const Tensor packed = at::empty({panels, weight.size(1), PANEL}, weight.options());
  with_type(weight, [&](auto zero) { pack_panels(weight, packed.mutable_data_ptr<decltype(zero)>()); });
  return packed;
}

Tensor linear(const Tensor& x, const Tensor& packed, const Tensor& bias, bool gelu) {
  TORCH_CHECK_VALUE(
      x.dim() == 2 && packed.dim() == 3 && bias.dim() == 1 && x.size(1) == packed.size(1) && packed.size(2) == PANEL &&
          packed.size(0) == (bias.size(0) + PANEL - 1) / PANEL && x.scalar_type() == packed.scalar_type() &&
          x.scalar_type() == bias.scalar_type(),
      "linear: x, the packed weight and the bias do not fit each other.");
  const Tensor rows = x.stride(1) == 1 ? x : x.contiguous();
  const Tensor y = at::empty({x.size(0), bias.size(0)}, x.options());
  with_type(x, [&](auto zero) {
    using T = decltype(zero);
    multiply(
        rows, packed.const_data_ptr<T>(), bias.contiguous().const_data_ptr<T>(), gelu, bias.size(0),
        y.mutable_data_ptr<T>());
  });
  return y;
}

}  // namespace
}  // namespace unbraid

TORCH_LIBRARY_IMPL(unbraid, CPU, library) {
  library.impl("attention_forward", &unbraid::attention_forward);
  library.impl("attention_backward", &unbraid::attention_backward);
  library.impl("dropout", &unbraid::dropout);
  library.impl("pack_linear", &unbraid::pack_linear);
  library.impl("linear", &unbraid::linear);
}
