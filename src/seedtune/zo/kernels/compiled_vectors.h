/* All arithmetic of the noise contract for vectors of WIDTH floats; see `compiled.c`, which includes this for each width.

   Philox runs in 64-bit lanes whose upper halves are whatever a product left there: products read lower halves only. Two
   such vectors, of the even and of the odd counters, then interleave to WIDTH words in order. */

#define Floats OF_WIDTH(Floats)
#define Ints OF_WIDTH(Ints)
#define Words OF_WIDTH(Words)
#define Longs OF_WIDTH(Longs)
#define Halves OF_WIDTH(Halves)
#define Four OF_WIDTH(Four)
#define Rounds OF_WIDTH(Rounds)

typedef float Floats __attribute__((vector_size(4 * WIDTH), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * WIDTH), may_alias));
typedef uint64_t Longs __attribute__((vector_size(4 * WIDTH), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH), may_alias));
typedef struct { Words of[4]; } Four;
typedef struct { Longs k0[10], k1[10]; } Rounds;

#if WIDTH == 4
#define COUNTED(first, step) {(first), (first) + (step), (first) + 2 * (step), (first) + 3 * (step)}
#define EVEN {0, 2}
#elif WIDTH == 8
#define COUNTED(first, step) {(first), (first) + (step), (first) + 2 * (step), (first) + 3 * (step), \
    (first) + 4 * (step), (first) + 5 * (step), (first) + 6 * (step), (first) + 7 * (step)}
#define EVEN {0, 2, 4, 6}
#else
#define COUNTED(first, step) {(first), (first) + (step), (first) + 2 * (step), (first) + 3 * (step), \
    (first) + 4 * (step), (first) + 5 * (step), (first) + 6 * (step), (first) + 7 * (step), \
    (first) + 8 * (step), (first) + 9 * (step), (first) + 10 * (step), (first) + 11 * (step), \
    (first) + 12 * (step), (first) + 13 * (step), (first) + 14 * (step), (first) + 15 * (step)}
#define EVEN {0, 2, 4, 6, 8, 10, 12, 14}
#endif

/* Random bits */

/* A key's words as the ten rounds take them, in every lane. */
INLINE Rounds OF_WIDTH(rounds_of)(uint64_t key) {
  Rounds rounds;
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  for (int round = 0; round < 10; round++, k0 += 0x9E3779B9, k1 += 0xBB67AE85) {
    rounds.k0[round] = (Longs){0} + (uint64_t)k0;
    rounds.k1[round] = (Longs){0} + (uint64_t)k1;
  }
  return rounds;
}

INLINE void OF_WIDTH(philox)(Longs counter, uint64_t high, uint64_t stream, const Rounds *key, Longs words[4]) {
  Longs x0 = counter, x1 = (Longs){0} + high, x2 = (Longs){0} + stream, x3 = {0};
  const Longs m0 = (Longs){0} + 0xD2511F53, m1 = (Longs){0} + 0xCD9E8D57;
  UNROLLED
  for (int round = 0; round < 10; round++) {
    Longs low = PRODUCT(x0, m0), up = PRODUCT(x2, m1);
    x0 = (up >> 32) ^ x1 ^ key->k0[round];
    x2 = (low >> 32) ^ x3 ^ key->k1[round];
    x1 = up;
    x3 = low;
  }
  words[0] = x0;
  words[1] = x1;
  words[2] = x2;
  words[3] = x3;
}

/* Words of the counters first, ..., first + WIDTH - 1, of which none but the lower half differs. */
INLINE Four OF_WIDTH(words_at)(uint64_t first, uint64_t stream, const Rounds *key) {
  Longs even[4], odd[4], counter = (Longs)EVEN + (uint64_t)(uint32_t)first;
  Four words;
  OF_WIDTH(philox)(counter, first >> 32, stream, key, even);
  OF_WIDTH(philox)(counter + 1, first >> 32, stream, key, odd);
  UNROLLED
  for (int q = 0; q < 4; q++) words.of[q] = (Words)((even[q] & 0xFFFFFFFF) | (odd[q] << 32));
  return words;
}

/* Normal values */

INLINE Floats OF_WIDTH(radius)(Words a) {
  Floats u = (__builtin_convertvector((Ints)(a >> 1), Floats) + 0.5f) * 4.656612873077393e-10f;
  Ints pattern = (Ints)u, exponent = (pattern - 0x3F3504F3) >> 23;
  Floats f = (Floats)(pattern - (exponent << 23)) - 1.0f;
  Floats log = 7.0376836292e-2f * f + -1.1514610310e-1f;
  log = log * f + 1.1676998740e-1f;
  log = log * f + -1.2420140846e-1f;
  log = log * f + 1.4249322787e-1f;
  log = log * f + -1.6668057665e-1f;
  log = log * f + 2.0000714765e-1f;
  log = log * f + -2.4999993993e-1f;
  log = log * f + 3.3333331174e-1f;
  log = f * f * f * log - 0.5f * f * f + f + __builtin_convertvector(exponent, Floats) * 0.6931471805599453f;
  return ROOT(-2.0f * log);
}

INLINE void OF_WIDTH(box_muller)(Words a, Words b, Floats *first, Floats *second) {
  Words r = (Words)OF_WIDTH(radius)(a);
  Floats x = __builtin_convertvector((Ints)b >> 8, Floats) * 1.1920928955078125e-07f * 0.7853981633974483f;
  Floats s = x * x;
  Floats sine = x * (1.0f + s * (-1.6666654611e-1f + s * (8.3321608736e-3f + s * -1.9515295891e-4f)));
  Floats cosine = (1.0f - 0.5f * s) +
      s * s * (4.166664568298827e-2f + s * (-1.388731625493765e-3f + s * 2.443315711809948e-5f));
  Ints odd = (Ints)(b << 31) >> 31;
  Floats radius = (Floats)(r ^ ((b << 30) & 0x80000000));
  *first = radius * (Floats)CHOSEN(odd, cosine, sine);
  *second = radius * (Floats)CHOSEN(odd, (Words)sine ^ 0x80000000, cosine);
}

/* Float formats. float16 never passes through float32 numbers below 2^-126, so that a thread that flushes those to zero
   gives the same bits. */

INLINE Floats OF_WIDTH(from_float16)(Words half) {
  Ints magnitude = (Ints)(half & 0x7FFF);
  Floats small = __builtin_convertvector(magnitude, Floats) * 5.9604644775390625e-08f;
  Ints shifted = magnitude << 13;
  Words large = CHOSEN(magnitude >= 0x7C00, shifted | 0x7F800000, shifted + 0x38000000);
  return (Floats)(CHOSEN(magnitude < 0x400, small, large) ^ ((half & 0x8000) << 16));
}

INLINE Words OF_WIDTH(to_bfloat16)(Floats x) {
  Words upper = (Words)x >> 16, nearest = ((Words)x + 0x7FFF + (upper & 1)) >> 16;
  return CHOSEN(x != x, (upper & 0x8000) | 0x7FC0, nearest);
}

INLINE Words OF_WIDTH(to_float16)(Floats x) {
  Words magnitude = (Words)x & 0x7FFFFFFF, sign = (Words)x >> 16 & 0x8000;
  Ints normal = (Ints)((magnitude + 0xFFF + (magnitude >> 13 & 1)) >> 13) - (112 << 10);
  /* At 0.5 a float32 steps by 2^-24, the step of a small float16: the addition rounds. */
  Words small = (Words)((Floats)magnitude + 0.5f) - 0x3F000000;
  Words number = CHOSEN((Ints)magnitude < 0x38800000, small, CHOSEN(normal < 0x7C00, normal, (Words){0} + 0x7C00));
  return sign | CHOSEN((Ints)magnitude > 0x7F800000, (Words){0} + 0x7E00, number);
}

INLINE Words OF_WIDTH(to_bfloat16_stochastic)(Floats x, Words r) {
  Words magnitude = (Words)x & 0x7FFFFFFF, sign = (Words)x >> 16 & 0x8000, up = (magnitude + r) >> 16;
  Words rounded = sign | CHOSEN((Ints)up < 0x7F7F, up, (Words){0} + 0x7F7F);
  return CHOSEN((Ints)magnitude < 0x7F7F8000, rounded, OF_WIDTH(to_bfloat16)(x));
}

INLINE Words OF_WIDTH(to_float16_stochastic)(Floats x, Words r) {
  Words magnitude = (Words)x & 0x7FFFFFFF, sign = (Words)x >> 16 & 0x8000, part = r >> 3;
  Ints normal = (Ints)((magnitude + part) >> 13) - (112 << 10);
  Floats least = (Floats){0} + 6.103515625e-05f;
  Floats bounded = (Floats)CHOSEN((Floats)magnitude < least, magnitude, least) * 137438953472.0f;
  Words small = ((Words)__builtin_convertvector(bounded, Ints) + part) >> 13;
  Words large = CHOSEN(normal < 0x7BFF, normal, (Words){0} + 0x7BFF);
  Words rounded = sign | CHOSEN((Ints)magnitude < 0x38800000, small, large);
  return CHOSEN((Ints)magnitude < 0x477FF000, rounded, OF_WIDTH(to_float16)(x));
}

/* WIDTH neighbouring weights to float32 and back; `dtype` is a constant wherever this is inlined. */

INLINE Floats OF_WIDTH(loaded)(const char *weights, int64_t at, int dtype) {
  Floats x;
  Halves half;
  if (dtype == NO_WEIGHTS) return (Floats)((Words){0} + 0x80000000);
  if (dtype == FLOAT32) {
    memcpy(&x, weights + 4 * at, sizeof x);
    return x;
  }
  memcpy(&half, weights + 2 * at, sizeof half);
  Words word = __builtin_convertvector(half, Words);
  return dtype == BFLOAT16 ? (Floats)(word << 16) : OF_WIDTH(from_float16)(word);
}

INLINE void OF_WIDTH(stored_half)(char *out, int64_t at, Words bits) {
  Halves half = __builtin_convertvector(bits, Halves);
  memcpy(out + 2 * at, &half, sizeof half);
}

INLINE void OF_WIDTH(stored)(char *out, int64_t at, Floats x, int dtype) {
  if (dtype == BFLOAT16)
    OF_WIDTH(stored_half)(out, at, OF_WIDTH(to_bfloat16)(x));
  else if (dtype == FLOAT16)
    OF_WIDTH(stored_half)(out, at, OF_WIDTH(to_float16)(x));
  else
    memcpy(out + 4 * at, &x, sizeof x);
}

/* theta + c z, and theta - c z where `both`, of the granules first <= g < last of a block that begins at the pointers. */

INLINE void OF_WIDTH(moved)(char *out, char *below, const char *w, int64_t at, Floats step, int dtype, int both) {
  Floats theta = OF_WIDTH(loaded)(w, at, dtype);
  OF_WIDTH(stored)(out, at, theta + step, dtype);
  if (both) OF_WIDTH(stored)(below, at, theta - step, dtype);
}

INLINE void OF_WIDTH(perturb_rademacher)(
    char *out, char *below, const char *w, uint64_t granule, int first, int last, uint64_t key, float c, int dtype,
    int both) {
  uint32_t words[4][WIDTH];
  const Rounds rounds = OF_WIDTH(rounds_of)(key);
  const Words shifts = (Words)COUNTED(31, -1), step = (Words)((Floats){0} + c);
  for (int batch = first / WIDTH * WIDTH; batch < last; batch += WIDTH) {
    Four drawn = OF_WIDTH(words_at)(granule + batch, RADEMACHER_STREAM, &rounds);
    memcpy(words, &drawn, sizeof words);
    for (int g = larger(first, batch); g < smaller(last, batch + WIDTH); g++)
      for (int q = 0; q < 4; q++) {
        UNROLLED
        for (int p = 0; p < 32; p += WIDTH) {
          Words sign = (((Words){0} + words[q][g - batch]) << (shifts - p)) & 0x80000000;
          OF_WIDTH(moved)(out, below, w, g * GRANULE + q * 32 + p, (Floats)(step ^ sign), dtype, both);
        }
      }
  }
}

INLINE void OF_WIDTH(perturb_gaussian)(
    char *out, char *below, const char *w, uint64_t granule, int first, int last, uint64_t key, float c, int dtype,
    int both) {
  const Rounds rounds = OF_WIDTH(rounds_of)(key);
  for (int g = first; g < last; g++)
    for (int p = 0; p < 32; p += WIDTH) {
      Four drawn = OF_WIDTH(words_at)((granule + g) * 32 + p, GAUSSIAN_STREAM, &rounds);
      Floats z[4];
      OF_WIDTH(box_muller)(drawn.of[0], drawn.of[1], &z[0], &z[1]);
      OF_WIDTH(box_muller)(drawn.of[2], drawn.of[3], &z[2], &z[3]);
      UNROLLED
      for (int row = 0; row < 4; row++)
        OF_WIDTH(moved)(out, below, w, g * GRANULE + row * 32 + p, c * z[row], dtype, both);
    }
}

/* The same for a dtype and distribution that are known only here, so that each pair has loops of its own. */
static void OF_WIDTH(perturb_granules)(
    char *out, char *below, const char *w, uint64_t granule, int first, int last, uint64_t key, float c, int dtype,
    int gaussian) {
#define CASE(dtype_, gaussian_, both_, function) \
  if (dtype == dtype_ && !gaussian == !gaussian_ && !below == !both_) { \
    function(out, below, w, granule, first, last, key, c, dtype_, both_); \
    return; \
  }
#define CASES(dtype_) \
  CASE(dtype_, 0, 0, OF_WIDTH(perturb_rademacher)) CASE(dtype_, 0, 1, OF_WIDTH(perturb_rademacher)) \
  CASE(dtype_, 1, 0, OF_WIDTH(perturb_gaussian)) CASE(dtype_, 1, 1, OF_WIDTH(perturb_gaussian))
  CASES(FLOAT32) CASES(BFLOAT16) CASES(FLOAT16)
  CASE(NO_WEIGHTS, 0, 0, OF_WIDTH(perturb_rademacher)) CASE(NO_WEIGHTS, 1, 0, OF_WIDTH(perturb_gaussian))
#undef CASES
#undef CASE
}

/* Coordinates first <= i < last, whose weights begin at the pointers. A block of which only part of a granule is there
   goes through buffers that have room for whole ones. */
static void OF_WIDTH(perturb_range)(
    char *out, char *below, const char *w, int64_t first, int64_t last, uint64_t key, float c, int dtype, int gaussian) {
  const int64_t size = bytes_of(dtype);
  char room[3][4 * BLOCK];
  for (int64_t at = first; at < last;) {
    int64_t base = at / BLOCK * BLOCK, stop = smaller(last, base + BLOCK), low = at - base, high = stop - base;
    int64_t byte = (at - first) * size, length = (stop - at) * size, before = low * size;
    int from = low / GRANULE, to = (high + GRANULE - 1) / GRANULE;
    uint64_t granule = base / GRANULE;
    if (low % GRANULE == 0 && high % GRANULE == 0) {
      OF_WIDTH(perturb_granules)(
          out + byte - before, below ? below + byte - before : NULL, w + byte - before, granule, from, to, key, c,
          dtype, gaussian);
    } else {
      memset(room[2] + from * GRANULE * size, 0, (to - from) * GRANULE * size);
      if (dtype != NO_WEIGHTS) memcpy(room[2] + before, w + byte, length);
      OF_WIDTH(perturb_granules)(
          room[0], below ? room[1] : NULL, room[2], granule, from, to, key, c, dtype, gaussian);
      memcpy(out + byte, room[0] + before, length);
      if (below) memcpy(below + byte, room[1] + before, length);
    }
    at = stop;
  }
}

static void OF_WIDTH(perturb)(Task *task) {
  int64_t first, last, size = bytes_of(task->dtype);
  while (next_chunk(task, &first, &last)) {
    int64_t byte = (first - task->start) * size;
    OF_WIDTH(perturb_range)(
        task->out + byte, task->below ? task->below + byte : NULL, task->weights + byte, first, last, task->key,
        task->scale, task->dtype, task->gaussian);
  }
}

static void OF_WIDTH(perturb_rows)(Task *task) {
  int64_t length = task->width * bytes_of(task->dtype);
  for (;;) {
    int64_t first = __atomic_fetch_add(&task->taken, task->chunk, __ATOMIC_RELAXED);
    if (first >= task->count) return;
    for (int64_t n = first; n < smaller(first + task->chunk, task->count); n++) {
      int64_t row = task->rows[n], start = task->start + row * task->width;
      OF_WIDTH(perturb_range)(
          task->out + n * length, NULL, task->weights + row * length, start, start + task->width, task->key,
          task->scale, task->dtype, task->gaussian);
    }
  }
}

/* sum += c_k z_k, key after key, of the granules first <= g < last of a block of sums. */

INLINE void OF_WIDTH(add_rademacher)(
    float *sum, uint64_t granule, int first, int last, const uint64_t *keys, const float *factors, int num) {
  enum { AT_ONCE = 64 / WIDTH };
  uint32_t words[KEYS_AT_ONCE][4][WIDTH];
  const Words shifts = (Words)COUNTED(31, -1);
  Rounds rounds[KEYS_AT_ONCE];
  for (int k = 0; k < num; k++) rounds[k] = OF_WIDTH(rounds_of)(keys[k]);
  for (int batch = first / WIDTH * WIDTH; batch < last; batch += WIDTH) {
    for (int k = 0; k < num; k++) {
      Four drawn = OF_WIDTH(words_at)(granule + batch, RADEMACHER_STREAM, &rounds[k]);
      memcpy(words[k], &drawn, sizeof words[k]);
    }
    for (int g = larger(first, batch); g < smaller(last, batch + WIDTH); g++)
      for (int q = 0; q < 4; q += 2) {
        float *at = sum + g * GRANULE + q * 32;
        Floats total[AT_ONCE];
        UNROLLED
        for (int n = 0; n < AT_ONCE; n++) memcpy(&total[n], at + n * WIDTH, sizeof total[n]);
        for (int k = 0; k < num; k++) {
          const Words step = (Words)((Floats){0} + factors[k]);
          UNROLLED
          for (int n = 0; n < AT_ONCE; n++) {
            Words word = (Words){0} + words[k][q + n * WIDTH / 32][g - batch];
            total[n] += (Floats)(step ^ ((word << (shifts - n * WIDTH % 32)) & 0x80000000));
          }
        }
        UNROLLED
        for (int n = 0; n < AT_ONCE; n++) memcpy(at + n * WIDTH, &total[n], sizeof total[n]);
      }
  }
}

static void OF_WIDTH(add)(
    float *sum, uint64_t granule, int first, int last, const uint64_t *keys, const float *factors, int64_t num,
    int gaussian) {
  if (gaussian)
    for (int64_t k = 0; k < num; k++)
      OF_WIDTH(perturb_gaussian)(
          (char *)sum, NULL, (char *)sum, granule, first, last, keys[k], factors[k], FLOAT32, 0);
  else
    for (int64_t k = 0; k < num; k += KEYS_AT_ONCE)
      OF_WIDTH(add_rademacher)(sum, granule, first, last, keys + k, factors + k, smaller(num - k, KEYS_AT_ONCE));
}

/* A block's sums to its weights in 16 bits, rounded up with probability of the part cut off. */
INLINE void OF_WIDTH(round_granules)(
    char *w, const float *sum, uint64_t granule, int first, int last, uint64_t key, int dtype) {
  const Rounds rounds = OF_WIDTH(rounds_of)(key);
  for (int g = first; g < last; g++)
    for (int p = 0; p < 16; p += WIDTH) {
      Four drawn = OF_WIDTH(words_at)((granule + g) * 16 + p, ROUNDING_STREAM, &rounds);
      UNROLLED
      for (int h = 0; h < 8; h++) {
        int at = g * GRANULE + h * 16 + p;
        Words r = drawn.of[h / 2] >> (h % 2 * 16) & 0xFFFF;
        Floats x = OF_WIDTH(loaded)((const char *)sum, at, FLOAT32);
        OF_WIDTH(stored_half)(
            w, at, dtype == BFLOAT16 ? OF_WIDTH(to_bfloat16_stochastic)(x, r) : OF_WIDTH(to_float16_stochastic)(x, r));
      }
    }
}

/* All updates of the granules first <= g < last of a block that begins at the pointer. */
INLINE void OF_WIDTH(accumulate_granules)(
    char *w, uint64_t granule, int first, int last, const Task *task, int dtype) {
  float sum[BLOCK] __attribute__((aligned(64)));
  if (dtype == FLOAT32) { /* nothing is rounded between updates */
    int64_t num = task->num_updates ? task->ends[task->num_updates - 1] : 0;
    OF_WIDTH(add)((float *)w, granule, first, last, task->keys, task->factors, num, task->gaussian);
    return;
  }
  for (int64_t u = 0, k = 0; u < task->num_updates; k = task->ends[u++]) {
    for (int at = first * GRANULE; at < last * GRANULE; at += WIDTH) {
      Floats x = OF_WIDTH(loaded)(w, at, dtype);
      memcpy(sum + at, &x, sizeof x);
    }
    OF_WIDTH(add)(sum, granule, first, last, task->keys + k, task->factors + k, task->ends[u] - k, task->gaussian);
    OF_WIDTH(round_granules)(w, sum, granule, first, last, task->rounding_keys[u], dtype);
  }
}

/* Coordinates first <= i < last, whose weights begin at the pointer; parts of granules as in `perturb_range`. */
static void OF_WIDTH(accumulate_range)(const Task *task, char *w, int64_t first, int64_t last) {
  const int64_t size = bytes_of(task->dtype);
  char room[4 * BLOCK];
  for (int64_t at = first; at < last;) {
    int64_t base = at / BLOCK * BLOCK, stop = smaller(last, base + BLOCK), low = at - base, high = stop - base;
    int64_t before = low * size, length = (stop - at) * size;
    int from = low / GRANULE, to = (high + GRANULE - 1) / GRANULE, is_whole = low % GRANULE == 0 && high % GRANULE == 0;
    char *here = w + (at - first) * size, *block = is_whole ? here - before : room;
    if (!is_whole) {
      memset(room + from * GRANULE * size, 0, (to - from) * GRANULE * size);
      memcpy(room + before, here, length);
    }
    if (task->dtype == BFLOAT16)
      OF_WIDTH(accumulate_granules)(block, base / GRANULE, from, to, task, BFLOAT16);
    else if (task->dtype == FLOAT16)
      OF_WIDTH(accumulate_granules)(block, base / GRANULE, from, to, task, FLOAT16);
    else
      OF_WIDTH(accumulate_granules)(block, base / GRANULE, from, to, task, FLOAT32);
    if (!is_whole) memcpy(here, room + before, length);
    at = stop;
  }
}

static void OF_WIDTH(accumulate)(Task *task) {
  int64_t first, last, size = bytes_of(task->dtype);
  while (next_chunk(task, &first, &last))
    OF_WIDTH(accumulate_range)(task, task->weights + (first - task->start) * size, first, last);
}

#undef Floats
#undef Ints
#undef Words
#undef Longs
#undef Halves
#undef Four
#undef Rounds
#undef COUNTED
#undef EVEN
#undef WIDTH
#undef PRODUCT
#undef ROOT
#undef CHOSEN
