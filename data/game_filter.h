// Which games of a file are wanted, by what their tags say (or a table's other columns): ratings, time
// control, how the game ended, dates, events, robots. Tags are asked before the moves are read, so that
// what is not wanted costs little. Every game left out is counted under the first rule that it breaks.
#pragma once
#include "../dev/lib/options.h"
#include "game_record.h"

namespace chess {

// `180+2`, `40/7200:3600`, `600`, `1/86400` in seconds for a game of 40 moves; -1: not known.
inline double expected_seconds(const std::string& time_control) {
    if (time_control.empty() || time_control == "?" || time_control == "-") return -1;
    double moves = 0, base = 0, increment = 0;
    const char* at = time_control.c_str();
    char* end;
    base = strtod(at, &end);
    if (end == at) return -1;
    if (*end == '/') {
        moves = base;
        at = end + 1;
        base = strtod(at, &end);
        if (end == at) return -1;
    }
    if (*end == '+') {
        at = end + 1;
        increment = strtod(at, &end);
        if (end == at) return -1;
    }
    if (*end != 0 && *end != ':') return -1;
    if (moves > 0 && moves < 40) base *= 40 / moves; // 1/86400: a day for every move
    return base + 40 * increment;
}

// The classes of lichess, by seconds for a game of 40 moves.
inline const char* speed_name(double seconds) {
    return seconds < 0       ? "unknown"
           : seconds < 29    ? "ultrabullet"
           : seconds < 179   ? "bullet"
           : seconds < 479   ? "blitz"
           : seconds < 1499  ? "rapid"
           : seconds < 21600 ? "classical"
                             : "correspondence";
}

// In small letters, without the blanks around.
inline std::vector<std::string> split_list(const std::string& list) {
    std::vector<std::string> words = split(lower(list), ',');
    for (std::string& word : words) {
        word.erase(0, word.find_first_not_of(' '));
        while (!word.empty() && word.back() == ' ') word.pop_back();
    }
    return words;
}

struct GameFilter {
    int64_t min_elo = 0, max_elo = 0, min_plies = 0;                    // 0: any
    std::string time_control, termination, result, event, since, until; // "": any
    bool no_bots = false;

    void add_options(Options& options) {
        options.section(
            "which games of the file are kept (those without the tag that a rule asks for are not)");
        options.add(0, "min-elo", "N", &min_elo, 0, 4000, "both players rated N or higher");
        options.add(0, "max-elo", "N", &max_elo, 0, 4000, "both players rated N or lower, 0: any");
        options.add(0, "time-control", "LIST", &time_control,
                    "ultrabullet, bullet, blitz, rapid, classical, correspondence or as the tag, 180+2");
        options.add(0, "termination", "LIST", &termination,
                    "tag Termination holds one of these, normal for instance");
        options.add(0, "result", "LIST", &result, "1-0, 0-1, 1/2-1/2 or *");
        options.add(0, "event", "LIST", &event, "tag Event holds one of these");
        options.add(0, "since", "DATE", &since, "played on YYYY, YYYY.MM or YYYY.MM.DD or later");
        options.add(0, "until", "DATE", &until, "played on that date, in that month or year, or earlier");
        options.add(0, "no-bots", &no_bots, "no player has the title BOT");
        options.add(0, "min-plies", "N", &min_plies, 0, 17697, "moves of White and Black together");
    }
    // Of the values alone; which of them were given the rules tell.
    void validate() const {
        for (const std::string* date : {&since, &until}) {
            const char* name = date == &since ? "since" : "until";
            bool good = date->empty() || date->size() == 4 || date->size() == 7 || date->size() == 10;
            for (size_t i = 0; i < date->size(); i++)
                good = good && (i == 4 || i == 7 ? (*date)[i] == '.' || (*date)[i] == '-'
                                                 : isdigit((unsigned char)(*date)[i]));
            if (!good)
                fail_usage("--%s: %s is not a date, expected YYYY, YYYY.MM or YYYY.MM.DD", name,
                           quoted(*date).c_str());
        }
        if (!result.empty())
            for (const std::string& word : split_list(result))
                if (word != "1-0" && word != "0-1" && word != "1/2-1/2" && word != "*")
                    fail_usage("--result: %s is no result, expected some of 1-0,0-1,1/2-1/2,*",
                               quoted(word).c_str());
        if (max_elo && max_elo < min_elo)
            fail_usage("--max-elo: %lld is less than --min-elo %lld", (long long)max_elo, (long long)min_elo);
    }
    bool any() const {
        return min_elo || max_elo || min_plies || no_bots ||
               !(time_control + termination + result + event + since + until).empty();
    }

    // By the tags alone, before the moves are read.
    bool wanted(const Tags& tags) {
        if (min_elo || max_elo) {
            const int64_t white = elo(tags.find("whiteelo")), black = elo(tags.find("blackelo"));
            if (white == 0 || black == 0)
                return leave_out("without ratings", min_elo ? "min-elo" : "max-elo");
            if (std::min(white, black) < min_elo) return leave_out("", "min-elo");
            if (max_elo && std::max(white, black) > max_elo) return leave_out("", "max-elo");
        }
        if (no_bots)
            for (const char* name : {"whitetitle", "blacktitle"})
                if (lower(tags.find(name)) == "bot") return leave_out("", "no-bots");
        if (!time_control.empty()) {
            const std::string value = tags.find("timecontrol");
            const std::string speed = value == "-" ? "correspondence" : speed_name(expected_seconds(value));
            bool found = false;
            for (const std::string& word : split_list(time_control))
                found = found || word == speed || word == lower(value);
            if (value.empty() || value == "?")
                return leave_out("without the tag TimeControl", "time-control");
            if (!found) return leave_out("", "time-control");
        }
        if (!holds_one_of(tags, "termination", termination, "without the tag Termination")) return false;
        if (!holds_one_of(tags, "event", event, "without the tag Event")) return false;
        if (!since.empty() || !until.empty()) {
            // The day may be unknown, as 2013.??.??: then what is known decides.
            std::string date = tags.find("date");
            if (date.empty() || date[0] == '?') date = tags.find("utcdate");
            const std::string known = digits(date);
            if (known.size() < 4) return leave_out("without a date", since.empty() ? "until" : "since");
            const auto order = [&](const std::string& bound) {
                const std::string limit = digits(bound);
                const size_t n = std::min(known.size(), limit.size());
                return known.compare(0, n, limit, 0, n);
            };
            if (!since.empty() && order(since) < 0) return leave_out("", "since");
            if (!until.empty() && order(until) > 0) return leave_out("", "until");
        }
        return true;
    }
    // By the rest of it: what the movetext says of the result stands above the tag.
    bool keeps(const GameRecord& game) {
        if (!result.empty()) {
            const std::string tag = words::result(game.tags.find("result"));
            const std::string said = game.result != "*" || tag.empty() ? game.result : tag;
            bool found = false;
            for (const std::string& word : split_list(result)) found = found || word == said;
            if (!found) return leave_out("", "result");
        }
        if (int64_t(game.moves.size()) < min_plies) return leave_out("", "min-plies");
        return true;
    }

    // `312 by --min-elo, 20 by --min-elo, without ratings`
    std::string summary() const {
        std::string out;
        for (const Count& c : counts)
            out += strf("%s%llu by --%s%s%s", out.empty() ? "" : ", ", (unsigned long long)c.games, c.rule,
                        *c.why ? ", " : "", c.why);
        return out;
    }
    uint64_t left_out() const {
        uint64_t sum = 0;
        for (const Count& c : counts) sum += c.games;
        return sum;
    }

  private:
    struct Count {
        const char *rule, *why;
        uint64_t games;
    };
    std::vector<Count> counts;

    bool leave_out(const char* why, const char* rule) {
        for (Count& c : counts)
            if (strcmp(c.rule, rule) == 0 && strcmp(c.why, why) == 0) {
                c.games++;
                return false;
            }
        counts.push_back({rule, why, 1});
        return false;
    }
    bool holds_one_of(const Tags& tags, const char* tag, const std::string& list, const char* missing) {
        if (list.empty()) return true;
        const std::string value = lower(tags.find(tag));
        if (value.empty() || value == "?") return leave_out(missing, tag);
        for (const std::string& word : split_list(list))
            if (!word.empty() && value.find(word) != std::string::npos) return true;
        return leave_out("", tag);
    }
    static int64_t elo(const std::string& value) { return strtoll(value.c_str(), nullptr, 10); }
    // Of a date: 2013.05.?? -> 201305.
    static std::string digits(const std::string& date) {
        std::string out;
        for (char c : date) {
            if (c == '?') break;
            if (isdigit((unsigned char)c)) out += c;
        }
        return out;
    }
};

} // namespace chess
