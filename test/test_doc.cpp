// The worked example of dev/doc/layer.md: every `name = numbers` in its blocks is either given to the
// reference or computed by it, to the digits that stand there; and no number that the chapter promises is
// missing. So whoever works it through on paper is right when the reference is.
//   test_doc [FILE]
#include "../dev/cpu/moe.h"
#include "check.h"
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <vector>

using std::string, std::vector;
using Numbers = std::map<string, vector<double>>;

constexpr size_t N = 1, E = 3, K = 2, D = 2, C = 2;

// What stands in indented lines `name = 1 -2.5 0.0003` of the file, by name; the comma and the brackets are
// for the eye. Digits behind the point, by name, are in *digits.
static Numbers read_numbers(const string& path, std::map<string, int>* digits) {
    std::ifstream file(path);
    if (!file) fail("%s: cannot be opened", path.c_str());
    Numbers out;
    for (string line; std::getline(file, line);) {
        const size_t equals = line.find(" = ");
        if (line.compare(0, 4, "    ") != 0 || equals == string::npos) continue;
        string name = line.substr(4, equals - 4), rest = line.substr(equals + 3);
        if (name.find(' ') != string::npos || rest.find_first_not_of("0123456789.-,() ") != string::npos)
            continue;
        for (char& c : rest)
            if (strchr(",()", c)) c = ' ';
        std::istringstream words(rest);
        check(!out.count(name), "%s stands there twice", name.c_str());
        for (string word; words >> word;) {
            out[name].push_back(std::stod(word));
            const size_t point = word.find('.');
            (*digits)[name] =
                std::max((*digits)[name], point == string::npos ? 0 : int(word.size() - point - 1));
        }
    }
    return out;
}

struct Example {
    Numbers given;
    std::set<string> used;

    vector<real> take(const string& name, size_t count) {
        used.insert(name);
        const vector<double>& v = given[name];
        check(v.size() == count, "%s has %zu numbers, expected %zu", name.c_str(), v.size(), count);
        vector<real> out(v.begin(), v.end());
        out.resize(count);
        return out;
    }
    // One tensor from those of the experts: W_enc.0, W_enc.1, ..
    vector<real> take_experts(const string& name, size_t count) {
        vector<real> out;
        for (size_t j = 0; j < E; j++)
            for (const real v : take(name + "." + std::to_string(j), count)) out.push_back(v);
        return out;
    }
};

static Numbers compute(Example& e) {
    Numbers out;
    auto tell = [&](const string& name, const real* v, size_t n) { out[name].assign(v, v + n); };
    auto tell_experts = [&](const string& name, const vector<real>& v) {
        for (size_t j = 0; j < E; j++)
            tell(name + "." + std::to_string(j), &v[j * (v.size() / E)], v.size() / E);
    };
    const vector<real> x = e.take("x", C), w_enc = e.take_experts("W_enc", D * C),
                       b_enc = e.take_experts("b_enc", D), w_dec = e.take_experts("W_dec", D * C),
                       b_dec = e.take_experts("b_dec", C), dout = e.take("dout", C),
                       lambda = e.take("lambda", 1);

    vector<real> m(E * C), v(E * C), mb(E), vb(E), mu(E), sd(E), g(E), weight(K), p(E), mean(E), z(K * D),
        y(K * C), result(C);
    vector<int32_t> choice(K), slot(K), token(K), begin(E + 1);
    expert_statistics_forward(m.data(), v.data(), mb.data(), vb.data(), w_enc.data(), b_enc.data(), E, D, C);
    router_forward(g.data(), mu.data(), sd.data(), x.data(), m.data(), v.data(), mb.data(), vb.data(), N, E,
                   C);
    choice_forward(choice.data(), weight.data(), g.data(), N, E, K);
    dispatch(begin.data(), slot.data(), token.data(), choice.data(), N, E, K);
    const real aux = balance_forward(p.data(), mean.data(), g.data(), begin.data(), N, E, K);
    vector<Product> products(E);
    vector<ExpertPart> parts(E);
    const Experts experts = {E,
                             D,
                             C,
                             true,
                             w_enc.data(),
                             b_enc.data(),
                             w_dec.data(),
                             b_dec.data(),
                             begin.data(),
                             products.data(),
                             parts.data(),
                             {0, 0, 0},
                             token.data()};
    const size_t active = experts_forward(y.data(), z.data(), z.data(), x.data(), experts);
    combine_forward(result.data(), x.data(), y.data(), weight.data(), slot.data(), N, K, C);

    tell_experts("m", m), tell_experts("v", v);
    tell("mb", mb.data(), E), tell("vb", vb.data(), E);
    tell("mu", mu.data(), E), tell("sd", sd.data(), E), tell("g", g.data(), E), tell("p", p.data(), E);
    for (size_t k = 0; k < K; k++) out["S"].push_back(choice[k]);
    tell("w", weight.data(), K), tell("aux", &aux, 1), tell("out", result.data(), C);
    out["active"] = {double(active)};
    auto by_slot = [&](const string& name, const vector<real>& a) {
        for (size_t k = 0; k < K; k++) {
            const size_t width = a.size() / K;
            tell(name + "." + std::to_string(choice[k]), &a[size_t(slot[k]) * width], width);
        }
    };
    by_slot("z", z), by_slot("y", y);

    vector<real> dy(K * C), dweight(K), dslots(K * C), dx(C), dg(E), dmu(E), dvar(E), dm(E * C), dv(E * C),
        dmb(E), dvb(E), dh(K * D), scratch(C), dw_enc(E * D * C), db_enc(E * D), dw_dec(E * D * C),
        db_dec(E * C);
    combine_backward(dy.data(), dweight.data(), dout.data(), y.data(), weight.data(), slot.data(), N, K, C);
    experts_backward(dslots.data(), {dw_enc.data(), db_enc.data(), dw_dec.data(), db_dec.data(), dh.data()},
                     dy.data(), x.data(), z.data(), z.data(), active, experts);
    gather_backward(dx.data(), dslots.data(), slot.data(), N, K, C);
    tell("dw", dweight.data(), K), tell("dx.experts", dx.data(), C);
    by_slot("dy", dy), by_slot("dh", dh);
    tell_experts("dW_dec", dw_dec), tell_experts("db_dec", db_dec);
    tell_experts("dW_enc.experts", dw_enc);
    balance_backward(dg.data(), p.data(), begin.data(), lambda[0], N, E, K);
    tell("dg.balance", dg.data(), E);
    choice_backward(dg.data(), dweight.data(), weight.data(), choice.data(), N, E, K);
    tell("dg", dg.data(), E);
    const RouterView router = {m.data(), v.data(), mb.data(), vb.data(), mu.data(), sd.data()};
    const RouterGradients d = {dm.data(), dv.data(), dmb.data(), dvb.data(), dmu.data(), dvar.data()};
    router_backward(dx.data(), d, dg.data(), x.data(), router, scratch.data(), N, E, C);
    expert_statistics_backward(dw_enc.data(), db_enc.data(), d, w_enc.data(), b_enc.data(), router, E, D, C);
    tell("dmu", dmu.data(), E), tell("dvar", dvar.data(), E);
    tell_experts("dm", dm), tell_experts("dv", dv);
    tell("dmb", dmb.data(), E), tell("dvb", dvb.data(), E);
    for (size_t c = 0; c < C; c++) dx[c] += dout[c]; // the residual
    tell("dx", dx.data(), C);
    tell_experts("dW_enc", dw_enc), tell_experts("db_enc", db_enc);
    return out;
}

int main(int argc, char** argv) {
    return run_main([&] {
        std::map<string, int> digits;
        Example e{read_numbers(argc > 1 ? argv[1] : "dev/doc/layer.md", &digits), {}};
        const Numbers computed = compute(e);
        for (const auto& [name, numbers] : computed) {
            string line = name + " =";
            for (const double x : numbers) line += strf(" %.4f", x);
            if (getenv("MOEX_TEST_VERBOSE")) puts(line.c_str());
            if (!check(e.given.count(name), "the chapter lacks %s", line.c_str())) continue;
            const vector<double>& said = e.given[name];
            const double half = 0.51 * std::pow(10, -digits[name]);
            bool same = said.size() == numbers.size();
            for (size_t i = 0; same && i < said.size(); i++) same = std::fabs(said[i] - numbers[i]) <= half;
            check(same, "the reference says %s", line.c_str());
        }
        for (const auto& [name, numbers] : e.given)
            check(computed.count(name) || e.used.count(name), "%s: nothing is known of it", name.c_str());
        return finish();
    });
}
