#!/usr/bin/env python3
"""Text to GPT-2 BPE shards: FineWeb, any other text set of the Hugging Face hub, or local files.

    data/fineweb.py --out fineweb10B                                    sample-10BT of FineWeb, ~27 GB of text
    data/fineweb.py --out tiny --dataset roneneldan/TinyStories         another set of the hub
    data/fineweb.py --out mine --text notes.txt posts.jsonl.gz          local text
    data/fineweb.py --tokenizer-file gpt2.tokenizer                     only the file that sampling needs

Gives val_000000.bin (the first --val-tokens tokens), then train_000000.bin and on, in the format that
data/shard.h explains, and gpt2.tokenizer beside them, with which `sample` turns ids into text and text into
ids. The end-of-text token stands before each document. Needs the package tiktoken, and datasets for the hub.
"""
import argparse
import array
import collections
import concurrent.futures
import gzip
import itertools
import json
import multiprocessing
import os
import re
import signal
import struct
import sys
import time

SHARD_MAGIC, SHARD_VERSION, TOKENIZER_GPT2 = 20240520, 1, 0
TOKENIZER_MAGIC, TOKENIZER_VERSION = 20250307, 1
END_OF_TEXT = 50256
CHUNK = 1 << 20  # characters that one task of a worker tokenises, about


class Error(Exception):
    pass


def need(package):
    """Imports a package that Python does not come with."""
    try:
        return __import__(package)
    except ImportError:
        raise Error(f"this needs the Python package {package}: pip install {package}") from None


def gpt2():
    tiktoken = need("tiktoken")
    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as e:  # tiktoken downloads the vocabulary on first use: any error of the network
        raise Error("tiktoken cannot get the GPT-2 vocabulary, expected a network connection or TIKTOKEN_CACHE_DIR "
                    f"naming a folder that has it: {type(e).__name__}") from None


class AtomicFile:
    """A file under a temporary name until commit(); gone if that is never reached."""

    def __init__(self, path):
        self.path, self.temporary = path, f"{path}.tmp.{os.getpid()}"
        self.file = self.trying(lambda: open(self.temporary, "wb", buffering=0))

    def write(self, data):
        data = memoryview(data).cast("B")
        while len(data):
            data = data[self.trying(lambda: self.file.write(data)):]

    def write_front(self, data):
        """Over what was written first: a header whose counts are known only at the end."""
        self.file.seek(0)
        self.write(data)

    def commit(self):
        self.trying(lambda: os.fsync(self.file.fileno()))
        self.file.close()
        self.trying(lambda: os.rename(self.temporary, self.path))

    def discard(self):
        self.file.close()
        if os.path.exists(self.temporary):
            os.unlink(self.temporary)

    def trying(self, action):
        try:
            return action()
        except OSError as e:
            raise Error(f"{self.path}: cannot be written: {e.strerror}") from None


# ------------------------------------------------------------------------------------------------------------
# Documents. A source yields (begins, text, done): whether a document begins here, its text or the next part of
# it, and how far the source has been read, in the unit of its `total` (None: not known).


class Local:
    """Local files: .jsonl (a document per line, in the field --text-field), anything else is plain text: a
    document per file, or per line with --lines. A name that ends in .gz is unpacked as it is read."""

    def __init__(self, paths, field, lines):
        self.paths, self.field, self.lines = paths, field, lines
        for path in paths:
            if not os.path.isfile(path):
                raise Error(f"{path}: no such file")
        self.total, self.unit = sum(os.path.getsize(p) for p in paths), "bytes"

    def __iter__(self):
        before = 0
        for path in self.paths:
            with open(path, "rb") as raw:
                plain = gzip.GzipFile(fileobj=raw) if path.endswith(".gz") else raw
                jsonl = path.removesuffix(".gz").endswith(".jsonl")
                read = self.read_jsonl if jsonl else self.read_lines if self.lines else self.read_whole
                try:
                    for begins, text in read(path, plain):
                        yield begins, text, before + raw.tell()
                except UnicodeDecodeError as e:
                    raise Error(f"{path}: is not UTF-8 text: {e.reason}") from None
                except (gzip.BadGzipFile, EOFError) as e:
                    raise Error(f"{path}: is not a whole gzip file: {e}") from None
                before += os.path.getsize(path)

    def read_jsonl(self, path, file):
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[self.field]
            except UnicodeDecodeError:
                raise
            except (ValueError, KeyError, TypeError):
                text = None
            if not isinstance(text, str):
                raise Error(f"{path}:{number}: expected a JSON object with a text in the field '{self.field}'")
            yield True, text

    def read_lines(self, path, file):
        for line in file:
            yield True, line.decode().rstrip("\r\n")

    def read_whole(self, path, file):
        """In parts, so that a file of any size takes little memory and all processes share its work. A part
        ends between a character that is no whitespace and a blank or newline: there GPT-2's pattern always
        ends a piece, so that the tokens are those of the undivided text."""
        begins, rest = True, b""
        while block := file.read(CHUNK):
            rest += block
            tail = rest[-CHUNK:]
            if last := re.match(rb"(?s).*[!-~](?=[ \n])", tail):
                cut = len(rest) - len(tail) + last.end()
                yield begins, rest[:cut].decode()
                begins, rest = False, rest[cut:]
        yield begins, rest.decode()


class Hub:
    """A text set of the Hugging Face hub (or a local folder in its layout), streamed: nothing is stored."""

    def __init__(self, dataset, subset, split, field):
        datasets = need("datasets")
        self.dataset, self.field = dataset, field
        try:
            rows = datasets.load_dataset(dataset, name=subset, split=split, streaming=True)
            first = next(iter(rows), {})
            if not isinstance(first.get(field), str):
                raise Error(f"--text-field: {dataset} has no text in the field '{field}', its fields are: "
                            f"{', '.join(first) or 'none'}")
            self.rows = rows.select_columns([field])
            sizes = (rows.info.splits or {}).get(split)
        except Error:
            raise
        except Exception as e:
            raise self.error(e) from None
        self.total, self.unit = (sizes.num_examples if sizes else None) or None, "documents"

    def error(self, e):
        """Any exception of the package, the hub, the network or the set, as one line."""
        return Error(" ".join(f"{self.dataset}: cannot be read: {type(e).__name__}: {e}".split()))

    def __iter__(self):
        rows = iter(self.rows)
        for done in itertools.count(1):
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as e:
                raise self.error(e) from None
            yield True, row[self.field] or "", done


# ------------------------------------------------------------------------------------------------------------
# Tokenising, by several processes: each task is a list of (begins, text) of about CHUNK characters.


def worker_start():
    global encoding
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the workers
    encoding = gpt2()


def tokenise(parts):
    """The uint16 ids of the parts, as bytes, and the number of documents. An end-of-text that is written out
    in a text is text like any other."""
    ids, documents = array.array("H"), 0
    for begins, text in parts:
        if begins and text:
            ids.append(END_OF_TEXT)
            documents += 1
        ids.extend(encoding.encode_ordinary(text))
    return ids.tobytes(), documents


def chunks(source):
    parts, size = [], 0
    for begins, text, done in source:
        parts.append((begins, text))
        size += len(text)
        if size >= CHUNK or len(parts) >= 4096:
            yield parts, done
            parts, size = [], 0
    if parts:
        yield parts, done


def tokenised(source, processes):
    """(tokens, documents, done) of all chunks, in order. Only a few chunks per process are under way at any
    time, so that a fast source does not fill the memory."""
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the locks of other packages' threads
    with concurrent.futures.ProcessPoolExecutor(processes, spawn, initializer=worker_start) as pool:
        waiting = collections.deque()
        try:
            for parts, done in chunks(source):
                waiting.append((pool.submit(tokenise, parts), done))
                if len(waiting) > 4 * processes:
                    future, at = waiting.popleft()
                    yield *future.result(), at
            while waiting:
                future, at = waiting.popleft()
                yield *future.result(), at
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


# ------------------------------------------------------------------------------------------------------------
# Shards.


def shards_in(folder, suffix=""):
    """What a maker of shards has written there, and nothing else."""
    names = sorted(name for name in os.listdir(folder) if re.fullmatch(r"(train|val)_\d{6}\.bin" + suffix, name))
    return [f"{folder}/{name}" for name in names]


class Shards:
    """val_000000.bin with the first val_tokens tokens, then train_000000.bin and on. They are written under
    names of their own (val_000000.bin.part) and put in place together by publish(), when all are whole and on
    the disk; only then those of an earlier run go. Without publish() the folder stays as it was."""

    def __init__(self, out, shard_tokens, val_tokens):
        for path in shards_in(out, r"\.part.*"):  # left by a run that was killed
            os.unlink(path)
        self.publishing = False
        self.out, self.limits = out, {"val": val_tokens, "train": shard_tokens}
        self.tokens, self.files = {"val": 0, "train": 0}, {"val": 0, "train": 0}
        self.series, self.open, self.count = "val" if val_tokens else "train", None, 0

    def write(self, data):
        data = memoryview(data).cast("H")
        while len(data):
            if self.open and self.count == self.limits[self.series]:
                self.close()
                self.series = "train"
            if not self.open:
                self.open = AtomicFile(f"{self.out}/{self.series}_{self.files[self.series]:06d}.bin.part")
                self.open.write(bytes(1024))
                self.count = 0
            part = data[:self.limits[self.series] - self.count]
            self.open.write(part)
            self.count += len(part)
            self.tokens[self.series] += len(part)
            data = data[len(part):]

    def close(self):
        """Puts the header before the tokens, then the file under its name."""
        header = [SHARD_MAGIC, SHARD_VERSION, self.count, TOKENIZER_GPT2, 0]  # the last: a stream, not rows
        self.open.write_front(struct.pack("<5I", *header).ljust(1024, b"\0"))
        self.open.commit()
        self.files[self.series] += 1
        self.open = None

    def publish(self):
        self.publishing = True  # from here on what was written stays, whatever goes wrong
        new = shards_in(self.out, r"\.part")
        for path in shards_in(self.out):
            os.unlink(path)
        for path in new:
            os.rename(path, path.removesuffix(".part"))

    def discard(self):
        """The shard being written, and all that have not been published."""
        if self.open:
            self.open.discard()
        for path in [] if self.publishing else shards_in(self.out, r"\.part"):
            os.unlink(path)


class Progress:
    """A line on stderr: redrawn in place on a terminal, written every ten seconds elsewhere."""

    def __init__(self, total, unit):
        self.total, self.unit, self.begin, self.last = total, unit, time.time(), time.time()
        self.terminal, self.drawn = sys.stderr.isatty(), False

    def update(self, tokens, done, last=False):
        now = time.time()
        if now - self.last < (0.2 if self.terminal else 10) and not (last and self.drawn):
            return
        self.last, self.drawn, seconds = now, True, max(now - self.begin, 1e-9)
        line = f"{tokens / 1e6:.1f}M tokens  {tokens / seconds / 1e6:.2f}M tokens/s  "
        if self.total and done:
            share = min(1.0, done / self.total)
            bar = "#" * int(24 * share)
            line = f"[{bar:.<24}] {100 * share:3.0f}%  {line}eta {duration(seconds / share - seconds)}"
        else:
            line += f"{done} {self.unit}  {duration(seconds)}"
        end = "\n" if last or not self.terminal else ""
        print(f"\r{line}\033[K" if self.terminal else line, end=end, file=sys.stderr, flush=True)


def duration(seconds):
    s = int(seconds + 0.5)
    return f"{s}s" if s < 60 else f"{s // 60}m{s % 60:02d}s" if s < 3600 else f"{s // 3600}h{s // 60 % 60:02d}m"


def make_shards(source, options):
    shards, documents, tokens, done = Shards(options.out, options.shard_tokens, options.val_tokens), 0, 0, 0
    limit = options.max_tokens or sys.maxsize
    progress = Progress(limit, "tokens") if options.max_tokens else Progress(source.total, source.unit)
    results = tokenised(source, options.processes)
    try:
        for data, n, done in results:
            if len(data) > 2 * (limit - tokens):
                data = data[:2 * (limit - tokens)]
                n = array.array("H", data).count(END_OF_TEXT)
            shards.write(data)
            documents, tokens = documents + n, tokens + len(data) // 2
            progress.update(tokens, tokens if options.max_tokens else done)
            if tokens >= limit:
                break
        progress.update(tokens, tokens if options.max_tokens else done, last=True)
        if shards.tokens["train"] == 0:
            raise Error(f"the text has only {tokens} tokens, and the first {options.val_tokens} are for validation: "
                        "expected more text, or a smaller --val-tokens")
        shards.close()
    except (KeyboardInterrupt, Error, OSError):  # hours of work may be there already: what is whole is kept
        if shards.files["train"]:
            shards.publish()
            print(f"ended early: {shards.files['train']} shards for training are whole and kept", file=sys.stderr)
        raise
    else:
        shards.publish()
    finally:
        results.close()
        shards.discard()
    print(f"{documents} documents, {tokens} tokens, in {duration(time.time() - progress.begin)}")
    for series in ("val", "train"):
        if shards.files[series]:
            files = f"{shards.files[series]} shard{'s' * (shards.files[series] > 1)}"
            print(f"{shards.tokens[series]:12d} tokens in {files}  {options.out}/{series}_*.bin")


# ------------------------------------------------------------------------------------------------------------
# The tokenizer file, for a program that has neither Python nor Unicode tables. Its layout is explained where
# it is read: read_gpt2 in data/tokenizer.h.


def character_ranges(pattern):
    """The code points that a pattern matches, as (first, last) pairs, according to tiktoken itself: an encoding
    whose tokens are the single bytes and whose pattern is this one drops every character that does not match.
    Python's own tables are of another version of Unicode than those that tokenised the shards."""
    probe = need("tiktoken").Encoding("probe", pat_str=pattern, special_tokens={},
                                      mergeable_ranks={bytes([i]): i for i in range(256)})
    everything = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    ranges = []
    for c in map(ord, probe.decode(probe.encode_ordinary(everything))):
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    return ranges


def write_tokenizer(path):
    encoding = gpt2()
    classes = [character_ranges(p) for p in (r"\p{L}", r"\p{N}", r"\s")]
    header = [TOKENIZER_MAGIC, TOKENIZER_VERSION, encoding.n_vocab, END_OF_TEXT, *map(len, classes)]
    data = bytearray(struct.pack(f"<{len(header)}i", *header).ljust(1024, b"\0"))
    for ranges in classes:
        for first, last in ranges:
            data += struct.pack("<2i", first, last)
    for i in range(encoding.n_vocab):
        text = b"" if i == END_OF_TEXT else encoding.decode_single_token_bytes(i)
        data += struct.pack("<H", len(text)) + text
    file = AtomicFile(path)
    try:
        file.write(data)
        file.commit()
    finally:
        file.discard()


# ------------------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"moex: {message} (see --help)\n")


def count(least):
    def parse(text):
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
        if not least <= value < 1 << 32:
            raise argparse.ArgumentTypeError(f"{text} is out of range, expected {least} to {(1 << 32) - 1}")
        return value
    return parse


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-o", "--out", metavar="DIR", help="folder for the shards, made if it is not there")
    add("--text", metavar="FILE", nargs="+", help="local text: .jsonl (a document per line), anything else is plain "
        "text (a document per file); .gz is unpacked")
    add("--lines", action="store_true", help="a document per line of plain text")
    add("--dataset", metavar="NAME", default="HuggingFaceFW/fineweb", help="set of the hub [%(default)s]")
    add("--subset", metavar="NAME", help="its configuration [sample-10BT for FineWeb]")
    add("--split", default="train", help="its split [%(default)s]")
    add("--text-field", metavar="NAME", default="text", help="the field that holds the text [%(default)s]")
    add("--shard-tokens", metavar="N", type=count(2), default=100_000_000, help="tokens per shard [%(default)s]")
    add("--val-tokens", metavar="N", type=count(0), help="the first so many tokens are for validation [a shard]")
    add("--max-tokens", metavar="N", type=int, default=0, help="stop after so many tokens [0: take all]")
    add("--processes", metavar="N", type=count(1), default=os.cpu_count() or 1,
        help="that tokenise at the same time [all cores: %(default)s]")
    add("--tokenizer-file", metavar="FILE", help="for sampling [gpt2.tokenizer in --out]")
    add("--overwrite", action="store_true", help="replace the shards that are in the folder already")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, temporary files removed
    if not options.out and not options.tokenizer_file:
        parser.error("--out: the folder for the shards is missing")
    if options.max_tokens < 0:
        parser.error(f"--max-tokens: {options.max_tokens} is out of range, expected 0 or more")
    if options.val_tokens is None:
        options.val_tokens = options.shard_tokens
    if options.subset is None and options.dataset == "HuggingFaceFW/fineweb":
        options.subset = "sample-10BT"

    if options.out:
        if options.text:
            source = Local(options.text, options.text_field, options.lines)
        else:
            source = Hub(options.dataset, options.subset, options.split, options.text_field)
        os.makedirs(options.out, exist_ok=True)
        old = shards_in(options.out)
        if old and not options.overwrite:
            raise Error(f"{old[0]}: there already, from an earlier run; give --overwrite to replace it, or another --out")
    write_tokenizer(options.tokenizer_file or f"{options.out}/gpt2.tokenizer")
    if options.out:
        make_shards(source, options)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("moex: stopped")
    except Error as e:
        sys.exit(f"moex: {e}")
    except OSError as e:
        sys.exit(f"moex: {e.filename or 'file'}: {e.strerror or e}")
    except concurrent.futures.BrokenExecutor:
        sys.exit("moex: a tokenising process was killed (out of memory?); try fewer --processes")
