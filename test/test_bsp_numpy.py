#!/usr/bin/env python3
"""The board metrics against numpy: coverage and reconstruction by their definitions, with matrix products in
float32, from labels that `bsp --labels` wrote and features that numpy made and wrote as .npy.

    test_bsp_numpy.py FOLDER      FOLDER holds bsp and make_chess
"""

import csv
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

PIECES = "kqrbnp.PNBRQK"  # classes of a piece; the blank is masked
FEATURES, DOTS, CHARACTERS = 60, 20, 256
passed = failed = 0


def check(ok, what):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print("FAILED", what)


def run(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def labels_of(bsp, path, games):
    """(tokens, cells) of each function, at the first 20 dots of every game: there 2(n-1) plies were played."""
    rows = csv.DictReader(run(bsp, "--labels", "-", "--games", path).decode().splitlines())
    at = {(int(row["game"]), int(row["ply"])): row for row in rows}
    rows = [at[game + 1, 2 * dot] for game in range(len(games)) for dot in range(DOTS)]
    pieces = [[[c != "." and c == p for p in PIECES] for c in row["piece_masked_blank_and_initial_state"]]
              for row in rows]
    threats = [[int(row["threat_state"], 16) >> square & 1 for square in range(64)] for row in rows]
    return {"piece_masked_blank_and_initial_state": np.array(pieces, np.float32).reshape(len(rows), -1),
            "threat_state": np.array(threats, np.float32),
            "has_queen": np.array([[int(row["has_queen"])] for row in rows], np.float32),
            "can_check_next": np.array([[int(row["can_check_next"])] for row in rows], np.float32)}


def dots_of(text):
    return [i for i, c in enumerate(text) if c == "."][:DOTS]


def all_cells(labels):
    return np.concatenate([labels[name] for name in sorted(labels)], axis=1)


def features_of(games, cells, random):
    """Noise that is mostly zero, with cells of the board (tokens, FEATURES/2) shining through at the dots, and a
    feature that is never positive."""
    values = random.exponential(size=(len(games), CHARACTERS, FEATURES)).astype(np.float32)
    values *= random.random(values.shape) < 0.1
    for game, text in enumerate(games):
        for dot, i in enumerate(dots_of(text)):
            shine = cells[game * DOTS + dot] * (random.random(cells.shape[1]) < 0.8)
            values[game, i, :cells.shape[1]] += (10 * shine).astype(np.float32)
    values[:, :, -1] *= -1
    return values


def f1(tp, on, positives):
    p, r = tp / (tp + (on - tp) + np.float32(1e-8)), tp / (tp + (positives - tp) + np.float32(1e-8))
    return 2 * p * r / (p + r + np.float32(1e-8))


def measure(train, test, max_f, truth, held, cells):
    """coverage, its threshold; reconstruction, its threshold; as published."""
    averages, squares, classes = [], [], []
    for t in range(11):
        level = np.float32(t) / np.float32(10) * max_f
        on, held_on = (train > level).astype(np.float32), test > level
        tp, count = on.T @ truth, on.sum(0)[:, None]
        averages.append(float(f1(tp, count, truth.sum(0)[None]).max(0).sum()) / cells)
        with np.errstate(all="ignore"):
            precise = np.nan_to_num(tp * (np.float32(1) / count)) >= np.float32(0.95)
        said = (held_on.astype(np.float32) @ (precise & (tp >= 10)).astype(np.float32)) > 0
        right, wrong = said & (held > 0), said & (held == 0)
        tp, fp, fn = float(right.sum()), float(wrong.sum()), float((held > 0).sum() - right.sum())
        per_square = held.shape[1] // 64 if held.shape[1] > 1 else 1
        both = ((right.reshape(len(said), -1, per_square).sum(2) == 1)
                & (wrong.reshape(len(said), -1, per_square).sum(2) == 1)).sum()
        classes.append(f1(tp, tp + fp, tp + fn))
        squares.append(f1(tp - both, tp - both + fp, tp - both + fn))
    best = int(np.argmax(squares[:10]))
    return max(averages), int(np.argmax(averages)) / 10, classes[best], best / 10


def main():
    bsp, make_chess = (os.path.join(os.path.abspath(sys.argv[1]), name) for name in ("bsp", "make_chess"))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run(make_chess, "--games", "150", "--row", "257", "--seed", "3", "--train-text", "games.txt", "--out", "data")
        run(bsp, "--games", "games.txt", "--count", "60", "--write-games", ".")
        games = {s: open(s + ".txt").read().split("\n")[:-1] for s in ("train", "test")}
        labels = {s: labels_of(bsp, s + ".txt", games[s]) for s in games}
        known = np.flatnonzero(all_cells(labels["train"]).sum(0) >= 10)
        chosen = np.random.default_rng(5).choice(known, FEATURES // 2)
        features = {s: features_of(games[s], all_cells(labels[s])[:, chosen], np.random.default_rng(i))
                    for i, s in enumerate(games)}
        for s in games:
            np.save(s + ".npy", features[s])
        run(bsp, "--activations", "train.npy", "--test-activations", "test.npy", "--games", "train.txt",
            "--test-games", "test.txt", "--json", "bsp.json")
        layer = json.load(open("bsp.json"))["layers"][0]

        at_dots = {s: np.array([features[s][g, i] for g, text in enumerate(games[s]) for i in dots_of(text)])
                   for s in games}
        max_f = np.abs(features["train"].reshape(-1, FEATURES).max(0))
        check(layer["units"] == FEATURES and layer["alive"] == FEATURES, "units and alive units")
        for t in range(11):
            on = (at_dots["test"] > np.float32(t) / np.float32(10) * max_f).sum() / len(at_dots["test"])
            check(abs(layer["active"][t] - on) <= 1e-4 * on, f"units on at {t}: {layer['active'][t]}, expected {on}")
        functions = {f["name"]: f for f in layer["functions"]}
        for name, cells in {"piece_masked_blank_and_initial_state": 768, "threat_state": 64, "has_queen": 1,
                            "can_check_next": 1}.items():
            expected = measure(at_dots["train"], at_dots["test"], max_f, labels["train"][name],
                               labels["test"][name], cells)
            got = tuple(functions[name][k] for k in ("coverage", "threshold", "rec_published", "rec_threshold"))
            check(all(abs(a - b) <= 1e-5 for a, b in zip(got, expected)), f"{name}: {got}, expected {expected}")
            check(got[0] > 0.02, f"{name}: a coverage of {got[0]} tells nothing")
        check(functions["piece_masked_blank_and_initial_state"]["rec_published"] > 0.01, "nothing reconstructed")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


sys.exit(main())
