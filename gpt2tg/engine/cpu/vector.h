/* Vector registers: LANES numbers in fp32, their arithmetic, and loads and stores in three precisions.

   Intrinsics of AVX-512, AVX2 and NEON stand where the compiler's own vectors do not suffice. On other
   processors these are all there is, in registers of 16 bytes. */

#ifdef __x86_64__
#include <immintrin.h>
#ifndef __AVX2__
#error "gpt2tg needs AVX2; torch computes on this processor"
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* LANES: numbers in a register; gcc would keep wider vectors in memory. PANEL_REGISTERS: registers that hold
   one input of a panel. KEY_REGISTERS: registers that hold one number of each key of a tile. */
#if defined(__AVX512F__)
#define LANES 16
#define PANEL_REGISTERS 2
#define KEY_REGISTERS 1
#elif defined(__AVX2__)
#define LANES 8
#define PANEL_REGISTERS 2
#define KEY_REGISTERS 1
#else
#define LANES 4
#define PANEL_REGISTERS 4
#define KEY_REGISTERS 2
#endif

/* Prefetching of weights for T tokens: how far ahead, by how many inputs at a time, and whether those that
   are read once pass by the second-level cache. As measured on Intel with AVX-512, and on AMD with and
   without it; not on Arm. */
#if defined(__AVX2__) && !defined(__AVX512F__)
#define PREFETCH_BYTES(T) 1024
#define PREFETCH_INPUTS(precision, T) ((precision) == FP32 ? 2 : 16)
#define PREFETCH_PAST_CACHE 1
#elif defined(__znver3__) || defined(__znver4__) || defined(__znver5__) /* gcc 12 takes Zen 4 for Zen 3 */
#define PREFETCH_BYTES(T) ((T) == 1 ? 4096 : 8192)
#define PREFETCH_INPUTS(precision, T) ((T) == 1 ? 4 : 16)
#define PREFETCH_PAST_CACHE 1
#else
#define PREFETCH_BYTES(T) 8192
#define PREFETCH_INPUTS(precision, T) 16
#define PREFETCH_PAST_CACHE 0
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64)))

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));

/* A vector in a register: gcc keeps arrays of `vector`, which needs no alignment, in memory. Loops over such
   arrays must be UNROLLED early, which gcc leaves for too late. */
typedef float vector_register __attribute__((vector_size(4 * LANES)));
#define UNROLLED(i, count) _Pragma("GCC unroll 8") for (int i = 0; i < (count); i++)

enum precision { FP32, FP16, INT8 };

static const int BYTES[] = {4, 2, 1}; /* of a number in each precision */

static const integers LANE_NUMBERS = {
    0, 1, 2,  3,
#if LANES >= 8
    4, 5, 6,  7,
#endif
#if LANES == 16
    8, 9, 10, 11, 12, 13, 14, 15,
#endif
};

/* Arithmetic */

/* The same number in every lane. */
static inline vector all(float x) { return x - (vector){0}; }

/* a * b + c, rounded once where the processor can.

   The source spells out every fused multiply-add, and the compiler may not fuse on its own
   (-ffp-contract=off). It fuses in one loop and not in another, for AMD's processors depending on the length
   of a chain of sums: results would depend on how many tokens are read. */
static inline vector fused(vector a, vector b, vector c) {
#if defined(__AVX512F__)
  return (vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (vector)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

/* `yes` in the lanes where the mask is set, else `no`. */
static inline vector choose(integers mask, vector yes, vector no) {
  return (vector)((mask & (integers)yes) | (~mask & (integers)no));
}

/* The same integer in every lane. */
static inline integers all_integers(int32_t x) { return x - (integers){0}; }

/* x * y, rounded to the nearest integers; they must be far below 2^22. */
static inline integers nearest_integers(vector x, vector y) {
  const float shift = 12582912.0f; /* 1.5 * 2^23, whose neighbours differ by 1 */
  return (integers)fused(x, y, all(shift)) - (integers)all(shift);
}

/* The sum of all lanes, always in the same order. */
static inline float sum_of(vector x) {
  float sum = 0;
  for (int i = 0; i < LANES; i++) sum += x[i];
  return sum;
}

/* The largest lane. */
static inline float largest_of(vector x) {
  float largest = x[0];
  for (int i = 1; i < LANES; i++) largest = x[i] > largest ? x[i] : largest;
  return largest;
}

/* e^x to about one unit in the last place: 2^n times a polynomial (Cephes library, Moshier 1989). */
static inline vector exponential(vector x) {
  x = choose(x < -87.0f, all(-87.0f), x);
  x = choose(x > 88.0f, all(88.0f), x);
  vector n = fused(x, all(1.44269504f), all(12582912.0f)) - 12582912.0f; /* rounded to an integer */
  vector r = fused(n, all(2.12194440e-4f), fused(n, all(-0.693359375f), x));
  vector p = all(1.9875691e-4f);
  p = fused(p, r, all(1.3981999e-3f));
  p = fused(p, r, all(8.3334519e-3f));
  p = fused(p, r, all(4.1665795e-2f));
  p = fused(p, r, all(1.6666665e-1f));
  p = fused(p, r, all(5.0e-1f));
  p = fused(p * r, r, r) + 1.0f;
  return p * (vector)((__builtin_convertvector(n, integers) + 127) << 23);
}

/* Prefetch a line of weights for T tokens, a constant. For one token, it is read once. */
ALWAYS_INLINE void prefetch_weights(const char *line, int T) {
  if (T == 1 && PREFETCH_PAST_CACHE)
    __builtin_prefetch(line, 0, 0);
  else
    __builtin_prefetch(line, 0, 2);
}

/* Loads and stores. `precision` is a constant wherever speed matters: the functions are inlined and the
   switch disappears. `at` counts numbers, not bytes. */

static inline vector load_fp16(const uint16_t *from) {
#if defined(__AVX512F__)
  return (vector)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif defined(__F16C__)
  return (vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#elif defined(__aarch64__)
  return (vector)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from)));
#else
  typedef _Float16 half __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
  return __builtin_convertvector(*(const half *)from, vector);
#endif
}

/* LANES numbers in FP32 or FP16, as fp32. */
ALWAYS_INLINE vector load(int precision, const void *from, int64_t at) {
  switch (precision) {
    case FP16: return load_fp16((const uint16_t *)from + at);
    default: return *(const vector *)((const float *)from + at);
  }
}

/* LANES integers. */
static inline integers load_integers(const void *from) { return (integers) * (const vector *)from; }

/* Store the low bytes of LANES integers. */
static inline void store_int8(int8_t *to, integers x) {
#ifdef __aarch64__
  int16x4_t narrow = vmovn_s32((int32x4_t)x);
  vst1_lane_s32((int32_t *)to, vreinterpret_s32_s8(vmovn_s16(vcombine_s16(narrow, narrow))), 0);
#else
  typedef int8_t small __attribute__((vector_size(LANES), aligned(1), may_alias));
  *(small *)to = __builtin_convertvector(x, small);
#endif
}

/* One number in FP32 or FP16, as fp32. */
static inline float load_one(int precision, const void *from, int64_t at) {
  switch (precision) {
#ifdef __F16C__
    case FP16: return _cvtsh_ss(((const uint16_t *)from)[at]);
#else
    case FP16: return ((const _Float16 *)from)[at];
#endif
    default: return ((const float *)from)[at];
  }
}

/* Store LANES numbers as fp16; those out of range become infinite. */
static inline void store_fp16(uint16_t *to, vector x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
  vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x)));
#else
  typedef _Float16 half __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
  *(half *)to = __builtin_convertvector(x, half);
#endif
}

/* Store one number as fp32 or fp16. In fp16, numbers out of range become the largest finite one. */
static inline void store_one(int precision, void *to, int64_t at, float value) {
  if (precision == FP32) {
    ((float *)to)[at] = value;
    return;
  }
  value = value > 65504.0f ? 65504.0f : value;
  value = value < -65504.0f ? -65504.0f : value;
#ifdef __F16C__
  ((uint16_t *)to)[at] = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#else
  ((_Float16 *)to)[at] = value;
#endif
}
