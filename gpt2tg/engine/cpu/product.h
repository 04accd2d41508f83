/* Products of tokens (T, K) and a packed matrix (K, N).

   Threads share the panels. For a panel, the sums of PANEL outputs of up to REGISTER_TOKENS tokens stay in
   registers.

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
  const int row = PANEL * BYTES[precision], step = b.prefetch ? PREFETCH_INPUTS(precision) : b.inputs;
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
  int prefetch = PREFETCH_BYTES;
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

/* Pack tokens (T, K) as (ceil(T / REGISTER_TOKENS), K, REGISTER_TOKENS), padded with zeros. Every thread of a
   team calls this and does its part; all parts are done when it returns. */
static void pack_tokens(int T, int K, const float *x, float *packed) {
#pragma omp for schedule(static)
  for (int start = 0; start < T; start += REGISTER_TOKENS)
    for (int k = 0; k < K; k++)
      for (int t = 0; t < REGISTER_TOKENS; t++)
        packed[(int64_t)start * K + k * REGISTER_TOKENS + t] =
            start + t < T ? x[(int64_t)(start + t) * K + k] : 0;
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

/* y (T, N) = activation(x (T, K) times the matrix plus bias), or that added to y.

   Every thread of a team calls this and does its part; all parts are done when it returns.
   packed: scratch space of packed_size(T, K) numbers, shared by the team. */
static void product(const Matrix *a, int T, const float *x, float *y, Epilogue epilogue, float *packed) {
  int N = a->outputs, K = a->inputs;
  Tile *rounded = (Tile *)packed;
  if (a->precision == INT8) {
    quantize(T, K, x, rounded);
    start_tiles();
  } else if (T > FEW_TOKENS)
    pack_tokens(T, K, x, packed);
  int is_packed = a->precision != INT8 && T > FEW_TOKENS, most = is_packed ? BLOCK_PANELS : 1;
  int threads = omp_get_num_threads(), thread = omp_get_thread_num(), count = (N + PANEL - 1) / PANEL;
  int end = (int64_t)count * (thread + 1) / threads;
  for (int panel = (int64_t)count * thread / threads, panels; panel < end; panel += panels) {
    float sums[BLOCK_PANELS * BLOCK_TOKENS * PANEL] ALIGNED;
    panels = end - panel < most ? end - panel : most;
    for (int start = 0; start < T; start += BLOCK_TOKENS) {
      int tokens = T - start < BLOCK_TOKENS ? T - start : BLOCK_TOKENS;
      memset(sums, 0, (int64_t)4 * panels * PANEL * tokens);
      if (a->precision == INT8)
        multiply_integers(a, panel, tokens, rounded + (int64_t)(start / TILE_TOKENS) * group_count(K), sums);
      else if (is_packed)
        multiply_many(a, panel, panels, tokens, packed + (int64_t)start * K, sums);
      else
        multiply_few(a, panel, tokens, x, sums);
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
    }
  }
#pragma omp barrier
  if (a->precision == INT8) stop_tiles();
}

/* Numbers of scratch space for packed or rounded tokens. */
static int64_t packed_size(int64_t T, int64_t K) {
  int64_t packed = (T + REGISTER_TOKENS) * K;
  int64_t rounded = (T + TILE_TOKENS - 1) / TILE_TOKENS * group_count(K) * sizeof(Tile) / sizeof(float);
  return packed > rounded ? packed : rounded;
}

/* Numbers of scratch space that linear() needs. */
int64_t linear_scratch(const Matrix *a, int32_t T) { return packed_size(T, a->inputs); }

/* y (T, N) = x (T, K) times the matrix plus bias: the product alone, for a forward pass in torch. */
void linear(const Matrix *a, int32_t T, const float *x, float *y, float *scratch, int32_t threads) {
#pragma omp parallel num_threads(threads)
  product(a, T, x, y, (Epilogue){NONE, 0}, scratch);
}
