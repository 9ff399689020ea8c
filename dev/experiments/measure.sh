#!/usr/bin/env bash
# measure.sh FILE TOOL FLAGS..: what one tool says of a run, into FILE, which is there whole or not at all; nothing
# if it is there. What a tool refuses is no failure of the whole: its message goes to FILE.refused, the tables have
# a dash, and the next `make paper` tries again.
set -uo pipefail
file=$1
shift
[[ ! -e $file ]] || exit 0
echo "   $(basename "$file" .json) of $(dirname "${file/\/interp/}")"
rm -f "$file.refused"
"$@" 2>&1 > /dev/null | tee "$file.stderr" >&2
status=${PIPESTATUS[0]}
if [[ $status -ne 0 && $status -lt 128 ]] && grep -m 1 '^moex: ' "$file.stderr" > "$file.refused" &&
    ! grep -q 'No space left\|cannot be written\|cannot be created' "$file.refused"; then
    status=0
else
    rm -f "$file.refused"
fi
rm -f "$file.stderr"
exit $status
