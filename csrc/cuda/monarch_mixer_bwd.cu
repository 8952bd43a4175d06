// From the gradients of g = v x1 and x2, as rows, to those of p, of taps and of biases: the last step of the mixer's gradient.
// Interface: monarch_mixer.h; tiles: mixer_tiles.cuh. Compiled by nvcc, or by g++ under the emulator.
// Test: ../testing/test_monarch_mixer_cuda.cpp.
//
// A block owns 32 channels of each of x1, x2 and v and takes a number of tiles in turn. Of a tile it reads p with the
// positions before it (and after, where gradients reach back from), makes x1 and v again, writes dx1 = dg v, dx2 and
// dv = dg x1 into shared memory, from where the short convolution's gradient takes those of the positions after its own; dp
// takes their place and leaves.
//
// The gradients of taps and biases are summed over a thread's positions and tiles, the eight threads of a channel in a tree,
// and the blocks as in short_conv.cu: what belongs together depends on the shapes alone, so the same bits come out of every run.
#include "monarch_mixer.h"

#include <algorithm>

#include "mixer_tiles.cuh"

namespace m2::cuda {
namespace {

constexpr int kAhead = kTilePositions + kStrip;  // positions whose dx are needed, in whole strips; kPast after the tile would do
constexpr int kTileP = (kPast + kAhead) * kTilePitch, kTileDx = kAhead * kTilePitch;
constexpr int kDx = 3 * kTileP;  // behind the tiles of p
constexpr size_t kSharedBytes = size_t(3 * (kTileP + kTileDx)) * sizeof(float);

// dg and dx2 of a strip on their way.
class GradientLoad {
 public:
  __device__ __forceinline__ void fetch(const MixerBwdArgs& args, const TilePlace& place, int n, int c, bool packed) {
    const int64_t d = place.channel + c;
    dg_.fetch(args.mixer, {args.dg}, place.b, d, place.first + n, packed);
    dx2_.fetch(args.mixer, {args.dx2}, place.b, d, place.first + n, packed);
  }
  __device__ __forceinline__ void get(const MixerBwdArgs& args, const TilePlace& place, int n, int c, bool packed,
                                      Strip& dg, Strip& dx2) const {
    const int64_t d = place.channel + c;
    dg_.get(args.mixer, {args.dg}, place.b, d, place.first + n, packed, dg);
    dx2_.get(args.mixer, {args.dx2}, place.b, d, place.first + n, packed, dx2);
  }

 private:
  StripLoad<false> dg_, dx2_;
};

// dx1, dx2 and dv of the strip at position n of the tile.
__device__ __forceinline__ void put_gradients(const MixerBwdArgs& args, const TilePlace& place, int n, int c, bool packed,
                                              const GradientLoad& load, const SharedArray<float>& floats) {
  const MixerArgs& mixer = args.mixer;
  const int64_t d = place.channel + c;
  if (d >= mixer.dim) return;
  const int t = place.first + n, at = n * kTilePitch + c;
  Strip dg, dx2, x1, v;
  load.get(args, place, n, c, packed, dg, dx2);
  short_strip(mixer, d, floats, at, x1);
  short_strip(mixer, 2 * mixer.dim + d, floats, 2 * kTileP + at, v);
  M2_UNROLL
  for (int i = 0; i < kStrip; ++i) {
    const bool real = is_real(mixer, place.b, t + i);
    const int to = kDx + at + i * kTilePitch;
    floats.store(to, real ? dg[i] * v[i] : 0.0f);
    floats.store(to + kTileDx, real ? dx2[i] : 0.0f);
    floats.store(to + 2 * kTileDx, real ? dg[i] * x1[i] : 0.0f);
  }
}

template <bool kNarrow>
__global__ void __launch_bounds__(kTileThreads, 2)
    mixer_bwd_kernel(MixerBwdArgs args, unsigned items, bool packed, bool packed_in) {
  const MixerArgs& mixer = args.mixer;
  const unsigned groups = unsigned(groups_of(mixer)), part = blockIdx.x / groups, group = blockIdx.x % groups;
  const unsigned all = unsigned(tiles_of(mixer)), last = all - part * items < items ? all : part * items + items;
  const SharedArray<float> floats;
  float sums[3][kShortSums] = {};
  M2_NO_UNROLL
  for (unsigned tile = part * items; tile < last; ++tile) {
    // Places of this thread are made anew for every tile: kept, with all addresses that follow from them, they would spill.
    const TilePlace place = tile_place(mixer, tile, group);
    const int c = strip_channel(), position = strip_position(), at = position * kTilePitch + c;
    const int64_t d = place.channel + c;
    const int past = place.first - kPast;
    GradientLoad load_dx;
    load_dx.fetch(args, place, position, c, packed_in);
    if constexpr (kNarrow) {
      TileLoad<kNarrow, kPast + kAhead> load[3];
      M2_UNROLL
      for (int s = 0; s < 3; ++s) load[s].fetch(mixer, mixer.p, place, s, past, packed);
      M2_UNROLL
      for (int s = 0; s < 3; ++s) load[s].put(mixer, mixer.p, place, s, past, packed, floats, s * kTileP);
    } else {
      M2_NO_UNROLL
      for (int s = 0; s < 3; ++s) {  // one after another: together they would spill
        TileLoad<kNarrow, kPast + kAhead> load;
        load.fetch(mixer, mixer.p, place, s, past, packed);
        load.put(mixer, mixer.p, place, s, past, packed, floats, s * kTileP);
      }
    }
    __syncthreads();
    put_gradients(args, place, position, c, packed_in, load_dx, floats);
    if (int(threadIdx.x) < kTileChannels) {  // the positions after the tile
      const int its = thread_index_again();
      load_dx.fetch(args, place, kTilePositions, its, packed_in);
      put_gradients(args, place, kTilePositions, its, packed_in, load_dx, floats);
    }
    __syncthreads();
    M2_UNROLL
    for (int s = 0; s < 3; ++s) {
      Strip dp = {};
      if (d < mixer.dim) {
        float x[kStrip + kPast], dx[kStrip + kPast], taps[kMaxShortWidth];
        load_window(floats, s * kTileP + at, x);
        load_window(floats, kDx + s * kTileDx + at, dx);
        load_taps(mixer.short_weight, s * mixer.dim + d, mixer.width, taps);
        M2_UNROLL
        for (int i = 0; i < kMaxShortWidth; ++i) {
          if (i + mixer.width < kMaxShortWidth) continue;
          float sum = 0.0f;
          M2_UNROLL
          for (int p = 0; p < kStrip; ++p) {
            dp[p] += taps[i] * dx[p + kPast - i];
            sum += dx[p] * x[p + i];
          }
          sums[s][i] += sum;
        }
        M2_UNROLL
        for (int p = 0; p < kStrip; ++p) sums[s][kMaxShortWidth] += dx[p];
      }
      __syncthreads();
      M2_UNROLL
      for (int p = 0; p < kStrip; ++p) floats.store(kDx + s * kTileDx + at + p * kTilePitch, dp[p]);
    }
    __syncthreads();
    M2_NO_UNROLL
    for (int s = 0; s < 3; ++s) store_tile<kNarrow>(mixer, args.dp, place, s, packed, floats, kDx + s * kTileDx);
  }
  const int64_t d = int64_t(group) * kTileChannels + strip_channel();
  const bool writes = d < mixer.dim && strip_position() == 0;
  M2_UNROLL
  for (int s = 0; s < 3; ++s)
    M2_UNROLL
    for (int i = 0; i < kShortSums; ++i) {
      float sum = sums[s][i];
      M2_UNROLL
      for (int bit = 1; bit < kStrips; bit *= 2) sum += __shfl_xor_sync(~0u, sum, bit);
      if (writes) args.partials[((part * 3 + s) * mixer.dim + d) * kShortSums + i] = sum;
    }
}

// At least 4 tiles a block, at most 32, about 2048 blocks in between.
unsigned items_for(const MixerArgs& args) {
  return unsigned(std::clamp<int64_t>(tiles_of(args) * groups_of(args) / 2048, 4, 32));
}

int64_t parts_of(const MixerArgs& args) { return ceil_div<int64_t>(tiles_of(args), items_for(args)); }

}  // namespace

int64_t mixer_bwd_scratch(const MixerBwdArgs& args) { return parts_of(args.mixer) * 3 * args.mixer.dim * kShortSums; }

cudaError_t mixer_bwd(const MixerBwdArgs& args, cudaStream_t stream, LaunchShape* shape) {
  const MixerArgs& mixer = args.mixer;
  if (!mixer_sizes_fit(mixer)) return cudaErrorInvalidValue;
  const int64_t parts = parts_of(mixer);
  const LaunchShape wanted = {parts * groups_of(mixer), kTileThreads, kSharedBytes};
  if (shape) *shape = wanted;
  if (mixer.dim == 0) return cudaSuccess;
  if (wanted.blocks > 0) {
    const bool packed = packed_channels(mixer, mixer.p) && packed_channels(mixer, args.dp);
    const bool rows = packed_rows(mixer, Rows<const void>{args.dg}) && packed_rows(mixer, Rows<const void>{args.dx2});
    const cudaError_t error = with_width(mixer.element, [&](auto narrow) {
      return launch(&mixer_bwd_kernel<narrow.value>, unsigned(wanted.blocks), kTileThreads, kSharedBytes, stream, args,
                    items_for(mixer), packed, rows);
    });
    if (error != cudaSuccess) return error;
  }
  ShortConvBwdArgs sums;
  sums.dim = 3 * mixer.dim, sums.width = mixer.width;
  sums.dweight = args.dweight, sums.dbias = args.dbias, sums.partials = args.partials;
  return sum_short_gradients(sums, parts, stream);
}

}  // namespace m2::cuda
