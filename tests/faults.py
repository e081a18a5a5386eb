"""Faults that the tests must notice; tests/mutation.py seeds them one at a time.

``old`` is text that stands once in the source tree, wherever that is; ``tests`` are the ones that are to notice.
"""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    name: str  # first what it is in: cpu, cuda (emulated), triton (interpreted) or python
    old: str
    new: str
    tests: str  # as pytest takes them, below tests/, with spaces between
    only: str = ""  # pytest -k


DIGITS = "test_elimination.py::test_the_loss_in_200_digits"
TOPK, GRAPH, PROPAGATE, LOSS = "test_topk.py::", "test_graph.py::", "test_propagate.py::", "test_loss.py::"
MEMORY = "test_operator_memory.py::"
GRAPH_GRADIENT = GRAPH + "test_gradient_to_embeddings_and_sigma"
GUARD = (
    "return (s.residual + (1 + s.residual) * largest_.load(std::memory_order_relaxed) + accumulation_) * (1 + 1e-5f);"
)

PYTHON = [
    Fault(
        "python: the adjoint of every row stops with the largest one",
        "size = torch.maximum(x.abs().amax(1), least)[:, None]",
        "size = torch.maximum(x.abs().amax(1), least).amax()",
        "test_multilevel.py::test_gradient_is_right",
        "cuda",
    ),
    Fault(
        "python: weights to rows that the excess holds are lost",
        "torch.where(group[entries.col] < 0, entries.weight, 0.0)",
        "torch.where(group[entries.col] < 0, 0.0, 0.0)",
        "test_multilevel.py::test_hierarchy",
    ),
    Fault(
        "python: an unlabelled row is a class (sigma_mst)",
        "between = (y[:, None] != y[None, :]) & (y[:, None] >= 0) & (y[None, :] >= 0)",
        "between = y[:, None] != y[None, :]",
        LOSS + "test_a_document_without_label_is_no_class_of_its_own",
    ),
    Fault(
        "python: sigma from the first rows, not from spaced ones",
        "return x[:: -(-x.shape[0] // MAX_ROWS)] if x.shape[0] > MAX_ROWS else x",
        "return x[:MAX_ROWS]",
        LOSS + "test_heuristics_look_at_evenly_spaced_rows",
    ),
    Fault(
        "python: too few documents keep their label",
        "keep = torch.ceil(known.sum().double() * labeled_fraction - 1e-6)",
        "keep = torch.floor(known.sum().double() * labeled_fraction)",
        LOSS + "test_drawn_hidden_documents",
    ),
    Fault(
        "python: float64 rows become float32",
        "    x = x if x.dtype == torch.float64 else x.float()\n    largest",
        "    x = x.float()\n    largest",
        LOSS + "test_against_reference",
        "auto",
    ),
    Fault(
        "python: smoothing of the torch loss forgets the number of classes",
        "return -torch.log((1 - smoothing) * p_y.clamp(min=0) + smoothing / p.shape[1])",
        "return -torch.log((1 - smoothing) * p_y.clamp(min=0) + smoothing)",
        LOSS + "test_loss_where_no_label_of_the_class_arrives",
    ),
    Fault(
        "python: the bank forgets how far rounding moved a query",
        "proven = c.detach()[:, -1] >= values[:, -1] + moved - TIE",
        "proven = c.detach()[:, -1] >= values[:, -1] - TIE",
        "test_corpus.py::test_rounded_queries_alone_would_not_be_exact",
    ),
    Fault(
        "python: wrong sign in the harmonic gradient",
        "return edge_gradient(lam, f) / 2, lam",
        "return edge_gradient(lam, f) / -2, lam",
        "test_corpus.py::test_gradcheck",
    ),
    Fault(
        "python: the checkpoint names rows before they are written",
        "            self.values.flush()\n            self.indices.flush()\n            self._write_state()\n",
        "            self._write_state()\n            self.values.flush()\n            self.indices.flush()\n",
        "test_neighbors.py::test_the_state_names_no_rows_that_are_not_written",
    ),
    Fault(
        "python: an equal epoch is a better one",
        'validation["macro_f1"] > self.progress.best["macro_f1"]',
        'validation["macro_f1"] >= self.progress.best["macro_f1"]',
        "test_finetune.py::test_a_plateau_ends_with_patience",
    ),
    Fault(
        "python: a pivot as a difference",
        "root = rest[k, k + 1 :].sum().sqrt()",
        "root = (rest[k, k + 1 :].sum() + 1 - 1).sqrt()",
        DIGITS,
        "reference",
    ),
    Fault(
        "python: a block forgets the weights to what lies outside it",
        "leaf(rows[:, : end - first], rows[:, end - first :].sum(dim=1))",
        "leaf(rows[:, : end - first], rows[:, -1])",
        DIGITS,
        "torch and auto",
    ),
    Fault(
        "python: rounding counts as a difference of solutions",
        "return difference.masked_fill(within, 0.0)",
        "return difference",
        DIGITS,
        "reference",
    ),
]

TRITON = [
    Fault(
        "triton: float32's products decide who is redone in float64",
        "tl.where(of_pair > 0, slack, 0.0), 1.0)",
        "tl.where(of_pair > 0, 0.0, 0.0), 1.0)",
        "test_triton.py::test_products_in_float32_decide_nothing",
    ),
    Fault(
        "triton: union takes the smaller weight's gradient",
        "tl.where(own == other, 0.5, tl.where(own > other, 1.0, 0.0))",
        "tl.where(own == other, 0.5, tl.where(own <= other, 1.0, 0.0))",
        GRAPH_GRADIENT + " " + GRAPH + "test_gradcheck",
        "triton",
    ),
    Fault(
        "triton: the second direction replaces the first's gradient",
        "        grad += tl.load(grad_weights_ptr + mine, use, 0.0)\n",
        "        grad += 0.0\n",
        GRAPH_GRADIENT,
        "triton",
    ),
    Fault(
        "triton: wrong stride of the choosers",
        "weight, use, column, d, chooser_stride)\n    to = grad_ptr",
        "weight, use, column, d, stride + 1)\n    to = grad_ptr",
        TOPK + "test_gradient " + TOPK + "test_partial_gradients",
        "triton",
    ),
    Fault(
        "triton: a mask one past the columns",
        "x = tl.load(x_ptr + row[:, None] * stride + column[None, :], use[:, None] & (column < d)[None, :], 0.0)",
        "x = tl.load(x_ptr + row[:, None] * stride + column[None, :], use[:, None] & (column < d - 1)[None, :], 0.0)",
        TOPK + "test_gradient",
        "triton",
    ),
    Fault(
        "triton: wrong sign of the residual's update",
        "        r -= length * q\n",
        "        r += length * q\n",
        PROPAGATE + "test_against_reference",
        "triton",
    ),
    Fault(
        "triton: wrong sign of the edges' gradient",
        "grad = -0.5 * (dot + (pull[:, None]",
        "grad = 0.5 * (dot + (pull[:, None]",
        PROPAGATE + "test_gradient",
        "triton",
    ),
    Fault(
        "triton: one document's sigma for both",
        "exponent = tl.where(distance > 0, 0.0, distance) * (own[:, None] * other[None, :])",
        "exponent = tl.where(distance > 0, 0.0, distance) * (own[:, None] * own[:, None])",
        LOSS + "test_gradcheck " + LOSS + "test_heuristics_in_the_loss",
        "triton",
    ),
    Fault(
        "triton: a search's gradient reads before the first row",
        "known = inside & (other >= 0) & (other < m)",
        "known = inside & (other < m)",
        MEMORY + "test_the_gradient_of_a_search_indexes_rows_only",
        "triton",
    ),
    Fault(
        "triton: an offset of programs x classes in 32 bits",
        "partials_ptr + program.to(tl.int64) * classes + column",
        "partials_ptr + program * classes + column",
        "test_large_offsets.py::test_triton_kernels_form_wide_offsets",
    ),
    Fault(
        "triton: a pivot as a difference",
        "root = tl.sqrt(tl.sum(row, 0) + own)",
        "root = tl.sqrt(tl.sum(row, 0) + own + 1 - 1)",
        DIGITS,
        "triton",
    ),
    Fault(
        "triton: rounding counts as a difference of solutions",
        "counts = tl.abs(difference) > ROUNDING * tl.maximum(f_i[:, None], f_j[None, :])",
        "counts = difference == difference",
        DIGITS,
        "triton",
    ),
]

CPU = [
    Fault(
        "cpu: union takes the smaller weight",
        "case Symmetrize::larger: return forward < reverse ? reverse : forward;",
        "case Symmetrize::larger: return forward < reverse ? forward : reverse;",
        GRAPH + "test_same_graph",
        "cpu",
    ),
    Fault(
        "cpu: equal weights both take the whole gradient",
        "case Symmetrize::larger: return own == other ? T(0.5) : T(own > other);",
        "case Symmetrize::larger: return own == other ? T(1) : T(own > other);",
        GRAPH_GRADIENT,
        "cpu",
    ),
    Fault(
        "cpu: swapped index in the gradient of the published normalisation",
        "grad_values[e] = T(g[e] * s[i] * s[j] + 0.5 * (dt[i] * r[j] + dt[j] * r[i] + dd[i] + dd[j]));",
        "grad_values[e] = T(g[e] * s[i] * s[j] + 0.5 * (dt[i] * r[i] + dt[j] * r[j] + dd[i] + dd[j]));",
        PROPAGATE + "test_gradcheck_from_embeddings",
        "cpu",
    ),
    Fault(
        "cpu: an edge of both directions comes twice",
        "      ++own, ++other;\n",
        "      ++own;\n",
        GRAPH + "test_same_graph",
        "cpu",
    ),
    Fault(
        "cpu: a row's last edge is left out where they are odd",
        "  if (e < end) even = even.plus(system.value[e], R::load(p + int64_t(system.col[e]) * N));\n",
        "",
        PROPAGATE + "test_against_reference",
        "cpu",
    ),
    Fault(
        "cpu: column 0 has no residual",
        "for (int l = 0; l < N; ++l) dots[l] = dot[l];",
        "for (int l = 0; l < N; ++l) dots[l] = l ? dot[l] : 0;",
        PROPAGATE + "test_any_start_gives_the_same_result",
        "cpu",
    ),
    Fault(
        "cpu: the solver does not look at tol",
        "target_ = tol * std::max(",
        "target_ = 1e-9 * std::max(",
        PROPAGATE + "test_a_finer_tol_costs_iterations_and_is_kept",
        "cpu",
    ),
    Fault(
        "cpu: the multilevel solver does not look at max_iter",
        "    while (iterations < max_iter_) {\n      sum(0, width, pq",
        "    while (true) {\n      sum(0, width, pq",
        PROPAGATE + "test_max_iter_holds_over_all_attempts",
        "cpu",
    ),
    Fault(
        "cpu: rows are not divided by their sums",
        "f[c] = T(double(f[c]) / total);",
        "f[c] = T(double(f[c]));",
        "test_multilevel.py::test_too_few_iterations_leave_distributions",
    ),
    Fault(
        "cpu: a labelled neighbour is reached by a weight of 0",
        "found = fixed[graph.col[e]] && values[e] > 0;",
        "found = fixed[graph.col[e]];",
        PROPAGATE + "test_an_edge_of_weight_zero_is_none",
        "cpu",
    ),
    Fault(
        "cpu: what a row lacks goes to its largest class",
        "T(std::max(double(f[c]) + (1 - sum) * mean[c], 0.0))",
        "T(std::max(double(f[c]), 0.0))",
        "test_multilevel.py::test_many_classes_keep_the_tolerance",
    ),
    Fault(
        "cpu: the excess is lost on the next level",
        "        excess += fine.excess[i];\n",
        "",
        "test_multilevel.py::test_probabilities_are_right_on_the_cpu",
    ),
    Fault(
        "cpu: a flow that is no difference",
        "even = even.plus(a.weight[e], xi - R::load(x + int64_t(a.col[e]) * N));\n    odd",
        "even = even.plus(a.weight[e], xi).plus(-a.weight[e], R::load(x + int64_t(a.col[e]) * N));\n    odd",
        "test_multilevel.py::test_probabilities_are_right_on_the_cpu",
    ),
    Fault(
        "cpu: spreading without its alpha",
        "out.value[to] = T(options.alpha * values[e]);",
        "out.value[to] = T(values[e]);",
        PROPAGATE + "test_against_reference",
        "cpu",
    ),
    Fault(
        "cpu: only the best approximate values are scored",
        "if (values[c] < kth && values[c] >= bound) s.ids.push_back(indices[c]);",
        "if (false && values[c] < kth && values[c] >= bound) s.ids.push_back(indices[c]);",
        TOPK + "test_rounding_against_the_nearest",
        "cpu",
    ),
    Fault("cpu: no guard around the filter", GUARD, "return 0;", TOPK + "test_near_ties_are_told_apart"),
    Fault(
        "cpu: the guard leaves out the rounding of sums",
        GUARD,
        GUARD.replace(" + accumulation_", ""),
        TOPK + "test_near_ties_are_told_apart",
    ),
    Fault(
        "cpu: wrong sign of the guard where lists are compacted",
        "raise(row, kth_value(row, g / 8) - g);",
        "raise(row, kth_value(row, g / 8) + g);",
        TOPK + "test_near_ties_are_told_apart " + TOPK + "test_self_search",
        "cpu",
    ),
    Fault(
        "cpu: a later piece of the queries begins at its second row",
        "for (int64_t begin = super * kSuperBlock; begin < end; begin += rows) {",
        "for (int64_t begin = super * kSuperBlock + (super > 0); begin < end; begin += rows) {",
        TOPK + "test_queries_against_corpus",
        "cpu",
    ),
    Fault(
        "cpu: padding of a group of columns is not masked",
        "kept += one.column < valid && one.row < count &&",
        "kept += one.row < count &&",
        TOPK + "test_queries_against_corpus " + TOPK + "test_rows_opposite_to_all_others",
        "cpu",
    ),
    Fault(
        "cpu: hints that come twice count twice",
        "        s.ids.erase(std::unique(s.ids.begin(), s.ids.end()), s.ids.end());\n",
        "",
        TOPK + "test_hint_changes_nothing",
        "cpu",
    ),
    Fault(
        "cpu: the gradient is not projected",
        "T((sum[size_t(c)] - unit[size_t(c)] * along) * inverse * scale)",
        "T(sum[size_t(c)] * inverse * scale)",
        TOPK + "test_gradient",
        "cpu",
    ),
    Fault(
        "cpu: swapped index in the gradient of sigma",
        "to_sigma += edge * std::min(distance, 0.0) * p_.inverse_sigma[j];",
        "to_sigma += edge * std::min(distance, 0.0) * p_.inverse_sigma[i];",
        LOSS + "test_gradcheck",
        "auto",
    ),
    Fault(
        "cpu: smoothing of the dense loss by one class too many",
        "(p_y < 0 ? 0.0 : p_y) + smoothing / double(classes);",
        "(p_y < 0 ? 0.0 : p_y) + smoothing / double(classes + 1);",
        LOSS + "test_loss_where_no_label_of_the_class_arrives",
        "auto",
    ),
    Fault(
        "cpu: normalize_edges reads columns that nobody looked at",
        "  if (signs < 0) check_graph(graph, capacity);\n",
        "",
        MEMORY + "test_columns_are_nodes",
    ),
    Fault(
        "cpu: combine_edges takes a place of -2",
        "signs |= outside(forward[e], -1, num_weights - 1)",
        "signs |= outside(forward[e], -2, num_weights - 1)",
        MEMORY + "test_places_of_weights_are_checked",
    ),
    Fault(
        "cpu: a pivot as a difference",
        "const double root = std::sqrt(pivot), inverse = 1 / root;",
        "const double root = std::sqrt((pivot + 1.0) - 1.0), inverse = 1 / root;",
        DIGITS,
        "auto",
    ),
    Fault(
        "cpu: rounding counts as a difference of solutions",
        "sums[l] += std::fabs(difference) > kRounding * larger ? product : 0.0;",
        "sums[l] += product;",
        DIGITS,
        "auto",
    ),
]

CUDA = [
    Fault(
        "cuda: one guard where lists are compacted",
        "kth_value(keys, kept, s.k, margin / 8, lane) - 2 * margin);",
        "kth_value(keys, kept, s.k, margin / 8, lane) - margin);",
        TOPK + "test_rounding_against_the_nearest",
        "cuda",
    ),
    Fault(
        "cuda: no barrier before a tile of the exact scores is read",
        "    __syncthreads();\n#pragma unroll\n    for (int c = 0; c < kColumns; ++c) {\n      double a[4], b[4];",
        "#pragma unroll\n    for (int c = 0; c < kColumns; ++c) {\n      double a[4], b[4];",
        "emulator/test_topk_emulated.py " + TOPK + "test_self_search",
        "small or cuda",
    ),
    Fault(
        "cuda: rows and columns of a tile of the exact scores change places",
        "a[i] = row_part[c][y + 16 * i], b[i] = column_part[c][x + 16 * i];",
        "a[i] = row_part[c][x + 16 * i], b[i] = column_part[c][y + 16 * i];",
        TOPK + "test_queries_against_corpus",
        "cuda",
    ),
    Fault(
        "cuda: a mask one past the columns",
        "const bool inside = i < last && from + c < rows.cols;",
        "const bool inside = i < last && from + c <= rows.cols;",
        TOPK + "test_self_search",
        "cuda",
    ),
    Fault(
        "cuda: hints that come twice count twice",
        "const bool counts = j != kNobody && (c + 1 == hint_k || keys[c + 1] != j);",
        "const bool counts = j != kNobody;",
        TOPK + "test_hint_changes_nothing",
        "cuda",
    ),
    Fault(
        "cuda: lanes' dot products are not added up before the projection",
        "  along = warp_sum(along);\n  const bool vanishes",
        "  const bool vanishes",
        TOPK + "test_gradient",
        "cuda",
    ),
    Fault(
        "cuda: the second direction replaces the first's gradient",
        "grad_weights[own] = kForward ? g : grad_weights[own] + g;",
        "grad_weights[own] = g;",
        GRAPH_GRADIENT,
        "cuda",
    ),
    Fault(
        "cuda: a column without a right-hand side keeps its start",
        "x.v[v] = zero[v] ? T(0) : x.v[v] + e.v[v];",
        "x.v[v] = x.v[v] + e.v[v];",
        PROPAGATE + "test_any_start_gives_the_same_result",
        "cuda",
    ),
    Fault(
        "cuda: wrong sign of the next direction",
        "p.v[v] = r.v[v] + beta.v[v] * p.v[v];",
        "p.v[v] = r.v[v] - beta.v[v] * p.v[v];",
        PROPAGATE + "test_against_reference",
        "cuda",
    ),
    Fault(
        "cuda: no barrier between the halvings of a sum",
        "    __syncthreads();\n    count = half;\n",
        "    count = half;\n",
        "emulator/test_graph_propagate_emulated.py " + PROPAGATE + "test_against_reference",
        "propagate_classes or cuda",
    ),
    Fault(
        "cuda: no barrier between two sums of a block",
        "  __syncthreads();  // `partial` may still be read from the last sum\n",
        "",
        "test_cuda_emulated.py",
        "dense_loss",
    ),
    Fault(
        "cuda: one document's sigma for both in the gradient",
        "to_sigma += edge * fmin(distance, 0.0) * p.inverse_sigma[j];",
        "to_sigma += edge * fmin(distance, 0.0) * p.inverse_sigma[i];",
        LOSS + "test_gradcheck",
        "cuda",
    ),
    Fault(
        "cuda: numbers of rows are added up in float",
        "squares += v * v;\n  }\n  const double norm = largest * sqrt(warp_sum(squares));",
        "squares = float(squares + v * v);\n  }\n  const double norm = largest * sqrt(warp_sum(squares));",
        LOSS + "test_against_reference",
        "cuda",
    ),
    Fault(
        "cuda: normalize_edges reads before the first node",
        "return uint64_t(j) < uint64_t(graph.n) ? x[j] : NAN;",
        "return j < graph.n ? x[j] : NAN;",
        MEMORY + "test_kernels_read_nodes_only",
        "cuda",
    ),
    Fault(
        "cuda: a gradient is written past the weights",
        "if (own < 0 || own >= num_weights) return;",
        "if (own < 0) return;",
        MEMORY + "test_no_gradient_is_written_outside",
    ),
    Fault(
        "cuda: a pivot as a difference",
        "const double root = sqrt(warp_sum(pivot));",
        "const double root = sqrt((warp_sum(pivot) + 1.0) - 1.0);",
        DIGITS,
        "cuda",
    ),
    Fault(
        "cuda: rounding counts as a difference of solutions",
        "else if (fabs(difference) > kRounding * fmax(f_i[c], f_j[c])) sum",
        "else sum",
        DIGITS,
        "cuda",
    ),
]

FAULTS = [*PYTHON, *TRITON, *CPU, *CUDA]  # first those that need no build
