/* The forward pass of a GPT-2 on the vector units of a CPU.

   Compiled once per machine by kernels.py, as one unit of this file and its headers:

     vector.h      registers, loads and stores by precision, exponential
     structs.h     what Python passes: matrices, model, KV cache, batch
     integer.h     integer products of rounded tokens, in tiles.h by AMX
     pack.h        weights from a file to panels
     activation.h  ReLU and GELU
     product.h     tokens times a packed matrix
     attention.h   queries over the KV cache

   Shapes: T tokens read at once; K inputs and N outputs of a matrix; W width of the model, I inner width of
   its MLP, V vocabulary, H heads, D = W / H head size; C capacity of the KV cache in tokens, R its rows.

   The logits of a token are the same to the last bit whether it is read alone, beside other sequences, or
   with other tokens of its own: every sum is added in one order, and every rounding is spelled out (see
   `fused`).

   What depends on the precision, or on a small count that decides what stays in registers, is an
   always-inline function called with a constant: the compiler makes one variant of each. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int omp_get_thread_num(void); /* omp.h is missing on macOS */

#include "vector.h"
#include "structs.h"
#include "integer.h"
#include "pack.h"
#include "activation.h"
#include "product.h"
#include "attention.h"

int32_t panel_width(void) { return PANEL; }
int32_t key_tile(void) { return KEY_TILE; }

/* Layer norm of T tokens: (T, W) to (T, W). */
static void layer_norm(int T, int W, const float *x, const float *weight, const float *bias, float epsilon,
                       float *y) {
  int whole = W / LANES * LANES;
  for (int t = 0; t < T; t++, x += W, y += W) {
    vector sums = {0}, squares = {0};
    for (int i = 0; i < whole; i += LANES) sums += *(const vector *)(x + i);
    float mean = sum_of(sums);
    for (int i = whole; i < W; i++) mean += x[i];
    mean /= W;
    for (int i = 0; i < whole; i += LANES) {
      vector difference = *(const vector *)(x + i) - mean;
      squares = fused(difference, difference, squares);
    }
    float variance = sum_of(squares);
    for (int i = whole; i < W; i++) variance += (x[i] - mean) * (x[i] - mean);
    float scale = 1.0f / sqrtf(variance / W + epsilon);
    for (int i = 0; i < W; i++) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
  }
}

/* Token embedding plus position embedding: to (W). */
static void embed(const Model *model, int32_t id, int32_t position, float *x) {
  int W = model->width;
  column(&model->embedding, id, x);
  for (int i = 0; i < W; i++) x[i] += model->positions[(int64_t)position * W + i];
}

/* Scratch space of a forward pass: offsets in numbers, and how many there are. */
typedef struct {
  int64_t x, mixed, selected; /* (T, W) each: residual stream, output of attention, tokens for the head */
  int64_t projected;          /* (T, I or 3 W): queries, keys and values; then the inner layer of the MLP */
  int64_t packed;             /* packed tokens, of at most as many inputs */
  int64_t normed, scores, thread_size; /* of each thread: (T, W), and (QUERIES, score_stride) */
  int64_t size;
  int score_stride;
} Scratch;

static Scratch divide_scratch(const Model *model, int64_t T, int capacity, int threads) {
  int64_t W = model->width, inner = model->layers->mlp_in.outputs, widest = inner > 3 * W ? inner : 3 * W;
  Scratch s = {.x = 0, .score_stride = capacity + LANES};
  s.mixed = s.x + T * W;
  s.selected = s.mixed + T * W;
  s.projected = s.selected + T * W;
  s.packed = s.projected + T * widest;
  s.normed = s.packed + packed_size(T, widest);
  s.scores = s.normed + T * W;
  s.thread_size = T * W + QUERIES * s.score_stride;
  s.size = s.normed + threads * s.thread_size;
  return s;
}

/* Numbers of scratch space that forward() needs. */
int64_t forward_scratch(const Model *model, int32_t tokens, int32_t capacity, int32_t threads) {
  return divide_scratch(model, tokens, capacity, threads).size;
}

/* What one thread works with in a forward pass. */
typedef struct {
  const Model *model;
  const Batch *batch;
  Cache cache;
  const int32_t *query_counts; /* (T) for the first token of each group of queries, its size */
  float *x, *mixed, *selected, *projected, *packed; /* shared, see Scratch */
  float *normed, *scores;                           /* of this thread */
  int score_stride;
} Pass;

/* Write the keys and values of all tokens to the KV cache, one head. projected: (T, 3, H, D). */
static void cache_head(const Pass *pass, char *keys, char *values, int h) {
  const Batch *batch = pass->batch;
  int W = pass->model->width, D = W / pass->model->heads;
  int C = pass->cache.capacity, precision = pass->cache.precision;
  for (int t = 0; t < batch->tokens; t++) {
    int position = batch->positions[t];
    int64_t row = batch->cache_rows[(int64_t)t * C + position];
    int64_t head = row * W * C + (int64_t)h * C * D;
    int64_t tile = head + (int64_t)(position / KEY_TILE) * D * KEY_TILE;
    const float *key = pass->projected + (int64_t)t * 3 * W + W + h * D, *value = key + W;
    for (int d = 0; d < D; d++) {
      store_one(precision, keys, tile + d * KEY_TILE + position % KEY_TILE, key[d]);
      store_one(precision, values, head + (int64_t)position * D + d, value[d]);
    }
  }
}

/* Attention of all tokens, one head: from projected (T, 3, H, D) to mixed (T, H, D). */
static void attend_head(const Pass *pass, const char *keys, const char *values, int h, float scale) {
  const Batch *batch = pass->batch;
  int W = pass->model->width, D = W / pass->model->heads;
  int C = pass->cache.capacity, precision = pass->cache.precision;
  int64_t head = (int64_t)h * C * D * BYTES[precision];
  for (int t = 0; t < batch->tokens; t += pass->query_counts[t]) {
    Attention attention = {
        .queries = pass->projected + (int64_t)t * 3 * W + h * D,
        .query_stride = 3 * W,
        .keys = keys + head,
        .values = values + head,
        .row_size = (int64_t)W * C,
        .cache_rows = batch->cache_rows + (int64_t)t * C,
        .length = batch->positions[t] + 1,
        .head_size = D,
        .scale = scale,
        .scores = pass->scores,
        .score_stride = pass->score_stride,
        .output = pass->mixed + (int64_t)t * W + h * D,
        .output_stride = W,
    };
    attend(pass->query_counts[t], precision, attention);
  }
}

/* One transformer block, on the residual stream x (T, W). Every thread makes its own copy of the normed
   states: that is cheaper than to wait for the others. */
static void run_layer(const Pass *pass, int number) {
  const Model *model = pass->model;
  const Layer *layer = model->layers + number;
  int T = pass->batch->tokens, W = model->width;
  int64_t half = (int64_t)W * pass->cache.capacity * pass->cache.rows * BYTES[pass->cache.precision];
  char *keys = (char *)pass->cache.numbers + 2 * number * half, *values = keys + half;
  layer_norm(T, W, pass->x, layer->norm_1_weight, layer->norm_1_bias, model->epsilon, pass->normed);
  product(&layer->attention_in, T, pass->normed, pass->projected, (Epilogue){NONE, 0}, pass->packed);
  /* Heads are independent: a thread that has written one attends with it at once. */
#pragma omp for schedule(static)
  for (int h = 0; h < model->heads; h++) {
    cache_head(pass, keys, values, h);
    attend_head(pass, keys, values, h, layer->scale);
  }
  product(&layer->attention_out, T, pass->mixed, pass->x, (Epilogue){NONE, 1}, pass->packed);
  layer_norm(T, W, pass->x, layer->norm_2_weight, layer->norm_2_bias, model->epsilon, pass->normed);
  product(&layer->mlp_in, T, pass->normed, pass->projected, (Epilogue){model->activation, 0}, pass->packed);
  product(&layer->mlp_out, T, pass->projected, pass->x, (Epilogue){NONE, 1}, pass->packed);
}

/* Read the tokens of a batch: keys and values go to the KV cache, logits and states where the batch says. */
void forward(const Model *model, const Cache *cache, const Batch *batch, int32_t threads) {
  int T = batch->tokens, W = model->width, selected_count = batch->selected_count;
  Scratch s = divide_scratch(model, T, cache->capacity, threads);
  int32_t query_counts[T];
  for (int t = 0; t < T; t += query_counts[t]) query_counts[t] = query_count(batch, t, cache->capacity);
#pragma omp parallel num_threads(threads)
  {
    float *start = batch->scratch, *own = start + omp_get_thread_num() * s.thread_size;
    Pass pass = {
        .model = model,
        .batch = batch,
        .cache = *cache,
        .query_counts = query_counts,
        .x = start + s.x,
        .mixed = start + s.mixed,
        .selected = start + s.selected,
        .projected = start + s.projected,
        .packed = start + s.packed,
        .normed = own + s.normed,
        .scores = own + s.scores,
        .score_stride = s.score_stride,
    };
#pragma omp for schedule(static)
    for (int t = 0; t < T; t++) embed(model, batch->ids[t], batch->positions[t], pass.x + (int64_t)t * W);
    for (int number = 0; number < model->depth; number++) run_layer(&pass, number);
    layer_norm(T, W, pass.x, model->norm_weight, model->norm_bias, model->epsilon, pass.normed);
#pragma omp single
    {
      if (batch->hidden) memcpy(batch->hidden, pass.normed, (int64_t)4 * T * W);
      for (int i = 0; i < selected_count; i++)
        memcpy(pass.selected + (int64_t)i * W, pass.normed + (int64_t)batch->selected[i] * W, 4 * W);
    }
    product(&model->head, selected_count, pass.selected, batch->logits, (Epilogue){NONE, 0}, pass.packed);
  }
}
