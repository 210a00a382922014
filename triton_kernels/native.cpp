// A packed network as a list of steps, run image by image in one call (see native.py, which makes the list).
//
// Between two steps live uint8 codes in NHWC with a border of the code for zero, and float32 NHWC where a residual needs
// it. Integer sums are exact; every float operation is rounded as in reference.py (compile with -ffp-contract=off).
//
// A convolution walks its kernel in chunks of `chunk` consecutive input bytes: one row of the kernel is kw * C
// consecutive bytes of an NHWC image. Weights lie as [block of 16 outputs][chunk][chunk / 4][16 outputs][4 bytes], which
// is both what the AMX tiles and what the VNNI dot product take.
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define AVX512 1
#if defined(__AVX512VNNI__)
#define VNNI 1
#endif
#if defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define AMX 1
#endif
#endif

namespace {

enum Kind : int32_t { QUANTIZE, CONV, DEPTHWISE, ADD, MEAN, MAX_POOL, PAD_SHORTCUT };
enum Isa : int32_t { PLAIN, USE_VNNI, USE_AMX };

struct Place {  // a tensor: offset of image 0 in the arena, or an external tensor (base = its number)
    int64_t base;  // -1: arena
    int64_t offset;
};

struct Codes {  // one quantized form of a step's output
    int64_t offset;
    int32_t border, zero_point, qmin, qmax, binary;
    float inverse;
};

struct Step {
    int32_t kind, relu, height, width, channels, out_height, out_width, out_channels;
    int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int32_t in_border, chunk, chunks, blocks, n_codes, has_residual, has_float, unused;
    int64_t strides[4];  // of a float input: image, channel, row, column, in elements
    Place in, residual, out;
    const int8_t* weight;
    const int32_t* correction;  // [blocks * 16], minus zero point times the sum of the weights
    const float* scale;         // [blocks * 16]
    const float* bias;          // [blocks * 16]
    const int32_t* chunk_offset;
    const int32_t* block;  // [blocks][3]: first output channel, number of channels, offset of the first input channel
    Codes codes[8];
};

struct Run {
    uint8_t* arena;
    uint8_t* const* external;
    const int64_t* external_stride;  // bytes from one image to the next
    int64_t image;
    int32_t isa;

    template <class T>
    T* at(const Place& p) const {
        if (p.base < 0) return reinterpret_cast<T*>(arena + p.offset);
        return reinterpret_cast<T*>(external[p.base] + image * external_stride[p.base] + p.offset);
    }
};

constexpr int LANES = 16;

// ---- what follows an accumulator: scale, bias, residual, ReLU, then the float and the coded outputs ----

inline uint8_t code_of(float y, const Codes& c) {
    if (c.binary) return y >= 0 ? c.zero_point + 1 : c.zero_point - 1;
    const float q = std::nearbyint(y * c.inverse) + float(c.zero_point);
    if (!(q == q)) return c.zero_point;
    return uint8_t(std::fmin(std::fmax(q, float(c.qmin)), float(c.qmax)));
}

#ifdef AVX512
// The same for sixteen floats. Clamping before rounding gives the same codes, because the limits are integers.
struct Coder {
    __m512 inverse, low, high;
    __m512i zero, minus, plus;
    bool binary, from_zero;

    explicit Coder(const Codes& c)
        : inverse(_mm512_set1_ps(c.inverse)),
          low(_mm512_set1_ps(float(c.qmin - c.zero_point))),
          high(_mm512_set1_ps(float(c.qmax - c.zero_point))),
          zero(_mm512_set1_epi32(c.zero_point)),
          minus(_mm512_set1_epi32(c.zero_point - 1)),
          plus(_mm512_set1_epi32(c.zero_point + 1)),
          binary(c.binary),
          from_zero(!c.binary && c.zero_point == 0 && c.qmin == 0) {}

    template <bool NUMBER = false>  // whether y is known not to be NaN
    __m128i code(__m512 y) const {
        if (binary)
            return _mm512_cvtepi32_epi8(
                _mm512_mask_blend_epi32(_mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_GE_OQ), minus, plus));
        const __m512i q = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(y * inverse, low), high));
        const __mmask16 number = NUMBER ? 0xffff : _mm512_cmp_ps_mask(y, y, _CMP_ORD_Q);
        return _mm512_cvtepi32_epi8(_mm512_mask_add_epi32(zero, number, q, zero));
    }
};
#endif

inline void encode(const float* value, int64_t n, const Codes& c, uint8_t* code) {
#ifdef AVX512
    const Coder coder(c);
    for (int64_t j = 0; j < n; j += LANES) {
        const __mmask16 mask = n - j < LANES ? (1u << (n - j)) - 1 : 0xffff;
        _mm_mask_storeu_epi8(code + j, mask, coder.code(_mm512_maskz_loadu_ps(mask, value + j)));
    }
#else
    for (int64_t j = 0; j < n; ++j) code[j] = code_of(value[j], c);
#endif
}

inline int64_t pixel_at(const Step& s, int y, int x) { return ((int64_t)y * s.out_width + x) * s.out_channels; }

inline uint8_t* code_at(const Run& run, const Step& s, const Codes& c, int y, int x) {
    return run.arena + c.offset +
           ((int64_t)(y + c.border) * (s.out_width + 2 * c.border) + x + c.border) * s.out_channels;
}

// Hand on `n` floats that start at a channel of a pixel; they may go on into the pixels right of it.
inline void emit(const Run& run, const Step& s, int y, int x, int channel, int64_t n, const float* value) {
    if (s.has_float) std::memcpy(run.at<float>(s.out) + pixel_at(s, y, x) + channel, value, n * sizeof(float));
    for (int i = 0; i < s.n_codes; ++i) encode(value, n, s.codes[i], code_at(run, s, s.codes[i], y, x) + channel);
}

// `n` neighbouring pixels of one block of output channels. sums: int32 [n][16], the correction for the zero point in them.
#ifdef AVX512
// Four pixels of sixteen codes each whose range begins with the zero point 0, to which NaN goes too.
inline void store_codes(const __m512 (&y)[4], const Coder& c, uint8_t* code, int64_t apart) {
    __m512i q[4];
    for (int p = 0; p < 4; ++p)  // _mm512_max_ps gives its second argument where one is NaN
        q[p] = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(y[p] * c.inverse, _mm512_setzero_ps()), c.high));
    const __m512i mixed = _mm512_packus_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i codes = _mm512_permutexvar_epi32(order, mixed);
    if (apart == LANES) return _mm512_storeu_si512(code, codes);
    _mm_storeu_si128((__m128i*)code, _mm512_castsi512_si128(codes));
    _mm_storeu_si128((__m128i*)(code + apart), _mm512_extracti32x4_epi32(codes, 1));
    _mm_storeu_si128((__m128i*)(code + 2 * apart), _mm512_extracti32x4_epi32(codes, 2));
    _mm_storeu_si128((__m128i*)(code + 3 * apart), _mm512_extracti32x4_epi32(codes, 3));
}

template <bool RESIDUAL, bool FLOAT, bool CODES>
void finish(const Run& run, const Step& s, const int32_t* sums, int block, int y, int x, int n) {
    const int channel = s.block[3 * block], at = block * LANES;
    const __mmask16 mask = (1u << s.block[3 * block + 1]) - 1;
    const __m512 scale = _mm512_loadu_ps(s.scale + at), bias = _mm512_loadu_ps(s.bias + at);
    const __m512 floor = s.relu ? _mm512_setzero_ps() : _mm512_set1_ps(-INFINITY);
    // scale and bias are finite, so that only a residual brings a NaN
    constexpr bool NUMBER = !RESIDUAL;
    const int64_t first = pixel_at(s, y, x) + channel;
    const float* residual = RESIDUAL ? run.at<float>(s.residual) + first : nullptr;
    float* out = FLOAT ? run.at<float>(s.out) + first : nullptr;
    uint8_t* code = CODES ? code_at(run, s, s.codes[0], y, x) + channel : nullptr;
    const Coder coder(s.codes[0]);
    auto value = [&] {
        __m512 v = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums)) * scale;
        v = v + bias;
        if (RESIDUAL) v = v + _mm512_maskz_loadu_ps(mask, residual), residual += s.out_channels;
        sums += LANES;
        return v;
    };
    int p = 0;
    if (CODES && s.n_codes == 1 && mask == 0xffff && coder.from_zero)
        for (; p + 4 <= n; p += 4) {
            __m512 v[4];
            for (int k = 0; k < 4; ++k) {
                v[k] = value();
                if (!FLOAT) continue;  // the codes' own range has ReLU in it
                v[k] = _mm512_max_ps(floor, v[k]);
                _mm512_storeu_ps(out, v[k]), out += s.out_channels;
            }
            store_codes(v, coder, code, s.out_channels), code += 4 * s.out_channels;
        }
    for (; p < n; ++p) {
        const __m512 v = _mm512_max_ps(floor, value());  // hands on a NaN
        if (FLOAT) _mm512_mask_storeu_ps(out, mask, v), out += s.out_channels;
        if (CODES) _mm_mask_storeu_epi8(code, mask, coder.code<NUMBER>(v)), code += s.out_channels;
        for (int i = 1; i < s.n_codes; ++i)
            _mm_mask_storeu_epi8(code_at(run, s, s.codes[i], y, x + p) + channel, mask, Coder(s.codes[i]).code<NUMBER>(v));
    }
}

void pixels(const Run& run, const Step& s, const int32_t* sums, int block, int y, int x, int n) {
    using Finish = void (*)(const Run&, const Step&, const int32_t*, int, int, int, int);
    static constexpr Finish table[8] = {
        finish<0, 0, 0>, finish<0, 0, 1>, finish<0, 1, 0>, finish<0, 1, 1>,
        finish<1, 0, 0>, finish<1, 0, 1>, finish<1, 1, 0>, finish<1, 1, 1>,
    };
    table[4 * s.has_residual + 2 * s.has_float + (s.n_codes > 0)](run, s, sums, block, y, x, n);
}
#else
void pixels(const Run& run, const Step& s, const int32_t* sums, int block, int y, int x, int n) {
    const int channel = s.block[3 * block], count = s.block[3 * block + 1], at = block * LANES;
    for (int p = 0; p < n; ++p, sums += LANES) {
        const float* residual = s.has_residual ? run.at<float>(s.residual) + pixel_at(s, y, x + p) + channel : nullptr;
        float value[LANES];
        for (int j = 0; j < count; ++j) {
            value[j] = float(sums[j]) * s.scale[at + j];
            value[j] = value[j] + s.bias[at + j];
            if (residual) value[j] = value[j] + residual[j];
            if (s.relu) value[j] = value[j] < 0 ? 0 : value[j];
        }
        emit(run, s, y, x + p, channel, count, value);
    }
}
#endif

// ---- the integer product: `rows` x `length` output pixels of 16 channels each ----

// Output pixels along which the input address moves evenly. With stride 1 the whole padded image is one such line, which
// fills the tiles of small images; its positions right of the image are computed and dropped.
struct Lines {
    int rows, length, pitch;  // pitch: positions to the next image row on a line, 0 when a line is a row
    int64_t row_bytes, step_bytes;

    explicit Lines(const Step& s) {
        const int padded = s.width + 2 * s.in_border;
        step_bytes = (int64_t)s.stride_w * s.channels;
        const bool whole = s.stride_h == 1 && s.stride_w == 1 &&
                           (s.out_height * padded + 15) / 16 < s.out_height * ((s.out_width + 15) / 16);
        rows = whole ? 1 : s.out_height;
        length = whole ? (s.out_height - 1) * padded + s.out_width : s.out_width;
        pitch = whole ? padded : 0;
        row_bytes = (int64_t)s.stride_h * padded * s.channels;
    }
};

// Finish the pixels [first, first + count) of a line that lie in the image.
void drain(const Run& run, const Step& s, const Lines& line, const int32_t* sums, int block, int row, int first,
           int count) {
    if (!line.pitch) return pixels(run, s, sums, block, row, first, count);
    for (int p = 0; p < count;) {
        const int y = (first + p) / line.pitch, x = (first + p) % line.pitch;
        const int n = line.pitch - x < count - p ? line.pitch - x : count - p;
        if (x < s.out_width) pixels(run, s, sums + p * LANES, block, y, x, n < s.out_width - x ? n : s.out_width - x);
        p += n;
    }
}

// Sums of one block of output channels over whole pixels, from what they start with: `start`, int32 [16].
void sums_plain(const Step& s, const uint8_t* in, int64_t step, const int8_t* weight, const int32_t* start, int count,
                int32_t* sums) {
    for (int p = 0; p < count; ++p, in += step, sums += LANES) {
        int32_t acc[LANES];
        std::memcpy(acc, start, sizeof acc);
        const int8_t* w = weight;
        for (int c = 0; c < s.chunks; ++c)
            for (int k = 0; k < s.chunk; k += 4, w += 4 * LANES)
                for (int j = 0; j < LANES; ++j)
                    for (int b = 0; b < 4; ++b) acc[j] += in[s.chunk_offset[c] + k + b] * w[4 * j + b];
        std::memcpy(sums, acc, sizeof acc);
    }
}

#ifdef VNNI
template <int PIXELS>
void sums_vnni(const Step& s, const uint8_t* in, int64_t step, const int8_t* weight, const int32_t* start,
               int32_t* sums) {
    __m512i acc[PIXELS];
    for (int p = 0; p < PIXELS; ++p) acc[p] = _mm512_loadu_si512(start);
    for (int c = 0; c < s.chunks; ++c) {
        const uint8_t* x = in + s.chunk_offset[c];
        for (int k = 0; k < s.chunk; k += 4, weight += 4 * LANES) {
            const __m512i w = _mm512_loadu_si512(weight);
            for (int p = 0; p < PIXELS; ++p) {
                int32_t four;
                std::memcpy(&four, x + p * step + k, 4);
                acc[p] = _mm512_dpbusd_epi32(acc[p], _mm512_set1_epi32(four), w);
            }
        }
    }
    for (int p = 0; p < PIXELS; ++p) _mm512_storeu_si512(sums + p * LANES, acc[p]);
}
#endif

void conv_vector(const Run& run, const Step& s) {
    const Lines line(s);
    const uint8_t* image = run.at<uint8_t>(s.in);
    const int64_t block_bytes = (int64_t)s.chunks * s.chunk * LANES;
    alignas(64) int32_t sums[16 * LANES];
    for (int b = 0; b < s.blocks; ++b)
        for (int row = 0; row < line.rows; ++row)
            for (int first = 0; first < line.length; first += 16) {
                const uint8_t* in = image + s.block[3 * b + 2] + row * line.row_bytes + first * line.step_bytes;
                const int count = line.length - first < 16 ? line.length - first : 16;
                const int8_t* weight = s.weight + b * block_bytes;
                const int32_t* start = s.correction + b * LANES;
#ifdef VNNI
                if (run.isa != PLAIN) {
                    int p = 0;  // the pixels past the line read the arena's slack, and are dropped
                    if (count > 8) sums_vnni<16>(s, in, line.step_bytes, weight, start, sums), p = 16;
                    else if (count > 1) sums_vnni<8>(s, in, line.step_bytes, weight, start, sums), p = 8;
                    if (p < count) sums_vnni<1>(s, in, line.step_bytes, weight, start, sums);
                } else
#endif
                    sums_plain(s, in, line.step_bytes, weight, start, count, sums);
                drain(run, s, line, sums, b, row, first, count);
            }
}

#ifdef AMX
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// tiles 0..3: sums of pixels x channels; 4, 5: pixels; 6, 7: weights
void configure(int chunk) {
    TileConfig config;
    for (int t = 0; t < 8; ++t) config.rows[t] = t < 6 ? 16 : chunk / 4, config.bytes[t] = t == 4 || t == 5 ? chunk : 64;
    _tile_loadconfig(&config);
}

// PIXELS x BLOCKS tiles of sums, four in all, so that four products are under way at a time. sums: [BLOCKS][PIXELS * 16][16]
template <int PIXELS, int BLOCKS>
void sums_amx(const Step& s, const uint8_t* const* in, int64_t step, const int8_t* weight, int64_t block_bytes,
              const int32_t* start, int32_t* sums) {
    static_assert(PIXELS * BLOCKS == 4);
    constexpr int SECOND = BLOCKS > 1 ? LANES : 0, TILE = 16 * LANES;
    // a stride of 0: every pixel starts with the same row
    _tile_loadd(0, start, 0);
    _tile_loadd(1, start, 0);
    _tile_loadd(2, start + SECOND, 0);
    _tile_loadd(3, start + SECOND, 0);
    for (int c = 0; c < s.chunks; ++c) {
        const int64_t offset = s.chunk_offset[c];
        const int8_t* w = weight + (int64_t)c * s.chunk * LANES;
        _tile_loadd(6, w, 64);
        if constexpr (BLOCKS > 1) _tile_loadd(7, w + block_bytes, 64);
        _tile_loadd(4, in[0] + offset, step);
        _tile_loadd(5, in[1] + offset, step);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 5, 6);
        if constexpr (BLOCKS > 1) {
            _tile_dpbusd(2, 4, 7);
            _tile_dpbusd(3, 5, 7);
        } else {
            _tile_loadd(4, in[2] + offset, step);
            _tile_loadd(5, in[3] + offset, step);
            _tile_dpbusd(2, 4, 6);
            _tile_dpbusd(3, 5, 6);
        }
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + TILE, 64);
    _tile_stored(2, sums + 2 * TILE, 64);
    _tile_stored(3, sums + 3 * TILE, 64);
}

void conv_amx(const Run& run, const Step& s) {
    const Lines line(s);
    const uint8_t* image = run.at<uint8_t>(s.in);
    const int64_t block_bytes = (int64_t)s.chunks * s.chunk * LANES;
    const int per_row = (line.length + 15) / 16, tiles = line.rows * per_row;
    alignas(64) int32_t sums[4][16 * LANES];
    configure(s.chunk);
    for (int b = 0, blocks; b < s.blocks; b += blocks) {
        blocks = 1 + (b + 1 < s.blocks && s.block[3 * b + 2] == s.block[3 * b + 5]);
        const int pixels = 4 / blocks;
        const int8_t* weight = s.weight + b * block_bytes;
        for (int tile = 0; tile < tiles; tile += pixels) {
            const int count = tiles - tile < pixels ? tiles - tile : pixels;
            const uint8_t* in[4];
            int row[4], first[4];
            for (int t = 0; t < pixels; ++t) {
                const int at = tile + (t < count ? t : 0);  // the missing ones repeat the first and are dropped
                row[t] = at / per_row, first[t] = at % per_row * 16;
                in[t] = image + s.block[3 * b + 2] + row[t] * line.row_bytes + first[t] * line.step_bytes;
            }
            (blocks > 1 ? sums_amx<2, 2> : sums_amx<4, 1>)(s, in, line.step_bytes, weight, block_bytes,
                                                            s.correction + b * LANES, sums[0]);
            for (int k = 0; k < blocks; ++k)
                for (int t = 0; t < count; ++t)
                    drain(run, s, line, sums[k * pixels + t], b + k, row[t], first[t],
                          line.length - first[t] < 16 ? line.length - first[t] : 16);
        }
    }
}
#endif

void conv(const Run& run, const Step& s) {
#ifdef AMX
    // a single pixel would leave 15 rows of every tile empty
    if (run.isa == USE_AMX && s.out_height * s.out_width > 1) return conv_amx(run, s);
#endif
    conv_vector(run, s);
}

// One input channel for one output channel: weight int8 [taps][channels], block as in a convolution.
void depthwise(const Run& run, const Step& s) {
    const uint8_t* image = run.at<uint8_t>(s.in);
    const int padded = s.width + 2 * s.in_border;
    for (int y = 0; y < s.out_height; ++y)
        for (int x = 0; x < s.out_width; ++x)
            for (int b = 0; b < s.blocks; ++b) {
                const int n = s.block[3 * b + 1];
                int32_t sums[LANES];
                std::memcpy(sums, s.correction + b * LANES, sizeof sums);
                const uint8_t* in = image + s.block[3 * b + 2] +
                                    ((int64_t)y * s.stride_h * padded + x * s.stride_w) * s.channels;
                for (int t = 0; t < s.chunks; ++t) {
                    const uint8_t* v = in + s.chunk_offset[t];
                    const int8_t* w = s.weight + (int64_t)t * s.channels + s.block[3 * b];
                    for (int j = 0; j < n; ++j) sums[j] += v[j] * w[j];
                }
                pixels(run, s, sums, b, y, x, 1);
            }
}

// ---- steps on floats ----

// A float tensor of any strides to NHWC floats and codes.
void quantize(const Run& run, const Step& s) {
    const float* in = run.at<float>(s.in);
    constexpr int MOST = 4096;
    float line[MOST];
    const int wide = s.channels < MOST ? MOST / s.channels : 1;
    for (int y = 0; y < s.out_height; ++y)
        for (int x = 0; x < s.out_width; x += wide)
            for (int c = 0; c < s.channels; c += MOST) {
                const int pixels = s.out_width - x < wide ? s.out_width - x : wide;
                const int n = s.channels - c < MOST ? s.channels - c : MOST;
                for (int j = 0; j < n; ++j) {
                    const float* at = in + y * s.strides[2] + x * s.strides[3] + (c + j) * s.strides[1];
                    for (int p = 0; p < pixels; ++p) line[p * n + j] = at[p * s.strides[3]];
                }
                emit(run, s, y, x, c, (int64_t)pixels * n, line);
            }
}

void add(const Run& run, const Step& s) {
    const float* in = run.at<float>(s.in);
    const float* other = s.has_residual ? run.at<float>(s.residual) : nullptr;
    float value[LANES];
    for (int y = 0; y < s.out_height; ++y)
        for (int x = 0; x < s.out_width; ++x)
            for (int c = 0; c < s.out_channels; c += LANES) {
                const int64_t at = ((int64_t)y * s.out_width + x) * s.out_channels + c;
                const int n = s.out_channels - c < LANES ? s.out_channels - c : LANES;
                for (int j = 0; j < n; ++j) {
                    value[j] = other ? in[at + j] + other[at + j] : in[at + j];
                    if (s.relu) value[j] = value[j] < 0 ? 0 : value[j];  // hands on a NaN
                }
                emit(run, s, y, x, c, n, value);
            }
}

// The mean over the image, summed in the order of PyTorch's own reduction (native/cpu/SumKernel.cpp, multi_row_sum).
void mean(const Run& run, const Step& s) {
    const float* in = run.at<float>(s.in);
    const int64_t size = (int64_t)s.height * s.width;
    int64_t log = 0;
    while ((int64_t(1) << log) < size) ++log;
    const int64_t power = log / 4 > 4 ? log / 4 : 4, step = int64_t(1) << power;
    for (int c = 0; c < s.channels; c += LANES) {
        const int n = s.channels - c < LANES ? s.channels - c : LANES;
        float acc[4][LANES] = {};
        int64_t i = 0;
        while (i + step <= size) {
            for (int64_t j = 0; j < step; ++j, ++i)
                for (int k = 0; k < n; ++k) acc[0][k] += in[i * s.channels + c + k];
            for (int j = 1; j < 4; ++j) {
                for (int k = 0; k < n; ++k) acc[j][k] += acc[j - 1][k], acc[j - 1][k] = 0;
                if (i & ((step - 1) << (j * power))) break;
            }
        }
        for (; i < size; ++i)
            for (int k = 0; k < n; ++k) acc[0][k] += in[i * s.channels + c + k];
        for (int j = 1; j < 4; ++j)
            for (int k = 0; k < n; ++k) acc[0][k] += acc[j][k];
        for (int k = 0; k < n; ++k) acc[0][k] /= float(size);
        emit(run, s, 0, 0, c, n, acc[0]);
    }
}

void max_pool(const Run& run, const Step& s) {
    const float* in = run.at<float>(s.in);
    for (int y = 0; y < s.out_height; ++y)
        for (int x = 0; x < s.out_width; ++x)
            for (int c = 0; c < s.channels; c += LANES) {
                const int n = s.channels - c < LANES ? s.channels - c : LANES;
                float best[LANES];
                for (int j = 0; j < LANES; ++j) best[j] = -INFINITY;
                for (int r = 0; r < s.kernel_h; ++r)
                    for (int q = 0; q < s.kernel_w; ++q) {
                        const int iy = y * s.stride_h + r * s.dilation_h - s.pad_h;
                        const int ix = x * s.stride_w + q * s.dilation_w - s.pad_w;
                        if (iy < 0 || ix < 0 || iy >= s.height || ix >= s.width) continue;
                        const float* at = in + ((int64_t)iy * s.width + ix) * s.channels + c;
                        for (int j = 0; j < n; ++j) best[j] = at[j] > best[j] || at[j] != at[j] ? at[j] : best[j];
                    }
                emit(run, s, y, x, c, n, best);
            }
}

// Option A of He et al. (2016): every stride-th pixel, with pad_w zero channels in front and the rest behind.
void pad_shortcut(const Run& run, const Step& s) {
    const float* in = run.at<float>(s.in);
    float value[LANES];
    for (int y = 0; y < s.out_height; ++y)
        for (int x = 0; x < s.out_width; ++x)
            for (int c = 0; c < s.out_channels; c += LANES) {
                const float* at = in + ((int64_t)y * s.stride_h * s.width + x * s.stride_w) * s.channels;
                const int n = s.out_channels - c < LANES ? s.out_channels - c : LANES;
                for (int j = 0; j < n; ++j) {
                    const int k = c + j - s.pad_w;
                    value[j] = k >= 0 && k < s.channels ? at[k] : 0;
                }
                emit(run, s, y, x, c, n, value);
            }
}

void fill_border(uint8_t* at, const Step& s, const Codes& c) {
    if (!c.border) return;
    const int64_t row = (int64_t)(s.out_width + 2 * c.border) * s.out_channels, side = (int64_t)c.border * s.out_channels;
    std::memset(at, c.zero_point, row * c.border + side);
    for (int y = c.border; y < c.border + s.out_height; ++y)
        std::memset(at + y * row + row - side, c.zero_point, y + 1 < c.border + s.out_height ? 2 * side : side);
    std::memset(at + (c.border + s.out_height) * row, c.zero_point, row * c.border);
}

void run_step(const Run& run, const Step& s) {
    for (int i = 0; i < s.n_codes; ++i) fill_border(run.arena + s.codes[i].offset, s, s.codes[i]);
    switch (s.kind) {
        case QUANTIZE: return quantize(run, s);
        case CONV: return conv(run, s);
        case DEPTHWISE: return depthwise(run, s);
        case ADD: return add(run, s);
        case MEAN: return mean(run, s);
        case MAX_POOL: return max_pool(run, s);
        case PAD_SHORTCUT: return pad_shortcut(run, s);
    }
}

}  // namespace

extern "C" {

int64_t tq_step_bytes() { return sizeof(Step); }

// The best instruction set that this library was compiled for and this process may use.
int32_t tq_isa() {
#ifdef AMX
    constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0) return USE_AMX;
#endif
#ifdef VNNI
    return USE_VNNI;
#endif
    return PLAIN;
}

// arenas: [threads][arena_bytes]; external: base addresses; external_stride: bytes from one image to the next.
void tq_run(const Step* steps, int32_t n_steps, int64_t images, uint8_t* arenas, int64_t arena_bytes,
            uint8_t* const* external, const int64_t* external_stride, int32_t threads, int32_t isa) {
    const int64_t share = (images + threads - 1) / threads;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int32_t t = 0; t < threads; ++t) {
        for (int64_t i = t * share; i < images && i < (t + 1) * share; ++i) {
            const Run run{arenas + t * arena_bytes, external, external_stride, i, isa};
            for (int32_t k = 0; k < n_steps; ++k) run_step(run, steps[k]);
        }
#ifdef AMX
        if (isa == USE_AMX) _tile_release();
#endif
    }
}
}
