#include "rows.h"

namespace gloss::cpu {

void find_reachable(Csr graph, const double* values, const uint8_t* fixed, uint8_t* reachable, int threads) {
  // Nearly every row has a fixed neighbour; a look at each row's own edges finds those, side by side.
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < graph.n; ++i) {
    bool found = fixed[i];
    for (int64_t e = graph.crow[i]; e < graph.crow[i + 1] && !found; ++e) found = fixed[graph.col[e]] && values[e] > 0;
    reachable[i] = found;
  }
  // The rest, depth first from each row that has a reachable neighbour: every edge of these rows is seen at most twice.
  std::vector<int64_t> stack;
  for (int64_t start = 0; start < graph.n; ++start) {
    if (reachable[start]) continue;
    for (int64_t e = graph.crow[start]; e < graph.crow[start + 1]; ++e)
      if (reachable[graph.col[e]] && values[e] > 0) {
        reachable[start] = 1;
        stack.push_back(start);
        break;
      }
    while (!stack.empty()) {
      const int64_t i = stack.back();
      stack.pop_back();
      for (int64_t e = graph.crow[i]; e < graph.crow[i + 1]; ++e) {
        const int64_t j = graph.col[e];
        if (reachable[j] || !(values[e] > 0)) continue;
        reachable[j] = 1;
        stack.push_back(j);
      }
    }
  }
}

}  // namespace gloss::cpu
