// Speed of the chess rules: perft of the six published positions, checked against the published counts, in
// million nodes per second on one core (median of several runs). `perft FEN DEPTH` lists the count below each
// first move instead, which is how one finds a fault in a move generator.
#include "../../data/chess.h"
#include "../lib/options.h"
#include "../lib/terminal.h"

struct Case {
    const char *name, *fen;
    int depth;
    uint64_t nodes;
};
static const Case cases[] = {
    {"start", chess::start_fen, 5, 4865609},
    {"kiwipete", "r3k2r/p1ppqpb1/bn2pnp1/3PN3/1p2P3/2N2Q1p/PPPBBPPP/R3K2R w KQkq - 0 1", 4, 4085603},
    {"position 3", "8/2p5/3p4/KP5r/1R3p1k/8/4P1P1/8 w - - 0 1", 6, 11030083},
    {"position 4", "r3k2r/Pppp1ppp/1b3nbN/nP6/BBP1P3/q4N2/Pp1P2PP/R2Q1RK1 w kq - 0 1", 5, 15833292},
    {"position 5", "rnbq1k1r/pp1Pbppp/2p5/8/2B5/8/PPP1NnPP/RNBQK2R w KQ - 1 8", 4, 2103487},
    {"position 6", "r4rk1/1pp1qppp/p1np1n2/2b1p1B1/2B1P1b1/P1NP1N2/1PP1QPPP/R4RK1 w - - 0 10", 4, 3894594},
};

// Every leaf played, none counted from a list: what the rules cost without the bulk count at depth 1.
static uint64_t perft_played(chess::Position& p, int depth) {
    if (depth == 0) return 1;
    chess::MoveList list;
    chess::generate(p, list);
    uint64_t nodes = 0;
    for (chess::Move m : list) {
        const chess::Undo undo = chess::make(p, m);
        nodes += perft_played(p, depth - 1);
        chess::unmake(p, m, undo);
    }
    return nodes;
}

int main(int argc, char** argv) {
    return run_main([&] {
        int64_t repeats = 5;
        Options options("perft",
                        "Counts the move sequences of a position; without arguments, times six known ones.",
                        "[FEN DEPTH]");
        options.add(0, "repeats", "N", &repeats, 1, 1000,
                    "runs of each position, of which the median counts");
        if (!options.parse(argc, argv)) return 0;

        if (!options.arguments.empty()) {
            if (options.arguments.size() != 2) fail_usage("expected a FEN and a depth, or nothing");
            chess::Position p = chess::parse_fen(options.arguments[0]);
            const int depth = atoi(options.arguments[1].c_str());
            if (depth < 1 || depth > 20)
                fail_usage("depth %s, expected 1 to 20", options.arguments[1].c_str());
            uint64_t total = 0;
            for (chess::Move m : chess::legal_moves(p)) {
                chess::Position next = chess::after(p, m);
                const uint64_t nodes = chess::perft(next, depth - 1);
                printf("%-7s %llu\n", chess::to_san(p, m).c_str(), (unsigned long long)nodes);
                total += nodes;
            }
            printf("total   %llu\n", (unsigned long long)total);
            return 0;
        }

        printf("%-12s %5s %12s  %18s  %18s\n", "position", "depth", "nodes", "last ply counted",
               "every ply played");
        double seconds[2] = {0, 0}, nodes = 0;
        for (const Case& c : cases) {
            chess::Position p = chess::parse_fen(c.fen);
            double median[2];
            for (int played : {0, 1}) {
                std::vector<double> times;
                for (int64_t i = 0; i < repeats; i++) {
                    const double begin = now_seconds();
                    const uint64_t n = played ? perft_played(p, c.depth) : chess::perft(p, c.depth);
                    times.push_back(now_seconds() - begin);
                    if (n != c.nodes)
                        fail("%s depth %d: counted %llu, expected %llu", c.name, c.depth,
                             (unsigned long long)n, (unsigned long long)c.nodes);
                }
                std::sort(times.begin(), times.end());
                median[played] = times[times.size() / 2];
                seconds[played] += median[played];
            }
            nodes += double(c.nodes);
            printf("%-12s %5d %12llu  %11.1f Mnodes/s  %11.1f Mnodes/s\n", c.name, c.depth,
                   (unsigned long long)c.nodes, double(c.nodes) / median[0] / 1e6,
                   double(c.nodes) / median[1] / 1e6);
        }
        printf("%-12s %5s %12.0f  %11.1f Mnodes/s  %11.1f Mnodes/s\n", "all", "", nodes,
               nodes / seconds[0] / 1e6, nodes / seconds[1] / 1e6);
        return 0;
    });
}
