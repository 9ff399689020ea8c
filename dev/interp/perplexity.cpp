// Perplexity as the field counts it: see perplexity.h.
#include "perplexity.h"
#include "../cpu/model.h"
#include "../lib/terminal.h"
#include "results.h"

std::vector<TextWindow> text_windows(const TextDocument& d, size_t T, size_t stride,
                                     const std::string& where) {
    if (stride == 0) stride = T;
    if (d.context > 0) {
        if (d.target > T)
            fail("%s: a target of %zu tokens, expected at most the %zu that are read at once", where.c_str(),
                 d.target, T);
        const size_t end = d.begin + 1 + d.context + d.target; // what is read ends one before
        const size_t length = std::min(T, d.context + d.target - 1);
        return {{end - 1 - length, length, d.target}};
    }
    std::vector<TextWindow> windows;
    for (size_t predicted = 0; predicted < d.target;) {
        const size_t scored = std::min(predicted == 0 ? T : stride, d.target - predicted);
        const size_t length = std::min(T, predicted + scored);
        predicted += scored;
        windows.push_back({d.begin + predicted - length, length, scored});
    }
    return windows;
}

TextScores text_scores(const std::vector<TextDocument>& documents, const std::vector<DocumentScore>& scores,
                       uint64_t seed) {
    TextScores out;
    out.documents = documents.size();
    out.with_context = !documents.empty() && documents[0].context > 0;
    struct Sums {
        double log_p = 0, exact = 0, documents = 0, tokens = 0, words = 0, bytes = 0;
    };
    const auto sums_of = [&](const std::vector<uint32_t>& times) {
        Sums s;
        for (size_t i = 0; i < documents.size(); i++) {
            if (!times[i]) continue;
            s.log_p += times[i] * scores[i].log_p;
            s.exact += times[i] * double(scores[i].exact);
            s.documents += times[i];
            s.tokens += times[i] * double(documents[i].target);
            s.words += times[i] * documents[i].words;
            s.bytes += times[i] * documents[i].bytes;
        }
        return s;
    };
    const Sums all = sums_of(std::vector<uint32_t>(documents.size(), 1));
    const std::vector<Sums> drawn = resample(documents.size(), seed, sums_of);
    const auto estimate = [&](auto of) {
        std::vector<double> values;
        for (const Sums& s : drawn) values.push_back(of(s));
        return Estimate{of(all), interval_of(values)};
    };
    out.tokens = size_t(all.tokens);
    out.words = all.words;
    out.bytes = all.bytes;
    if (out.with_context) {
        out.accuracy = estimate([](const Sums& s) { return s.exact / s.documents; });
        out.target_perplexity = estimate([](const Sums& s) { return std::exp(-s.log_p / s.documents); });
        return out;
    }
    out.token_perplexity = estimate([](const Sums& s) { return std::exp(-s.log_p / s.tokens); });
    out.word_perplexity = estimate([](const Sums& s) { return std::exp(-s.log_p / s.words); });
    out.byte_perplexity = estimate([](const Sums& s) { return std::exp(-s.log_p / s.bytes); });
    out.bits_per_byte = estimate([](const Sums& s) { return -s.log_p / (s.bytes * std::log(2.0)); });
    return out;
}

// ---------------------------------------------------------------------------------------------------------
// Reading

std::vector<TextDocument> read_text_documents(const std::string& path, size_t tokens) {
    const MappedFile file(path);
    const std::string text((const char*)file.data, file.size);
    std::vector<TextDocument> documents;
    size_t line = 0;
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find('\n', at), text.size());
        const std::string where = strf("%s: line %zu", path.c_str(), ++line);
        const Json json = parse_json(text.data() + at, end - at, where);
        at = end + 1;
        const auto count = [&](const char* name) {
            const Json* found = json.find(name);
            if (!found || !found->is_unsigned())
                fail("%s: no %s, expected a whole number", where.c_str(), name);
            return size_t(found->magnitude);
        };
        TextDocument d;
        d.begin = count("begin");
        d.context = count("context");
        d.target = count("target");
        d.words = double(count("words"));
        d.bytes = double(count("bytes"));
        const auto fits = [&](size_t n) { return n <= tokens; };
        if (d.target == 0 || !fits(d.begin) || !fits(d.context) || !fits(d.target) ||
            !fits(d.begin + 1 + d.context + d.target))
            fail("%s: %zu tokens behind token %zu and %zu of context, expected some of the shard's %zu",
                 where.c_str(), d.target, d.begin, d.context, tokens);
        if (d.words < 1 || d.bytes < 1) fail("%s: a text of no words or bytes", where.c_str());
        if (!documents.empty() && (d.context > 0) != (documents[0].context > 0))
            fail("%s: documents with a context and without, expected one kind", where.c_str());
        documents.push_back(d);
    }
    if (documents.empty()) fail("%s: empty, expected a document a line", path.c_str());
    return documents;
}

// The shard NAME.bin of NAME.spans.jsonl.
static std::string shard_of(const std::string& spans) {
    const std::string ending = ".spans.jsonl";
    if (spans.size() <= ending.size() || spans.substr(spans.size() - ending.size()) != ending)
        fail("--text: %s, expected NAME.spans.jsonl, which data/text_eval.py writes beside NAME.bin",
             quoted(spans).c_str());
    return spans.substr(0, spans.size() - ending.size()) + ".bin";
}

// ---------------------------------------------------------------------------------------------------------
// The model

TextScores evaluate_text(const SafeTensorsFile& file, const Config& c, const TextOptions& o) {
    const Shard shard(shard_of(o.spans));
    const Tokenizer kind = shard.header.tokenizer;
    if (c.tokenizer.empty() ? c.vocab_size < tokenizer_vocab(kind) : c.tokenizer != tokenizer_name(kind))
        fail("%s: its tokens are %s, but the model %s reads %s", shard.file.path.c_str(),
             tokenizer_name(kind), file.path.c_str(),
             c.tokenizer.empty() ? strf("%zu tokens", c.vocab_size).c_str() : c.tokenizer.c_str());
    const size_t T = o.T ? o.T : c.block_size;
    if (T > c.block_size)
        fail("--seq %zu is more than the %zu positions of the model %s", T, c.block_size, file.path.c_str());
    if (o.stride > T) fail("--stride %zu is more than the %zu tokens that are read at once", o.stride, T);
    const std::vector<TextDocument> documents = read_text_documents(o.spans, shard.header.tokens);

    struct Item {
        size_t document;
        TextWindow window;
    };
    std::vector<Item> items;
    size_t predictions = 0;
    for (size_t d = 0; d < documents.size(); d++) {
        const std::string where = strf("%s: line %zu", o.spans.c_str(), d + 1);
        for (const TextWindow& w : text_windows(documents[d], T, o.stride, where)) items.push_back({d, w});
        predictions += documents[d].target;
    }
    // Windows of a length side by side: what is shorter is filled up behind its end, where it is not looked
    // at.
    std::stable_sort(items.begin(), items.end(),
                     [](const Item& a, const Item& b) { return a.window.length > b.window.length; });

    const size_t max_B = std::max<size_t>(1, std::min<size_t>(16, 16384 / T)), V = c.vocab_size;
    Model model(o.changes.apply(c), max_B, T, false);
    read_block(file, model.table, "", model.weights.data);
    apply(model, o.changes);
    std::vector<DocumentScore> scores(documents.size());
    Progress progress("text", "tokens", double(predictions));
    size_t done = 0;
    std::vector<int32_t> x, y;
    for (size_t at = 0; at < items.size(); at += max_B) {
        const size_t B = std::min(max_B, items.size() - at), length = items[at].window.length;
        x.assign(B * length, 0);
        y.assign(B * length, 0);
        for (size_t b = 0; b < B; b++) {
            const TextWindow& w = items[at + b].window;
            for (size_t t = 0; t < w.length; t++) {
                x[b * length + t] = shard.tokens[w.first + t];
                y[b * length + t] = shard.tokens[w.first + t + 1];
            }
        }
        for (const std::vector<int32_t>* ids : {&x, &y})
            for (const int32_t id : *ids)
                if (size_t(id) >= V)
                    fail("%s: token %d, expected less than the %zu of the model %s", shard.file.path.c_str(),
                         id, V, file.path.c_str());
        forward(model, x.data(), y.data(), B, length);
        for (size_t b = 0; b < B; b++) {
            const TextWindow& w = items[at + b].window;
            DocumentScore& score = scores[items[at + b].document];
            for (size_t t = w.length - w.scored; t < w.length; t++) {
                const size_t n = b * length + t;
                const double loss = double(model.a.losses[n]);
                if (!std::isfinite(loss))
                    fail("%s: its loss on %s is not finite", file.path.c_str(), o.spans.c_str());
                score.log_p -= loss;
                const real* logits = model.a.logits + n * V;
                score.exact &= std::max_element(logits, logits + V) - logits == y[n];
            }
            done += w.scored;
        }
        progress.update(double(done));
    }
    progress.finish(double(predictions));
    TextScores out = text_scores(documents, scores, 1);
    out.T = T;
    out.stride = o.stride ? o.stride : T;
    return out;
}

// ---------------------------------------------------------------------------------------------------------
// What is said of it

static std::string with_interval(const Estimate& e) {
    const auto number = [](double x) {
        return std::isfinite(x) ? strf(x < 10 ? "%.4f" : "%.2f", x) : std::string("-");
    };
    return number(e.value) + "   (" + number(e.interval.low) + " to " + number(e.interval.high) + ")";
}

void print_text_scores(const TextScores& s, const std::string& checkpoint, const std::string& spans) {
    printf(
        "%s on %s: %zu documents, %zu tokens, %.0f words, %.0f bytes; with 95%% intervals over documents\n",
        checkpoint.c_str(), spans.c_str(), s.documents, s.tokens, s.words, s.bytes);
    if (s.with_context) {
        printf("from up to %zu tokens before the target's end\n", s.T);
        printf("accuracy            %s   documents of which every target token is the most probable\n",
               with_interval(s.accuracy).c_str());
        printf("target perplexity   %s   exp of the mean loss of a whole target\n",
               with_interval(s.target_perplexity).c_str());
        return;
    }
    printf("in windows of %zu tokens that move on by %zu, the first from end-of-text\n", s.T, s.stride);
    printf("token perplexity    %s\n", with_interval(s.token_perplexity).c_str());
    printf("word perplexity     %s   words of the original text\n", with_interval(s.word_perplexity).c_str());
    printf("byte perplexity     %s   bytes of the original text\n", with_interval(s.byte_perplexity).c_str());
    printf("bits per byte       %s\n", with_interval(s.bits_per_byte).c_str());
}

std::string text_scores_json(const TextScores& s, const SafeTensorsFile& file, const Config& config,
                             const std::string& spans, double seconds) {
    JsonWriter out = begin_json("evaluate", file.path, checkpoint_step(file), config, seconds);
    out.member("text", as_utf8(spans)).member("documents", s.documents).member("tokens", s.tokens);
    out.member("words", s.words).member("bytes", s.bytes).member("window", s.T).member("stride", s.stride);
    const auto put = [&](const char* name, const Estimate& e) {
        out.key(name).open('{').key("value").value(e.value, 12).member("low", e.interval.low);
        out.member("high", e.interval.high).close();
    };
    if (s.with_context) {
        put("accuracy", s.accuracy);
        put("target_perplexity", s.target_perplexity);
    } else {
        put("token_perplexity", s.token_perplexity);
        put("word_perplexity", s.word_perplexity);
        put("byte_perplexity", s.byte_perplexity);
        put("bits_per_byte", s.bits_per_byte);
    }
    out.close();
    return out.text;
}
