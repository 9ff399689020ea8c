#!/usr/bin/env bash
# Includes only go down. Each line of the table is a part of the house and the parts that it may include beside
# itself; dev/cpu and train_moex.cu know nothing of each other, and nobody includes what stands under dev/bench
# and test but those two. A file of no part fails, too. The rules are first tried on a house that breaks them.
cd "$(dirname "$0")/.." || exit 1

parts='
dev/lib/
dev/emu/       dev/lib/
data/          dev/lib/
dev/run/       dev/lib/ data/
dev/cpu/       dev/lib/ data/ dev/run/
train_moex.cu  dev/lib/ data/ dev/run/
sample.cu      dev/lib/ data/ dev/run/ train_moex.cu
dev/interp/    dev/lib/ data/ dev/run/ dev/cpu/ train_moex.cu
dev/experiments/ dev/lib/
dev/bench/     dev/lib/ data/ dev/run/ dev/cpu/ train_moex.cu sample.cu dev/interp/ test/
test/          dev/lib/ data/ dev/run/ dev/cpu/ train_moex.cu sample.cu dev/interp/ dev/experiments/ dev/bench/'

# Prints `FILE:LINE: includes WHAT`, a line for each include that goes up under the folder, and last how many did
# and how many did not.
check_house() {
    (cd "$1" && find . \( -path ./build -o -path ./runs -o -path './.*' \) -prune -o \
        \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) -print | sed 's|^\./||' | sort |
        xargs awk -v parts="$parts" '
        function part_of(path,  p, best) {
            for (p in may) if (index(path, p) == 1 && length(p) > length(best)) best = p
            return best
        }
        function normal(path,  n, i, words, out, depth, kept) {
            n = split(path, words, "/")
            for (i = 1; i <= n; i++)
                if (words[i] == ".." && depth > 0) depth--
                else if (words[i] != "." && words[i] != "") kept[++depth] = words[i]
            for (i = 1; i <= depth; i++) out = out (i > 1 ? "/" : "") kept[i]
            return out
        }
        BEGIN {
            n = split(parts, lines, "\n")
            for (i = 1; i <= n; i++)
                if (split(lines[i], words, " ")) may[words[1]] = " " lines[i] " "
        }
        FNR == 1 {
            from = part_of(FILENAME)
            folder = FILENAME
            if (!sub("/[^/]*$", "/", folder)) folder = ""
            if (from == "") { print FILENAME ": in no part of the house"; up++ }
        }
        /^[ \t]*#[ \t]*include[ \t]*"/ {
            split($0, quoted, "\"")
            to = normal(folder quoted[2])
            if (from == "dev/emu/" && part_of(to) == from) next # its own folder is on the path
            if (part_of(to) != "" && index(may[from], " " part_of(to) " ")) down++
            else { print FILENAME ":" FNR ": includes " to; up++ }
        }
        END { print up + 0, down + 0 }')
}

house=$(mktemp -d)
trap 'rm -rf "$house"' EXIT
mkdir -p "$house"/{data,test,dev/{lib,run,cpu,interp,new}}
echo '#include "../run/config.h"' > "$house/dev/lib/file.h"                 # up
echo '#include "../dev/lib/file.h"' > "$house/data/shard.h"                 # down
printf '#include "file.h"\n  #  include "../../train_moex.cu"\n' > "$house/dev/cpu/model.h" # beside, aside
echo '#include "dev/interp/units.h"' > "$house/train_moex.cu"               # up
echo '#include "../../test/check.h"' > "$house/dev/interp/units.h"          # up
echo '#include "../data/../dev/interp/units.h"' > "$house/test/check.h"     # down
echo 'int x;' > "$house/dev/new/thing.h"                                    # in no part
passed=0 failed=0
tried=$(check_house "$house" | tail -n 1)
if [[ $tried == "5 3" ]]; then
    passed=1
else
    failed=1
    echo "a house with five faults and three includes that go down gave: $tried"
fi

found=$(check_house .)
read -r up down <<< "$(tail -n 1 <<< "$found")"
sed '$d' <<< "$found"
((down > 100)) || { echo "only $down includes were read"; failed=$((failed + 1)); }
echo "$((passed + down)) passed, $((failed + up)) failed"
[[ $((failed + up)) -eq 0 ]]
