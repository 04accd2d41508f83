/* Integer products by AMX, in tiles of TILE_TOKENS tokens: the same sums as by `dot4`, and faster.

   Linux gives a process the registers of AMX only if it asks for them. */

#if defined(__AMX_INT8__) && defined(__AVX512VNNI__) && defined(__linux__)
#include <sys/syscall.h>

static int tiles_granted;

__attribute__((constructor)) static void ask_for_tiles(void) {
  const int request = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA */
  tiles_granted = !syscall(SYS_arch_prctl, request, tile_data);
}

/* Set the shape of this thread's tiles: 16 rows of 64 bytes. */
static void start_tiles(void) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } shapes ALIGNED = {.palette = 1};
  for (int i = 0; i < 5; i++) shapes.row_bytes[i] = 64, shapes.rows[i] = 16;
  if (tiles_granted) _tile_loadconfig(&shapes);
}

static void stop_tiles(void) {
  if (tiles_granted) _tile_release();
}

/* Add the products of TILE_TOKENS tokens. */
static void multiply_tiles(GroupBlock b) {
  int32_t products[2][TILE_TOKENS][LANES] ALIGNED;
  const char *weights = b.weights;
  for (int g = 0; g < b.groups; g++, weights += GROUP * PANEL) {
    const Tile *tile = b.tiles + g;
    for (int line = 0; line < b.prefetch; line += 64, b.ahead += 64) __builtin_prefetch(b.ahead, 0, 2);
    _tile_zero(0);
    _tile_zero(1);
    _tile_loadd(2, tile->inputs, GROUP);
    _tile_loadd(3, weights, 4 * PANEL);
    _tile_loadd(4, weights + 4 * LANES, 4 * PANEL);
    _tile_dpbsud(0, 2, 3);
    _tile_dpbsud(1, 2, 4);
    _tile_stored(0, products[0], 4 * LANES);
    _tile_stored(1, products[1], 4 * LANES);
    for (int t = 0; t < TILE_TOKENS; t++) {
      integers start = all_integers(tile->start[t]);
      for (int j = 0; j < 2; j++)
        add_scaled(tile->scale[t], start + load_integers(products[j][t]), b.sums + t * PANEL + j * LANES);
    }
  }
}
#else
static const int tiles_granted = 0;
static void start_tiles(void) {}
static void stop_tiles(void) {}
static void multiply_tiles(GroupBlock b) { (void)b; }
#endif
