#!/usr/bin/env python3
"""A mixed corpus of bytes, labelled by source, from what a Debian machine has: prose, C, Python, LaTeX, HTML.

    data/mixed_text.py --out runs/mixed
    build/train_moex_cpu --train 'runs/mixed/train_*.bin' --val 'runs/mixed/val_*.bin' --out runs/bytes
    build/probe --ckpt runs/bytes --data 'runs/mixed/val_*.bin' --sources runs/mixed/val.sources

Writes train_000000.bin and val_000000.bin, and beside them train.sources and val.sources: a line for each document.
A file is cut at line ends into documents of about --piece bytes, end-of-text before each, which come in random
order, so that every stretch of the corpus has all sources; all of a file is for training or all is held out. Of each
source there are at most --bytes, of the files in the order of a hash of their names. --source NAME=GLOB (more than
once) takes other files; those that are not UTF-8 text are passed over. Same files and --seed: same corpus.
"""
import argparse
import array
import glob
import gzip
import hashlib
import os
import random
import struct
import sys

from fineweb import SHARD_MAGIC, SHARD_VERSION, AtomicFile, Error

TOKENIZER_BYTES, END_OF_TEXT = 1, 256

# What Debian's packages bring; what is not there is not in the corpus.
DEBIAN = {
    "prose": ["/usr/share/common-licenses/*", "/usr/share/doc/**/README*", "/usr/share/doc/**/*.txt",
              "/usr/share/doc/**/*.txt.gz", "/usr/share/doc/**/NEWS*"],
    "c": ["/usr/include/**/*.h", "/usr/src/**/*.c"],
    "python": ["/usr/lib/python3*/**/*.py"],
    "latex": ["/usr/share/tex*/**/*.tex", "/usr/share/tex*/**/*.sty", "/usr/share/doc/**/*.tex",
              "/usr/share/doc/**/*.tex.gz"],
    "html": ["/usr/share/doc/**/*.html", "/usr/share/**/*.html"],
}


def place_of(path):
    """A number in [0, 1) that depends on the file's name alone."""
    return int.from_bytes(hashlib.sha256(path.encode(errors="surrogateescape")).digest()[:8], "big") / 2 ** 64


def text_of(path):
    """The file's bytes, or None where it is no text."""
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            data = file.read(1 << 20)
        data.decode()
    except (OSError, EOFError, UnicodeDecodeError):
        return None
    return data if data.strip() and b"\0" not in data else None


def pieces_of(data, size):
    """Cut at line ends into pieces of `size` bytes or a little more; a last one of less than a quarter is joined."""
    pieces, begin = [], 0
    while begin < len(data):
        end = data.find(b"\n", begin + size - 1)
        end = len(data) if end < 0 or len(data) - end - 1 < size // 4 else end + 1
        pieces.append(data[begin:end])
        begin = end
    return pieces


def documents_of(name, patterns, options):
    """(train, val) documents of a source, up to options.bytes in all."""
    found = {os.path.realpath(p) for pattern in patterns for p in glob.glob(pattern, recursive=True)}
    parts, taken, seen = ([], []), 0, set()
    for path in sorted((p for p in found if os.path.isfile(p)), key=place_of):
        if taken >= options.bytes:
            break
        data = text_of(path)
        if data is None or data in seen:  # the same file under another name
            continue
        seen.add(data)
        data = data[:options.bytes // 20]  # no file is most of a source
        count = len(seen) - 1  # the first is held out, and then so many of all
        held_out = count == 0 or int(count * options.val_fraction) > int((count - 1) * options.val_fraction)
        parts[held_out].extend(pieces_of(data, options.piece))
        taken += len(data)
    print(f"  {name:10} {taken:10} bytes of {len(seen)} files, {len(parts[0])} documents to train on, {len(parts[1])} held out")
    return parts


def write_part(out, name, documents, seed):
    """documents: (source, bytes)."""
    if not documents:
        raise Error(f"{out}: no {name} documents; give more files (--source) or bytes")
    random.Random(f"{seed} {name}").shuffle(documents)
    shard, sources = AtomicFile(f"{out}/{name}_000000.bin"), AtomicFile(f"{out}/{name}.sources")
    try:
        tokens = array.array("H")
        for _, data in documents:
            tokens.append(END_OF_TEXT)
            tokens.extend(data)
        shard.write(struct.pack("<5I", SHARD_MAGIC, SHARD_VERSION, len(tokens), TOKENIZER_BYTES, 0).ljust(1024, b"\0"))
        shard.write(tokens)
        sources.write("".join(f"{source}\n" for source, _ in documents).encode())
        shard.commit()
        sources.commit()
    finally:
        shard.discard()
        sources.discard()
    print(f"{out}/{name}_000000.bin: {len(tokens)} tokens, {len(documents)} documents")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", metavar="DIR", required=True)
    add("--source", metavar="NAME=GLOB", action="append", default=[], help="files instead of Debian's")
    add("--bytes", metavar="N", type=int, default=2_000_000, help="of a source, at most [%(default)s]")
    add("--piece", metavar="N", type=int, default=1500, help="bytes of a document, about [%(default)s]")
    add("--val-fraction", metavar="X", type=float, default=0.1, help="of the files [%(default)s]")
    add("--seed", metavar="N", type=int, default=1, help="of the order [%(default)s]")
    options = parser.parse_args()
    if options.bytes < 20 or options.piece < 4 or not 0 < options.val_fraction < 1:
        parser.error("expected --bytes 20 or more, --piece 4 or more, --val-fraction between 0 and 1")
    sources = dict(DEBIAN) if not options.source else {}
    for word in options.source:
        name, equals, pattern = word.partition("=")
        if not equals or not name or not pattern or "\n" in name:
            parser.error(f"--source {word}: expected NAME=GLOB")
        sources.setdefault(name, []).append(pattern)
    os.makedirs(options.out, exist_ok=True)
    parts = ([], [])
    for name, patterns in sources.items():
        for part, documents in zip(parts, documents_of(name, patterns, options)):
            part.extend((name, d) for d in documents)
    for name, documents in zip(("train", "val"), parts):
        write_part(options.out, name, documents, options.seed)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("moex: stopped")
    except Error as e:
        sys.exit(f"moex: {e}")
    except OSError as e:
        sys.exit(f"moex: {e.filename or 'file'}: {e.strerror or e}")
