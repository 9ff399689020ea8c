#!/usr/bin/env bash
# train.sh FOLDER TRAINER FLAGS..: one training run of `make paper`. It goes on where it was stopped; when it is
# done, FOLDER/run.json says where it comes from. A method that the trainer does not take is no failure of the
# whole: its message goes to FOLDER/refused.txt, and the next `make paper` tries again.
set -euo pipefail
folder=$1 trainer=$2
shift 2
mkdir -p "$folder"
rm -f "$folder/refused.txt"
echo "== $folder"
echo "   $trainer $*"
status=0
"$trainer" "$@" --out "$folder" --resume 2> "$folder/stderr.txt" || status=$?
cat "$folder/stderr.txt" >&2
if [[ $status -ne 0 ]]; then
    ((status < 128)) || exit $status # stopped: all is saved
    grep -m 1 '^moex: ' "$folder/stderr.txt" > "$folder/refused.txt" || exit $status
    # What is wrong with the disk or the data is wrong with every run.
    if grep -q 'No space left\|cannot be written\|cannot be created\|no file' "$folder/refused.txt"; then
        rm "$folder/refused.txt"
        exit $status
    fi
    rm -f "$folder/stderr.txt"
    exit 0
fi
rm -f "$folder/stderr.txt"

commit=$(git rev-parse --short=12 HEAD 2> /dev/null || echo unknown)
[[ -z $(git status --porcelain --untracked-files=no 2> /dev/null) ]] || commit+=+changes
machine=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo 2> /dev/null | head -1 || true)
cores=$(getconf _NPROCESSORS_ONLN 2> /dev/null || echo '?')
# Seconds and tokens of all steps, over stops and resumptions.
export commit flags="${trainer##*/} $*" machine="${machine:-$(uname -m)}, $cores cores"
date=$(date -u +%Y-%m-%dT%H:%M:%SZ) awk '
    function field(name) {
        if (!match($0, "\"" name "\":[-0-9.e+]+")) return 0
        return substr($0, RSTART + length(name) + 3, RLENGTH - length(name) - 3) + 0
    }
    function text(name,  value) { # as a JSON string
        value = ENVIRON[name]
        gsub(/[\\"]/, "\\\\&", value)
        gsub(/[[:cntrl:]]/, " ", value)
        return "\"" name "\":\"" value "\""
    }
    /"ms":/ {
        seconds += field("ms") / 1000
        tokens += field("ms") / 1000 * field("tok_s")
        steps = field("step")
    }
    END {
        if (seconds > 0) rate = tokens / seconds
        printf "{%s,%s,%s,%s,", text("commit"), text("flags"), text("machine"), text("date")
        printf "\"steps\":%d,\"seconds\":%.1f,\"tokens_per_second\":%.0f}\n", steps, seconds, rate
    }' "$folder/log.jsonl" > "$folder/run.json.tmp"
mv "$folder/run.json.tmp" "$folder/run.json"
