// Logistic regression as k-sparse probes are published with (arXiv 2604.02178): with labels y = +1, -1,
// classes weighted alike and a penalty on the weights but not on the intercept,
//   f(w, b) = |w|^2 / 2 + sum over i of s_i log(1 + exp(-y_i (w . x_i + b)))    s_i = n / (2 n_y)
// f is strictly convex in w, so Newton's method with halved steps finds its one minimum.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

struct LogisticFit {
    std::vector<double> w; // (k)
    double b = 0;
    double gradient = INFINITY; // largest part of the gradient at the end
};

// x (n,k) by rows, y (n) 0 or 1. Both classes must be there.
LogisticFit fit_logistic(const std::vector<double>& x, const std::vector<uint8_t>& y, size_t k);

// f, and its gradient (k weights, then the intercept).
double logistic_objective(const std::vector<double>& x, const std::vector<uint8_t>& y, size_t k,
                          const std::vector<double>& w, double b, std::vector<double>& gradient);
