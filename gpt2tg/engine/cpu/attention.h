/* Attention of one head, over a KV cache whose rows are shared.

   Keys and values of a sequence may be spread over several cache rows: rows that were forked from one prompt
   share its tokens. For each position, cache_rows names the cache row that holds it. */

#if defined(__AVX512F__) || defined(__aarch64__) /* 32 registers */
#define QUERIES 8 /* consecutive tokens of a sequence that attend at a time, or half as many, or one */
#else
#define QUERIES 4
#endif

/* Some consecutive queries of one sequence, and what they attend to: query i to the first `length + i`
   tokens, itself included. Strides and sizes count numbers. */
typedef struct {
  const float *queries; /* (count, query_stride), of which D numbers are read */
  int64_t query_stride;
  const void *keys;          /* (C / KEY_TILE, D, KEY_TILE): this head's, in cache row 0 */
  const void *values;        /* (C, D): this head's, in cache row 0 */
  int64_t row_size;          /* from a cache row to the next */
  const int32_t *cache_rows; /* (length + count - 1) */
  int length, head_size;
  float scale;
  float *scores; /* scratch space: (count, score_stride), score_stride at least length + count - 1 + LANES */
  int score_stride;
  float *output; /* (count, output_stride), of which D numbers are written */
  int output_stride;
} Attention;

/* Replace scores (length) by e^(score - largest), and return their sum. Writes LANES beyond the end. */
static float softmax_numerators(float *scores, int length) {
  for (int p = length; p < length + LANES; p++) scores[p] = -INFINITY;
  vector most = *(vector *)scores, totals = {0};
  for (int p = LANES; p < length; p += LANES) {
    vector next = *(vector *)(scores + p);
    most = choose(next > most, next, most);
  }
  float largest = largest_of(most);
  for (int p = 0; p < length; p += LANES) {
    vector share = exponential(*(vector *)(scores + p) - largest);
    *(vector *)(scores + p) = share;
    totals += share;
  }
  return sum_of(totals);
}

/* The scores of all queries: queries times keys, scaled. They go by runs of tokens in one cache row. */
ALWAYS_INLINE void attention_scores(int count, int precision, Attention a) {
  int end_of_all = a.length + count - 1, D = a.head_size;
  for (int start = 0, end; start < end_of_all; start = end) {
    int64_t row = a.cache_rows[start] * a.row_size;
    for (end = start + 1; end < end_of_all && a.cache_rows[end] == a.cache_rows[start];) end++;
    for (int tile = start / KEY_TILE; tile * KEY_TILE < end; tile++) {
      int64_t at = row + (int64_t)tile * D * KEY_TILE;
      vector_register sums[QUERIES][KEY_REGISTERS] = {0};
      for (int d = 0; d < D; d++, at += KEY_TILE) {
        /* Prefetch the keys of the next tile, and the values of this one, needed next. */
        __builtin_prefetch((const char *)a.keys + (at + D * KEY_TILE) * BYTES[precision], 0, 2);
        __builtin_prefetch((const char *)a.values + at * BYTES[precision], 0, 2);
        UNROLLED (j, KEY_REGISTERS) {
          vector key = load(precision, a.keys, at + j * LANES);
          UNROLLED (i, count) sums[i][j] = fused(all(a.queries[i * a.query_stride + d]), key, sums[i][j]);
        }
      }
      /* Lanes beyond the run are overwritten by the next run. */
      UNROLLED (i, count)
        UNROLLED (j, KEY_REGISTERS) {
          int first = tile * KEY_TILE + j * LANES;
          vector *to = (vector *)(a.scores + i * a.score_stride + first);
          *to = choose(LANE_NUMBERS < start - first, *to, sums[i][j] * a.scale);
        }
    }
  }
}

/* The weighted mean of the values, from number d on: `registers` times LANES numbers of each query. */
ALWAYS_INLINE void mix_values(int count, int registers, int precision, Attention a, const float *totals,
                              int d) {
  vector_register sums[QUERIES][4] = {0};
  for (int p = 0; p < a.length; p++) {
    int64_t at = a.cache_rows[p] * a.row_size + (int64_t)p * a.head_size + d;
    UNROLLED (j, registers) {
      vector value = load(precision, a.values, at + j * LANES);
      UNROLLED (i, count) sums[i][j] = fused(all(a.scores[i * a.score_stride + p]), value, sums[i][j]);
    }
  }
  for (int p = a.length; p < a.length + count - 1; p++) { /* seen by the later queries alone */
    int64_t at = a.cache_rows[p] * a.row_size + (int64_t)p * a.head_size + d;
    UNROLLED (j, registers) {
      vector value = load(precision, a.values, at + j * LANES);
      UNROLLED (i, count)
        if (p < a.length + i) sums[i][j] = fused(all(a.scores[i * a.score_stride + p]), value, sums[i][j]);
    }
  }
  UNROLLED (i, count)
    UNROLLED (j, registers) ((vector *)(a.output + i * a.output_stride + d))[j] = sums[i][j] / totals[i];
}

/* The same for a single number d, where fewer than LANES are left. */
ALWAYS_INLINE void mix_one(int count, int precision, Attention a, const float *totals, int d) {
  for (int i = 0; i < count; i++) {
    float sum = 0;
    for (int p = 0; p < a.length + i; p++) {
      int64_t at = a.cache_rows[p] * a.row_size + (int64_t)p * a.head_size + d;
      sum += a.scores[i * a.score_stride + p] * load_one(precision, a.values, at);
    }
    a.output[i * a.output_stride + d] = sum / totals[i];
  }
}

/* Attention of `count` queries, a constant of at most QUERIES. */
ALWAYS_INLINE void attend_constant(int count, int precision, Attention a) {
  attention_scores(count, precision, a);
  float totals[QUERIES];
  for (int i = 0; i < count; i++) totals[i] = softmax_numerators(a.scores + i * a.score_stride, a.length + i);
  const int registers = count == QUERIES ? 2 : 4; /* of each query, so that all sums fit */
  int d = 0;
  for (; d + registers * LANES <= a.head_size; d += registers * LANES)
    mix_values(count, registers, precision, a, totals, d);
  for (; d + LANES <= a.head_size; d += LANES) mix_values(count, 1, precision, a, totals, d);
  for (; d < a.head_size; d++) mix_one(count, precision, a, totals, d);
}

ALWAYS_INLINE void attend_in(int precision, int count, Attention a) {
  if (count == QUERIES)
    attend_constant(QUERIES, precision, a);
  else if (count == QUERIES / 2)
    attend_constant(QUERIES / 2, precision, a);
  else
    attend_constant(1, precision, a);
}

/* Attention of `count` queries: QUERIES, half of it, or 1. */
static void attend(int count, int precision, Attention a) {
  if (precision == FP32)
    attend_in(FP32, count, a);
  else
    attend_in(FP16, count, a);
}

/* How many tokens from number t on attend at a time: QUERIES, half of it, or 1. They must follow each other
   in one sequence. */
static int query_count(const Batch *batch, int t, int capacity) {
  const int32_t *positions = batch->positions, *rows = batch->cache_rows + (int64_t)t * capacity;
  int count = 1;
  while (count < QUERIES && t + count < batch->tokens && positions[t + count] == positions[t] + count &&
         !memcmp(rows, rows + (int64_t)count * capacity, 4 * (positions[t] + count + 1)))
    count++;
  return count == QUERIES ? QUERIES : count >= QUERIES / 2 ? QUERIES / 2 : 1;
}
