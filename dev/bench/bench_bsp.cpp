// Speed of the board metrics (dev/interp/score.h) on made-up activity: random legal games, and units that
// fire at given rates. Counting is timed beside the two ways to do it at the machine's best: byte additions
// on data in cache, which is what score.h does, and popcounts of bit sets, of which one is needed per unit,
// threshold and cell whatever the firing rate. The last table is the work of a whole layer, controls
// included.
#include "../../test/random_games.h"
#include "../interp/bsp.h"

// Every unit fires at a token with this probability, at a level that is rarely high, as real ones do.
static UnitFires random_fires(size_t units, size_t tokens, double rate, uint64_t seed) {
    TokenValues values(tokens);
    parallel_for(tokens, [&](size_t n) {
        for (uint32_t u = 0; u < units; u++)
            if (random_uniform(seed, n, u) < rate) {
                const double level = random_uniform(seed + 1, n, u);
                values[n].push_back({u, float(level * level)});
            }
    });
    return unit_fires(values, cuts_of_maximum(std::vector<float>(units, 1.0f)));
}

static double seconds_of(auto work) {
    const double begin = now_seconds();
    work();
    return now_seconds() - begin;
}

// Bytes added per second and core, in cache: rows of one tile.
static double peak_additions() {
    std::vector<TileRow> rows(200);
    const size_t repeats = 200000;
    volatile uint8_t kept = 0;
    const double seconds = seconds_of([&] {
        for (size_t r = 0; r < repeats; r++) {
            Bytes sum[tile_cells / 64] = {};
            for (const TileRow& row : rows)
                for (size_t i = 0; i < std::size(sum); i++) sum[i] += ((const Bytes*)row.byte)[i];
            kept = kept + sum[0][r % 64] + sum[1][r % 64];
        }
    });
    return double(repeats * rows.size() * tile_cells) / seconds;
}

// popcount(a AND b) summed over rows of so many words: what one TP costs in bit sets.
__attribute__((noinline)) static uint64_t count_both(const uint64_t* a, const uint64_t* b, size_t words) {
    uint64_t sum = 0;
    for (size_t w = 0; w < words; w++) sum += uint64_t(std::popcount(a[w] & b[w]));
    return sum;
}
// Words per second and core, in cache.
static double peak_popcounts(size_t words) {
    const std::vector<uint64_t> a(words, 0x123456789ABCDEF), b(words * 16, 0xFEDCBA987654321);
    const size_t repeats = 20000;
    volatile uint64_t sum = 0;
    const double seconds = seconds_of([&] {
        for (size_t r = 0; r < repeats; r++)
            for (size_t i = 0; i < 16; i++) sum = sum + count_both(a.data(), &b[i * words], words);
    });
    return double(repeats * 16 * words) / seconds;
}

// The counts of a few units by bit sets, checked against score.h; returns seconds per unit on one core.
static double popcount_seconds(const UnitFires& fires, const LabelRows& labels, size_t units) {
    const size_t words = (labels.tokens + 63) / 64;
    std::vector<uint64_t> cells(labels.columns() * words), mask(words);
    for (size_t c = 0; c < labels.columns(); c++)
        for (size_t n = 0; n < labels.tokens; n++)
            cells[c * words + n / 64] |= uint64_t(labels.at(c, n)) << (n % 64);
    std::vector<uint32_t> counted(n_thresholds * labels.columns()), expected;
    double seconds = 0;
    for (size_t u = 0; u < units; u++) {
        seconds += seconds_of([&] {
            for (size_t t = 0; t < n_thresholds; t++) {
                std::fill(mask.begin(), mask.end(), 0);
                for (const uint32_t* n = fires.first(u); n < fires.last(u, t); n++)
                    mask[*n / 64] |= uint64_t(1) << (*n % 64);
                for (size_t c = 0; c < labels.columns(); c++)
                    counted[t * labels.columns() + c] =
                        uint32_t(count_both(mask.data(), &cells[c * words], words));
            }
        });
        count_cells(fires, u, labels, nullptr, expected);
        if (counted != expected) fail("unit %zu: the two ways to count disagree", u);
    }
    return seconds / double(units);
}

static int run(int argc, char** argv) {
    int64_t n_games = 1000, units = 16384;
    Options options("bench_bsp", "Times the board metrics on made-up activity of a layer.");
    options.add(0, "games", "GAMES", &n_games, 4, 100000, "of each of the two sets");
    options.add(0, "units", "UNITS", &units, 64, 1 << 20, "of the layer; smaller ones are timed, too");
    if (!options.parse(argc, argv)) return 0;

    GameSplit games = {random_games(size_t(n_games), 1), random_games(size_t(n_games), 1000000)};
    double label_seconds = 0;
    Ruler ruler;
    label_seconds = seconds_of([&] { ruler = make_ruler(games, false, 1); });
    const size_t tokens = ruler.train.tokens(), words = (tokens + 63) / 64;
    printf("%zu + %zu games, %zu tokens each, %zu cells that occur; labels %.2f s; %zu threads\n",
           games.train.size(), games.test.size(), tokens, ruler.columns.columns(), label_seconds,
           thread_count());
    const double additions = peak_additions(), popcounts = peak_popcounts(words);
    printf(
        "in cache, one core: %s label bytes added per second, %s words of popcount(a AND b) per second\n\n",
        human_count(additions).c_str(), human_count(popcounts).c_str());

    printf(
        "counting and choosing (select_units)\n"
        "  units  tokens  fires/token   seconds   bytes added/s  of peak | by popcount, estimated seconds\n");
    const auto time_counting = [&](size_t n_units, size_t n_tokens, double rate) {
        const UnitFires fires = random_fires(n_units, n_tokens, rate, 1);
        LabelRows labels = ruler.columns; // the first tokens of them
        if (n_tokens < tokens) {
            labels.tokens = n_tokens;
            labels.rows.clear();
            for (size_t tile = 0; tile < labels.tiles; tile++)
                labels.rows.insert(labels.rows.end(), &ruler.columns.rows[tile * tokens],
                                   &ruler.columns.rows[tile * tokens + n_tokens]);
        }
        const double seconds = seconds_of([&] { select_units(fires, labels); });
        const double bytes = double(fires.token.size()) * double(labels.tiles * tile_cells) / seconds;
        const double by_popcount =
            popcount_seconds(fires, labels, 8) * double(n_units) / double(thread_count());
        printf("%7zu %7zu %12.1f %9.3f %15s %7.0f%% | %.3f\n", n_units, n_tokens,
               double(fires.token.size()) / double(n_tokens), seconds, human_count(bytes).c_str(),
               100 * bytes / additions / double(thread_count()), by_popcount);
        fflush(stdout);
    };
    for (const double rate : {0.01, 0.125, 0.5}) time_counting(size_t(units), tokens, rate);
    for (const size_t part : {4, 16}) time_counting(size_t(units) / part, tokens, 0.125);
    time_counting(size_t(units), tokens / 4, 0.125);

    printf("\na layer of %lld units as bsp measures it, with its controls but the untrained one\n"
           "  fires/token   seconds\n",
           (long long)units);
    for (const double rate : {0.01, 0.125}) {
        LayerFires layer;
        layer.units = layer.alive = size_t(units);
        layer.train = random_fires(size_t(units), tokens, rate, 1);
        layer.test = random_fires(size_t(units), ruler.test.tokens(), rate, 3);
        const double seconds = seconds_of([&] { measure_layer(layer, ruler, 1); });
        printf("%13.1f %9.2f\n", double(units) * rate, seconds);
        fflush(stdout);
    }
    return 0;
}

int main(int argc, char** argv) {
    return run_main([&] { return run(argc, argv); });
}
