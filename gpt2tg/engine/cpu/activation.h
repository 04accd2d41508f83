/* Activation functions of the MLP, and the GELU with its slope for training. */

/* The GELU by tanh is x times a logistic function: 0.5 (1 + tanh(z)) = 1 / (1 + e^(-2z)), with
   z = sqrt(2 / pi) (x + 0.044715 x^3). */
#define TWICE_ROOT 1.59576912f /* 2 sqrt(2 / pi) */

/* Apply an activation in place: (PANEL). */
static void activate(float *x, int activation) {
  for (int i = 0; i < PANEL; i += LANES) {
    vector *v = (vector *)(x + i);
    if (activation == GELU_TANH)
      *v = *v / (1.0f + exponential(-TWICE_ROOT * (*v + 0.044715f * *v * *v * *v)));
    else if (activation == RELU)
      *v = choose(*v < 0.0f, (vector){0}, *v); /* NaN stays NaN */
    else if (activation == GELU)
      for (int j = i; j < i + LANES; j++) x[j] = 0.5f * x[j] * (1.0f + erff(x[j] * 0.70710678f));
  }
}

static inline void gelu_and_slope(vector x, vector *y, vector *slope) {
  vector share = 1.0f / (1.0f + exponential(-TWICE_ROOT * (x + 0.044715f * x * x * x)));
  *y = x * share;
  *slope = share + *y * (1.0f - share) * TWICE_ROOT * (1.0f + 0.134145f * x * x);
}

/* For training: the GELU by tanh of x (count), and its derivative there. */
void gelu(const float *x, int64_t count, float *y, float *slope, int32_t threads) {
  int64_t whole = count / LANES * LANES, rest = count - whole;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < whole; i += LANES)
    gelu_and_slope(*(const vector *)(x + i), (vector *)(y + i), (vector *)(slope + i));
  if (rest) {
    vector padded[3] = {{0}};
    memcpy(padded, x + whole, 4 * rest);
    gelu_and_slope(padded[0], padded + 1, padded + 2);
    memcpy(y + whole, padded + 1, 4 * rest);
    memcpy(slope + whole, padded + 2, 4 * rest);
  }
}
