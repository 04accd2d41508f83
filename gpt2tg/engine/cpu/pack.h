/* Packing weights into panels.

   A matrix (K, N) becomes (ceil(N / PANEL), K, PANEL): a product reads it from end to end while the sums of
   PANEL outputs stay in registers. In INT8 it becomes (ceil(N / PANEL), K / 4, PANEL, 4): each lane of a
   register holds four weights of one output, as `dot4` needs them. */

#define PACK_INPUTS 16            /* inputs of a panel that are packed at a time; GROUP is a multiple of it */
#define RELEASE_WEIGHTS (2 << 20) /* of a mapped file that are read before their pages are released */

/* Inputs of a matrix as it is packed: with those that pad the last group. */
static int padded_inputs(int precision, int K) { return precision == INT8 ? group_count(K) * GROUP : K; }

/* Bytes that the panels of a matrix take. */
int64_t packed_bytes(int32_t inputs, int32_t outputs, int32_t precision) {
  int64_t panels = (outputs + PANEL - 1) / PANEL;
  return panels * padded_inputs(precision, inputs) * PANEL * BYTES[precision];
}

/* The weights of one output: to (K). */
static void column(const Matrix *a, int n, float *to) {
  int K = a->inputs, in_panel = n % PANEL;
  int64_t panel = (int64_t)(n - in_panel) * padded_inputs(a->precision, K);
  if (a->precision == INT8)
    for (int k = 0; k < K; k++) {
      uint8_t stored = ((const uint8_t *)a->panels)[panel + k / 4 * 4 * PANEL + in_panel * 4 + k % 4];
      to[k] = (int8_t)(stored - WEIGHT_OFFSET) * a->scale[n];
    }
  else
    for (int k = 0; k < K; k++) to[k] = load_one(a->precision, a->panels, panel + k * PANEL + in_panel);
}

/* The weights of several outputs: to (count, K). */
void columns(const Matrix *a, const int64_t *outputs, int64_t count, float *to) {
  for (int64_t i = 0; i < count; i++) column(a, outputs[i], to + i * a->inputs);
}

/* Copy some inputs of one panel, in fp32 and padded with zeros: to (PACK_INPUTS, PANEL). */
static void gather(const UnpackedMatrix *a, const float *from, int inputs, int width, float *to) {
  int64_t input_stride = a->input_stride, output_stride = a->output_stride;
  if (inputs < PACK_INPUTS || width < PANEL) memset(to, 0, 4 * PANEL * PACK_INPUTS);
  if (output_stride == 1)
    for (int k = 0; k < inputs; k++) memcpy(to + k * PANEL, from + k * input_stride, 4 * width);
  else
    for (int n = 0; n < width; n++)
      for (int k = 0; k < inputs; k++) to[k * PANEL + n] = from[n * output_stride + k * input_stride];
}

/* For INT8: the scale of each output of a panel, so that its largest weight becomes 127. To (PANEL). */
static void find_scale(const UnpackedMatrix *a, const float *from, int width, float *scale) {
  float tile[PACK_INPUTS * PANEL] ALIGNED;
  memset(scale, 0, 4 * PANEL);
  for (int k = 0; k < a->inputs; k += PACK_INPUTS) {
    int inputs = a->inputs - k < PACK_INPUTS ? a->inputs - k : PACK_INPUTS;
    gather(a, from + k * a->input_stride, inputs, width, tile);
    for (int i = 0; i < inputs; i++)
      for (int n = 0; n < PANEL; n++) {
        float size = fabsf(tile[i * PANEL + n]);
        scale[n] = size > scale[n] ? size : scale[n];
      }
  }
  for (int n = 0; n < PANEL; n++) scale[n] = scale[n] / 127 > 1e-12f ? scale[n] / 127 : 1e-12f;
}

/* Round a tile (PACK_INPUTS, PANEL), padded with zeros after `inputs`, and store it in its panel. */
static void store_tile(const UnpackedMatrix *a, const float *tile, int inputs, const float *scale,
                       int64_t at) {
  switch (a->precision) {
    case FP32: memcpy((float *)a->panels + at, tile, 4 * PANEL * inputs); break;
    case FP16:
      for (int i = 0; i < PANEL * inputs; i += LANES)
        store_fp16((uint16_t *)a->panels + at + i, *(const vector *)(tile + i));
      break;
    case INT8:
      for (int k = 0; k < PACK_INPUTS; k += 4) /* those beyond the last input are 0 */
        for (int n = 0; n < PANEL; n += LANES) {
          integers four = {0}; /* weights of each output, the first in the low byte */
          for (int i = 3; i >= 0; i--) {
            vector w = load(FP32, tile, (k + i) * PANEL + n) / load(FP32, scale, n);
            four = four << 8 | ((nearest_integers(w, all(1)) + WEIGHT_OFFSET) & 255);
          }
          *(vector *)((int8_t *)a->panels + at + k * PANEL + 4 * n) = (vector)four;
        }
      break;
  }
}

/* Pack the panel whose first output is `first`. Returns whether its weights are finite. */
static int pack_panel(const UnpackedMatrix *a, int first) {
  const float *from = a->weights + first * a->output_stride;
  int width = a->outputs - first < PANEL ? a->outputs - first : PANEL;
  float tile[PACK_INPUTS * PANEL] ALIGNED, scale[PANEL] = {0};
  int K = padded_inputs(a->precision, a->inputs);
  integers broken = {0};
  if (a->precision == INT8) {
    find_scale(a, from, width, scale);
    memcpy(a->scale + first, scale, 4 * width);
  }
  for (int k = 0; k < K; k += PACK_INPUTS) {
    int left = a->inputs - k, inputs = left < 0 ? 0 : left < PACK_INPUTS ? left : PACK_INPUTS;
    gather(a, from + k * a->input_stride, inputs, width, tile);
    for (int i = 0; i < PANEL * inputs; i += LANES) /* an exponent of all ones: infinite or NaN */
      broken |= ((integers)load(FP32, tile, i) & 0x7f800000) == 0x7f800000;
    store_tile(a, tile, inputs, scale, (int64_t)first * K + k * PANEL);
  }
  for (int i = 0; i < LANES; i++)
    if (broken[i]) return 0;
  return 1;
}

/* Pack a matrix with several threads. */
void pack_matrix(const UnpackedMatrix *a, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int first = 0; first < a->outputs; first += PANEL) pack_panel(a, first);
}

/* Pack the matrices of a mapped file in turn, on one thread, until `stop` is set.

   Pages that were read are released on the way (MADV_DONTNEED), so that the file and its packed copy are
   never in memory together. The mapping must be unmodified: other memory would lose its content.

   Returns the number of matrices packed: fewer than `count` after a stop, or where a weight is not finite. */
int32_t pack_file(const UnpackedMatrix *matrices, int32_t count, const volatile int32_t *stop) {
  for (int32_t done = 0; done < count; done++) {
    const UnpackedMatrix *a = matrices + done;
    const float *unreleased = a->weights;
    int64_t size = (int64_t)a->inputs * a->outputs;
    for (int first = 0; first < a->outputs; first += PANEL) {
      if (*stop || !pack_panel(a, first)) return done;
      /* Weights before number `read` are not needed again. Before the last panel there are such weights only
         if the inputs of each output are contiguous. */
      int64_t read = first + PANEL >= a->outputs ? size
                     : a->input_stride == 1      ? (first + PANEL) * a->output_stride
                                                 : 0;
      if (read == size || a->weights + read - unreleased > RELEASE_WEIGHTS) {
        char *page = (char *)((uintptr_t)unreleased & -(uintptr_t)sysconf(_SC_PAGESIZE));
        madvise(page, (char *)(a->weights + read) - page, MADV_DONTNEED);
        unreleased = a->weights + read;
      }
    }
  }
  return count;
}
