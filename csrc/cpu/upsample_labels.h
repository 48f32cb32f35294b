// Reading of target labels; internal linkage, as in scalar.h.
#pragma once

#include "cpu/upsample_cross_entropy.h"

namespace psp_fast {
namespace {

inline int64_t label_at(const UpsampleTarget& target, int64_t pixel) {
  return target.wide ? static_cast<const int64_t*>(target.labels)[pixel]
                     : static_cast<const uint8_t*>(target.labels)[pixel];
}

inline bool is_class(int64_t label, int64_t classes) { return label >= 0 && label < classes; }

// What a pixel of one label weighs: its loss is of_label * nll + spread * (the mean over the classes of weight * nll).
template <class A>
struct ClassWeights {
  const A* of_class;
  A kept, spread;  // 1 - label_smoothing, label_smoothing / classes
  A total;

  ClassWeights(const UpsampleTarget& target, int64_t classes)
      : of_class(static_cast<const A*>(target.weight)),
        kept(static_cast<A>(1 - target.label_smoothing)),
        spread(static_cast<A>(target.label_smoothing / static_cast<double>(classes))) {
    double sum = 0;
    for (int64_t c = 0; c < classes; ++c) sum += of_class[c];
    total = static_cast<A>(sum);
  }
};

}  // namespace
}  // namespace psp_fast
