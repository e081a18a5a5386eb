// The arithmetic peak of this machine: multiply-adds on registers only, on every thread. Prints GFLOP/s: float32 bf16.
// bf16 is 0 where the processor has no such instruction. Built by machine.py with -O2 -march=native -fopenmp.
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>

#define CHAINS 12  // independent sums: enough to hide the latency of one multiply-add
#define STEPS 100000000L
#if defined(__AVX512F__)
#define WIDTH 16
#else
#define WIDTH 8
#endif
typedef float Vector __attribute__((vector_size(4 * WIDTH)));

static double float32_rate(int threads) {
  double start = omp_get_wtime();
#pragma omp parallel num_threads(threads)
  {
    Vector sum[CHAINS] = {0}, a, b;
    for (int i = 0; i < WIDTH; i++) a[i] = 1e-9f * i, b[i] = 1e-9f;
    for (long s = 0; s < STEPS; s++) {
      __asm__ volatile("" : "+x"(a), "+x"(b));
#pragma GCC unroll 12
      for (int c = 0; c < CHAINS; c++) sum[c] += a * b;
    }
    for (int c = 0; c < CHAINS; c++) __asm__ volatile("" : : "x"(sum[c]));
  }
  return 2.0 * WIDTH * CHAINS * STEPS * threads / (omp_get_wtime() - start) / 1e9;
}

#ifdef __AVX512BF16__
#include <immintrin.h>
static double bf16_rate(int threads) {
  double start = omp_get_wtime();
#pragma omp parallel num_threads(threads)
  {
    __m512 sum[CHAINS];
    for (int c = 0; c < CHAINS; c++) sum[c] = _mm512_setzero_ps();
    __m512i a = _mm512_set1_epi16(0x3000), b = _mm512_set1_epi16(0x3080);
    for (long s = 0; s < STEPS; s++) {
      __asm__ volatile("" : "+v"(a), "+v"(b));
#pragma GCC unroll 12
      for (int c = 0; c < CHAINS; c++) sum[c] = _mm512_dpbf16_ps(sum[c], (__m512bh)a, (__m512bh)b);
    }
    for (int c = 0; c < CHAINS; c++) __asm__ volatile("" : : "v"(sum[c]));
  }
  return 4.0 * 16 * CHAINS * STEPS * threads / (omp_get_wtime() - start) / 1e9;
}
#else
static double bf16_rate(int threads) { return 0.0 * threads; }
#endif

int main(int count, char** words) {
  int threads = count > 1 ? atoi(words[1]) : omp_get_max_threads();
  printf("%.1f %.1f\n", float32_rate(threads), bf16_rate(threads));
}
