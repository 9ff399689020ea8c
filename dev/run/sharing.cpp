#include "sharing.h"
#include <algorithm>

size_t segments_of(Span span) { return (span.count() + segment_numbers - 1) / segment_numbers; }

std::vector<Piece> pieces_of_table(const Config& config, const std::vector<Tensor>& table,
                                   const Sharing& sharing) {
    std::vector<size_t> begins = {0}; // of the embeddings, then of each layer
    for (const Tensor& t : table)
        if (t.name == "h." + std::to_string(begins.size() - 1) + ".ln_1.weight") begins.push_back(t.offset);
    begins.push_back(block_elements(table));
    std::vector<Piece> pieces;
    size_t state = 0, squares = 0;
    for (size_t layer = 0; layer <= config.n_layer; layer++)
        for (const Span all : pieces_of({begins[layer], begins[layer + 1]})) {
            const Span ours = owned(all, sharing.place, sharing.lanes.places());
            const Span updated = sharing.sharded ? ours : all;
            pieces.push_back({layer, all, ours, updated, state, squares});
            state += updated.count();
            squares += segments_of(ours);
        }
    return pieces;
}

size_t state_elements(const std::vector<Piece>& pieces) {
    return pieces.back().state + pieces.back().updated.count();
}

// Of its machine's column the copies of all neighbours, then of its own part those of the other machines; and
// on rank 0, for a checkpoint, a whole piece.
size_t largest_exchange(const std::vector<Piece>& pieces, const Sharing& sharing) {
    const Lanes& lanes = sharing.lanes;
    if (lanes.places() == 1) return 0;
    const size_t within = lanes.per_machine - 1, among = lanes.machines - 1;
    size_t most = 0;
    for (const Piece& p : pieces) {
        const size_t ours = column(p.all, sharing.place / lanes.machines, lanes).count();
        most = std::max({most, within * ours, among * p.owned.count(), sharing.place ? 0 : p.all.count()});
    }
    return most;
}

SumsLayout::SumsLayout(const Config& config, const std::vector<Tensor>& table, Sharing sharing,
                       size_t totals_doubles)
    : micro_batches(sharing.micro_batches), totals_doubles(totals_doubles) {
    const size_t P = sharing.lanes.places();
    std::vector<std::vector<Piece>> pieces; // of each place
    std::vector<size_t> totals;
    size_t end = 0;
    for (sharing.place = 0; sharing.place < P; sharing.place++) {
        pieces.push_back(pieces_of_table(config, table, sharing));
        const Piece& last = pieces.back().back();
        const size_t begin = end, of_it = (micro_batches + P - 1 - sharing.place) / P;
        totals.push_back(begin + last.squares + segments_of(last.owned));
        end = totals.back() + of_it * totals_doubles;
        of_place.push_back({begin, end});
    }
    for (size_t i = 0; i < pieces[0].size(); i++) // the segments of a piece go from place to place in order
        for (size_t p = 0; p < P; p++)
            for (size_t s = 0; s < segments_of(pieces[p][i].owned); s++)
                order.push_back(int(of_place[p].begin + pieces[p][i].squares + s));
    segments = order.size();
    for (size_t i = 0; i < micro_batches; i++)
        order.push_back(int(totals[i % P] + i / P * totals_doubles)); // lane i mod V is of place i mod P
}
