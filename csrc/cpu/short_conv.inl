// Depthwise causal convolution of width 2 .. 7. Included by the files of a row inside namespace m2::<isa>.
// Lanes are channels where channels are contiguous, else positions.

constexpr int kMaxShortWidth = 7;
constexpr int64_t kSumBlock = 256;  // gradients are summed in T over so many positions, in double over the blocks

// out[c, t] = sum_j weight[j] x[c, t - (width - 1) + j] for positions that exist.
template <class T, int W>
struct ShortConv {
  // Weights of W channels, transposed to one vector per tap.
  M2_INLINE static void taps(const T* weight, int width, int64_t c, Vec<T, W>* w) {
    for (int j = 0; j < width; ++j)
      for (int i = 0; i < W; ++i) w[j][i] = weight[(c + i) * width + j];
  }

  static void forward(ShortConvShape shape, Block x, const T* weight, const T* bias, Block out) {
    const int width = shape.width, past = width - 1;
    with_type<T>(x.dtype, [&]<class S>() {
      const auto a = strided<const S>(x);
      const auto y = strided<S>(out);
      const auto single = [&](int64_t c, int64_t t) {
        T sum = bias ? bias[c] : T(0);
        for (int j = t < past ? int(past - t) : 0; j < width; ++j)
          sum += weight[c * width + j] * T(to_float(*a.at(c, t - past + j)));
        *y.at(c, t) = from_float<S>(sum);
      };
      if (x.time_contiguous) {
        for (int64_t c = 0; c < shape.channels; ++c) {
          int64_t t = 0;
          for (; t < shape.seqlen && t < past; ++t) single(c, t);
          for (; t + W <= shape.seqlen; t += W) {
            Vec<T, W> sum = Vec<T, W>{} + (bias ? bias[c] : T(0));
            for (int j = 0; j < width; ++j) sum += weight[c * width + j] * load_as<T, W>(a.at(c, t - past + j));
            store_as<T, W>(y.at(c, t), sum);
          }
          for (; t < shape.seqlen; ++t) single(c, t);
        }
        return;
      }
      int64_t c = 0;
      for (; c + W <= shape.channels; c += W) {
        Vec<T, W> w[kMaxShortWidth], b = bias ? load<T, W>(bias + c) : Vec<T, W>{};
        taps(weight, width, c, w);
        for (int64_t t = 0; t < shape.seqlen; ++t) {
          Vec<T, W> sum = b;
          for (int j = t < past ? int(past - t) : 0; j < width; ++j) sum += w[j] * load_as<T, W>(a.at(c, t - past + j));
          store_as<T, W>(y.at(c, t), sum);
        }
      }
      for (; c < shape.channels; ++c)
        for (int64_t t = 0; t < shape.seqlen; ++t) single(c, t);
    });
  }

  static void backward(ShortConvShape shape, Block x, const T* weight, Block dout, Block dx, T* dweight, T* dbias) {
    const int width = shape.width, past = width - 1;
    with_type<T>(x.dtype, [&]<class S>() {
      const auto a = strided<const S>(x), d = strided<const S>(dout);
      const auto g = strided<S>(dx);
      const auto channel = [&](int64_t c) {
        T db = T(0), dw[kMaxShortWidth] = {};
        double total_bias = 0, total[kMaxShortWidth] = {};
        for (int64_t t = 0; t < shape.seqlen; ++t) {
          const T grad = T(to_float(*d.at(c, t)));
          db += grad;
          for (int j = t < past ? int(past - t) : 0; j < width; ++j) dw[j] += grad * T(to_float(*a.at(c, t - past + j)));
          if ((t + 1) % kSumBlock == 0 || t + 1 == shape.seqlen) {
            total_bias += double(db), db = T(0);
            for (int j = 0; j < width; ++j) total[j] += double(dw[j]), dw[j] = T(0);
          }
          if (!g.p) continue;
          T sum = T(0);
          for (int j = past; j >= 0; --j) {
            const int64_t s = t + past - j;
            if (s >= shape.seqlen) break;
            sum += weight[c * width + j] * T(to_float(*d.at(c, s)));
          }
          *g.at(c, t) = from_float<S>(sum);
        }
        dbias[c] += T(total_bias);
        for (int j = 0; j < width; ++j) dweight[c * width + j] += T(total[j]);
      };
      int64_t c = 0;
      if (!x.time_contiguous)
        for (; c + W <= shape.channels; c += W) {
          Vec<T, W> w[kMaxShortWidth], dw[kMaxShortWidth] = {}, db = {};
          double total_bias[W] = {}, total[kMaxShortWidth][W] = {};
          taps(weight, width, c, w);
          for (int64_t t = 0; t < shape.seqlen; ++t) {
            const Vec<T, W> grad = load_as<T, W>(d.at(c, t));
            db += grad;
            for (int j = t < past ? int(past - t) : 0; j < width; ++j)
              dw[j] += grad * load_as<T, W>(a.at(c, t - past + j));
            if ((t + 1) % kSumBlock == 0 || t + 1 == shape.seqlen) {
              for (int i = 0; i < W; ++i) total_bias[i] += double(db[i]);
              for (int j = 0; j < width; ++j)
                for (int i = 0; i < W; ++i) total[j][i] += double(dw[j][i]);
              db = Vec<T, W>{};
              for (int j = 0; j < width; ++j) dw[j] = Vec<T, W>{};
            }
            if (!g.p) continue;
            Vec<T, W> sum = w[past] * grad;
            for (int j = past - 1; j >= 0 && t + past - j < shape.seqlen; --j)
              sum += w[j] * load_as<T, W>(d.at(c, t + past - j));
            store_as<T, W>(g.at(c, t), sum);
          }
          for (int i = 0; i < W; ++i) {
            dbias[c + i] += T(total_bias[i]);
            for (int j = 0; j < width; ++j) dweight[(c + i) * width + j] += T(total[j][i]);
          }
        }
      for (; c < shape.channels; ++c) channel(c);
    });
  }
};

template <class T, int W>
constexpr ShortConvKernels<T> short_conv_row() {
  return {ShortConv<T, W>::forward, ShortConv<T, W>::backward};
}
