// Selective scan for CPUs, float32, channels last.  Plain C interface, compiled on first use by scan_cpu.py.
//
// Vectors run over channels, with GCC's and clang's portable vector types: 16 lanes where AVX-512 is, else 8 (AVX) or
// 4 (NEON, SSE).  The N states of W channels stay in registers.  Never compile with -ffast-math: it deletes the
// rounding step of exp2 below.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512F__)
#define W 16
#elif defined(__AVX__)
#define W 8
#else
#define W 4
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));

static const int CHUNK = 32;  // tokens between two states kept for the backward pass

static inline vf splat(float v) { return vf{} + v; }

// 2^v by an integer exponent and a polynomial of degree 6 in [-1/2, 1/2]; relative error 1e-7, exact at 0.  NaN stays
// NaN; below 2^-126 it gives 2^-126, from 2^128 on infinity.
static inline vf exp2v(vf v) {
  const vf low = splat(-126.0f), high = splat(128.0f), magic = splat(12582912.0f);  // 1.5 * 2^23
  v = v < low ? low : v;
  v = v > high ? high : v;
  vf shifted = v + magic;
  vf f = v - (shifted - magic);
  vf p = splat(1.535336188319500e-4f) * f + splat(1.339887440266574e-3f);
  p = p * f + splat(9.618437357674640e-3f);
  p = p * f + splat(5.550332471162809e-2f);
  p = p * f + splat(2.402264791363012e-1f);
  p = p * f + splat(6.931472028550421e-1f);
  p = p * f + splat(1.0f);
  vu n;
  std::memcpy(&n, &shifted, sizeof n);
  n = (n + 127) << 23;  // the low bits of shifted hold the integer; higher ones leave with the shift
  vf scale;
  std::memcpy(&scale, &n, sizeof n);
  return p * scale;
}

static inline vf load(const float* p, int lanes) {
  vf v{};
  if (lanes == W) std::memcpy(&v, p, sizeof v);
  else std::memcpy(&v, p, lanes * sizeof(float));
  return v;
}

static inline void store(float* p, vf v, int lanes) {
  if (lanes == W) std::memcpy(p, &v, sizeof v);
  else std::memcpy(p, &v, lanes * sizeof(float));
}

static inline float sum(vf v) {
  float s[W];
  std::memcpy(s, &v, sizeof v);
  for (int half = W / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) s[i] += s[i + half];
  return s[0];
}

struct Sizes {
  int64_t batch, length, channels, states;
  bool reverse;
  int64_t blocks() const { return (channels + W - 1) / W; }
  int64_t chunks() const { return (length + CHUNK - 1) / CHUNK; }
  int64_t token(int64_t b, int64_t i) const { return b * length + (reverse ? length - 1 - i : i); }  // in scan order
};

// Channels [e, e + lanes) of A times factor, one vector per state.
static void load_a(const float* A, const Sizes& s, int64_t e, int lanes, float factor, vf* out) {
  for (int64_t n = 0; n < s.states; ++n) {
    float column[W] = {};
    for (int i = 0; i < lanes; ++i) column[i] = A[(e + i) * s.states + n] * factor;
    std::memcpy(&out[n], column, sizeof column);
  }
}

static const float LOG2E = 1.44269504088896341f;

// One block of channels of sequence b.  NS is the number of states, 0 if only known at run time.
template <int NS>
static void forward_block(const float* x, const float* dt, const float* A, const float* B, const float* C,
                          const float* D, float* y, float* kept, const Sizes& s, int64_t b, int64_t block) {
  const int64_t N = NS ? NS : s.states, E = s.channels, e = block * W;
  const int lanes = E - e < W ? int(E - e) : W;
  std::vector<vf> buffer(NS ? 0 : 2 * N);
  vf fixed[NS ? 2 * NS : 1];
  vf *a2 = NS ? fixed : buffer.data(), *h = a2 + N;
  load_a(A, s, e, lanes, LOG2E, a2);
  for (int64_t n = 0; n < N; ++n) h[n] = vf{};
  const vf d = load(D + e, lanes);
  for (int64_t i = 0; i < s.length; ++i) {
    if (kept && i % CHUNK == 0)
      std::memcpy(kept + ((b * s.blocks() + block) * s.chunks() + i / CHUNK) * N * W, h, N * sizeof(vf));
    const int64_t row = s.token(b, i);
    const vf xt = load(x + row * E + e, lanes), delta = load(dt + row * E + e, lanes), u = delta * xt;
    const float *bt = B + row * N, *ct = C + row * N;
    vf even = d * xt, odd = vf{};
    for (int64_t n = 0; n + 1 < N; n += 2) {
      h[n] = exp2v(delta * a2[n]) * h[n] + u * bt[n];
      even += h[n] * ct[n];
      h[n + 1] = exp2v(delta * a2[n + 1]) * h[n + 1] + u * bt[n + 1];
      odd += h[n + 1] * ct[n + 1];
    }
    if (N % 2) {
      h[N - 1] = exp2v(delta * a2[N - 1]) * h[N - 1] + u * bt[N - 1];
      even += h[N - 1] * ct[N - 1];
    }
    store(y + row * E + e, even + odd, lanes);
  }
}

// Adjoint of blocks [first, last) of sequence b, chunk by chunk from the end: all blocks pass through a chunk before the
// next, so that the sums over channels (gB, gC) are taken lane by lane and reduced once per chunk.
template <int NS>
static void backward_blocks(const float* x, const float* dt, const float* A, const float* B, const float* C,
                            const float* D, const float* kept, const float* gy, float* gx, float* gdt, float* gA,
                            float* gB, float* gC, float* gD, const Sizes& s, int64_t b, int64_t first, int64_t last) {
  const int64_t N = NS ? NS : s.states, E = s.channels, count = last - first;
  // Per block: A log2(e), A, adjoint of the state, gradient of A.  Per token of a chunk: decay, state before, gB, gC.
  // The gradients of A and D are summed within a chunk first, so that rounding errors grow with its length only.
  std::vector<vf> buffer(4 * count * N + count + 4 * CHUNK * N + 2 * N);
  vf *per_block = buffer.data(), *gd = per_block + 4 * count * N, *decay = gd + count, *before = decay + CHUNK * N;
  vf *gb = before + (CHUNK + 1) * N, *gc = gb + CHUNK * N, *ga = gc + CHUNK * N;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t e = (first + k) * W;
    const int lanes = E - e < W ? int(E - e) : W;
    load_a(A, s, e, lanes, LOG2E, per_block + 4 * k * N);
    load_a(A, s, e, lanes, 1.0f, per_block + (4 * k + 1) * N);
  }
  for (int64_t chunk = s.chunks() - 1; chunk >= 0; --chunk) {
    const int64_t start = chunk * CHUNK, steps = s.length - start < CHUNK ? s.length - start : CHUNK;
    for (int64_t i = 0; i < 2 * CHUNK * N; ++i) gb[i] = vf{};
    for (int64_t k = 0; k < count; ++k) {
      const int64_t e = (first + k) * W;
      const int lanes = E - e < W ? int(E - e) : W;
      const vf *a2 = per_block + 4 * k * N, *a = a2 + N;
      vf *g = per_block + (4 * k + 2) * N, *ga_total = g + N;
      for (int64_t n = 0; n < N; ++n) ga[n] = vf{};
      std::memcpy(before, kept + ((b * s.blocks() + first + k) * s.chunks() + chunk) * N * W, N * sizeof(vf));
      for (int64_t i = 0; i < steps; ++i) {
        const int64_t row = s.token(b, start + i);
        const vf delta = load(dt + row * E + e, lanes), u = delta * load(x + row * E + e, lanes);
        const float* bt = B + row * N;
        vf* at = decay + i * N;
        const vf* h = before + i * N;
        vf* next = before + (i + 1) * N;
        for (int64_t n = 0; n < N; ++n) {
          at[n] = exp2v(delta * a2[n]);
          next[n] = at[n] * h[n] + u * bt[n];
        }
      }
      const vf d = load(D + e, lanes);
      vf gdk{};
      for (int64_t i = steps - 1; i >= 0; --i) {
        const int64_t row = s.token(b, start + i);
        const vf xt = load(x + row * E + e, lanes), delta = load(dt + row * E + e, lanes), u = delta * xt;
        const vf out = load(gy + row * E + e, lanes);
        const float *bt = B + row * N, *ct = C + row * N;
        const vf *at = decay + i * N, *h = before + i * N, *next = h + N;
        vf *gbt = gb + i * N, *gct = gc + i * N, gu = vf{}, gdelta = vf{};
        for (int64_t n = 0; n < N; ++n) {
          const vf gn = g[n] + out * ct[n];
          gct[n] += out * next[n];
          gbt[n] += gn * u;
          gu += gn * bt[n];
          g[n] = gn * at[n];
          const vf r = g[n] * h[n];
          gdelta += r * a[n];
          ga[n] += r * delta;
        }
        store(gx + row * E + e, d * out + delta * gu, lanes);
        store(gdt + row * E + e, gdelta + xt * gu, lanes);
        gdk += out * xt;
      }
      gd[k] += gdk;
      for (int64_t n = 0; n < N; ++n) ga_total[n] += ga[n];
    }
    for (int64_t i = 0; i < steps; ++i)
      for (int64_t n = 0; n < N; ++n) {
        gB[s.token(b, start + i) * N + n] = sum(gb[i * N + n]);
        gC[s.token(b, start + i) * N + n] = sum(gc[i * N + n]);
      }
  }
  for (int64_t k = 0; k < count; ++k) {
    const int64_t e = (first + k) * W;
    const int lanes = E - e < W ? int(E - e) : W;
    const vf* total = per_block + (4 * k + 3) * N;
    for (int64_t n = 0; n < N; ++n)
      for (int i = 0; i < lanes; ++i) gA[(b * E + e + i) * N + n] = total[n][i];
    store(gD + b * E + e, gd[k], lanes);
  }
}

extern "C" {

// Number of floats of the states that scan_forward keeps for scan_backward.
int64_t scan_kept(int64_t batch, int64_t length, int64_t channels, int64_t states) {
  const Sizes s{batch, length, channels, states, false};
  return batch * s.blocks() * s.chunks() * states * W;
}

// x, dt, y [batch, length, channels]; A [channels, states]; B, C [batch, length, states]; D [channels].
// kept: scan_kept() floats, or null where no gradient will be asked for.
void scan_forward(const float* x, const float* dt, const float* A, const float* B, const float* C, const float* D,
                  float* y, float* kept, int64_t batch, int64_t length, int64_t channels, int64_t states, int reverse,
                  int threads) {
  const Sizes s{batch, length, channels, states, reverse != 0};
  const int64_t blocks = s.blocks();
  (void)threads;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && batch * blocks > 1)
  for (int64_t task = 0; task < batch * blocks; ++task) {
    const int64_t b = task / blocks, block = task % blocks;
    if (states == 16) forward_block<16>(x, dt, A, B, C, D, y, kept, s, b, block);
    else if (states == 8) forward_block<8>(x, dt, A, B, C, D, y, kept, s, b, block);
    else forward_block<0>(x, dt, A, B, C, D, y, kept, s, b, block);
  }
}

// gx, gdt like x; gA [batch, channels, states] and gD [batch, channels], to be summed over the batch;
// gB, gC [groups, batch, length, states], to be summed over the groups of channels that were worked on apart.
void scan_backward(const float* x, const float* dt, const float* A, const float* B, const float* C, const float* D,
                   const float* kept, const float* gy, float* gx, float* gdt, float* gA, float* gB, float* gC,
                   float* gD, int64_t groups, int64_t batch, int64_t length, int64_t channels, int64_t states,
                   int reverse, int threads) {
  const Sizes s{batch, length, channels, states, reverse != 0};
  const int64_t blocks = s.blocks();
  (void)threads;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && batch * groups > 1)
  for (int64_t task = 0; task < batch * groups; ++task) {
    const int64_t b = task / groups, group = task % groups;
    const int64_t first = group * blocks / groups, last = (group + 1) * blocks / groups;
    float *gb = gB + group * batch * length * states, *gc = gC + group * batch * length * states;
    if (states == 16)
      backward_blocks<16>(x, dt, A, B, C, D, kept, gy, gx, gdt, gA, gb, gc, gD, s, b, first, last);
    else if (states == 8)
      backward_blocks<8>(x, dt, A, B, C, D, kept, gy, gx, gdt, gA, gb, gc, gD, s, b, first, last);
    else
      backward_blocks<0>(x, dt, A, B, C, D, kept, gy, gx, gdt, gA, gb, gc, gD, s, b, first, last);
  }
}
}
