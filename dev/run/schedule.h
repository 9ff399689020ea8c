// The learning rate: linear warm-up, then cosine to a fraction f of it. step counts from 0.
//   step < warmup:  lr (step + 1) / warmup
//   after:          lr (f + (1 - f) (1 + cos(pi (step - warmup) / (steps - warmup))) / 2)
// A run that is made longer at step s goes on from the rate r that it has reached:
//   from s on:      lr f + (r - lr f) (1 + cos(pi (step - s) / (steps - s))) / 2
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

struct Schedule {
    double lr = 3e-4, final_fraction = 0.1;
    int64_t warmup = 0, steps = 1;
    int64_t lengthened_at = -1; // s, or -1: never
    double lengthened_lr = 0;   // r

    double at(int64_t step) const {
        if (step < warmup) return lr * double(step + 1) / double(warmup);
        const bool lengthened = lengthened_at >= 0 && step >= lengthened_at;
        const int64_t from = lengthened ? lengthened_at : warmup;
        const double done = double(step - from) / double(std::max<int64_t>(1, steps - from));
        const double wave = (1 + std::cos(3.14159265358979323846 * std::min(1.0, done))) / 2;
        if (lengthened) return lr * final_fraction + (lengthened_lr - lr * final_fraction) * wave;
        return lr * (final_fraction + (1 - final_fraction) * wave);
    }
};

// The schedule of a run that has done `step` of its steps and is to take more. During the warm-up that is the
// schedule of a run which was to be so long from the start. Later the rate does not jump: from where it is it
// falls to the final rate at the new end; that of a finished run stays at the final rate.
inline Schedule lengthened(const Schedule& s, int64_t step, int64_t steps) {
    Schedule longer = s;
    longer.steps = steps;
    if (step <= s.warmup) return longer;
    longer.lengthened_at = step;
    longer.lengthened_lr = s.at(step);
    return longer;
}
