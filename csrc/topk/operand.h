// From the views of the API to operands, checked.
#pragma once
#include <stdexcept>
#include <string>

#include "job.h"

namespace gloss::cpu {

// Owns what an operand needs beside the input.
struct OperandStorage {
  OperandStorage(const char* name, MatrixView view, Meter* meter) : inverse_norm(view.rows, meter) {
    if (view.rows < 0 || view.cols < 0 || view.rows > INT32_MAX || view.cols > INT32_MAX)
      throw std::invalid_argument(std::string(name) + ": got [" + std::to_string(view.rows) + ", " +
                                  std::to_string(view.cols) + "], but each side must be below 2^31");
    if (view.dtype == DType::f64) scale = Buffer<double>(view.rows, meter);
    operand = {name, {view.data, int32_t(view.dtype), view.cols, view.stride, scale.get()}, view.rows,
               inverse_norm.get()};
  }
  Buffer<double> inverse_norm, scale;
  Operand operand;
};

inline bool same_matrix(MatrixView a, MatrixView b) {
  return a.data == b.data && a.rows == b.rows && a.cols == b.cols && a.stride == b.stride && a.dtype == b.dtype;
}

}  // namespace gloss::cpu
