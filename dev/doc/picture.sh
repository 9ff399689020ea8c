#!/usr/bin/env bash
# The picture of the report's page in the README: the page of a run (default runs/demo), its model at work on a game with an
# expert switched off, in Chromium.
#   dev/doc/picture.sh [RUN]      writes dev/doc/page.png
set -euo pipefail
run=${1:-runs/demo} here=$(dirname "$(realpath "$0")")
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
    echo "moex: no chromium was found, which draws the picture" >&2
    exit 1
}
[[ -e $run/report.html ]] || {
    echo "moex: $run/report.html is not there: expected the page that report writes (make demo)" >&2
    exit 1
}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
# What a reader would do by hand, behind the page's own script.
drive="<script nonce='page'>setTimeout(() => {
  startPlay();
  setText(';1.e4 e5 2.Nf3 Nc6 3.Bb5 a6 4.');
  document.querySelectorAll('.expert p button')[7].click();
  document.querySelector('[data-key=f3]').click();
  document.querySelector('header').remove();
  document.getElementById('play').style = 'margin: 0; border: 0';
});</script>"
awk -v drive="$drive" '$0 == "</body>" { print drive } { print }' "$run/report.html" > "$dir/page.html"
"$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --virtual-time-budget=5000 --user-data-dir="$dir/profile" \
    --blink-settings=preferredColorScheme=1 --window-size=1100,1270 --screenshot="$dir/page.png" "file://$dir/page.html" 2> /dev/null
[[ -s $dir/page.png ]] || {
    echo "moex: $browser has drawn nothing" >&2
    exit 1
}
cp "$dir/page.png" "$here/page.png"
echo "$here/page.png, $(stat -c %s "$here/page.png") bytes"
