// The learning rate: linear warm-up, then cosine to a fraction of the peak. step counts from 0.
//   step < warmup:  lr (step + 1) / warmup
//   after:          lr (f + (1 - f) (1 + cos(pi (step - warmup) / (steps - warmup))) / 2)
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

struct Schedule {
    double lr = 3e-4, final_fraction = 0.1;
    int64_t warmup = 0, steps = 1;

    double at(int64_t step) const {
        if (step < warmup) return lr * double(step + 1) / double(warmup);
        const double done = double(step - warmup) / double(std::max<int64_t>(1, steps - warmup));
        const double wave = (1 + std::cos(3.14159265358979323846 * std::min(1.0, done))) / 2;
        return lr * (final_fraction + (1 - final_fraction) * wave);
    }
};
