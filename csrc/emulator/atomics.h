// Atomic operations: fibers switch at collective operations only, so plain loads and stores are atomic.
#pragma once
#include "types.h"

template <class T, class U>
T atomicAdd(T* at, U value) {
  const T old = *at;
  *at = T(old + T(value));
  return old;
}
template <class T, class U>
T atomicSub(T* at, U value) {
  const T old = *at;
  *at = T(old - T(value));
  return old;
}
template <class T, class U>
T atomicMin(T* at, U value) {
  const T old = *at;
  *at = T(value) < old ? T(value) : old;
  return old;
}
template <class T, class U>
T atomicMax(T* at, U value) {
  const T old = *at;
  *at = old < T(value) ? T(value) : old;
  return old;
}
template <class T, class U>
T atomicExch(T* at, U value) {
  const T old = *at;
  *at = T(value);
  return old;
}
template <class T, class U>
T atomicOr(T* at, U value) {
  const T old = *at;
  *at = T(old | T(value));
  return old;
}
template <class T, class U>
T atomicAnd(T* at, U value) {
  const T old = *at;
  *at = T(old & T(value));
  return old;
}
template <class T, class U, class V>
T atomicCAS(T* at, U expected, V value) {
  const T old = *at;
  if (old == T(expected)) *at = T(value);
  return old;
}
