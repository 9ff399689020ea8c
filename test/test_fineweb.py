#!/usr/bin/env python3
"""Tests of data/fineweb.py on local text, and of data/tokenizer.h against tiktoken on the real GPT-2 vocabulary.

Needs tiktoken, its GPT-2 vocabulary (downloaded, or in TIKTOKEN_CACHE_DIR) and g++; says so and ends with 0
where they are not there. Prints failures and the last line `N passed, N failed`.
"""
import array
import gzip
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PASSED = FAILED = 0

ENCODE = r'''
#include "data/tokenizer.h"
int main(int, char** argv) { // records of (uint32 length, bytes) on stdin, their ids as a line of text each
    return run_main([&] {
        const TextTokenizer gpt2 = TextTokenizer::load(TOKENIZER_GPT2, argv[1]);
        for (uint32_t n; fread(&n, 4, 1, stdin) == 1; printf("\n")) {
            std::string text(n, '\0'), back;
            if (fread(text.data(), 1, n, stdin) != n) return 1;
            for (int32_t id : gpt2.encode(text)) printf("%d ", id), back += gpt2.decode(id);
            if (back != text) fail("decode does not give the text back");
        }
        return 0;
    });
}
'''


def check(ok, what):
    global PASSED, FAILED
    if ok:
        PASSED += 1
    else:
        FAILED += 1
        print(f"FAILED: {what}")


def fineweb(*arguments):
    r = subprocess.run([sys.executable, f"{ROOT}/data/fineweb.py", *arguments], capture_output=True, text=True)
    return r.returncode, r.stdout, r.stderr


def shard(path):
    """The tokens of a shard, its header checked word by word."""
    with open(path, "rb") as f:
        data = f.read()
    tokens = array.array("H", data[1024:])
    check(struct.unpack("<256i", data[:1024]) == (20240520, 1, len(tokens)) + (0,) * 253, f"header of {path}")
    return list(tokens)


def test_shards(gpt2, folder):
    rnd = random.Random(1)
    words = ["the", " cat", " sat.", "\n", "  ", " it's", " 1234", "\u00e9t\u00e9 ", "\u4e2d\u6587", "!?",
             "<|endoftext|>"]
    texts = ["".join(rnd.choice(words) for _ in range(rnd.randrange(400))) for _ in range(300)] + ["", "last"]
    expected = [t for text in texts if text for t in [50256] + gpt2.encode_ordinary(text)]

    with gzip.open(f"{folder}/a.jsonl.gz", "wt") as f:
        f.write("".join(json.dumps({"body": t}) + "\n" for t in texts[:100]))
    with open(f"{folder}/b.jsonl", "w") as f:
        f.write("".join(json.dumps({"body": t}) + "\n\n" for t in texts[100:]))
    local = ["--text", f"{folder}/a.jsonl.gz", f"{folder}/b.jsonl", "--text-field", "body"]
    out = f"{folder}/out"
    code, stdout, stderr = fineweb("--out", out, *local, "--val-tokens", "1000", "--shard-tokens", "7000")
    check(code == 0, stderr)
    check(stdout.startswith(f"{len(texts) - texts.count('')} documents, {len(expected)} tokens"), stdout)
    names = sorted(os.listdir(out))
    train = [n for n in names if n.startswith("train")]
    check(names == ["gpt2.tokenizer", *train, "val_000000.bin"], f"{names}")
    parts = [shard(f"{out}/{n}") for n in train]
    check(all(len(p) == 7000 for p in parts[:-1]) and len(parts) == -(-(len(expected) - 1000) // 7000), "shard lengths")
    check(shard(f"{out}/val_000000.bin") + sum(parts, []) == expected, "tokens of all shards")

    code, stdout, stderr = fineweb("--out", out, *local)
    check(code == 1 and "there already" in stderr, stderr)
    code, stdout, stderr = fineweb("--out", out, *local, "--overwrite", "--val-tokens", "0", "--max-tokens", "500",
                                   "--processes", "1")
    check(code == 0 and shard(f"{out}/train_000000.bin") == expected[:500], stderr)
    check(sorted(os.listdir(out)) == ["gpt2.tokenizer", "train_000000.bin"], "old shards are removed")

    # A plain file of several parts is the same as its undivided text; and with --lines.
    text = ("".join(rnd.choice(words[:10]) for _ in range(700_000)) + "\n") + "x" * 100
    with open(f"{folder}/c.txt", "w") as f:
        f.write(text)
    fineweb("--out", f"{folder}/c", "--text", f"{folder}/c.txt", "--val-tokens", "0")
    check(shard(f"{folder}/c/train_000000.bin") == [50256] + gpt2.encode_ordinary(text), "a file in parts")
    fineweb("--out", f"{folder}/d", "--text", f"{folder}/c.txt", "--val-tokens", "0", "--lines")
    check(shard(f"{folder}/d/train_000000.bin") ==
          [t for line in text.split("\n") if line for t in [50256] + gpt2.encode_ordinary(line)], "--lines")

    for arguments, status, words in (
            ((), 2, "--out"),
            (("--out", f"{folder}/x", "--shard-tokens", "0"), 2, "out of range"),
            (("--out", f"{folder}/x", "--text", f"{folder}/none.txt"), 1, "none.txt: no such file"),
            (("--out", f"{folder}/x", "--text", f"{folder}/b.jsonl"), 1, "b.jsonl:1: expected a JSON object"),
            (("--out", f"{folder}/x", "--text", f"{folder}/c.txt"), 1, "smaller --val-tokens"),
            (("--out", f"{folder}/c.txt/x", "--text", f"{folder}/c.txt"), 1, "c.txt/x")):
        code, stdout, stderr = fineweb(*arguments)
        check(code == status and stderr.startswith("moex: ") and words in stderr and stderr.count("\n") == 1, stderr)
    check(sorted(os.listdir(f"{folder}/x")) == ["gpt2.tokenizer"], "a failed run leaves no shard")


def test_tokenizer(gpt2, folder):
    code, stdout, stderr = fineweb("--tokenizer-file", f"{folder}/gpt2.tokenizer")
    check(code == 0, stderr)
    with open(f"{folder}/encode.cpp", "w") as f:
        f.write(ENCODE)
    subprocess.run(["g++", "-std=c++20", "-O2", f"-I{ROOT}", f"{folder}/encode.cpp", "-o", f"{folder}/encode"],
                   check=True)
    rnd = random.Random(2)
    edge = " \t\n\r'sreveldmtST.,!0129abc\u00e9\u4e2d\u00bd\u2003\u00a0\x1c\x85\U0001F600\u0301\u0661"
    texts = ["", "a" * 100_000, " " * 5000 + "x" + " " * 3000]
    texts += ["".join(rnd.choice(edge) for _ in range(rnd.randrange(30))) for _ in range(20_000)]
    for start in range(0, 0x110000, 1024):  # every character there is, with letters around it
        texts.append("".join(f"a{chr(c)}b " for c in range(start, start + 1024) if not 0xD800 <= c < 0xE000))
    records = b"".join(struct.pack("<I", len(t)) + t for t in (t.encode() for t in texts))
    r = subprocess.run([f"{folder}/encode", f"{folder}/gpt2.tokenizer"], input=records, capture_output=True)
    check(r.returncode == 0, r.stderr.decode())
    lines = r.stdout.decode().split("\n")[:-1]
    check(len(lines) == len(texts), f"{len(lines)} results for {len(texts)} texts")
    for text, line in zip(texts, lines):
        check([int(i) for i in line.split()] == gpt2.encode_ordinary(text), f"encode {text[:60]!r}")


def main():
    try:
        import tiktoken
        gpt2 = tiktoken.get_encoding("gpt2")
    except Exception as e:
        print(f"skipped: tiktoken with the GPT-2 vocabulary is needed ({type(e).__name__})")
        return 0
    folder = tempfile.mkdtemp(prefix="moex_test_fineweb.")
    try:
        test_shards(gpt2, folder)
        test_tokenizer(gpt2, folder)
    finally:
        shutil.rmtree(folder)
    print(f"{PASSED} passed, {FAILED} failed")
    return 1 if FAILED or not PASSED else 0


if __name__ == "__main__":
    sys.exit(main())
