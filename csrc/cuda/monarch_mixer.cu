// The sequence mixer before and after its long convolutions: activations become rows, and rows activations. A block owns a
// tile. Interface and formulas: monarch_mixer.h; tiles: mixer_tiles.cuh. Compiled by nvcc, or by g++ under the emulator.
// Test: ../testing/test_monarch_mixer_cuda.cpp.
//
// Both kernels are to be as fast as memory: a tensor is read once (a tile of 64 positions also the 6 before them, for the
// short convolution), a row written once.
#include "monarch_mixer.h"

#include "mixer_tiles.cuh"

namespace m2::cuda {
namespace {

constexpr int kHaloTile = (kTilePositions + kPast) * kTilePitch;
constexpr int kPlainTile = kTilePositions * kTilePitch;

template <bool kNarrow>
__global__ void __launch_bounds__(kTileThreads, 4)
    mixer_rows_kernel(MixerRowsArgs args, bool packed, bool packed_out) {
  const MixerArgs& mixer = args.mixer;
  const unsigned groups = unsigned(groups_of(mixer));
  const TilePlace place = tile_place(mixer, blockIdx.x / groups, blockIdx.x % groups);
  const SharedArray<float> floats;
  const int x1 = 0, v = kHaloTile, x2 = args.g.data ? 2 * kHaloTile : 0;
  const int u = x2 + (args.x2.data ? kHaloTile : 0), dout = u + (args.u_rows.data ? kPlainTile : 0);
  const int past = place.first - kPast;
  TileLoad<kNarrow, kTilePositions + kPast> load, load_v;
  TileLoad<kNarrow, kTilePositions> load_plain;
  if (args.g.data) {
    load.fetch(mixer, mixer.p, place, 0, past, packed);
    load_v.fetch(mixer, mixer.p, place, 2, past, packed);
  }
  if (args.u_rows.data) load_plain.fetch(mixer, args.u, place, 0, place.first, packed);
  if (args.g.data) {
    load.put(mixer, mixer.p, place, 0, past, packed, floats, x1);
    load_v.put(mixer, mixer.p, place, 2, past, packed, floats, v);
  }
  if (args.x2.data) load.fetch(mixer, mixer.p, place, 1, past, packed);
  if (args.u_rows.data) load_plain.put(mixer, args.u, place, 0, place.first, packed, floats, u);
  if (args.dout_rows.data) load_plain.fetch(mixer, args.dout, place, 0, place.first, packed);
  if (args.x2.data) load.put(mixer, mixer.p, place, 1, past, packed, floats, x2);
  if (args.dout_rows.data) load_plain.put(mixer, args.dout, place, 0, place.first, packed, floats, dout);
  __syncthreads();

  const int64_t d = place.channel + strip_channel();
  if (d >= mixer.dim) return;
  const int t = place.first + strip_position(), at = strip_position() * kTilePitch + strip_channel();
  const auto store = [&](const Rows<void>& rows, const Strip& x) {
    store_strip<kNarrow>(mixer, rows, place.b, d, t, packed_out, x);
  };
  Strip x, y;
  if (args.g.data) {
    short_strip(mixer, d, floats, x1 + at, x);
    short_strip(mixer, 2 * mixer.dim + d, floats, v + at, y);
    M2_UNROLL
    for (int i = 0; i < kStrip; ++i) x[i] = is_real(mixer, place.b, t + i) ? x[i] * y[i] : 0.0f;
    store(args.g, x);
  }
  if (args.x2.data) {
    short_strip(mixer, mixer.dim + d, floats, x2 + at, x);
    store(args.x2, x);
  }
  if (args.u_rows.data) {
    load_window(floats, u + at, x);
    store(args.u_rows, x);
  }
  if (args.dout_rows.data) {
    load_window(floats, dout + at, x);
    store(args.dout_rows, x);
  }
}

template <bool kNarrow>
__global__ void __launch_bounds__(kTileThreads, 4)
    mixer_sum_kernel(MixerSumArgs args, bool packed, bool packed_in) {
  const MixerArgs& mixer = args.mixer;
  const unsigned groups = unsigned(groups_of(mixer));
  const TilePlace place = tile_place(mixer, blockIdx.x / groups, blockIdx.x % groups);
  const SharedArray<float> floats;
  const bool gated = args.y.data;
  const int x2 = 0, out = gated ? kHaloTile : 0;
  const int past = place.first - kPast;
  const int64_t d = place.channel + strip_channel();
  const int t = place.first + strip_position(), at = strip_position() * kTilePitch + strip_channel();
  TileLoad<kNarrow, kTilePositions + kPast> load;
  StripLoad<kNarrow> load_y, load_z;
  if (gated) load.fetch(mixer, mixer.p, place, 1, past, packed);
  load_y.fetch(mixer, args.y, place.b, d, t, packed_in);
  load_z.fetch(mixer, args.z, place.b, d, t, packed_in);
  if (gated) load.put(mixer, mixer.p, place, 1, past, packed, floats, x2);
  Strip y, sum;
  load_y.get(mixer, args.y, place.b, d, t, packed_in, y);
  load_z.get(mixer, args.z, place.b, d, t, packed_in, sum);
  __syncthreads();
  if (d < mixer.dim) {
    if (gated) {
      Strip factor;
      short_strip(mixer, mixer.dim + d, floats, x2 + at, factor);
      M2_UNROLL
      for (int i = 0; i < kStrip; ++i) sum[i] += factor[i] * y[i];
    }
    M2_UNROLL
    for (int i = 0; i < kStrip; ++i) floats.store(out + at + i * kTilePitch, sum[i]);
  }
  __syncthreads();
  store_tile<kNarrow>(mixer, args.out, place, 0, packed, floats, out);
}

}  // namespace

cudaError_t mixer_rows(const MixerRowsArgs& args, cudaStream_t stream, LaunchShape* shape) {
  const MixerArgs& mixer = args.mixer;
  if (!mixer_sizes_fit(mixer)) return cudaErrorInvalidValue;
  const int halo = (args.g.data ? 2 : 0) + (args.x2.data ? 1 : 0);
  const int plain = (args.u_rows.data ? 1 : 0) + (args.dout_rows.data ? 1 : 0);
  const LaunchShape wanted = {tiles_of(mixer) * groups_of(mixer), kTileThreads,
                              size_t(halo * kHaloTile + plain * kPlainTile) * sizeof(float)};
  if (shape) *shape = wanted;
  bool packed = packed_channels(mixer, mixer.p), rows = true;
  if (args.u_rows.data) packed = packed && packed_channels(mixer, args.u);
  if (args.dout_rows.data) packed = packed && packed_channels(mixer, args.dout);
  for (const Rows<void>& x : {args.g, args.x2, args.u_rows, args.dout_rows}) {
    if (!may_be_rows(mixer, x)) return cudaErrorInvalidValue;
    rows = rows && packed_rows(mixer, x);
  }
  if (wanted.blocks == 0) return cudaSuccess;
  return with_width(mixer.element, [&](auto narrow) {
    return launch(&mixer_rows_kernel<narrow.value>, unsigned(wanted.blocks), kTileThreads, wanted.shared_bytes, stream,
                  args, packed, rows);
  });
}

cudaError_t mixer_sum(const MixerSumArgs& args, cudaStream_t stream, LaunchShape* shape) {
  const MixerArgs& mixer = args.mixer;
  if (!mixer_sizes_fit(mixer) || !may_be_rows(mixer, args.y) || !may_be_rows(mixer, args.z)) return cudaErrorInvalidValue;
  const LaunchShape wanted = {tiles_of(mixer) * groups_of(mixer), kTileThreads,
                              size_t((args.y.data ? kHaloTile : 0) + kPlainTile) * sizeof(float)};
  if (shape) *shape = wanted;
  if (wanted.blocks == 0) return cudaSuccess;
  const bool packed = packed_channels(mixer, args.out) && (!args.y.data || packed_channels(mixer, mixer.p));
  const bool rows = packed_rows(mixer, args.y) && packed_rows(mixer, args.z);
  return with_width(mixer.element, [&](auto narrow) {
    return launch(&mixer_sum_kernel<narrow.value>, unsigned(wanted.blocks), kTileThreads, wanted.shared_bytes, stream,
                  args, packed, rows);
  });
}

}  // namespace m2::cuda
