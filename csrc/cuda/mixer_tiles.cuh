// Tiles of the mixer: 64 positions of 32 channels, between tensors whose channels lie together, (batch, seqlen, dim), and rows
// whose positions do, (batch, dim, seqlen). Both sides take 16 bytes at a time where they can: 64 bytes or more that lie
// together of every position, 128 of every row. In between lies a tile of float32 in shared memory, positions kTilePitch
// apart, which spreads channels of a position and every eighth position of a channel over the banks, two to one at most.
//
// A thread works on a strip, 8 positions of a channel: 8 neighbouring threads have the strips of a channel, the threads of a
// warp 4 channels. For monarch_mixer.cu and monarch_mixer_bwd.cu.
#pragma once
#include <cstring>

#include "element.cuh"
#include "monarch_mixer.h"
#include "short_taps.cuh"

namespace m2::cuda {

constexpr int kTilePositions = 64, kTileChannels = 32, kStrip = 8, kStrips = kTilePositions / kStrip;
constexpr int kTileThreads = kStrips * kTileChannels;
constexpr int kTilePitch = kTileChannels + 1;

using Strip = float[kStrip];

// Which tile, and of which tensors.
struct TilePlace {
  int64_t b;
  int first;        // position
  int64_t channel;  // the first of kTileChannels, of which those below dim exist
};

__host__ __device__ inline int64_t tiles_of(const MixerArgs& args) {  // of a group of channels
  return args.batch * ceil_div<int64_t>(args.seqlen, kTilePositions);
}
__host__ __device__ inline int64_t groups_of(const MixerArgs& args) { return ceil_div<int64_t>(args.dim, kTileChannels); }

__device__ __forceinline__ TilePlace tile_place(const MixerArgs& args, unsigned tile, unsigned group) {
  const unsigned tiles = unsigned(ceil_div<int64_t>(args.seqlen, kTilePositions));
  return {int64_t(tile / tiles), int(tile % tiles * kTilePositions), int64_t(group) * kTileChannels};
}

// The strip of this thread: its channel of the tile and the first of its positions.
__device__ __forceinline__ int strip_channel() { return thread_index_again() / kStrips; }
__device__ __forceinline__ int strip_position() { return thread_index_again() % kStrips * kStrip; }

__device__ __forceinline__ bool is_real(const MixerArgs& args, int64_t b, int t) {
  return t >= 0 && t < args.seqlen && (!args.mask || args.mask[b * args.seqlen + t]);
}

template <bool kNarrow>
constexpr int kPerQuad = kNarrow ? 8 : 4;

template <bool kNarrow>
__device__ __forceinline__ void unpack_quad(Element element, const Quad& quad, float* x) {
  M2_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (kNarrow) {
      x[2 * i] = widen<true>(element, uint16_t(quad.words[i]));
      x[2 * i + 1] = widen<true>(element, uint16_t(quad.words[i] >> 16));
    } else {
      memcpy(x + i, quad.words + i, sizeof(float));
    }
  }
}

template <bool kNarrow>
__device__ __forceinline__ Quad pack_quad(Element element, const float* x) {
  Quad quad;
  M2_UNROLL
  for (int i = 0; i < 4; ++i) {
    if constexpr (kNarrow)
      quad.words[i] = element == Element::f16 ? pack_half(x[2 * i], x[2 * i + 1]) : pack_bfloat(x[2 * i], x[2 * i + 1]);
    else
      memcpy(quad.words + i, x + i, sizeof(float));
  }
  return quad;
}

// The element of channel d and position t of a batch entry.
template <bool kNarrow>
__device__ __forceinline__ const Raw<kNarrow>* element_at(const AnyStrided<const void>& x, int64_t b, int64_t d, int t) {
  return static_cast<const Raw<kNarrow>*>(x.data) + b * x.stride_batch + d * x.stride_dim + t * x.stride_seq;
}
template <bool kNarrow>
__device__ __forceinline__ Raw<kNarrow>* element_at(const AnyStrided<void>& x, int64_t b, int64_t d, int t) {
  return static_cast<Raw<kNarrow>*>(x.data) + b * x.stride_batch + d * x.stride_dim + t * x.stride_seq;
}

// Calls run(position, channel) for this thread's share of kCount positions, kEach channels at a time.
template <int kCount, int kEach, class Run>
__device__ __forceinline__ void each_of_tile(const Run& run) {
  constexpr int kAcross = kTileChannels / kEach, kAll = kCount * kAcross;
  const int thread = thread_index_again();
  M2_UNROLL
  for (int first = 0; first < kAll; first += kTileThreads) {
    const int i = first + thread;
    if (i < kAll) run(i / kAcross, i % kAcross * kEach);
  }
}

// kCount positions of a tile on their way: fetch() starts the loads, all of a thread's together, put() waits for them. So
// several tiles can be under way at a time. Channels are place.channel + group * dim .. of x, positions first ..; what is not
// real becomes 0.
template <bool kNarrow, int kCount>
class TileLoad {
  static constexpr int kAcross = kTileChannels / kPerQuad<kNarrow>, kAll = kCount * kAcross;
  static constexpr int kRounds = ceil_div(kAll, kTileThreads);

 public:
  __device__ __forceinline__ void fetch(const MixerArgs& args, const AnyStrided<const void>& x, const TilePlace& place,
                                        int group, int first, bool packed) {
    if (!packed) return;
    const int thread = thread_index_again();
    M2_UNROLL
    for (int r = 0; r < kRounds; ++r) {
      const int i = r * kTileThreads + thread, t = first + i / kAcross, c = i % kAcross * kPerQuad<kNarrow>;
      real_[r] = i < kAll && place.channel + c < args.dim && t >= 0 && t < args.seqlen;
      quads_[r] = {};
      if (!real_[r]) continue;
      quads_[r] = load_readonly(
          reinterpret_cast<const Quad*>(element_at<kNarrow>(x, place.b, place.channel + group * args.dim + c, t)));
      if (args.mask) real_[r] = args.mask[place.b * args.seqlen + t];
    }
  }
  // Arguments as before, and the tile at `at`.
  __device__ __forceinline__ void put(const MixerArgs& args, const AnyStrided<const void>& x, const TilePlace& place,
                                      int group, int first, bool packed, const SharedArray<float>& floats, int at) {
    if (!packed) return copy_elements(args, x, place, group, first, floats, at);
    const int thread = thread_index_again();
    M2_UNROLL
    for (int r = 0; r < kRounds; ++r) {
      const int i = r * kTileThreads + thread, to = at + i / kAcross * kTilePitch + i % kAcross * kPerQuad<kNarrow>;
      if (i >= kAll) continue;
      float values[kPerQuad<kNarrow>];
      unpack_quad<kNarrow>(args.element, quads_[r], values);
      M2_UNROLL
      for (int k = 0; k < kPerQuad<kNarrow>; ++k) floats.store(to + k, real_[r] ? values[k] : 0.0f);
    }
  }

 private:
  static __device__ __forceinline__ void copy_elements(const MixerArgs& args, const AnyStrided<const void>& x,
                                                       const TilePlace& place, int group, int first,
                                                       const SharedArray<float>& floats, int at) {
    const int thread = thread_index_again(), c = thread % kTileChannels;
    const int64_t channel = place.channel + group * args.dim + c;
    M2_NO_UNROLL
    for (int t = thread / kTileChannels; t < kCount; t += kTileThreads / kTileChannels) {
      float value = 0.0f;
      if (place.channel + c < args.dim && is_real(args, place.b, first + t))
        value = read_element<kNarrow>(args.element, element_at<kNarrow>(x, place.b, channel, first + t), 0);
      floats.store(at + t * kTilePitch + c, value);
    }
  }

  Quad quads_[kRounds];
  bool real_[kRounds];
};

// The tile at `at` to its positions and channels of x; 0 where nothing is real.
template <bool kNarrow>
__device__ __forceinline__ void store_tile(const MixerArgs& args, const AnyStrided<void>& x, const TilePlace& place,
                                           int group, bool packed, const SharedArray<float>& floats, int at) {
  const int64_t channel = place.channel + group * args.dim;
  if (packed) {
    each_of_tile<kTilePositions, kPerQuad<kNarrow>>([&](int t, int c) {
      if (place.channel + c >= args.dim || place.first + t >= args.seqlen) return;
      const bool real = is_real(args, place.b, place.first + t);
      float values[kPerQuad<kNarrow>];
      M2_UNROLL
      for (int i = 0; i < kPerQuad<kNarrow>; ++i) values[i] = real ? floats.load(at + t * kTilePitch + c + i) : 0.0f;
      store_quad(reinterpret_cast<Quad*>(element_at<kNarrow>(x, place.b, channel + c, place.first + t)),
                 pack_quad<kNarrow>(args.element, values));
    });
  } else {
    const int thread = thread_index_again(), c = thread % kTileChannels;
    M2_NO_UNROLL
    for (int t = thread / kTileChannels; t < kTilePositions; t += kTileThreads / kTileChannels) {
      if (place.channel + c >= args.dim || place.first + t >= args.seqlen) continue;
      const float value = is_real(args, place.b, place.first + t) ? floats.load(at + t * kTilePitch + c) : 0.0f;
      write_element<kNarrow>(args.element, element_at<kNarrow>(x, place.b, channel + c, place.first + t), 0, value);
    }
  }
}

// Positions t .. t + 7 of channel d of rows on their way, as TileLoad; what does not exist, and all of no rows, becomes 0.
// kNarrow: tensors have 16 bits; without that no rows have.
template <bool kNarrow>
class StripLoad {
 public:
  __device__ __forceinline__ void fetch(const MixerArgs& args, const Rows<const void>& rows, int64_t b, int64_t d, int t,
                                        bool packed) {
    quads_[0] = quads_[1] = {};
    if (!packed || !rows.data || d >= args.dim) return;
    const int64_t at = (b * args.dim + d) * args.seqlen + t;
    if (kNarrow && rows.element != Element::f32) {
      if (t < args.seqlen) quads_[0] = load_readonly(reinterpret_cast<const Quad*>(static_cast<const uint16_t*>(rows.data) + at));
    } else {
      const Quad* from = reinterpret_cast<const Quad*>(static_cast<const float*>(rows.data) + at);
      if (t < args.seqlen) quads_[0] = load_readonly(from);
      if (t + 4 < args.seqlen) quads_[1] = load_readonly(from + 1);
    }
  }
  __device__ __forceinline__ void get(const MixerArgs& args, const Rows<const void>& rows, int64_t b, int64_t d, int t,
                                      bool packed, Strip& x) const {
    const bool narrow = kNarrow && rows.element != Element::f32, exists = rows.data && d < args.dim;
    if (!packed) {
      const int64_t at = (b * args.dim + d) * args.seqlen + t;
      M2_UNROLL
      for (int i = 0; i < kStrip; ++i) {
        x[i] = 0.0f;
        if (exists && t + i < args.seqlen)
          x[i] = narrow ? read_element<true>(args.element, rows.data, at + i)
                        : read_element<false>(Element::f32, rows.data, at + i);
      }
    } else if (narrow) {
      unpack_quad<true>(args.element, quads_[0], x);
    } else {
      unpack_quad<false>(Element::f32, quads_[0], x);
      unpack_quad<false>(Element::f32, quads_[1], x + 4);
    }
  }

 private:
  Quad quads_[2];
};

// A strip to rows.
template <bool kNarrow>
__device__ __forceinline__ void store_strip_as(const MixerArgs& args, void* rows, int64_t b, int64_t d, int t, bool packed,
                                               const Strip& x) {
  if (d >= args.dim) return;
  Raw<kNarrow>* row = static_cast<Raw<kNarrow>*>(rows) + (b * args.dim + d) * args.seqlen;
  if (packed) {
    M2_UNROLL
    for (int i = 0; i < kStrip; i += kPerQuad<kNarrow>)
      if (t + i < args.seqlen) store_quad(reinterpret_cast<Quad*>(row + t + i), pack_quad<kNarrow>(args.element, x + i));
  } else {
    M2_UNROLL
    for (int i = 0; i < kStrip; ++i)
      if (t + i < args.seqlen) write_element<kNarrow>(args.element, row, t + i, x[i]);
  }
}

template <bool kNarrow>
__device__ __forceinline__ void store_strip(const MixerArgs& args, const Rows<void>& rows, int64_t b, int64_t d, int t,
                                            bool packed, const Strip& x) {
  if (kNarrow && rows.element != Element::f32) store_strip_as<kNarrow>(args, rows.data, b, d, t, packed, x);
  else store_strip_as<false>(args, rows.data, b, d, t, packed, x);
}

// kCount positions of the tile's channel at `at`.
template <int kCount>
__device__ __forceinline__ void load_window(const SharedArray<float>& floats, int at, float (&x)[kCount]) {
  M2_UNROLL
  for (int i = 0; i < kCount; ++i) x[i] = floats.load(at + i * kTilePitch);
}

// The short convolution of a strip whose tile begins kPast positions earlier, at `at`; `channel` is one of p.
__device__ __forceinline__ void short_strip(const MixerArgs& args, int64_t channel, const SharedArray<float>& floats,
                                            int at, Strip& y) {
  float x[kStrip + kPast], taps[kMaxShortWidth];
  load_window(floats, at, x);
  load_taps(args.short_weight, channel, args.width, taps);
  const float bias = args.short_bias ? load_readonly(args.short_bias + channel) : 0.0f;
  M2_UNROLL
  for (int p = 0; p < kStrip; ++p) y[p] = bias;
  M2_UNROLL
  for (int i = 0; i < kMaxShortWidth; ++i) {
    if (i + args.width < kMaxShortWidth) continue;
    M2_UNROLL
    for (int p = 0; p < kStrip; ++p) y[p] += taps[i] * x[p + i];
  }
}

inline bool mixer_sizes_fit(const MixerArgs& args) {
  if (args.batch < 0 || args.dim < 0 || args.seqlen < 0 || args.width < 2 || args.width > kMaxShortWidth) return false;
  if (args.seqlen > INT32_MAX / 2 || args.dim > INT32_MAX / 3) return false;
  const int64_t tiles = ceil_div<int64_t>(args.seqlen, kTilePositions) * groups_of(args);
  return tiles == 0 || args.batch <= INT32_MAX / tiles;
}

// Whether 16 bytes of channels, of rows, may be taken at a time.
template <class Void>
bool packed_channels(const MixerArgs& args, const AnyStrided<Void>& x) {
  const int64_t bytes = int64_t(element_bytes(args.element));
  return !x.data || (x.stride_dim == 1 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && args.dim * bytes % 16 == 0 &&
                     x.stride_batch * bytes % 16 == 0 && x.stride_seq * bytes % 16 == 0);
}
template <class Void>
bool packed_rows(const MixerArgs& args, const Rows<Void>& rows) {
  return !rows.data || (reinterpret_cast<uintptr_t>(rows.data) % 16 == 0 &&
                        args.seqlen * int64_t(element_bytes(rows.element)) % 16 == 0);
}
template <class Void>
bool may_be_rows(const MixerArgs& args, const Rows<Void>& rows) {
  return !rows.data || rows.element == Element::f32 || rows.element == args.element;
}

}  // namespace m2::cuda
