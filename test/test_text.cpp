// Tests of perplexity.h: windows worked by hand, sums whose result is known, and what is refused.
// test_text_eval.py has the whole of it against numpy.
#include "../dev/interp/perplexity.h"
#include "byte_model.h"
#include "check.h"
#include <filesystem>
#include <fstream>

using std::string, std::vector;

static string windows_of(const TextDocument& d, size_t T, size_t stride) {
    string out;
    for (const TextWindow& w : text_windows(d, T, stride, "here"))
        out += strf("%s%zu+%zu:%zu", out.empty() ? "" : " ", w.first, w.length, w.scored);
    return out;
}

static void test_windows() {
    // Ten tokens behind end-of-text at 100; what is read is one before what is predicted: 101 from 100.
    const TextDocument ten = {100, 0, 10, 2, 10};
    check(windows_of(ten, 4, 0) == "100+4:4 104+4:4 106+4:2"); // the last is filled up with what came before
    check(windows_of(ten, 4, 4) == windows_of(ten, 4, 0));
    check(windows_of(ten, 4, 2) == "100+4:4 102+4:2 104+4:2 106+4:2");
    check(windows_of(ten, 4, 1) == "100+4:4 101+4:1 102+4:1 103+4:1 104+4:1 105+4:1 106+4:1");
    check(windows_of(ten, 4, 3) == "100+4:4 103+4:3 106+4:3");
    check(windows_of(ten, 10, 0) == "100+10:10" && windows_of(ten, 16, 3) == "100+10:10");
    check(windows_of({0, 0, 1, 1, 1}, 4, 0) == "0+1:1");
    // A context: the last T tokens before the end, without end-of-text.
    const TextDocument word = {100, 5, 2, 1, 6}; // tokens 101-105, target 106-107
    check(windows_of(word, 16, 0) == "101+6:2" && windows_of(word, 4, 0) == "103+4:2");
    check(windows_of(word, 2, 0) == "105+2:2");
    check_error(text_windows(word, 1, 0, "here"), "here", "2 tokens", "the 1");
}

static void test_sums() {
    // Two documents: 4 tokens at 1/2 each and 2 tokens at 1/4: LL = -8 ln 2 over 6 tokens, 5 words, 16 bytes.
    const double half = std::log(0.5);
    const vector<TextDocument> d = {{0, 0, 4, 3, 10}, {5, 0, 2, 2, 6}};
    const TextScores s = text_scores(d, {{4 * half, true}, {4 * half, false}}, 1);
    check(!s.with_context && s.documents == 2 && s.tokens == 6 && s.words == 5 && s.bytes == 16);
    check_near(s.token_perplexity.value, std::pow(2, 8 / 6.0), 1e-12);
    check_near(s.word_perplexity.value, std::pow(2, 8 / 5.0), 1e-12);
    check_near(s.byte_perplexity.value, std::sqrt(2.0), 1e-12);
    check_near(s.bits_per_byte.value, 0.5, 1e-12);
    check(std::isnan(s.accuracy.value) && std::isnan(s.target_perplexity.value));
    // Drawn with replacement: one document alone at either end.
    check_near(s.bits_per_byte.interval.low, 4 / 10.0, 1e-12);
    check_near(s.bits_per_byte.interval.high, 4 / 6.0, 1e-12);
    const TextScores words =
        text_scores({{0, 3, 1, 1, 4}, {9, 2, 2, 1, 4}}, {{half, true}, {3 * half, false}}, 1);
    check_near(words.accuracy.value, 0.5, 0);
    check_near(words.target_perplexity.value, 4, 1e-12); // a mean of 2 ln 2
    check(words.with_context && std::isnan(words.token_perplexity.value));
    check(std::isnan(text_scores({d[0]}, {{half, true}}, 1).bits_per_byte.interval.low)); // of one document
}

static void test_files(const string& folder) {
    const string spans = folder + "/a.spans.jsonl";
    const auto read = [&](const string& text) {
        std::ofstream(spans) << text;
        return read_text_documents(spans, 100);
    };
    const string line = R"({"begin": 3, "context": 0, "target": 4, "words": 2, "bytes": 9})";
    const vector<TextDocument> two = read(line + "\n" + line);
    check(two.size() == 2 && two[1].begin == 3 && two[1].target == 4 && two[1].words == 2 &&
          two[1].bytes == 9);
    check_error(read(""), "a.spans.jsonl", "empty");
    check_error(read(line + "\n{"), "line 2");
    check_error(read(R"({"begin": 3, "context": 0, "target": 4, "words": 2})"), "line 1", "bytes");
    check_error(read(R"({"begin": -1, "context": 0, "target": 4, "words": 2, "bytes": 9})"), "begin");
    for (const char* bad :
         {R"({"begin": 99, "context": 0, "target": 1, "words": 2, "bytes": 9})",
          R"({"begin": 0, "context": 0, "target": 0, "words": 2, "bytes": 9})",
          R"({"begin": 0, "context": 99, "target": 1, "words": 2, "bytes": 9})",
          R"({"begin": 0, "context": 18446744073709551615, "target": 1, "words": 2, "bytes": 9})"})
        check_error(read(bad), "line 1", "100");
    check_error(read(R"({"begin": 0, "context": 0, "target": 1, "words": 0, "bytes": 9})"), "no words");
    check_error(read(line + "\n" + R"({"begin": 3, "context": 1, "target": 4, "words": 2, "bytes": 9})"),
                "line 2", "one kind");
    std::ofstream(spans) << line;
    const string model = save_byte_model(folder + "/moe.safetensors", "moe", 1);
    const SafeTensorsFile file(model);
    const Config c = read_config(file);
    save_byte_shard(folder + "/a.bin", string(20, 'x'));
    const TextScores s = evaluate_text(file, c, {spans});
    check(s.T == 32 && s.stride == 32 && s.token_perplexity.value > 1 && s.token_perplexity.value < 2000);
    check_error(evaluate_text(file, c, {folder + "/a.bin"}), "spans.jsonl");
    check_error(evaluate_text(file, c, {spans, 33}), "--seq 33", "32");
    check_error(evaluate_text(file, c, {spans, 8, 9}), "--stride 9", "8");
    check_error(evaluate_text(file, c, {folder + "/b.spans.jsonl"}), "b.bin");
}

int main() {
    return run_main([] {
        string folder = (std::filesystem::temp_directory_path() / "test_text_XXXXXX").string();
        if (!mkdtemp(folder.data())) fail("%s: cannot be made", folder.c_str());
        test_windows();
        test_sums();
        test_files(folder);
        std::filesystem::remove_all(folder);
        return finish();
    });
}
