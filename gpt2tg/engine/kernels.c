/* One step of a GPT-2 on a processor's vector units, at the speed at which the weights can be read.

   Compiled once per machine by kernels.py with the compiler that is there; without one, torch does the work.

   Letters: M items (a token to read, of some row), K inputs and N outputs of a matrix, E width of the model,
   H heads, D width of a head, C capacity of the cache, R rows of the cache, T = C / LANES tiles of positions.

   A matrix lies in panels: [N / PANEL][K][PANEL], the last panel filled up with zeros, so that it is read from end to
   end while PANEL outputs of up to ROWS items stay in registers. Every item's numbers are summed in the same order
   however many items there are: a text does not depend on its neighbours. */

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#ifndef __AVX2__
#error "this processor is left to torch"
#endif
#endif

#ifdef __AVX512F__
#define LANES 16
#define ROWS 8
#else
#define LANES 8
#define ROWS 6
#endif
#define PANEL (2 * LANES)
#define AHEAD 8192 /* bytes: how far before its use a weight is called from memory, to the second cache */
#define CHUNK 16   /* inputs between two calls */

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

/* Keys (R, H, T, D, LANES) and values (R, H, C, D) of each layer in turn: both are read from end to end. */
typedef struct {
  float *numbers;
  int32_t rows, capacity;
} Cache;

int32_t panel_width(void) { return PANEL; }
int32_t lanes(void) { return LANES; }

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

/* One panel times M items. x: (M, K), sums: (M, PANEL). */
#define PANEL_TIMES_ITEMS(PRECISION, TYPE)                                                                       \
  static inline __attribute__((always_inline)) void items_##PRECISION(int M, int K, const float *x,              \
                                                                      const TYPE *w, float *sums) {              \
    vector low[8], high[8];                                                                                      \
    for (int m = 0; m < M; m++) low[m] = high[m] = (vector){0};                                                  \
    for (int start = 0; start < K; start += CHUNK) {                                                             \
      int end = start + CHUNK < K ? start + CHUNK : K;                                                           \
      for (int ahead = 0; ahead < (int)(CHUNK * PANEL * sizeof(TYPE)); ahead += 64)                              \
        __builtin_prefetch((const char *)w + AHEAD + ahead, 0, 2);                                               \
      for (int k = start; k < end; k++, w += PANEL) {                                                            \
        vector left = load_##PRECISION(w), right = load_##PRECISION(w + LANES);                                  \
        for (int m = 0; m < M; m++) {                                                                            \
          low[m] += left * x[(int64_t)m * K + k];                                                                \
          high[m] += right * x[(int64_t)m * K + k];                                                              \
        }                                                                                                        \
      }                                                                                                          \
    }                                                                                                            \
    for (int m = 0; m < M; m++) {                                                                                \
      *(vector *)(sums + m * PANEL) = low[m];                                                                    \
      *(vector *)(sums + m * PANEL + LANES) = high[m];                                                           \
    }                                                                                                            \
  }                                                                                                              \
  static void panel_##PRECISION(int M, int K, const float *x, const TYPE *w, float *sums) {                      \
    switch (M) { /* a constant number of items, so that their sums stay in registers */                          \
      case 1: items_##PRECISION(1, K, x, w, sums); break;                                                        \
      case 2: items_##PRECISION(2, K, x, w, sums); break;                                                        \
      case 3: items_##PRECISION(3, K, x, w, sums); break;                                                        \
      case 4: items_##PRECISION(4, K, x, w, sums); break;                                                        \
      case 5: items_##PRECISION(5, K, x, w, sums); break;                                                        \
      case 6: items_##PRECISION(6, K, x, w, sums); break;                                                        \
      case 7: items_##PRECISION(7, K, x, w, sums); break;                                                        \
      case 8: items_##PRECISION(8, K, x, w, sums); break;                                                        \
    }                                                                                                            \
  }
PANEL_TIMES_ITEMS(fp32, float)
PANEL_TIMES_ITEMS(fp16, uint16_t)
PANEL_TIMES_ITEMS(int8, int8_t)

static void panel_times_items(const Matrix *a, int panel, int M, const float *x, float *sums) {
  int64_t offset = (int64_t)panel * a->inputs * PANEL;
  switch (a->precision) {
    case FP32: panel_fp32(M, a->inputs, x, (const float *)a->panels + offset, sums); break;
    case FP16: panel_fp16(M, a->inputs, x, (const uint16_t *)a->panels + offset, sums); break;
    case INT8: panel_int8(M, a->inputs, x, (const int8_t *)a->panels + offset, sums); break;
  }
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
  vector n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounded to a whole number */
  vector r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vector p = (vector){0} + 1.9875691e-4f;
  p = p * r + 1.3981999e-3f;
  p = p * r + 8.3334519e-3f;
  p = p * r + 4.1665795e-2f;
  p = p * r + 1.6666665e-1f;
  p = p * r + 5.0e-1f;
  p = p * r * r + r + 1.0f;
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

/* y (M, N) = activation(x (M, K) times the matrix plus bias), or that added to y.
   Called by every thread of a team, which shares the panels out; all are done when it returns. */
static void product(const Matrix *a, int M, const float *x, float *y, int activation, int add) {
  int N = a->outputs;
#pragma omp for schedule(static)
  for (int panel = 0; panel < (N + PANEL - 1) / PANEL; panel++) {
    int first = panel * PANEL, width = N - first < PANEL ? N - first : PANEL;
    float sums[ROWS * PANEL];
    for (int start = 0; start < M; start += ROWS) {
      int rows = M - start < ROWS ? M - start : ROWS;
      panel_times_items(a, panel, rows, x + (int64_t)start * a->inputs, sums);
      for (int m = 0; m < rows; m++) {
        float *to = y + (int64_t)(start + m) * N + first, *from = sums + m * PANEL;
        if (a->scale)
          for (int n = 0; n < width; n++) from[n] *= a->scale[first + n];
        if (a->bias)
          for (int n = 0; n < width; n++) from[n] += a->bias[first + n];
        if (activation != NONE) activate(from, activation);
        if (add)
          for (int n = 0; n < width; n++) to[n] += from[n];
        else
          memcpy(to, from, 4 * width);
      }
    }
  }
}

/* The product alone, for what torch does with the rest. */
void linear(const Matrix *a, int32_t M, const float *x, float *y, int32_t threads) {
#pragma omp parallel num_threads(threads)
  product(a, M, x, y, NONE, 0);
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
      squares += apart * apart;
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
    int64_t at = start + (int64_t)e * PANEL;
    float value;
    switch (a->precision) {
      case FP16: value = load_fp16((const uint16_t *)a->panels + at - token % PANEL % LANES)[token % PANEL % LANES]; break;
      case INT8: value = ((const int8_t *)a->panels)[at] * a->scale[token]; break;
      default: value = ((const float *)a->panels)[at];
    }
    x[e] = value + model->positions[(int64_t)position * E + e];
  }
}

/* One head of one item: what it attends to, mixed. `origins` names the cache row that holds each token of its text.
   keys: (T, D, LANES) of the first cache row, values: (C, D); scores: room for `length` numbers and LANES more. */
static void attend(const float *query, const float *keys, const float *values, int64_t row_size,
                   const int32_t *origins, int length, int D, float scale, float *scores, float *mixed) {
  for (int start = 0, end; start < length; start = end) { /* a run of tokens that one cache row holds */
    const float *held = keys + origins[start] * row_size, *mixable = values + origins[start] * row_size;
    for (end = start + 1; end < length && origins[end] == origins[start];) end++;
    for (int tile = start / LANES; tile * LANES < end; tile++) { /* what this writes beyond the run, the next overwrites */
      vector sum = {0}, *to = (vector *)(scores + tile * LANES);
      const float *key = held + (int64_t)tile * D * LANES, *value = mixable + (int64_t)tile * D * LANES;
      for (int d = 0; d < D; d++, key += LANES, value += LANES) {
        __builtin_prefetch(key + D * LANES, 0, 2); /* of the next tile */
        __builtin_prefetch(value, 0, 2);           /* of this one, which will be mixed */
        sum += query[d] * *(const vector *)key;
      }
      *to = choose(NUMBERS < start - tile * LANES, *to, sum * scale);
    }
  }
  for (int p = length; p < length + LANES; p++) scores[p] = -INFINITY;
  float largest = scores[0];
  for (int p = 1; p < length; p++) largest = scores[p] > largest ? scores[p] : largest;
  vector totals = {0};
  for (int p = 0; p < length; p += LANES) {
    vector share = exponential(*(vector *)(scores + p) - largest);
    *(vector *)(scores + p) = share;
    totals += share;
  }
  float total = sum_of(totals);
  int d = 0;
  for (; d + 4 * LANES <= D; d += 4 * LANES) {
    vector a = {0}, b = {0}, c = {0}, e = {0};
    for (int p = 0; p < length; p++) {
      const vector *value = (const vector *)(values + origins[p] * row_size + (int64_t)p * D + d);
      a += scores[p] * value[0], b += scores[p] * value[1], c += scores[p] * value[2], e += scores[p] * value[3];
    }
    vector *to = (vector *)(mixed + d);
    to[0] = a / total, to[1] = b / total, to[2] = c / total, to[3] = e / total;
  }
  for (; d < D; d++) {
    float sum = 0;
    for (int p = 0; p < length; p++) sum += scores[p] * values[origins[p] * row_size + (int64_t)p * D + d];
    mixed[d] = sum / total;
  }
}

/* Read M tokens and give the logits after some of them.

   tokens, positions, (M): what each item is and where it stands in its row.
   origins (M, C): the cache row that holds the keys and values of each position of the item's row; its own
     position names the row to write to. Items of one row read each other's, so that several may be read at once.
   wanted (wanted_count): the items whose logits are asked for.
   logits (wanted_count, V); hidden (M, E): the states after the last norm, where they are to be kept, or NULL.
   scratch: room for M * (3 E + max(3 E, inner)) + threads * (M E + C + LANES) numbers. */
void step(const Model *model, Cache cache, int32_t M, const int32_t *tokens, const int32_t *positions,
          const int32_t *origins, int32_t wanted_count, const int32_t *wanted, float *logits, float *hidden,
          float *scratch, int32_t threads) {
  int E = model->width, H = model->heads, D = E / H, C = cache.capacity;
  int inner = model->layers->up.outputs, wide = inner > 3 * E ? inner : 3 * E;
  int64_t row_size = (int64_t)H * C * D, part = row_size * cache.rows;
  float *x = scratch, *mixed = x + (int64_t)M * E, *states = mixed + (int64_t)M * E;
  float *projected = states + (int64_t)M * E, *shared_end = projected + (int64_t)M * wide;
#pragma omp parallel num_threads(threads)
  {
    float *normed = shared_end + omp_get_thread_num() * ((int64_t)M * E + C + LANES), *scores = normed + (int64_t)M * E;
#pragma omp for schedule(static)
    for (int m = 0; m < M; m++) embed(model, tokens[m], positions[m], x + (int64_t)m * E);
    for (int l = 0; l < model->depth; l++) {
      const Layer *layer = model->layers + l;
      float *keys = cache.numbers + 2 * l * part, *values = keys + part;
      norm(M, E, x, layer->norm_1_weight, layer->norm_1_bias, model->epsilon, normed);
      product(&layer->attend, M, normed, projected, NONE, 0);
#pragma omp for schedule(static)
      for (int h = 0; h < H; h++) { /* heads know nothing of each other: a thread has no need to wait in between */
        for (int m = 0; m < M; m++) {
          int position = positions[m];
          int64_t head = origins[(int64_t)m * C + position] * row_size + (int64_t)h * C * D;
          const float *key = projected + (int64_t)m * 3 * E + E + h * D;
          float *tile = keys + head + (int64_t)(position / LANES) * D * LANES;
          for (int d = 0; d < D; d++) tile[d * LANES + position % LANES] = key[d];
          memcpy(values + head + (int64_t)position * D, key + E, 4 * D);
        }
        for (int m = 0; m < M; m++)
          attend(projected + (int64_t)m * 3 * E + h * D, keys + (int64_t)h * C * D, values + (int64_t)h * C * D,
                 row_size, origins + (int64_t)m * C, positions[m] + 1, D, layer->scale, scores,
                 mixed + (int64_t)m * E + h * D);
      }
      product(&layer->attended, M, mixed, x, NONE, 1);
      norm(M, E, x, layer->norm_2_weight, layer->norm_2_bias, model->epsilon, normed);
      product(&layer->up, M, normed, projected, model->activation, 0);
      product(&layer->down, M, projected, x, NONE, 1);
    }
    norm(M, E, x, model->norm_weight, model->norm_bias, model->epsilon, normed);
#pragma omp single
    {
      if (hidden) memcpy(hidden, normed, (int64_t)4 * M * E);
      for (int i = 0; i < wanted_count; i++) memcpy(states + (int64_t)i * E, normed + (int64_t)wanted[i] * E, 4 * E);
    }
    product(&model->head, wanted_count, states, logits, NONE, 0);
  }
}
