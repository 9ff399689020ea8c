#!/usr/bin/env python3
"""data/mixed_text.py on files made here: what the shards hold, that the labels are of their documents, that no file
is in both parts, and what is passed over. Needs nothing but python3."""
import gzip
import os
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
passed = failed = 0


def check(ok, what):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print("FAILED", what)


def run(out, *more):
    command = [sys.executable, f"{ROOT}/data/mixed_text.py", "--out", out, *more]
    return subprocess.run(command, capture_output=True, text=True)


def part_of(out, name):
    """(source, text) of every document of a shard."""
    with open(f"{out}/{name}_000000.bin", "rb") as file:
        data = file.read()
    header = [int.from_bytes(data[4 * i:4 * i + 4], "little") for i in range(5)]
    ids = [int.from_bytes(data[i:i + 2], "little") for i in range(1024, len(data), 2)]
    check(header == [20240520, 1, len(ids), 1, 0] and ids[0] == 256, f"{name}: header {header}")
    texts = []
    for token in ids:
        if token == 256:
            texts.append(bytearray())
        else:
            texts[-1].append(token)
    with open(f"{out}/{name}.sources") as file:
        sources = file.read().splitlines()
    check(len(sources) == len(texts), f"{name}: {len(sources)} labels of {len(texts)} documents")
    return list(zip(sources, (t.decode() for t in texts)))


def main():
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("a", "b"):
            os.mkdir(f"{folder}/{kind}")
            for i in range(10):
                text = "".join(f"{kind} file {i} line {j}\n" for j in range(40))
                with (gzip.open if i == 3 else open)(f"{folder}/{kind}/{i}{'.gz' if i == 3 else ''}", "wt") as file:
                    file.write(text)
        with open(f"{folder}/a/binary", "wb") as file:
            file.write(b"\xff\xfe\0a file")
        os.symlink(f"{folder}/a/1", f"{folder}/a/again")
        more = ("--source", f"x={folder}/a/*", "--source", f"y={folder}/b/*", "--piece", "100", "--val-fraction", "0.2")
        done = run(f"{folder}/out", *more)
        check(done.returncode == 0, done.stderr)
        files = {}
        for name in ("train", "val"):
            documents = part_of(f"{folder}/out", name)
            kinds = [source for source, _ in documents]
            check(0.3 < kinds.count("x") / len(kinds) < 0.7 and kinds != sorted(kinds), f"{name}: {kinds}")
            for source, text in documents:
                first = text.split()
                check(("x", "a") == (source, first[0]) or ("y", "b") == (source, first[0]), f"{source}: {text!r}")
                check(25 <= len(text) < 150 and text.endswith("\n"), f"a document of {len(text)} bytes")
                files.setdefault((source, first[2]), set()).add(name)
                check(all(line.split()[2] == first[2] for line in text.splitlines()), text)
        check(len(files) == 20 and all(len(parts) == 1 for parts in files.values()), f"{files}")
        check(sum("val" in parts for parts in files.values()) == 4, f"{files}")
        total = sum(len(t) for name in ("train", "val") for _, t in part_of(f"{folder}/out", name))
        check(total == 2 * sum(len(f"a file {i} line {j}\n") for i in range(10) for j in range(40)), f"{total} bytes")
        whole = [open(f"{folder}/out/{name}", "rb").read() for name in sorted(os.listdir(f"{folder}/out"))]
        run(f"{folder}/out", *more)
        check(whole == [open(f"{folder}/out/{name}", "rb").read() for name in sorted(os.listdir(f"{folder}/out"))], "again")
        for more, part in ((("--source", "x"), "NAME=GLOB"), (("--source", f"x={folder}/none/*"), "no train"),
                           (("--val-fraction", "2"), "between 0 and 1")):
            done = run(f"{folder}/bad", *more)
            check(done.returncode != 0 and part in done.stderr, f"{more}: {done.stderr}")
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
