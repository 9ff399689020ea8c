#!/usr/bin/env python3
"""Puts the figures of the results in the repository into truth.md, where they stand before a comment that names them:

    0.049<!-- moex board.held_out -->

is the mean over seeds of that number of dev/experiments/results/demo/moex/s*/result.json, with as many digits as stand
there already; `<!-- moex board.held_out s2 -->` that of one seed, `.. least` and `.. most` of the seeds' extremes. A number of a
layer (board., strategy.) is that of the layer with the highest coverage on the games that units were chosen on, as in
the tables.

    figures.py             rewrites truth.md
    figures.py --check     fails where it would change something (a test)
"""
import glob
import json
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
RESULTS = os.path.join(HERE, "..", "experiments", "results", "demo")
PAGE = os.path.join(HERE, "truth.md")


def number(result, field):
    if field in result["numbers"]:
        return result["numbers"][field]
    kind = field.split(".")[0]
    layers = next(iter(result["layers"].values()))
    best = max(layers, key=lambda layer: layer[kind + ".coverage"])
    return best[field]


def figure(method, field, which):
    values = {}
    for path in sorted(glob.glob(os.path.join(RESULTS, method, "s*", "result.json"))):
        with open(path) as file:
            values[os.path.basename(os.path.dirname(path))] = number(json.load(file), field)
    if not values:
        raise KeyError(f"no results of {method}")
    if which == "least":
        return min(values.values())
    if which == "most":
        return max(values.values())
    return values[which] if which else sum(values.values()) / len(values)


def main():
    with open(PAGE) as file:
        text = file.read()
    passed, failed = 0, 0

    def put(match):
        nonlocal passed, failed
        was, method, field, which = match.groups()
        digits = len(was.partition(".")[2])
        now = f"{figure(method, field, which):.{digits}f}"
        if re.fullmatch(r"-0\.?0*", now):  # no sign where nothing is left
            now = now[1:]
        passed, failed = passed + (now == was), failed + (now != was)
        if now != was:
            print(f"{method} {field}: {was}, the results say {now}")
        return match.group(0).replace(was, now, 1)

    rewritten = re.sub(r"(-?\d+(?:\.\d+)?)<!-- (\S+) (\S+)(?: (\S+))? -->", put, text)
    loose = re.sub(r"<!--.*?-->", "", re.sub(r"(-?\d+(?:\.\d+)?)<!-- .*? -->", "", text, flags=re.S), flags=re.S)
    for line in re.findall(r".*(?<!\d)\d\.\d\d.*", loose):
        print("a figure stands there without its name: " + line)
        failed += 1
    if "--check" in sys.argv:
        print(f"{passed} passed, {failed} failed")
        return 1 if failed or not passed else 0
    with open(PAGE, "w") as file:
        file.write(rewritten)
    print(f"{failed} of {passed + failed} figures changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
