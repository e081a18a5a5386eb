// Included before the sources of propagate_check: a stream that is captured or not, as the check wants it.
#pragma once
#define cudaStreamIsCapturing emulated_stream_is_capturing
#include "cuda_runtime.h"
#undef cudaStreamIsCapturing

inline bool stream_is_captured = false;
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = stream_is_captured ? cudaStreamCaptureStatus(1) : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
