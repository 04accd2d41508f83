/* One step of a GPT-2 on a processor's vector units, at the speed at which the weights can be read.

   Compiled once per machine by kernels.py with the compiler that is there; without one, torch does the work.

   Letters: M items (a token to read, of some row), K inputs and N outputs of a matrix, E width of the model,
   H heads, D width of a head, C capacity of the cache, R rows of the cache, T = C / LANES tiles of positions.

   A matrix lies in panels: [N / PANEL][K][PANEL], the last panel filled up with zeros, so that it is read from end to
   end while PANEL outputs of up to ITEMS items stay in registers. With more items a part of a panel is kept near until
   all of them have met it. Every item's numbers are summed in the same order however many there are: a text does not
   depend on its neighbours. */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __x86_64__
#include <immintrin.h>
#ifndef __AVX2__
#error "this processor is left to torch"
#endif
#endif

#ifdef __AVX512F__
#define LANES 16
#define ITEMS 8
#define GROUP 8
#else
#define LANES 8
#define ITEMS 6 /* at a time: as many as have room in registers */
#define GROUP 4 /* tokens of one text that attend at a time, or half as many, or one */
#endif
#define PANEL (2 * LANES)
#define AHEAD 8192 /* bytes: how far before its use a weight is called from memory, to the second cache */
#define CHUNK 16   /* inputs between two calls */
#define FEW (2 * ITEMS) /* items that are not worth packing */
#define TOGETHER (32 * ITEMS) /* items that meet a panel in one go */
#define PART 160   /* inputs of a panel that are kept near meanwhile */
#define HELD (2 << 20) /* weights of a file that are read before their pages are given back */

typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));

enum precision { FP32, FP16, INT8 };
enum activation { NONE, GELU_TANH, GELU, RELU };

typedef struct {
  const void *panels;
  const float *scale; /* (N), for INT8: what a unit of each output's weights is worth */
  const float *bias;  /* (N) or NULL */
  int32_t inputs, outputs, precision;
} Matrix;

/* A matrix (K, N) as a file holds it, and where it is to be laid out. The weight of input k and output n is at
   k * input + n * output. */
typedef struct {
  const float *weights;
  int64_t input, output;
  int32_t inputs, outputs, precision;
  void *panels;
  float *scale; /* (N) to be filled, for INT8 */
} Stored;

typedef struct {
  const float *norm_1_weight, *norm_1_bias, *norm_2_weight, *norm_2_bias;
  Matrix attend, attended, up, down;
  float scale; /* of the attention's scores */
} Layer;

typedef struct {
  const Layer *layers;
  const float *positions; /* (positions, E) */
  const float *norm_weight, *norm_bias;
  Matrix embedding, head;
  int32_t depth, width, heads, activation;
  float epsilon;
} Model;

/* Keys (R, H, T, D, LANES) and values (R, H, C, D) of each layer in turn, in FP32 or FP16: both are read from end to
   end. */
typedef struct {
  void *numbers;
  int32_t rows, capacity, precision;
} Cache;

int32_t panel_width(void) { return PANEL; }
int32_t lanes(void) { return LANES; }
int32_t items(void) { return ITEMS; }
int32_t group(void) { return GROUP; }

/* The same number in every lane. */
static inline vector all(float x) { return x - (vector){0}; }

/* a * b + c, rounded once where the processor can. It is said here and nowhere left to the compiler, which fuses in one
   loop what it does not in another (for AMD's processors by how long a chain of sums is): bits would depend on how many
   items there are. */
static inline vector fused(vector a, vector b, vector c) {
#if defined(__AVX512F__)
  return (vector)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (vector)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA)
  for (int i = 0; i < LANES; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}

/* LANES weights as fp32. */

static inline vector load_fp32(const float *p) { return *(const vector *)p; }

static inline vector load_fp16(const uint16_t *p) {
#if defined(__AVX512F__)
  return (vector)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__F16C__)
  return (vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
  typedef _Float16 half __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
  return __builtin_convertvector(*(const half *)p, vector);
#endif
}

static inline vector load_int8(const int8_t *p) {
#if defined(__AVX512F__)
  return (vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
  return (vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
  typedef int8_t small __attribute__((vector_size(LANES), aligned(1), may_alias));
  return __builtin_convertvector(*(const small *)p, vector);
#endif
}

/* LANES numbers from the one at `at` on. */
static inline __attribute__((always_inline)) vector load(int precision, const void *p, int64_t at) {
  switch (precision) {
    case FP16: return load_fp16((const uint16_t *)p + at);
    case INT8: return load_int8((const int8_t *)p + at);
    default: return load_fp32((const float *)p + at);
  }
}

/* The one number at `at`. */
static inline float number(int precision, const void *p, int64_t at) {
  switch (precision) {
#ifdef __F16C__
    case FP16: return _cvtsh_ss(((const uint16_t *)p)[at]);
#else
    case FP16: return ((const _Float16 *)p)[at];
#endif
    case INT8: return ((const int8_t *)p)[at];
    default: return ((const float *)p)[at];
  }
}

/* Write a number to `at`, in FP32 or FP16. What is too large for the latter becomes the largest that is not; what is
   no number stays none. */
static inline void store(int precision, void *p, int64_t at, float value) {
  if (precision == FP32) {
    ((float *)p)[at] = value;
    return;
  }
  value = value > 65504.0f ? 65504.0f : value;
  value = value < -65504.0f ? -65504.0f : value;
#ifdef __F16C__
  ((uint16_t *)p)[at] = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#else
  ((_Float16 *)p)[at] = value;
#endif
}

static const int BYTES[] = {4, 2, 1}; /* of a number in each precision */

/* Add K inputs of one panel times M items, at most ITEMS, to their sums.
   x: input k of item m is at m * item + k * input; w: (K, PANEL); ahead: as AHEAD, or 0 for what is near;
   sums: (M, PANEL). */
#define PANEL_TIMES_ITEMS(PRECISION, TYPE)                                                                       \
  static inline __attribute__((always_inline)) void items_##PRECISION(                                           \
      int M, int K, const float *x, int item, int input, const TYPE *w, int ahead, float *sums) {                \
    vector low[ITEMS], high[ITEMS];                                                                              \
    for (int m = 0; m < M; m++)                                                                                  \
      low[m] = *(vector *)(sums + m * PANEL), high[m] = *(vector *)(sums + m * PANEL + LANES);                   \
    for (int start = 0; start < K; start += CHUNK) {                                                             \
      int end = start + CHUNK < K ? start + CHUNK : K;                                                           \
      for (int line = 0; ahead && line < (int)(CHUNK * PANEL * sizeof(TYPE)); line += 64)                        \
        __builtin_prefetch((const char *)w + ahead + line, 0, 2);                                                \
      for (int k = start; k < end; k++, w += PANEL) {                                                            \
        vector left = load_##PRECISION(w), right = load_##PRECISION(w + LANES);                                  \
        for (int m = 0; m < M; m++) {                                                                            \
          vector one = all(x[(int64_t)m * item + k * input]);                                                    \
          low[m] = fused(left, one, low[m]);                                                                     \
          high[m] = fused(right, one, high[m]);                                                                  \
        }                                                                                                        \
      }                                                                                                          \
    }                                                                                                            \
    for (int m = 0; m < M; m++)                                                                                  \
      *(vector *)(sums + m * PANEL) = low[m], *(vector *)(sums + m * PANEL + LANES) = high[m];                   \
  }                                                                                                              \
  static inline __attribute__((always_inline)) void panel_##PRECISION(                                           \
      int M, int K, const float *x, int item, int input, const TYPE *w, int ahead, float *sums) {                \
    switch (M) { /* a constant number of items, so that their sums stay in registers */                          \
      case 1: items_##PRECISION(1, K, x, item, input, w, ahead, sums); break;                                    \
      case 2: items_##PRECISION(2, K, x, item, input, w, ahead, sums); break;                                    \
      case 3: items_##PRECISION(3, K, x, item, input, w, ahead, sums); break;                                    \
      case 4: items_##PRECISION(4, K, x, item, input, w, ahead, sums); break;                                    \
      case 5: items_##PRECISION(5, K, x, item, input, w, ahead, sums); break;                                    \
      case 6: items_##PRECISION(6, K, x, item, input, w, ahead, sums); break;                                    \
      MORE_ITEMS(PRECISION)                                                                                      \
    }                                                                                                            \
  }
#if ITEMS == 8
#define MORE_ITEMS(PRECISION)                                                                                    \
  case 7: items_##PRECISION(7, K, x, item, input, w, ahead, sums); break;                                        \
  case 8: items_##PRECISION(8, K, x, item, input, w, ahead, sums); break;
#else
#define MORE_ITEMS(PRECISION)
#endif
PANEL_TIMES_ITEMS(fp32, float)
PANEL_TIMES_ITEMS(fp16, uint16_t)
PANEL_TIMES_ITEMS(int8, int8_t)

static void few_items(const Matrix *a, int panel, int M, const float *x, float *sums) {
  int K = a->inputs, ahead = AHEAD;
  int64_t offset = (int64_t)panel * K * PANEL;
  for (int m = 0; m < M; m += ITEMS, x += ITEMS * K, sums += ITEMS * PANEL, ahead = 0) { /* near from the first on */
    int items = M - m < ITEMS ? M - m : ITEMS;
    switch (a->precision) {
      case FP32: panel_fp32(items, K, x, K, 1, (const float *)a->panels + offset, ahead, sums); break;
      case FP16: panel_fp16(items, K, x, K, 1, (const uint16_t *)a->panels + offset, ahead, sums); break;
      case INT8: panel_int8(items, K, x, K, 1, (const int8_t *)a->panels + offset, ahead, sums); break;
    }
  }
}

/* Some weights, as fp32. */
static void unpack(const void *from, int precision, int count, float *to) {
  for (int i = 0; i < count; i += LANES) *(vector *)(to + i) = load(precision, from, i);
}

/* Many items, packed: (M / ITEMS, K, ITEMS). A part of the panel is near while all of them meet it, and the next part
   is called. */
static void many_items(const Matrix *a, int panel, int M, const float *packed, float *sums) {
  int K = a->inputs, row = PANEL * BYTES[a->precision];
  float near[PART * PANEL] __attribute__((aligned(64)));
  for (int start = 0; start < K; start += PART) {
    int inputs = K - start < PART ? K - start : PART, size = inputs * row;
    const char *here = (const char *)a->panels + ((int64_t)panel * K + start) * row, *next = here + size;
    unpack(here, a->precision, inputs * PANEL, near);
    for (int m = 0; m < M; m += ITEMS) {
      int items = M - m < ITEMS ? M - m : ITEMS;
      const float *x = packed + (int64_t)m * K + start * ITEMS;
      for (const char *until = here + size + (int64_t)size * (m + items) / M; next < until; next += 64)
        __builtin_prefetch(next, 0, 2);
      panel_fp32(items, inputs, x, 1, ITEMS, near, 0, sums + m * PANEL);
    }
  }
}

/* x (M, K) as many_items wants it; the last ones are filled up. The threads share the work, and wait for each other. */
static void pack(int M, int K, const float *x, float *packed) {
#pragma omp for schedule(static)
  for (int start = 0; start < M; start += ITEMS)
    for (int k = 0; k < K; k++)
      for (int m = 0; m < ITEMS; m++)
        packed[(int64_t)start * K + k * ITEMS + m] = start + m < M ? x[(int64_t)(start + m) * K + k] : 0;
}

static inline vector choose(integers where, vector yes, vector no) {
  return (vector)((where & (integers)yes) | (~where & (integers)no));
}

static const integers NUMBERS = {0, 1, 2, 3, 4, 5, 6, 7
#if LANES == 16
                                 , 8, 9, 10, 11, 12, 13, 14, 15
#endif
};

/* e^x to about one unit in the last place: 2^n times a polynomial (Cephes mathematical library, Moshier 1989). */
static inline vector exponential(vector x) {
  x = choose(x < -87.0f, (vector){0} - 87.0f, x);
  x = choose(x > 88.0f, (vector){0} + 88.0f, x);
  vector n = fused(x, all(1.44269504f), all(12582912.0f)) - 12582912.0f; /* rounded to a whole number */
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

/* Added up in one order, whatever the compiler would prefer. */
static inline float sum_of(vector x) {
  float sum = 0;
  for (int i = 0; i < LANES; i++) sum += x[i];
  return sum;
}

static void activate(float *x, int activation) { /* (PANEL) */
  for (int i = 0; i < PANEL; i += LANES) {
    vector *v = (vector *)(x + i);
    if (activation == GELU_TANH)
      *v = *v / (1.0f + exponential(-1.59576912f * (*v + 0.044715f * *v * *v * *v)));
    else if (activation == RELU)
      *v = choose(*v < 0.0f, (vector){0}, *v); /* what is no number stays none */
    else if (activation == GELU)
      for (int j = i; j < i + LANES; j++) x[j] = 0.5f * x[j] * (1.0f + erff(x[j] * 0.70710678f));
  }
}

static inline void gelu_and_slope(vector x, vector *y, vector *slope) {
  vector share = 1.0f / (1.0f + exponential(-1.59576912f * (x + 0.044715f * x * x * x)));
  *y = x * share;
  *slope = share + *y * (1.0f - share) * 1.59576912f * (1.0f + 0.134145f * x * x);
}

/* For training: the GELU by tanh of x (count), and its slope there. */
void gelu(const float *x, int64_t count, float *y, float *slope, int32_t threads) {
  int64_t whole = count / LANES * LANES;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < whole; i += LANES)
    gelu_and_slope(*(const vector *)(x + i), (vector *)(y + i), (vector *)(slope + i));
  if (whole < count) {
    vector rest[3] = {{0}};
    memcpy(rest, x + whole, 4 * (count - whole));
    gelu_and_slope(rest[0], rest + 1, rest + 2);
    memcpy(y + whole, rest + 1, 4 * (count - whole));
    memcpy(slope + whole, rest + 2, 4 * (count - whole));
  }
}

/* The sums (PANEL) of one item, scaled and so on: to (width). */
static inline __attribute__((always_inline)) void deliver(const Matrix *a, int first, int width, int activation,
                                                          int add, float *sums, float *to) {
  if (a->scale)
    for (int n = 0; n < width; n++) sums[n] *= a->scale[first + n];
  if (a->bias)
    for (int n = 0; n < width; n++) sums[n] += a->bias[first + n];
  if (activation != NONE) activate(sums, activation);
  if (add)
    for (int n = 0; n < width; n++) to[n] += sums[n];
  else
    memcpy(to, sums, 4 * width);
}

/* y (M, N) = activation(x (M, K) times the matrix plus bias), or that added to y.
   Called by every thread of a team, which shares the panels out; all are done when it returns.
   packed: room for the items, where they are more than FEW, and up to ITEMS more. */
static void product(const Matrix *a, int M, const float *x, float *y, int activation, int add, float *packed) {
  int N = a->outputs, K = a->inputs;
  if (M > FEW) pack(M, K, x, packed);
#pragma omp for schedule(static)
  for (int panel = 0; panel < (N + PANEL - 1) / PANEL; panel++) {
    int first = panel * PANEL;
    float sums[TOGETHER * PANEL] __attribute__((aligned(64)));
    for (int start = 0; start < M; start += TOGETHER) {
      int items = M - start < TOGETHER ? M - start : TOGETHER;
      memset(sums, 0, 4 * PANEL * items);
      if (M > FEW)
        many_items(a, panel, items, packed + (int64_t)start * K, sums);
      else
        few_items(a, panel, items, x, sums);
      for (int m = 0; m < items; m++) {
        float *to = y + (int64_t)(start + m) * N + first;
        if (N - first >= PANEL)
          deliver(a, first, PANEL, activation, add, sums + m * PANEL, to);
        else
          deliver(a, first, N - first, activation, add, sums + m * PANEL, to);
      }
    }
  }
}

static inline void store_fp16(uint16_t *p, vector x) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  typedef _Float16 half __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
  *(half *)p = __builtin_convertvector(x, half);
#endif
}

/* Some inputs of one panel: (inputs, PANEL), filled up with zeros. */
static void take(const float *weights, int64_t input, int64_t output, int inputs, int width, float *tile) {
  if (width < PANEL) memset(tile, 0, 4 * PANEL * inputs);
  if (output == 1)
    for (int k = 0; k < inputs; k++) memcpy(tile + k * PANEL, weights + k * input, 4 * width);
  else
    for (int n = 0; n < width; n++)
      for (int k = 0; k < inputs; k++) tile[k * PANEL + n] = weights[n * output + k * input];
}

/* The panel that begins with an output. Returns whether its weights are finite; else what is laid out is of no use. */
static int lay_out_panel(const Stored *a, int first) {
  const float *from = a->weights + first * a->output;
  int K = a->inputs, width = a->outputs - first < PANEL ? a->outputs - first : PANEL;
  float tile[CHUNK * PANEL] __attribute__((aligned(64))), unit[PANEL] = {0};
  integers broken = {0};
  if (a->precision == INT8) {
    for (int k = 0; k < K; k += CHUNK) {
      int inputs = K - k < CHUNK ? K - k : CHUNK;
      take(from + k * a->input, a->input, a->output, inputs, width, tile);
      for (int i = 0; i < inputs; i++)
        for (int n = 0; n < PANEL; n++) {
          float size = fabsf(tile[i * PANEL + n]);
          unit[n] = size > unit[n] ? size : unit[n];
        }
    }
    for (int n = 0; n < PANEL; n++) unit[n] = unit[n] / 127 > 1e-12f ? unit[n] / 127 : 1e-12f;
    memcpy(a->scale + first, unit, 4 * width);
  }
  for (int k = 0; k < K; k += CHUNK) {
    int inputs = K - k < CHUNK ? K - k : CHUNK;
    int64_t offset = ((int64_t)first * K) + k * PANEL;
    take(from + k * a->input, a->input, a->output, inputs, width, tile);
    for (int i = 0; i < PANEL * inputs; i += LANES) /* all ones in its exponent: infinite, or no number */
      broken |= ((integers)*(vector *)(tile + i) & 0x7f800000) == 0x7f800000;
    if (a->precision == FP32) {
      memcpy((float *)a->panels + offset, tile, 4 * PANEL * inputs);
    } else if (a->precision == FP16) {
      for (int i = 0; i < PANEL * inputs; i += LANES)
        store_fp16((uint16_t *)a->panels + offset + i, *(vector *)(tile + i));
    } else {
      int8_t *to = (int8_t *)a->panels + offset;
      for (int i = 0; i < inputs; i++)
        for (int n = 0; n < PANEL; n++) to[i * PANEL + n] = (int8_t)rintf(tile[i * PANEL + n] / unit[n]);
    }
  }
  for (int i = 0; i < LANES; i++)
    if (broken[i]) return 0;
  return 1;
}

/* Weights to panels. */
void lay_out(const Stored *a, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int first = 0; first < a->outputs; first += PANEL) lay_out_panel(a, first);
}

/* Matrices of a file that is mapped, one after the other, until told to stop. Pages of it that were read are given back:
   any other memory would lose what it holds. Returns how many are done, which is fewer as well where weights are not finite. */
int32_t lay_out_file(const Stored *matrices, int32_t count, const volatile int32_t *stop) {
  for (int32_t done = 0; done < count; done++) {
    const Stored *a = matrices + done;
    const float *held = a->weights;
    int64_t end = (int64_t)a->inputs * a->outputs;
    for (int first = 0; first < a->outputs; first += PANEL) {
      if (*stop || !lay_out_panel(a, first)) return done;
      /* Where an output's weights lie together, those before the next panel were read. */
      int64_t read = first + PANEL >= a->outputs ? end : a->input == 1 ? (first + PANEL) * a->output : 0;
      if (read == end || a->weights + read - held > HELD) {
        char *page = (char *)((uintptr_t)held & -(uintptr_t)sysconf(_SC_PAGESIZE));
        madvise(page, (char *)(a->weights + read) - page, MADV_DONTNEED);
        held = a->weights + read;
      }
    }
  }
  return count;
}

/* The product alone, for what torch does with the rest. packed: room for (M + ITEMS) * K numbers. */
void linear(const Matrix *a, int32_t M, const float *x, float *y, float *packed, int32_t threads) {
#pragma omp parallel num_threads(threads)
  product(a, M, x, y, NONE, 0, packed);
}

/* Layer norm of M items. (M, E) -> (M, E). Every thread makes its own copy: that is cheaper than waiting for others. */
static void norm(int M, int E, const float *x, const float *weight, const float *bias, float epsilon, float *y) {
  int whole = E / LANES * LANES;
  for (int m = 0; m < M; m++, x += E, y += E) {
    vector sums = {0}, squares = {0};
    for (int e = 0; e < whole; e += LANES) sums += *(const vector *)(x + e);
    float mean = sum_of(sums);
    for (int e = whole; e < E; e++) mean += x[e];
    mean /= E;
    for (int e = 0; e < whole; e += LANES) {
      vector apart = *(const vector *)(x + e) - mean;
      squares = fused(apart, apart, squares);
    }
    float variance = sum_of(squares);
    for (int e = whole; e < E; e++) variance += (x[e] - mean) * (x[e] - mean);
    float scale = 1.0f / sqrtf(variance / E + epsilon);
    for (int e = 0; e < E; e++) y[e] = (x[e] - mean) * scale * weight[e] + bias[e];
  }
}

/* Column `token` of the embedding, and the place. (E) */
static void embed(const Model *model, int32_t token, int32_t position, float *x) {
  const Matrix *a = &model->embedding;
  int E = model->width;
  int64_t start = (int64_t)(token / PANEL) * E * PANEL + token % PANEL;
  for (int e = 0; e < E; e++) {
    float value = number(a->precision, a->panels, start + (int64_t)e * PANEL);
    if (a->scale) value *= a->scale[token];
    x[e] = value + model->positions[(int64_t)position * E + e];
  }
}

/* Scores (length) as shares of their sum, which is returned: e to the power of how far each is below the largest.
   Room for LANES more. */
static float shares(float *scores, int length) {
  for (int p = length; p < length + LANES; p++) scores[p] = -INFINITY;
  vector most = *(vector *)scores, totals = {0};
  for (int p = LANES; p < length; p += LANES) {
    vector next = *(vector *)(scores + p);
    most = choose(next > most, next, most);
  }
  float largest = most[0];
  for (int i = 1; i < LANES; i++) largest = most[i] > largest ? most[i] : largest;
  for (int p = 0; p < length; p += LANES) {
    vector share = exponential(*(vector *)(scores + p) - largest);
    *(vector *)(scores + p) = share;
    totals += share;
  }
  return sum_of(totals);
}

/* The numbers from the d-th on, `wide` registers of them, of values (C, D) mixed by their scores, for `attend`. */
static inline __attribute__((always_inline)) void mix(int count, int wide, int precision, const float *scores, int room,
                                                      const float *totals, const void *values, int64_t row_size,
                                                      const int32_t *origins, int length, int D, int d, float *mixed,
                                                      int width) {
  vector sums[GROUP][4] = {0};
  for (int p = 0; p < length; p++) {
    int64_t at = origins[p] * row_size + (int64_t)p * D + d;
    for (int j = 0; j < wide; j++) {
      vector value = load(precision, values, at + j * LANES);
      for (int i = 0; i < count; i++) sums[i][j] = fused(all(scores[i * room + p]), value, sums[i][j]);
    }
  }
  for (int p = length; p < length + count - 1; p++) { /* what only the later ones look at */
    int64_t at = origins[p] * row_size + (int64_t)p * D + d;
    for (int i = p - length + 1; i < count; i++)
      for (int j = 0; j < wide; j++)
        sums[i][j] = fused(all(scores[i * room + p]), load(precision, values, at + j * LANES), sums[i][j]);
  }
  for (int i = 0; i < count; i++)
    for (int j = 0; j < wide; j++) ((vector *)(mixed + i * width + d))[j] = sums[i][j] / totals[i];
}

/* What some tokens of one text attend to with one head, mixed. They follow each other; each looks at itself as well.
   queries: (count, apart), of which the first D are read; keys: (T, D, LANES) of the first cache row; values: (C, D);
   both in `precision`;
   origins: the cache row that holds each token; length: what the first one looks at;
   scores: room for (count, room), room being `length` + count numbers and LANES more; mixed: (count, width). */
static inline __attribute__((always_inline)) void attend(int count, int precision, const float *queries, int64_t apart,
                                                         const void *keys, const void *values, int64_t row_size,
                                                         const int32_t *origins, int length, int D, float scale,
                                                         float *scores, int room, float *mixed, int width) {
  int whole = length + count - 1;
  for (int start = 0, end; start < whole; start = end) { /* a run of tokens that one cache row holds */
    int64_t row = origins[start] * row_size;
    for (end = start + 1; end < whole && origins[end] == origins[start];) end++;
    for (int tile = start / LANES; tile * LANES < end; tile++) {
      int64_t at = row + (int64_t)tile * D * LANES;
      vector fits[GROUP] = {0};
      for (int d = 0; d < D; d++, at += LANES) {
        __builtin_prefetch((const char *)keys + (at + D * LANES) * BYTES[precision], 0, 2); /* of the next tile */
        __builtin_prefetch((const char *)values + at * BYTES[precision], 0, 2); /* of this one, which will be mixed */
        vector key = load(precision, keys, at);
        for (int i = 0; i < count; i++) fits[i] = fused(all(queries[i * apart + d]), key, fits[i]);
      }
      for (int i = 0; i < count; i++) { /* what this writes beyond the run, the next one overwrites */
        vector *to = (vector *)(scores + i * room + tile * LANES);
        *to = choose(NUMBERS < start - tile * LANES, *to, fits[i] * scale);
      }
    }
  }
  float totals[GROUP];
  for (int i = 0; i < count; i++) totals[i] = shares(scores + i * room, length + i);
  const int wide = count == GROUP ? 2 : 4; /* registers of each token's sums: as many as there are */
  int d = 0;
  for (; d + wide * LANES <= D; d += wide * LANES)
    mix(count, wide, precision, scores, room, totals, values, row_size, origins, length, D, d, mixed, width);
  for (; d + LANES <= D; d += LANES)
    mix(count, 1, precision, scores, room, totals, values, row_size, origins, length, D, d, mixed, width);
  for (; d < D; d++)
    for (int i = 0; i < count; i++) {
      float sum = 0;
      for (int p = 0; p < length + i; p++)
        sum += scores[i * room + p] * number(precision, values, origins[p] * row_size + (int64_t)p * D + d);
      mixed[i * width + d] = sum / totals[i];
    }
}

/* How many items from the m-th on are to attend at a time, being of one text, one behind the other: GROUP, half of it,
   or 1. */
static int group_of(int m, int M, const int32_t *positions, const int32_t *origins, int C) {
  int count = 1;
  while (count < GROUP && m + count < M && positions[m + count] == positions[m] + count &&
         !memcmp(origins + (int64_t)m * C, origins + (int64_t)(m + count) * C, 4 * (positions[m] + count + 1)))
    count++;
  return count == GROUP ? GROUP : count >= GROUP / 2 ? GROUP / 2 : 1;
}

/* Read M tokens and give the logits after some of them.

   tokens, positions, (M): what each item is and where it stands in its row.
   origins (M, C): the cache row that holds the keys and values of each position of the item's row; its own
     position names the row to write to. Items of one row read each other's, so that several may be read at once.
   wanted (wanted_count): the items whose logits are asked for.
   logits (wanted_count, V); hidden (M, E): the states after the last norm, where they are to be kept, or NULL.
   scratch: room for 3 M E + (2 M + ITEMS) * max(3 E, inner) + threads * (M E + GROUP (C + LANES)) numbers. */
void step(const Model *model, Cache cache, int32_t M, const int32_t *tokens, const int32_t *positions,
          const int32_t *origins, int32_t wanted_count, const int32_t *wanted, float *logits, float *hidden,
          float *scratch, int32_t threads) {
  int E = model->width, H = model->heads, D = E / H, C = cache.capacity;
  int inner = model->layers->up.outputs, wide = inner > 3 * E ? inner : 3 * E;
  int64_t row_size = (int64_t)H * C * D, half = row_size * cache.rows, bytes = BYTES[cache.precision];
  float *x = scratch, *mixed = x + (int64_t)M * E, *states = mixed + (int64_t)M * E;
  float *projected = states + (int64_t)M * E, *packed = projected + (int64_t)M * wide;
  float *shared_end = packed + (int64_t)(M + ITEMS) * wide;
  int32_t groups[M]; /* for the first item of each: how many attend at a time */
  for (int m = 0; m < M; m += groups[m]) groups[m] = group_of(m, M, positions, origins, C);
#pragma omp parallel num_threads(threads)
  {
    float *normed = shared_end + omp_get_thread_num() * ((int64_t)M * E + GROUP * (C + LANES));
    float *scores = normed + (int64_t)M * E;
#pragma omp for schedule(static)
    for (int m = 0; m < M; m++) embed(model, tokens[m], positions[m], x + (int64_t)m * E);
    for (int l = 0; l < model->depth; l++) {
      const Layer *layer = model->layers + l;
      char *keys = (char *)cache.numbers + 2 * l * half * bytes, *values = keys + half * bytes;
      norm(M, E, x, layer->norm_1_weight, layer->norm_1_bias, model->epsilon, normed);
      product(&layer->attend, M, normed, projected, NONE, 0, packed);
#pragma omp for schedule(static)
      for (int h = 0; h < H; h++) { /* heads know nothing of each other: a thread has no need to wait in between */
        for (int m = 0; m < M; m++) {
          int position = positions[m];
          int64_t head = origins[(int64_t)m * C + position] * row_size + (int64_t)h * C * D;
          const float *key = projected + (int64_t)m * 3 * E + E + h * D;
          int64_t tile = head + (int64_t)(position / LANES) * D * LANES;
          for (int d = 0; d < D; d++) {
            store(cache.precision, keys, tile + d * LANES + position % LANES, key[d]);
            store(cache.precision, values, head + (int64_t)position * D + d, key[E + d]);
          }
        }
        for (int m = 0; m < M; m += groups[m]) {
          const float *query = projected + (int64_t)m * 3 * E + h * D;
          const char *key = keys + (int64_t)h * C * D * bytes, *value = values + (int64_t)h * C * D * bytes;
          const int32_t *held = origins + (int64_t)m * C;
          float *to = mixed + (int64_t)m * E + h * D;
          int length = positions[m] + 1, room = C + LANES;
#define ATTEND(COUNT, PRECISION)                                                                                    \
  attend(COUNT, PRECISION, query, 3 * E, key, value, row_size, held, length, D, layer->scale, scores, room, to, E)
          if (cache.precision == FP32 && groups[m] == GROUP) ATTEND(GROUP, FP32);
          else if (cache.precision == FP32 && groups[m] == GROUP / 2) ATTEND(GROUP / 2, FP32);
          else if (cache.precision == FP32) ATTEND(1, FP32);
          else if (groups[m] == GROUP) ATTEND(GROUP, FP16);
          else if (groups[m] == GROUP / 2) ATTEND(GROUP / 2, FP16);
          else ATTEND(1, FP16);
        }
      }
      product(&layer->attended, M, mixed, x, NONE, 1, packed);
      norm(M, E, x, layer->norm_2_weight, layer->norm_2_bias, model->epsilon, normed);
      product(&layer->up, M, normed, projected, model->activation, 0, packed);
      product(&layer->down, M, projected, x, NONE, 1, packed);
    }
    norm(M, E, x, model->norm_weight, model->norm_bias, model->epsilon, normed);
#pragma omp single
    {
      if (hidden) memcpy(hidden, normed, (int64_t)4 * M * E);
      for (int i = 0; i < wanted_count; i++) memcpy(states + (int64_t)i * E, normed + (int64_t)wanted[i] * E, 4 * E);
    }
    product(&model->head, wanted_count, states, logits, NONE, 0, packed);
  }
}
