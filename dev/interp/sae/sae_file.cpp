// SAEs on disk and at work: see sae_file.h.
#include "sae_file.h"
#include "../../run/stored_flags.h"

// ---------------------------------------------------------------------------------------------------------
// Files

static std::string precise(double x) { return strf("%.17g", x); }

void write_sae(const SaeFile& file, double scale) {
    const Sae& s = file.sae;
    Strings metadata = {{"format", "pt"},
                        {"model", "moex-sae"},
                        {"kind", sae_kinds[size_t(s.kind)]},
                        {"k", std::to_string(s.k)},
                        {"theta", precise(s.theta)},
                        {"site", file.site},
                        {"layer", std::to_string(file.layer)},
                        {"tokens", std::to_string(file.tokens)},
                        {"fvu", precise(file.fvu)},
                        {"l0", precise(file.l0)},
                        {"dead", std::to_string(file.dead)},
                        {"checkpoint", shown_as_utf8(file.checkpoint)},
                        {"weights", file.weights}};
    if (file.untrained_seed >= 0) metadata["untrained_seed"] = std::to_string(file.untrained_seed);
    std::vector<real> folded(s.weights.data, s.weights.data + s.weights.count);
    for (const Tensor& t : s.table) {
        const double factor = t.name == "w_enc" ? scale : t.name == "b_enc" ? 1 : 1 / scale;
        for (size_t i = 0; i < t.count; i++) folded[t.offset + i] = real(folded[t.offset + i] * factor);
    }
    write_blocks<real>(file.path, metadata, s.table, {{"", folded.data()}});
}

static uint64_t whole_entry(const SafeTensorsFile& file, const std::string& name) {
    return uint64_t(whole_number(file, name, metadata_entry(file, name)));
}

static size_t word_entry(const SafeTensorsFile& file, const std::string& name,
                         const std::vector<std::string>& words) {
    const std::string& text = metadata_entry(file, name);
    const size_t at = size_t(std::find(words.begin(), words.end(), text) - words.begin());
    if (at < words.size()) return at;
    std::string list;
    for (const std::string& word : words) list += (list.empty() ? "" : " or ") + word;
    fail("%s: metadata: %s is %s, expected %s", file.path.c_str(), name.c_str(), quoted(text).c_str(),
         list.c_str());
}

static SaeFile read_sae(const std::string& path) {
    const SafeTensorsFile file(path);
    const auto model = file.metadata.find("model");
    if (model == file.metadata.end() || model->second != "moex-sae")
        fail("%s: not an SAE that train_sae wrote: its metadata lacks model=moex-sae", path.c_str());
    const SafeTensor* w = file.find("w_enc");
    if (!w || w->shape.size() != 2 || w->elements() == 0)
        fail("%s: expected a tensor w_enc of shape (latents, channels)", path.c_str());
    const SaeKind kind = SaeKind(word_entry(file, "kind", sae_kinds));
    SaeFile out{.path = path,
                .site = sae_sites[word_entry(file, "site", sae_sites)],
                .checkpoint = metadata_entry(file, "checkpoint"),
                .weights = metadata_entry(file, "weights"),
                .layer = whole_entry(file, "layer"),
                .tokens = whole_entry(file, "tokens"),
                .untrained_seed =
                    file.metadata.count("untrained_seed") ? int64_t(whole_entry(file, "untrained_seed")) : -1,
                .fvu = real_number(file, "fvu"),
                .l0 = real_number(file, "l0"),
                .dead = whole_entry(file, "dead"),
                .sae = Sae(kind, w->shape[1], w->shape[0], whole_entry(file, "k"), false)};
    check_tensors(file, out.sae.table, {""});
    read_block(file, out.sae.table, "", out.sae.weights.data);
    out.sae.theta = real_number(file, "theta");
    for (size_t i = 0; i < out.sae.weights.count; i++)
        if (!std::isfinite(out.sae.weights.data[i])) fail("%s: its weights are not finite", path.c_str());
    if (kind == SaeKind::batchtopk && out.sae.theta < 0)
        fail("%s: metadata: theta is %g, expected 0 or more", path.c_str(), out.sae.theta);
    return out;
}

std::vector<SaeFile> read_saes(const std::string& path) {
    std::vector<SaeFile> saes;
    struct stat st;
    if (stat(path.c_str(), &st) != 0 || !S_ISDIR(st.st_mode)) {
        saes.push_back(read_sae(path));
        return saes;
    }
    for (const std::string& name : file_names(path))
        if (name.starts_with("layer_") && name.ends_with(".safetensors"))
            saes.push_back(read_sae(path + "/" + name));
    if (saes.empty()) fail("%s: the folder holds no SAE, expected layer_*.safetensors", path.c_str());
    std::sort(saes.begin(), saes.end(), [](const SaeFile& a, const SaeFile& b) { return a.layer < b.layer; });
    for (size_t i = 1; i < saes.size(); i++) {
        if (saes[i].layer == saes[i - 1].layer)
            fail("%s: two SAEs of layer %zu", path.c_str(), saes[i].layer);
        if (saes[i].sae.F != saes[0].sae.F || saes[i].site != saes[0].site ||
            saes[i].untrained_seed != saes[0].untrained_seed)
            fail("%s: %s and %s are of different runs", path.c_str(), saes[0].path.c_str(),
                 saes[i].path.c_str());
    }
    return saes;
}

void check_saes(const std::vector<SaeFile>& saes, const std::string& file, const Config& c) {
    const std::string hash = weights_hash(file);
    for (const SaeFile& s : saes) {
        if (s.sae.C != c.n_embd || s.layer >= c.n_layer)
            fail("%s: of layer %zu of a model of %zu channels, but %s has %zu layers of %zu", s.path.c_str(),
                 s.layer, s.sae.C, file.c_str(), c.n_layer, c.n_embd);
        if (s.weights != hash)
            fail("%s: trained on other weights than those of %s: on %s", s.path.c_str(), file.c_str(),
                 s.checkpoint.c_str());
    }
}

// ---------------------------------------------------------------------------------------------------------
// At work

const float* site_activations(const Reader& reader, const std::string& site, size_t layer) {
    return site == "residual" ? reader.residual(layer) : reader.layer(layer).x;
}

// Random directions from the same point, the same number of latents a token.
static Sae untrained_sae(const SaeFile& file, uint64_t seed) {
    Sae s(SaeKind::topk, file.sae.C, file.sae.F, std::max<size_t>(1, size_t(std::lround(file.l0))), false);
    sae_start(s, file.sae.w.b_dec, 1, seed, random_stream("untrained sae") + file.layer);
    return s;
}

Reader sae_reader(const Reader& reader, const std::vector<SaeFile>& saes, bool untrained, uint64_t seed) {
    struct AtWork {
        std::map<size_t, const SaeFile*> of_layer;
        std::map<size_t, Sae> random; // untrained
        std::unique_ptr<SaeActivations> t;
        size_t N = 0; // of the last batch
    };
    const auto work = std::make_shared<AtWork>();
    for (const SaeFile& s : saes) {
        work->of_layer[s.layer] = &s;
        if (untrained) work->random.emplace(s.layer, untrained_sae(s, seed));
    }
    work->t = std::make_unique<SaeActivations>(saes[0].sae, reader.max_B * reader.max_T);
    Reader out = reader;
    out.n_units = saes[0].sae.F;
    out.read = [=, read = reader.read](const int32_t* tokens, size_t B, size_t T) {
        read(tokens, B, T);
        work->N = B * T;
    };
    out.layer = [=](size_t l) {
        const auto found = work->of_layer.find(l);
        if (found == work->of_layer.end()) fail("layer %zu has no SAE", l);
        const SaeFile& file = *found->second;
        const Sae& s = untrained ? work->random.at(l) : file.sae;
        const float* x = site_activations(reader, file.site, l);
        SaeActivations& t = *work->t;
        sae_encode(s, t, x, work->N);
        sae_keep(s, t, false);
        LayerUnits units{};
        units.E = 1;
        units.K = 1;
        units.D = s.F;
        units.x = x;
        units.begin = t.kept.begin.data();
        units.unit = t.kept.unit.data();
        units.value = t.kept.value.data();
        return units;
    };
    out.views = {{"latents", out.n_units, out.layer}};
    return out;
}

SaeViews open_saes(const std::string& path, const std::string& checkpoint, const Config& config) {
    const auto saes = std::make_shared<std::vector<SaeFile>>(read_saes(path));
    check_saes(*saes, checkpoint, config);
    SaeViews views;
    for (const SaeFile& s : *saes) views.layers.push_back(s.layer);
    views.untrained_seed = (*saes)[0].untrained_seed;
    views.reader = [=](const Reader& reader, bool untrained, uint64_t seed) {
        return sae_reader(reader, *saes, untrained, seed); // as long as the views are there
    };
    return views;
}
