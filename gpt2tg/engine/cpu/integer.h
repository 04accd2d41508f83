/* Products in int8: tokens are rounded to integers too, and integer sums have the same value in any order.

   The inputs of a token are rounded in groups of GROUP, each with a scale: the largest input of a group
   becomes 127. So a token does not depend on the others, and an outlier costs accuracy in its own group
   alone. Weights have one scale for each output. The sums of a group are exact; those of all groups are added
   in fp32, from the first to the last. */

/* Processors with VNNI multiply unsigned by signed integers: weights are stored with this number added. */
#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && LANES == 8)
#define WEIGHT_OFFSET 128
#else
#define WEIGHT_OFFSET 0
#endif

#define BLOCK_GROUPS 8 /* groups of a panel that stay in the cache while they meet all tokens */

/* GROUP inputs of some tokens, rounded. Tokens (T, K) become (ceil(T / TILE_TOKENS), groups) of these. */
typedef struct {
  int8_t inputs[TILE_TOKENS][GROUP];
  float scale[TILE_TOKENS];   /* an input is about its integer times this; not finite where an input is not */
  int32_t start[TILE_TOKENS]; /* where the sums of the products begin: cancels WEIGHT_OFFSET */
} Tile;

static inline int group_count(int K) { return (K + GROUP - 1) / GROUP; }

/* Add to each lane the products of its 4 weights, stored with WEIGHT_OFFSET, and 4 inputs. No product and no
   sum overflows, since both are within -127 and 127. */
static inline integers dot4(integers sums, integers weights, int32_t four) {
#ifdef __ARM_FEATURE_DOTPROD
  return (integers)vdotq_lane_s32((int32x4_t)sums, (int8x16_t)weights, vcreate_s8((uint32_t)four), 0);
#else
  integers inputs = all_integers(four);
#if defined(__AVX512VNNI__)
  return (integers)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, (__m512i)inputs);
#elif defined(__AVXVNNI__) && LANES == 8
  return (integers)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)weights, (__m256i)inputs);
#elif defined(__AVX512BW__)
  __m512i w = (__m512i)weights, x = (__m512i)inputs, ones = _mm512_set1_epi16(1);
  __m512i signed_inputs = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
  __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w), signed_inputs); /* at most 2 * 127 * 127 < 2^15 */
  return sums + (integers)_mm512_madd_epi16(pairs, ones);
#elif defined(__AVX2__) && LANES == 8
  __m256i w = (__m256i)weights, x = (__m256i)inputs;
  __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  return sums + (integers)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#elif defined(__aarch64__)
  int8x16_t w = (int8x16_t)weights, x = (int8x16_t)inputs;
  int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)));
  return sums + (integers)vpaddq_s32(low, vpaddlq_s16(vmull_high_s8(w, x)));
#else
  for (int left = 0; left < 32; left += 8) sums += ((weights << left) >> 24) * ((inputs << left) >> 24);
  return sums;
#endif
#endif
}

/* Round `count` inputs of token t in a tile, at most GROUP; the others become 0. */
static void quantize_group(const float *x, int count, Tile *tile, int t) {
  float padded[GROUP] = {0};
  if (count < GROUP) x = memcpy(padded, x, 4 * count);
  integers most = {0}, total = {0}; /* as integers, sizes are in the same order, and NaN is the largest */
  for (int i = 0; i < GROUP; i += LANES) {
    integers size = (integers)load(FP32, x, i) & 0x7fffffff;
    most = (integers)choose(size > most, (vector)size, (vector)most);
  }
  int32_t bits = most[0];
  for (int i = 1; i < LANES; i++) bits = most[i] > bits ? most[i] : bits;
  float largest = ((vector)all_integers(bits))[0], inverse = largest > 1e-30f ? 127 / largest : 0;
  for (int i = 0; i < GROUP; i += LANES) {
    integers rounded = nearest_integers(load(FP32, x, i), all(inverse));
    store_int8(tile->inputs[t] + i, rounded);
    total += rounded;
  }
  int32_t sum = 0;
  for (int i = 0; i < LANES; i++) sum += total[i];
  tile->scale[t] = largest / 127;
  tile->start[t] = -WEIGHT_OFFSET * sum;
}

/* Some groups of one panel, and the tokens to multiply with them. */
typedef struct {
  const Tile *tiles;   /* (groups) */
  int first, groups;   /* the first token's number in its tile, and how many groups */
  const char *weights; /* (groups, GROUP / 4, PANEL, 4) */
  const char *ahead;   /* weights to prefetch, and how many bytes of them at each group */
  int prefetch;
  float *sums; /* (T, PANEL), added to */
} GroupBlock;

/* Add the sums of one group, times its scale, to those of all: LANES outputs. */
ALWAYS_INLINE void add_scaled(float scale, integers products, float *sums) {
  *(vector *)sums = fused(__builtin_convertvector(products, vector), all(scale), *(vector *)sums);
}

/* Add the products of T tokens; T is a constant, so that the sums of a group stay in registers. */
ALWAYS_INLINE void multiply_groups_constant(int T, GroupBlock b) {
  const char *weights = b.weights;
  for (int g = 0; g < b.groups; g++) {
    const Tile *tile = b.tiles + g;
    integers sums[REGISTER_TOKENS][PANEL_REGISTERS];
    for (int line = 0; line < b.prefetch; line += 64, b.ahead += 64) prefetch_weights(b.ahead, T);
    UNROLLED (t, T)
      UNROLLED (j, PANEL_REGISTERS) sums[t][j] = all_integers(tile->start[b.first + t]);
    for (int k = 0; k < GROUP; k += 4, weights += 4 * PANEL) {
      integers loaded[PANEL_REGISTERS];
      UNROLLED (j, PANEL_REGISTERS) loaded[j] = load_integers(weights + 4 * j * LANES);
      UNROLLED (t, T) {
        int32_t four;
        memcpy(&four, tile->inputs[b.first + t] + k, 4);
        UNROLLED (j, PANEL_REGISTERS) sums[t][j] = dot4(sums[t][j], loaded[j], four);
      }
    }
    UNROLLED (t, T)
      UNROLLED (j, PANEL_REGISTERS)
        add_scaled(tile->scale[b.first + t], sums[t][j], b.sums + t * PANEL + j * LANES);
  }
}

/* Add the products of up to REGISTER_TOKENS tokens. */
static void multiply_groups(int tokens, GroupBlock b) {
  switch (tokens) {
    case 1: multiply_groups_constant(1, b); break;
    case 2: multiply_groups_constant(2, b); break;
    case 3: multiply_groups_constant(3, b); break;
    case 4: multiply_groups_constant(4, b); break;
    case 5: multiply_groups_constant(5, b); break;
    case 6: multiply_groups_constant(6, b); break;
#if REGISTER_TOKENS == 8
    case 7: multiply_groups_constant(7, b); break;
    case 8: multiply_groups_constant(8, b); break;
#endif
  }
}

#include "tiles.h"

/* How many tokens are multiplied at a time where so many are left. */
static int token_step(int left) {
  if (tiles_granted && left >= TILE_TOKENS) return TILE_TOKENS;
  return left < REGISTER_TOKENS ? left : REGISTER_TOKENS;
}

/* One panel times rounded tokens: adds to sums (T, PANEL). The panel is read from memory once. If one pass
   over it suffices, weights are prefetched a constant distance ahead; else the next block is prefetched in
   small steps while one block is multiplied with all tokens. */
static void multiply_integers(const Matrix *a, int panel, int T, const Tile *x, float *sums) {
  int groups = group_count(a->inputs), passes = 0;
  for (int t = 0; t < T; t += token_step(T - t)) passes++;
  const int group_bytes = GROUP * PANEL, prefetch = (group_bytes / passes + 63) / 64 * 64;
  const char *weights = (const char *)a->panels + (int64_t)panel * groups * group_bytes;
  for (int start = 0; start < groups; start += BLOCK_GROUPS, weights += BLOCK_GROUPS * group_bytes) {
    int count = groups - start < BLOCK_GROUPS ? groups - start : BLOCK_GROUPS;
    const char *ahead = weights + (passes == 1 ? PREFETCH_BYTES(T) : count * group_bytes);
    for (int t = 0, tokens; t < T; t += tokens, ahead += count * prefetch) {
      tokens = token_step(T - t);
      const Tile *tiles = x + (int64_t)(t / TILE_TOKENS) * groups + start;
      GroupBlock block = {tiles, t % TILE_TOKENS, count, weights, ahead, prefetch, sums + t * PANEL};
      if (tokens == TILE_TOKENS)
        multiply_tiles(block);
      else
        multiply_groups(tokens, block);
    }
  }
}
