/* The forward pass of a GPT-2 on the vector units of a CPU.

   Compiled once per machine by kernels.py, as one unit of this file and its headers:

     vector.h      registers, loads and stores by precision, exponential
     structs.h     what Python passes: matrices, model, KV cache, batch
     team.h        how threads share the work
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

#include "vector.h"
#include "structs.h"
#include "team.h"
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
  int64_t shares;             /* of the team's jobs, share_bytes */
  int64_t normed, scores, thread_size; /* of each thread: (T, W), and (QUERIES, score_stride) */
  int64_t size, share_bytes;
  int score_stride;
} Scratch;

/* Bytes of the jobs of a forward pass, however many tokens are selected. */
static int64_t forward_job_bytes(const Model *model, int T, int threads) {
  const Layer *layer = model->layers;
  const Matrix *matrices[] = {&layer->attention_in, &layer->attention_out, &layer->mlp_in, &layer->mlp_out};
  int64_t of_layer = 2 * job_bytes(model->heads, threads);
  for (int i = 0; i < 4; i++) of_layer += product_job_bytes(matrices[i], T, threads);
  int64_t all = product_job_bytes(&model->head, T, threads);
  int64_t few = product_job_bytes(&model->head, T < FEW_TOKENS ? T : FEW_TOKENS, threads);
  return job_bytes(T, threads) + model->depth * of_layer + job_bytes(1, threads) +
         (all > few ? all : few);
}

static Scratch divide_scratch(const Model *model, int64_t T, int capacity, int threads) {
  int64_t W = model->width, inner = model->layers->mlp_in.outputs, widest = inner > 3 * W ? inner : 3 * W;
  Scratch s = {.score_stride = capacity + LANES, .share_bytes = forward_job_bytes(model, T, threads)};
  s.x = s.shares + s.share_bytes / sizeof(float);
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
  Team team;
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

/* Attention of all tokens, one head: from projected (T, 3, H, D) to mixed (T, D). */
static void attend_head(const Pass *pass, const char *keys, const char *values, int h, float scale,
                        float *mixed) {
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
        .output = mixed + (int64_t)t * D,
        .output_stride = D,
    };
    attend(pass->query_counts[t], precision, attention);
  }
}

/* Attention of all tokens: keys and values go to the KV cache, and from projected (T, 3, H, D) to mixed
   (T, H, D). */
static void attend_all(Pass *pass, int number) {
  const Model *model = pass->model;
  int T = pass->batch->tokens, W = model->width, D = W / model->heads;
  int64_t half = (int64_t)W * pass->cache.capacity * pass->cache.rows * BYTES[pass->cache.precision];
  char *keys = (char *)pass->cache.numbers + 2 * number * half, *values = keys + half;
  Job job = begin_job(&pass->team, model->heads, 0);
  for (int h; (h = next_task(&job)) >= 0; end_task(&job)) cache_head(pass, keys, values, h);
  job = begin_job(&pass->team, model->heads, 1);
  for (int h; (h = next_task(&job)) >= 0;) {
    float *own = pass->normed; /* not needed before the next layer norm */
    attend_head(pass, keys, values, h, model->layers[number].scale, own);
    if (!may_write(&job)) continue;
    for (int t = 0; t < T; t++) memcpy(pass->mixed + (int64_t)t * W + h * D, own + (int64_t)t * D, 4 * D);
    end_task(&job);
  }
}

/* One transformer block, on the residual stream x (T, W). Every thread makes its own copy of the normed
   states: that is cheaper than to wait for the others. */
static void run_layer(Pass *pass, int number) {
  const Model *model = pass->model;
  const Layer *layer = model->layers + number;
  int T = pass->batch->tokens, W = model->width;
  Team *team = &pass->team;
  layer_norm(T, W, pass->x, layer->norm_1_weight, layer->norm_1_bias, model->epsilon, pass->normed);
  product(team, &layer->attention_in, T, pass->normed, pass->projected, (Epilogue){NONE, 0}, pass->packed);
  attend_all(pass, number);
  product(team, &layer->attention_out, T, pass->mixed, pass->x, (Epilogue){NONE, 1}, pass->packed);
  layer_norm(T, W, pass->x, layer->norm_2_weight, layer->norm_2_bias, model->epsilon, pass->normed);
  product(team, &layer->mlp_in, T, pass->normed, pass->projected, (Epilogue){model->activation, 0},
          pass->packed);
  product(team, &layer->mlp_out, T, pass->projected, pass->x, (Epilogue){NONE, 1}, pass->packed);
}

/* Embed all tokens: fills x (T, W). */
static void embed_tokens(Pass *pass) {
  const Batch *batch = pass->batch;
  Job job = begin_job(&pass->team, batch->tokens, 0);
  for (int t; (t = next_task(&job)) >= 0; end_task(&job))
    embed(pass->model, batch->ids[t], batch->positions[t], pass->x + (int64_t)t * pass->model->width);
}

/* Copy the final states (T, W) to where the batch says, and those of the selected tokens. */
static void copy_states(Pass *pass) {
  const Batch *batch = pass->batch;
  int64_t W = pass->model->width;
  Job job = begin_job(&pass->team, 1, 0);
  for (; next_task(&job) >= 0; end_task(&job)) {
    if (batch->hidden) memcpy(batch->hidden, pass->normed, 4 * batch->tokens * W);
    for (int i = 0; i < batch->selected_count; i++)
      memcpy(pass->selected + i * W, pass->normed + batch->selected[i] * W, 4 * W);
  }
}

/* Read the tokens of a batch: keys and values go to the KV cache, logits and states where the batch says. */
void forward(const Model *model, const Cache *cache, const Batch *batch, int32_t threads) {
  int T = batch->tokens;
  Scratch s = divide_scratch(model, T, cache->capacity, threads);
  int32_t query_counts[T];
  for (int t = 0; t < T; t += query_counts[t]) query_counts[t] = query_count(batch, t, cache->capacity);
  memset(batch->scratch + s.shares, 0, s.share_bytes);
#pragma omp parallel num_threads(threads)
  {
    int thread = omp_get_thread_num();
    float *start = batch->scratch, *own = start + thread * s.thread_size;
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
        .team = {thread, threads, (char *)(start + s.shares)},
    };
    embed_tokens(&pass);
    for (int number = 0; number < model->depth; number++) run_layer(&pass, number);
    layer_norm(T, model->width, pass.x, model->norm_weight, model->norm_bias, model->epsilon, pass.normed);
    copy_states(&pass);
    product(&pass.team, &model->head, batch->selected_count, pass.selected, batch->logits,
            (Epilogue){NONE, 0}, pass.packed);
  }
}
