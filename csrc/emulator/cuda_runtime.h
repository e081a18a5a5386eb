// CUDA on the CPU, for tests: the project's .cu files compile unchanged as C++ with this folder first on the include path
// and GLOSS_EMULATE defined. One fiber a CUDA thread, one block at a time, launches run to their end before they return.
//
// What shows up as an error or a wrong result that would be a race on a GPU:
//   a missing __syncthreads      each warp runs ahead to its next barrier before another warp starts
//   a missing wait for cp.async  the copy lands at the wait, not before (cuda/mma.cuh)
//   shared memory never written  it is filled with 0xff before every block
//   too much shared memory       static and dynamic together, against the default limit or the kernel's opt-in
//   a host read while capturing  waiting for a captured stream fails, and its work has not run (capture.h)
//   a barrier in a branch        an exception that names the block: threads that returned, lanes that never come
//   order                        GLOSS_EMULATOR_SEED=n (or emulator::seed()) shuffles blocks, warps and lanes
//
// A kernel works on both if it is started with gloss::cuda::launch, takes dynamic shared memory by
// GLOSS_DYNAMIC_SHARED(T, name), declares static by GLOSS_SHARED(T, name, extents) (cuda/common.cuh), uses cuda/mma.cuh
// for tensor cores and asynchronous copies, lets no block wait for another, and keeps to what the headers here offer.
#pragma once
#include "types.h"

#include "fibers.h"

#include "collectives.h"

#include "atomics.h"
#include "host_api.h"
#include "intrinsics.h"
