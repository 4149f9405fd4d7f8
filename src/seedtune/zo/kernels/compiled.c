/* The noise contract for CPU tensors (`seedtune.zo.noise` defines it, `compiled.py` calls this).

   `compiled_vectors.h` holds all arithmetic and is included once for each vector width that the processor may have; which
   one runs is found out when the library is loaded. All give the same floats: nothing is fused, reordered or assumed.
   Not here: threads. Each thread calls the same function with one task and takes chunks of it until none is left. */

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#else
#pragma GCC optimize("O3", "fp-contract=off")
#endif
#ifdef __FAST_MATH__
#error "compiled without -ffast-math only: it changes the floats"
#endif
#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "made for little-endian processors"
#endif

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { FLOAT32, BFLOAT16, FLOAT16, NO_WEIGHTS }; /* NO_WEIGHTS: -0 in their place, as -0 + z is z; float32 out */
enum { RADEMACHER_STREAM, GAUSSIAN_STREAM, ROUNDING_STREAM };
enum { GRANULE = 128, BLOCK_GRANULES = 16, BLOCK = GRANULE * BLOCK_GRANULES, KEYS_AT_ONCE = 8 };

/* One call's work, as `compiled.py` packs it. `taken` counts the chunks given out; a chunk is `chunk` coordinates, or
   rows. `below`: where theta - mu z goes as well, or NULL. Update u is of the keys ends[u - 1] <= k < ends[u]. */
typedef struct {
  int64_t taken, chunk;
  char *out, *below, *weights;
  int64_t start, count, dtype, gaussian;
  const int64_t *rows;
  int64_t width;
  const uint64_t *keys;
  const float *factors;
  const int64_t *ends;
  const uint64_t *rounding_keys;
  int64_t num_updates;
  uint64_t key;
  float scale;
} Task;

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 32")
#define JOINED_(name, width) name##_##width
#define JOINED(name, width) JOINED_(name, width)
#define OF_WIDTH(name) JOINED(name, WIDTH)

#define WITHOUT_BLENDS(mask, yes, no) (((Words)(mask) & (Words)(yes)) | (~(Words)(mask) & (Words)(no)))

INLINE int64_t bytes_of(int64_t dtype) { return dtype == BFLOAT16 || dtype == FLOAT16 ? 2 : 4; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* The next chunk of a task's coordinates, cut where blocks end; 0 if none is left. */
static int next_chunk(Task *task, int64_t *first, int64_t *last) {
  int64_t at = task->start / BLOCK * BLOCK + __atomic_fetch_add(&task->taken, task->chunk, __ATOMIC_RELAXED);
  *first = larger(at, task->start);
  *last = smaller(at + task->chunk, task->start + task->count);
  return *first < *last;
}

#if defined(__x86_64__)

#define WIDTH 4
#define PRODUCT(a, b) (Longs)_mm_mul_epu32((__m128i)(a), (__m128i)(b))
#define ROOT(x) (Floats)_mm_sqrt_ps((__m128)(x))
#define CHOSEN(mask, yes, no) WITHOUT_BLENDS(mask, yes, no)
#include "compiled_vectors.h"

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
#define WIDTH 8
#define PRODUCT(a, b) (Longs)_mm256_mul_epu32((__m256i)(a), (__m256i)(b))
#define ROOT(x) (Floats)_mm256_sqrt_ps((__m256)(x))
#define CHOSEN(mask, yes, no) (Words)_mm256_blendv_epi8((__m256i)(no), (__m256i)(yes), (__m256i)(mask))
#include "compiled_vectors.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f")
#endif
#define WIDTH 16
#define PRODUCT(a, b) (Longs)_mm512_mul_epu32((__m512i)(a), (__m512i)(b))
#define ROOT(x) (Floats)_mm512_sqrt_ps((__m512)(x))
#define CHOSEN(mask, yes, no) (Words)_mm512_ternarylogic_epi32((__m512i)(mask), (__m512i)(yes), (__m512i)(no), 0xCA)
#include "compiled_vectors.h"
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static int widest(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") ? 16 : __builtin_cpu_supports("avx2") ? 8 : 4;
}

#else

#define WIDTH 4
#define CHOSEN(mask, yes, no) WITHOUT_BLENDS(mask, yes, no)
#if defined(__aarch64__)
#define PRODUCT(a, b) (Longs)vmull_u32(vmovn_u64((uint64x2_t)(a)), vmovn_u64((uint64x2_t)(b)))
#define ROOT(x) (Floats)vsqrtq_f32((float32x4_t)(x))
#else
#define PRODUCT(a, b) (((a) & 0xFFFFFFFF) * ((b) & 0xFFFFFFFF))
#define ROOT(x) (Floats){__builtin_sqrtf((x)[0]), __builtin_sqrtf((x)[1]), __builtin_sqrtf((x)[2]), __builtin_sqrtf((x)[3])}
#endif
#include "compiled_vectors.h"

static int widest(void) { return 4; }

#endif

#ifdef _WIN32
#define PUBLIC __declspec(dllexport)
#else
#define PUBLIC __attribute__((visibility("default")))
#endif

typedef void Entry(Task *);

/* The function of a name for vectors of `width` floats, 0 the widest that this processor has; NULL for a width that it
   has not, or another name. */
PUBLIC Entry *seedtune_entry(const char *name, int width) {
  width = width ? width : widest();
  if (width > widest()) return NULL;
#define FOUND(function, w) \
  if (width == w && !strcmp(name, #function)) return function##_##w;
#define ALL_FOUND(w) FOUND(perturb, w) FOUND(perturb_rows, w) FOUND(accumulate, w)
  ALL_FOUND(4)
#if defined(__x86_64__)
  ALL_FOUND(8) ALL_FOUND(16)
#endif
  return NULL;
}
