/* Products of tokens (T, K) and a packed matrix (K, N).

   Threads share the panels (team.h). For a panel, the sums of PANEL outputs of up to REGISTER_TOKENS tokens
   stay in registers.

   Few tokens (a decode step): each panel is read from memory once, which sets the pace, and prefetched.
   Many tokens (a prefill): arithmetic sets the pace. The tokens are packed too, and a block of BLOCK_INPUTS
   inputs of the panel is unpacked to fp32 and stays in the cache while up to BLOCK_TOKENS tokens are
   multiplied with it. These tokens' inputs stay in the second-level cache for BLOCK_PANELS panels.

   The K products of every output are added in the same order either way: the result for a token does not
   depend, to the last bit, on how many others are read with it. In INT8, integer.h has the products. */

#define FEW_TOKENS (2 * REGISTER_TOKENS)    /* up to so many, packing them does not pay */
#define BLOCK_TOKENS (32 * REGISTER_TOKENS) /* (T, PANEL) sums of so many fit in the stack and the cache */
#define BLOCK_INPUTS 160
#define BLOCK_PANELS 4
#define TASK_BYTES (1 << 16) /* of weights that one task multiplies with tokens that are not packed */

/* Some inputs of one panel, and the tokens to multiply with them. */
typedef struct {
  const float *x; /* input k of token t is at t * token_stride + k * input_stride */
  int token_stride, input_stride;
  int inputs;          /* K */
  const void *weights; /* (K, PANEL) */
  int prefetch;        /* bytes to prefetch ahead, or 0 if the weights are in the cache */
  float *sums;         /* (T, PANEL), added to */
} Block;

/* Add the products of T tokens; T is a constant, so that the sums stay in registers. */
ALWAYS_INLINE void multiply_constant(int precision, int T, Block b) {
  vector_register sums[REGISTER_TOKENS][PANEL_REGISTERS];
  const char *weights = b.weights;
  const int row = PANEL * BYTES[precision], step = b.prefetch ? PREFETCH_INPUTS(precision, T) : b.inputs;
  UNROLLED (t, T)
    UNROLLED (j, PANEL_REGISTERS) sums[t][j] = *(vector *)(b.sums + t * PANEL + j * LANES);
  for (int start = 0; start < b.inputs; start += step) {
    int end = start + step < b.inputs ? start + step : b.inputs;
    for (int line = 0; b.prefetch && line < step * row; line += 64)
      prefetch_weights(weights + b.prefetch + line, T);
    for (int k = start; k < end; k++, weights += row) {
      vector_register loaded[PANEL_REGISTERS];
      UNROLLED (j, PANEL_REGISTERS) loaded[j] = load(precision, weights, j * LANES);
      UNROLLED (t, T) {
        vector x = all(b.x[(int64_t)t * b.token_stride + k * b.input_stride]);
        UNROLLED (j, PANEL_REGISTERS) sums[t][j] = fused(loaded[j], x, sums[t][j]);
      }
    }
  }
  UNROLLED (t, T)
    UNROLLED (j, PANEL_REGISTERS) *(vector *)(b.sums + t * PANEL + j * LANES) = sums[t][j];
}

/* Add the products of up to REGISTER_TOKENS tokens. */
ALWAYS_INLINE void multiply(int precision, int tokens, Block b) {
  switch (tokens) {
    case 1: multiply_constant(precision, 1, b); break;
    case 2: multiply_constant(precision, 2, b); break;
    case 3: multiply_constant(precision, 3, b); break;
    case 4: multiply_constant(precision, 4, b); break;
    case 5: multiply_constant(precision, 5, b); break;
    case 6: multiply_constant(precision, 6, b); break;
#if REGISTER_TOKENS == 8
    case 7: multiply_constant(precision, 7, b); break;
    case 8: multiply_constant(precision, 8, b); break;
#endif
  }
}

/* One panel times few tokens, x (T, K): adds to sums (T, PANEL). */
static void multiply_few(const Matrix *a, int panel, int T, const float *x, float *sums) {
  int K = a->inputs;
  const char *weights = (const char *)a->panels + (int64_t)panel * K * PANEL * BYTES[a->precision];
  int prefetch = PREFETCH_BYTES(T);
  for (int t = 0; t < T; t += REGISTER_TOKENS) {
    int tokens = T - t < REGISTER_TOKENS ? T - t : REGISTER_TOKENS;
    Block block = {x + t * K, K, 1, K, weights, prefetch, sums + t * PANEL};
    switch (a->precision) {
      case FP32: multiply(FP32, tokens, block); break;
      case FP16: multiply(FP16, tokens, block); break;
    }
    prefetch = 0; /* after the first tokens the panel is in the cache */
  }
}

/* Convert `count` weights to fp32. */
static void unpack(const void *from, int precision, int count, float *to) {
  for (int i = 0; i < count; i += LANES) *(vector *)(to + i) = load(precision, from, i);
}

/* Some panels times many packed tokens, (ceil(T / REGISTER_TOKENS), K, REGISTER_TOKENS): adds to sums
   (panels, T, PANEL). While one block of a panel is multiplied, the next one is prefetched in small steps. */
static void multiply_many(const Matrix *a, int first, int panels, int T, const float *packed, float *sums) {
  int K = a->inputs, row = PANEL * BYTES[a->precision];
  float unpacked[BLOCK_INPUTS * PANEL] ALIGNED;
  for (int start = 0; start < K; start += BLOCK_INPUTS) {
    int inputs = K - start < BLOCK_INPUTS ? K - start : BLOCK_INPUTS, size = inputs * row;
    for (int panel = 0; panel < panels; panel++) {
      const char *weights = (const char *)a->panels + ((int64_t)(first + panel) * K + start) * row;
      const char *following = panel + 1 < panels ? weights + (int64_t)K * row
                                                 : weights - (int64_t)panel * K * row + size;
      const char *next = following;
      unpack(weights, a->precision, inputs * PANEL, unpacked);
      for (int t = 0; t < T; t += REGISTER_TOKENS) {
        int tokens = T - t < REGISTER_TOKENS ? T - t : REGISTER_TOKENS;
        const float *x = packed + (int64_t)t * K + start * REGISTER_TOKENS;
        for (const char *end = following + (int64_t)size * (t + tokens) / T; next < end; next += 64)
          __builtin_prefetch(next, 0, 2);
        float *to = sums + ((int64_t)panel * T + t) * PANEL;
        multiply(FP32, tokens, (Block){x, 1, REGISTER_TOKENS, inputs, unpacked, 0, to});
      }
    }
  }
}

static int pack_tasks(int T) { return (T + REGISTER_TOKENS - 1) / REGISTER_TOKENS; }

/* Pack tokens (T, K) as (ceil(T / REGISTER_TOKENS), K, REGISTER_TOKENS), padded with zeros; see team.h. */
static void pack_tokens(Team *team, int T, int K, const float *x, float *packed) {
  Job job = begin_job(team, pack_tasks(T), 0);
  for (int task; (task = next_task(&job)) >= 0; end_task(&job)) {
    int start = task * REGISTER_TOKENS;
    for (int k = 0; k < K; k++)
      for (int t = 0; t < REGISTER_TOKENS; t++)
        packed[(int64_t)start * K + k * REGISTER_TOKENS + t] =
            start + t < T ? x[(int64_t)(start + t) * K + k] : 0;
  }
}

/* How many tasks the rounding of tokens (T, K) is. */
static int quantize_tasks(int T, int K, int threads) {
  int64_t parts = (int64_t)T * group_count(K);
  return parts < threads ? parts : threads;
}

/* Round tokens (T, K); see team.h. */
static void quantize(Team *team, int T, int K, const float *x, Tile *to) {
  int64_t groups = group_count(K), parts = T * groups;
  int tasks = quantize_tasks(T, K, team->threads);
  Job job = begin_job(team, tasks, 0);
  for (int64_t task; (task = next_task(&job)) >= 0; end_task(&job))
    for (int64_t i = parts * task / tasks; i < parts * (task + 1) / tasks; i++) {
      int64_t t = i / groups, g = i % groups, first = g * GROUP;
      Tile *tile = to + t / TILE_TOKENS * groups + g;
      quantize_group(x + t * K + first, K - first < GROUP ? K - first : GROUP, tile, t % TILE_TOKENS);
    }
}

/* What becomes of the sums of a product. */
typedef struct {
  int activation;
  int add; /* whether the result is added to y instead of replacing it */
} Epilogue;

/* Scale, bias, activation: from the sums (PANEL) of one token to y (width), the outputs from `first` on. */
ALWAYS_INLINE void finish(const Matrix *a, int first, int width, Epilogue epilogue, float *sums, float *y) {
  if (a->scale)
    for (int n = 0; n < width; n++) sums[n] *= a->scale[first + n];
  if (a->bias)
    for (int n = 0; n < width; n++) sums[n] += a->bias[first + n];
  if (epilogue.activation != NONE) activate(sums, epilogue.activation);
  if (epilogue.add)
    for (int n = 0; n < width; n++) y[n] += sums[n];
  else
    memcpy(y, sums, 4 * width);
}

/* How a product of T tokens is divided into tasks: some panels times up to BLOCK_TOKENS tokens each. */
typedef struct {
  int is_packed;      /* whether the tokens are packed */
  int panels, blocks; /* panels of a task, blocks of tokens */
  int tasks;
} Division;

static Division divide_product(const Matrix *a, int T, int threads) {
  int count = (a->outputs + PANEL - 1) / PANEL, panel_bytes = a->inputs * PANEL * BYTES[a->precision];
  Division d = {.is_packed = a->precision != INT8 && T > FEW_TOKENS};
  int even = count / (4 * threads), most = d.is_packed ? BLOCK_PANELS : TASK_BYTES / panel_bytes;
  d.panels = even < most ? even : most;
  d.panels = d.panels < 1 ? 1 : d.panels > BLOCK_PANELS ? BLOCK_PANELS : d.panels;
  d.blocks = (T + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
  d.tasks = (count + d.panels - 1) / d.panels * d.blocks;
  return d;
}

/* Bytes of the jobs of a product. */
static int64_t product_job_bytes(const Matrix *a, int T, int threads) {
  int before = a->precision == INT8 ? quantize_tasks(T, a->inputs, threads) : pack_tasks(T);
  return job_bytes(divide_product(a, T, threads).tasks, threads) + job_bytes(before, threads);
}

/* Some panels times the T tokens from `start` on: fills sums (panels, T, PANEL). */
static void multiply_panels(const Matrix *a, Division d, int first, int panels, int start, int T,
                            const float *x, const float *packed, float *sums) {
  int K = a->inputs;
  memset(sums, 0, (int64_t)4 * panels * T * PANEL);
  if (d.is_packed) {
    multiply_many(a, first, panels, T, packed + (int64_t)start * K, sums);
    return;
  }
  const Tile *rounded = (const Tile *)packed + (int64_t)(start / TILE_TOKENS) * group_count(K);
  for (int i = 0; i < panels; i++, sums += (int64_t)T * PANEL)
    if (a->precision == INT8)
      multiply_integers(a, first + i, T, rounded, sums);
    else
      multiply_few(a, first + i, T, x, sums);
}

/* y (T, N) = activation(x (T, K) times the matrix plus bias), or that added to y; see team.h.

   packed: scratch space of packed_size(T, K) numbers, shared by the team. */
static void product(Team *team, const Matrix *a, int T, const float *x, float *y, Epilogue epilogue,
                    float *packed) {
  int N = a->outputs, K = a->inputs, count = (N + PANEL - 1) / PANEL;
  Division d = divide_product(a, T, team->threads);
  if (a->precision == INT8) {
    quantize(team, T, K, x, (Tile *)packed);
    start_tiles();
  } else if (d.is_packed)
    pack_tokens(team, T, K, x, packed);
  Job job = begin_job(team, d.tasks, 1);
  for (int task; (task = next_task(&job)) >= 0;) {
    float sums[BLOCK_PANELS * BLOCK_TOKENS * PANEL] ALIGNED;
    int panel = task / d.blocks * d.panels, panels = count - panel < d.panels ? count - panel : d.panels;
    int start = task % d.blocks * BLOCK_TOKENS, tokens = T - start < BLOCK_TOKENS ? T - start : BLOCK_TOKENS;
    multiply_panels(a, d, panel, panels, start, tokens, x, packed, sums);
    if (!may_write(&job)) continue;
    for (int t = 0; t < tokens; t++)
      for (int i = 0; i < panels; i++) {
        int first = (panel + i) * PANEL;
        float *from = sums + ((int64_t)i * tokens + t) * PANEL;
        float *to = y + (int64_t)(start + t) * N + first;
        if (N - first >= PANEL)
          finish(a, first, PANEL, epilogue, from, to);
        else
          finish(a, first, N - first, epilogue, from, to);
      }
    end_task(&job);
  }
  if (a->precision == INT8) stop_tiles();
}

/* Numbers of scratch space for packed or rounded tokens: whole cache lines. */
static int64_t packed_size(int64_t T, int64_t K) {
  int64_t packed = (T + REGISTER_TOKENS) * K;
  int64_t rounded = (T + TILE_TOKENS - 1) / TILE_TOKENS * group_count(K) * sizeof(Tile) / sizeof(float);
  return ((packed > rounded ? packed : rounded) + 15) / 16 * 16;
}

/* Numbers of scratch space that linear() needs. */
int64_t linear_scratch(const Matrix *a, int32_t T, int32_t threads) {
  return packed_size(T, a->inputs) + product_job_bytes(a, T, threads) / sizeof(float);
}

/* y (T, N) = x (T, K) times the matrix plus bias: the product alone, for a forward pass in torch. */
void linear(const Matrix *a, int32_t T, const float *x, float *y, float *scratch, int32_t threads) {
  char *shares = (char *)(scratch + packed_size(T, a->inputs));
  memset(shares, 0, product_job_bytes(a, T, threads));
#pragma omp parallel num_threads(threads)
  {
    Team team = {omp_get_thread_num(), threads, shares};
    product(&team, a, T, x, y, (Epilogue){NONE, 0}, scratch);
  }
}
