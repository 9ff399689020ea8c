// The products of sparse.h: lists of what fires, sums of rows over a list, and the order in which threads
// take them.
#include "sparse.h"
#include <algorithm>
#include <vector>

// Where z > 0 along one slot (then entries are units) or one unit (then entries are slots), within a chunk.
struct ActiveList {
    int32_t index[list_chunk + 1];
    real value[list_chunk];
    size_t count;
};

// Lists for `lanes` lanes of `count` entries each. Every index is written and only some are kept: that costs
// less than a branch that cannot be foreseen.
static void list_active(ActiveList* lists, Matrix z, size_t lanes, size_t count) {
    for (size_t i = 0; i < lanes; i++) lists[i].count = 0;
    if (z.column == 1) {
        for (size_t i = 0; i < lanes; i++) {
            const real* row = z.data + i * z.row;
            size_t found = 0;
            for (size_t k = 0; k < count; k++) {
                lists[i].index[found] = int32_t(k);
                found += !(row[k] <= 0);
            }
            lists[i].count = found;
        }
    } else {
        size_t found[list_lanes] = {};
        for (size_t k = 0; k < count; k++) {
            const real* column = z.data + k * z.column;
            for (size_t i = 0; i < lanes; i++) {
                lists[i].index[found[i]] = int32_t(k);
                found[i] += !(column[i] <= 0);
            }
        }
        for (size_t i = 0; i < lanes; i++) lists[i].count = found[i];
    }
}

// list.value = s(lane, index)
static void take_values(ActiveList& list, Matrix s, size_t lane) {
    for (size_t i = 0; i < list.count; i++) list.value[i] = s.at(lane, size_t(list.index[i]));
}

// In strips of columns that stay in registers.
void add_rows(real* out, const int32_t* index, const real* value, size_t count, const real* rows, size_t C) {
    constexpr size_t vectors = 8, strip = vectors * vector_length;
    size_t c = 0;
    for (; c + strip <= C; c += strip) {
        vec sum[vectors];
        for (size_t v = 0; v < vectors; v++) sum[v] = load_vec(out + c + v * vector_length);
        for (size_t i = 0; i < count; i++) {
            const real* row = rows + index[i] * C + c;
            const real factor = value[i];
#pragma GCC unroll 8
            for (size_t v = 0; v < vectors; v++) sum[v] += factor * load_vec(row + v * vector_length);
        }
        for (size_t v = 0; v < vectors; v++) store_vec(out + c + v * vector_length, sum[v]);
    }
    for (size_t i = 0; i < count && c < C; i++) {
        const real *row = rows + index[i] * C, factor = value[i];
#pragma omp simd
        for (size_t k = c; k < C; k++) out[k] += factor * row[k];
    }
}

// Four rows at a time.
void dot_rows(real* value, const int32_t* index, size_t count, const real* a, const real* rows, size_t C) {
    size_t i = 0;
    for (; i + 4 <= count; i += 4) {
        const real *r0 = rows + index[i] * C, *r1 = rows + index[i + 1] * C;
        const real *r2 = rows + index[i + 2] * C, *r3 = rows + index[i + 3] * C;
        real s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (size_t c = 0; c < C; c++) {
            s0 += a[c] * r0[c];
            s1 += a[c] * r1[c];
            s2 += a[c] * r2[c];
            s3 += a[c] * r3[c];
        }
        value[i] = s0;
        value[i + 1] = s1;
        value[i + 2] = s2;
        value[i + 3] = s3;
    }
    for (; i < count; i++) {
        const real* row = rows + index[i] * C;
        real sum = 0;
#pragma omp simd reduction(+ : sum)
        for (size_t c = 0; c < C; c++) sum += a[c] * row[c];
        value[i] = sum;
    }
}

// Entries of a list: rows of half a megabyte.
static size_t chunk_of(const ExpertPart& e) { return std::clamp<size_t>(131072 / e.C, 32, list_chunk); }

// Work items are groups of lanes (slots or units) of one expert; inside, chunks of entries; inside, lists of
// a few lanes.
template <class Each> void for_each_list(const ExpertPart* parts, size_t n_parts, bool by_slot, Each each) {
    auto groups = [&](size_t p) {
        return ((by_slot ? parts[p].n : parts[p].D) + list_group - 1) / list_group;
    };
    size_t items = 0;
    for (size_t p = 0; p < n_parts; p++) items += groups(p);
    parallel_items(items, [&](size_t q) {
        static thread_local std::vector<ActiveList> lists(list_lanes);
        size_t p;
        const size_t first = locate(q, &p, groups) * list_group;
        const ExpertPart& e = parts[p];
        const Matrix z = by_slot ? row_major(e.z, e.D) : row_major(e.z, e.D).transposed();
        const size_t lanes = by_slot ? e.n : e.D, entries = by_slot ? e.D : e.n;
        const size_t end = std::min(first + list_group, lanes), chunk = chunk_of(e);
        for (size_t k = 0; k < entries; k += chunk)
            for (size_t i = first; i < end; i += list_lanes) {
                const size_t count = std::min(list_lanes, end - i);
                list_active(lists.data(), z.from(i, k), count, std::min(chunk, entries - k));
                for (size_t lane = 0; lane < count; lane++) each(e, lists[lane], i + lane, k);
            }
    });
}

void skipping_decode(const ExpertPart* parts, size_t n_parts) {
    for_each_list(parts, n_parts, true, [](const ExpertPart& e, ActiveList& units, size_t s, size_t k) {
        if (k == 0) std::copy(e.b_dec, e.b_dec + e.C, e.y + s * e.C);
        take_values(units, row_major(e.z + k, e.D), s);
        add_rows(e.y + s * e.C, units.index, units.value, units.count, e.w_dec + k * e.C, e.C);
    });
}

void skipping_slots(const ExpertPart* parts, size_t n_parts) {
    for_each_list(parts, n_parts, true, [](const ExpertPart& e, ActiveList& units, size_t s, size_t k) {
        dot_rows(units.value, units.index, units.count, e.dy + s * e.C, e.w_dec + k * e.C, e.C);
        real* dh = e.dh + s * e.D;
        std::fill(dh + k, dh + std::min(e.D, k + chunk_of(e)), real(0));
        for (size_t i = 0; i < units.count; i++) dh[k + size_t(units.index[i])] = units.value[i];
        if (k == 0) std::fill(e.dx + s * e.C, e.dx + (s + 1) * e.C, real(0));
        add_rows(e.dx + s * e.C, units.index, units.value, units.count, e.w_enc + k * e.C, e.C);
    });
}

void skipping_units(const ExpertPart* parts, size_t n_parts) {
    for_each_list(parts, n_parts, false, [](const ExpertPart& e, ActiveList& slots, size_t u, size_t k) {
        take_values(slots, row_major(e.z + k * e.D, e.D).transposed(), u);
        add_rows(e.dw_dec + u * e.C, slots.index, slots.value, slots.count, e.dy + k * e.C, e.C);
        take_values(slots, row_major(e.dh + k * e.D, e.D).transposed(), u);
        const Matrix x = e.x.from(k, 0);
        for (size_t i = 0; i < slots.count && x.index; i++) slots.index[i] = x.index[slots.index[i]];
        add_rows(e.dw_enc + u * e.C, slots.index, slots.value, slots.count, x.data, e.C);
    });
}
