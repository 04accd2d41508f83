/* The structs that kernels.py passes. It mirrors them field by field and checks their sizes when it loads the
   library.

   Shapes: K inputs and N outputs of a matrix; W width of the model, I inner width of its MLP, V vocabulary,
   H heads, D = W / H head size; T tokens read at once, C capacity of the KV cache in tokens, R its rows. */

#define PANEL (PANEL_REGISTERS * LANES)  /* outputs of a matrix that are stored side by side */
#define KEY_TILE (KEY_REGISTERS * LANES) /* keys that are interleaved in the KV cache */
#define GROUP 64                         /* inputs in INT8 that share a scale; a multiple of LANES */

#ifdef __AVX512F__
#define REGISTER_TOKENS 8 /* tokens whose sums, PANEL each, stay in registers */
#else
#define REGISTER_TOKENS 6
#endif
#define TILE_TOKENS (2 * REGISTER_TOKENS) /* tokens that are rounded to INT8 side by side */

enum activation { NONE, GELU_TANH, GELU, RELU };

/* A packed matrix. */
typedef struct {
  const void *panels; /* (ceil(N / PANEL), K, PANEL) in `precision`, the last panel padded with zeros; in INT8
                         (ceil(N / PANEL), K / 4, PANEL, 4), with K padded to a multiple of GROUP */
  const float *scale; /* (N) for INT8: the weight is the stored integer times this; else NULL */
  const float *bias;  /* (N) or NULL */
  int32_t inputs, outputs, precision;
} Matrix;

/* A matrix (K, N) in fp32, and where to pack it. The weight of input k and output n is number
   k * input_stride + n * output_stride. */
typedef struct {
  const float *weights;
  int64_t input_stride, output_stride;
  int32_t inputs, outputs, precision;
  void *panels; /* written: as in Matrix */
  float *scale; /* written for INT8: (N) */
} UnpackedMatrix;

typedef struct {
  const float *norm_1_weight, *norm_1_bias, *norm_2_weight, *norm_2_bias; /* (W) each */
  Matrix attention_in, attention_out, mlp_in, mlp_out; /* W to 3 W, W to W, W to I, I to W */
  float scale;                                         /* of the attention scores */
} Layer;

typedef struct {
  const Layer *layers;
  const float *positions;               /* (positions, W) */
  const float *norm_weight, *norm_bias; /* (W) each: the final layer norm */
  Matrix embedding, head;               /* W to V each */
  int32_t depth, width, heads, activation;
  float epsilon;
} Model;

/* For each layer the keys (R, H, C / KEY_TILE, D, KEY_TILE), then the values (R, H, C, D), in FP32 or FP16.
   The keys of KEY_TILE tokens are interleaved, so that a register holds the same number of several keys.
   Attention reads both from end to end. */
typedef struct {
  void *numbers;
  int32_t rows, capacity, precision;
} Cache;

/* What one forward pass reads and writes. It may read several tokens of a row: they attend to each other. */
typedef struct {
  int32_t tokens, selected_count;
  const int32_t *ids;        /* (T) */
  const int32_t *positions;  /* (T) place of each token in its row */
  const int32_t *cache_rows; /* (T, C) the cache row that holds each position of the token's row; at the
                                token's own position, the cache row to write to */
  const int32_t *selected;   /* (selected_count) the tokens whose logits are computed */
  float *logits;             /* (selected_count, V) */
  float *hidden;             /* (T, W) the states after the final layer norm, or NULL */
  float *scratch;            /* forward_scratch() numbers */
} Batch;

/* Compared with Python's when the library is loaded. */
const char *const PRECISION_NAMES[] = {[FP32] = "fp32", [FP16] = "fp16", [INT8] = "int8"};
const char *const ACTIVATION_NAMES[] = {
    [NONE] = "none", [GELU_TANH] = "gelu_tanh", [GELU] = "gelu", [RELU] = "relu"};
const int32_t STRUCT_SIZES[] = {
    sizeof(Matrix), sizeof(UnpackedMatrix), sizeof(Layer), sizeof(Model), sizeof(Cache), sizeof(Batch),
};
