// The tool bsp: see bsp.h.
#include "bsp.h"

GameSplit bsp_games(const BspOptions& options) {
    if (options.games.empty()) fail_usage("--games is missing: a file of games");
    return split_games(options.games, options.test_games, options.characters, options.dots,
                       size_t(options.count));
}

void check_chess_model(const Config& c, const std::string& path, size_t characters) {
    if (c.tokenizer.empty() ? c.vocab_size != chess_vocab : c.tokenizer != tokenizer_name(TOKENIZER_CHESS))
        fail("%s: a model of %s tokens, expected chess-32: its units are compared with games of chess",
             path.c_str(), c.tokenizer.empty() ? std::to_string(c.vocab_size).c_str() : c.tokenizer.c_str());
    if (c.block_size < characters)
        fail("%s: reads %zu characters, expected the %zu of each game", path.c_str(), c.block_size,
             characters);
}

NpyArray read_activations(const std::string& path, const GameSet& games) {
    NpyArray array = read_npy(path);
    const std::vector<size_t>& shape = array.shape;
    if (shape.size() != 3 || shape[0] != games.size() || shape[1] != games.characters || shape[2] == 0)
        fail("%s: shape %s, expected (%zu, %zu, features): the fit games of %s in order (see --write-games)",
             path.c_str(), npy_shape_text(shape).c_str(), games.size(), games.characters,
             games.source.c_str());
    return array;
}

std::string bsp_json_name(const BspOptions& options) {
    std::string name = "bsp";
    if (!options.activations.empty()) {
        const std::string file = options.activations.substr(options.activations.rfind('/') + 1);
        name += strf("_%s", file.substr(0, file.rfind('.')).c_str());
    }
    if (!options.sae.empty()) name += "_sae";
    if (!options.features.empty()) name += "_" + options.features;
    if (options.split) name += "_split";
    if (options.layer != "all") name += "_layer_" + options.layer;
    if (options.count != BspOptions().count) name += strf("_count_%lld", (long long)options.count);
    if (options.ungated) name += "_ungated";
    return name;
}

// ---------------------------------------------------------------------------------------------------------
// The model, or features made elsewhere

// The layer asked for, or all; of those that have an SAE, if that is what is looked at.
static std::vector<size_t> layers_of(const BspOptions& options, const Config& c, const SaeViews& saes) {
    std::vector<size_t> layers;
    if (saes.reader) {
        for (const size_t l : saes.layers)
            if (options.layer == "all" || options.layer == std::to_string(l)) layers.push_back(l);
        if (layers.empty()) fail("%s: no SAE of layer %s", options.sae.c_str(), options.layer.c_str());
        return layers;
    }
    if (options.layer == "all") {
        for (size_t l = 0; l < c.n_layer; l++) layers.push_back(l);
        return layers;
    }
    size_t layer = 0;
    const char *text = options.layer.data(), *end = text + options.layer.size();
    const auto [stop, error] = std::from_chars(text, end, layer);
    if (error != std::errc() || stop != end || layer >= c.n_layer)
        fail_usage("--layer: %s, expected all or 0 to %zu", quoted(options.layer).c_str(), c.n_layer - 1);
    return {layer};
}

static void measure_model(Bsp& bsp, const BspOptions& options, const Ruler& ruler,
                          const SafeTensorsFile& file, const std::vector<size_t>& layers,
                          const SaeViews& saes, const MakeReader& make_reader) {
    Reader reader = make_reader(bsp.config, 16, ruler.games.train.characters);
    const Boundaries dots = {ruler.train.dots, false};
    const PlacedRows train = placed_games(ruler.games.train, dots),
                     test = placed_games(ruler.games.test, dots);
    const auto score_all = [&](const std::string& name, const char* label, bool untrained, auto score) {
        const Reader units = saes.reader ? saes.reader(reader, untrained, bsp.untrained_seed) : reader;
        Reader view = view_reader(units, options.features, options.split, file.path);
        bsp.features = options.features.empty() ? units.views[0].name : options.features;
        each_layer_group({view, train, test, Ladder::OF_MAXIMUM, bsp.gated, name}, layers,
                         [&](const std::vector<size_t>& group, std::vector<LayerFires>& fires) {
                             Progress progress(label, "layers", double(group.size()));
                             for (size_t i = 0; i < group.size(); i++) {
                                 score(group[i], fires[i]);
                                 fires[i] = {};
                                 progress.update(double(i + 1));
                             }
                             progress.finish(double(group.size()));
                         });
    };
    if (saes.untrained_seed >= 0) // the null that the SAE was trained on
        untrained_weights(reader, uint64_t(saes.untrained_seed));
    else
        load_weights(reader, file);
    score_all(file.path, "scores", false, [&](size_t layer, const LayerFires& fires) {
        bsp.layers.push_back(measure_layer(fires, ruler, bsp.seed));
        bsp.layers.back().layer = layer;
        if (options.subset > 0)
            bsp.layers.back().subset =
                measure_subset(fires, ruler, size_t(options.subset), size_t(options.draws), bsp.seed);
    });
    if (!saes.reader) untrained_weights(reader, bsp.untrained_seed); // of an SAE: random directions
    size_t i = 0;
    score_all(saes.reader ? "random directions" : "untrained weights", "untrained scores", true,
              [&](size_t, const LayerFires& fires) {
                  add_untrained(bsp.layers[i++], control_scores(fires, ruler), ruler);
              });
}

static BspFunction describe_function(const Ruler& ruler, size_t f) {
    const FunctionColumns& columns = ruler.functions[f];
    BspFunction out = {columns.function, {}, always_on_floor(ruler.columns, columns), 0, 0, 0, 0, ""};
    out.floor_test = always_on_floor(ruler.test, columns);
    out.attainable = double(columns.last - columns.first) / columns.cells();
    for (size_t c = columns.first; c < columns.last; c++) {
        out.attainable_test += ruler.in_test[c] / columns.cells();
        out.common += ruler.common[c];
    }
    if (columns.cells() == 1 && columns.last > columns.first) out.text_rule = ruler.text.words(columns.first);
    for (const TruthRows* truth : {&ruler.train, &ruler.test}) {
        const uint32_t* positives = &truth->positives[f * truth->games];
        out.positives[truth == &ruler.test] = std::accumulate(positives, positives + truth->games, size_t(0));
    }
    return out;
}

Bsp measure_bsp(const BspOptions& options, const MakeReader& make_reader, const OpenSaes& open_saes) {
    const double begin = now_seconds();
    Bsp bsp;
    bsp.gated = !options.ungated;
    bsp.split = options.split;
    bsp.seed = uint64_t(options.seed);
    bsp.json_name = bsp_json_name(options);
    if (options.ckpt.empty() == options.activations.empty())
        fail_usage("one of --ckpt and --activations is needed");
    if (options.activations.empty() != options.test_activations.empty())
        fail_usage("--activations and --test-activations go together");
    if (options.ckpt.empty() && (options.layer != "all" || options.ungated || !options.features.empty()))
        fail_usage("--layer, --features and --ungated are for --ckpt");
    if (options.ckpt.empty() && !options.sae.empty()) fail_usage("--sae is for --ckpt");

    // Features first: what cannot be read is refused before any work.
    std::optional<SafeTensorsFile> file;
    std::vector<size_t> layers;
    SaeViews saes;
    if (!options.ckpt.empty()) {
        file.emplace(find_checkpoint(options.ckpt));
        bsp.checkpoint = file->path;
        bsp.config = read_config(*file);
        bsp.step = checkpoint_step(*file);
        check_chess_model(bsp.config, file->path, options.characters);
        bsp.own_games = trained_on(file->path, bsp.step, options.games);
        bsp.untrained_seed = options.untrained_seed >= 0 ? uint64_t(options.untrained_seed)
                                                         : seed_of_run(file->path, bsp.step);
        if (!options.sae.empty()) {
            if (!open_saes) fail_usage("--sae: this program runs no SAEs; the CPU's bsp does");
            saes = open_saes(options.sae, file->path, bsp.config);
            bsp.sae = options.sae;
        }
        layers = layers_of(options, bsp.config, saes);
    }
    const Ruler ruler = make_ruler(bsp_games(options), options.functions == "all", bsp.seed);
    if (file) {
        measure_model(bsp, options, ruler, *file, layers, saes, make_reader);
    } else {
        bsp.activations = options.activations;
        const std::string names[2] = {options.activations, options.test_activations};
        const NpyArray train = read_activations(names[0], ruler.games.train),
                       test = read_activations(names[1], ruler.games.test);
        if (train.shape[2] != test.shape[2])
            fail("%s: %zu features, expected the %zu of %s", names[1].c_str(), test.shape[2], train.shape[2],
                 names[0].c_str());
        const LayerFires fires =
            array_fires(train.data, test.data, train.shape[2], ruler.games, names, options.split);
        bsp.layers.push_back(measure_layer(fires, ruler, bsp.seed));
        if (options.subset > 0)
            bsp.layers.back().subset =
                measure_subset(fires, ruler, size_t(options.subset), size_t(options.draws), bsp.seed);
    }

    for (size_t f = 0; f < ruler.functions.size(); f++) bsp.functions.push_back(describe_function(ruler, f));
    bsp.board_floor = bsp.functions[ruler.board].floor;
    bsp.board_floor_test = bsp.functions[ruler.board].floor_test;
    bsp.strategy_floor = strategy_mean(ruler, [&](size_t f) { return bsp.functions[f].floor; });
    bsp.strategy_floor_test = strategy_mean(ruler, [&](size_t f) { return bsp.functions[f].floor_test; });
    bsp.seen = std::accumulate(ruler.seen.begin(), ruler.seen.end(), 0.0) / double(ruler.seen.size());
    bsp.games = ruler.games;
    bsp.seconds = now_seconds() - begin;
    return bsp;
}

// ---------------------------------------------------------------------------------------------------------
// The program

void write_games(const std::string& path, const GameSet& games) {
    AtomicFile out(path);
    for (const std::string& text : games.texts) out.write((text + "\n").data(), text.size() + 1);
    out.commit();
    printf("%zu games in %s\n", games.size(), path.c_str());
}

void labels_to(const std::string& path, const std::string& games) {
    if (games.empty()) fail_usage("--games is missing: games or positions to label");
    const bool to_file = path != "-";
    const std::string temporary = strf("%s.tmp.%d", path.c_str(), int(getpid()));
    FILE* file = to_file ? fopen(temporary.c_str(), "w") : stdout;
    if (!file) fail("%s: cannot be created: %s", path.c_str(), strerror(errno));
    LabelCounts counts;
    try {
        counts = write_labels(games, file);
        if (to_file &&
            (fclose(std::exchange(file, nullptr)) != 0 || rename(temporary.c_str(), path.c_str()) != 0))
            fail("%s: cannot be written: %s", path.c_str(), strerror(errno));
    } catch (...) {
        if (to_file && file) fclose(file);
        if (to_file) unlink(temporary.c_str());
        throw;
    }
    if (counts.left_out)
        fprintf(stderr, "%zu games of %s are left out: cut, empty or variants\n", counts.left_out,
                games.c_str());
    if (to_file) printf("%zu positions of %zu games in %s\n", counts.positions, counts.games, path.c_str());
}

int bsp_program(int argc, char** argv, const MakeReader& make_reader, const OpenSaes& open_saes) {
    BspOptions flags;
    Options options("bsp", "Measures what the units of a checkpoint know about the board: coverage and "
                           "reconstruction of\nboard functions, beside their controls.");
    flags.declare(options);
    if (!options.parse(argc, argv)) return 0;
    if (!flags.labels.empty()) return labels_to(flags.labels, flags.games), 0;
    if (!flags.write_games.empty()) {
        const GameSplit games = bsp_games(flags);
        make_directories(flags.write_games);
        write_games(flags.write_games + "/train.txt", games.train);
        write_games(flags.write_games + "/test.txt", games.test);
        return 0;
    }
    const Bsp bsp = measure_bsp(flags, make_reader, open_saes);
    print_bsp(bsp);
    write_json(json_path(flags.json, bsp.activations.empty() ? bsp.checkpoint : bsp.activations,
                         bsp.json_name.c_str()),
               bsp_json(bsp));
    return 0;
}
