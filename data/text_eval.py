#!/usr/bin/env python3
"""Texts to be measured by `evaluate --text`: a token shard NAME.bin, and NAME.spans.jsonl that says what of it
is to be predicted.

    data/text_eval.py plain book.txt posts.jsonl --out runs/book   every file (.jsonl: every line's "text")
    data/text_eval.py wikitext wiki.test.raw --out runs/wiki       the articles of a raw WikiText file
    data/text_eval.py lambada lambada_test.jsonl --out runs/lambada    the last word of every passage

A line of NAME.spans.jsonl is a document: {"begin", "context", "target", "words", "bytes"}. At token `begin` of the
shard stands end-of-text; `context` tokens follow, which are only read, then `target` tokens, which are predicted.
words and bytes are those of the text as it came, before WikiText's spaces are undone, words being what white
space splits. (They divide the log-likelihood of all its tokens, so a word's perplexity depends on neither.)

--tokenizer gpt2 (needs tiktoken) or bytes. What the numbers are: dev/interp/perplexity.h.
"""
import argparse
import array
import json
import re
import struct
import sys

from fineweb import END_OF_TEXT, SHARD_MAGIC, SHARD_VERSION, TOKENIZER_GPT2, AtomicFile, Error, gpt2

TOKENIZER_BYTES, BYTES_END_OF_TEXT = 1, 256

# How WikiText spells what was taken apart by its tokenizer, and what stood there, in the order of lm-eval (whose
# rule for apostrophes before years never matches, and is not here).
WIKITEXT = [
    ("s '", "s'"), (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."),
    (" : ", ": "), (" ; ", "; "), (" . ", ". "), (" ! ", "! "), (" ? ", "? "), (" , ", ", "),
    (re.compile(r"\(\s*([^)]*?)\s*\)"), r"(\1)"), (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"), (re.compile(r"\"\s*([^\"]*?)\s*\""), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
    ("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" \u00b0 ", "\u00b0"),
    (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s")]


def detokenised(text):
    """WikiText as it was written: the spaces around punctuation undone."""
    for what, by in WIKITEXT:
        text = text.replace(what, by) if isinstance(what, str) else what.sub(by, text)
    return text


def articles(text):
    """The articles of a WikiText file: each begins with a line ` = Title = `."""
    begins = [m.start() for m in re.finditer(r"^ = [^=\n](?:[^\n]*[^=\n])? = ?$", text, re.M)]
    if not begins:
        raise Error("no line ' = Title = ', expected the articles of a raw WikiText file")
    return [text[a:b] for a, b in zip(begins, begins[1:] + [len(text)])]


def texts_of(path):
    """Every text of a file: of .jsonl a line's field text, else the whole."""
    with open(path, encoding="utf-8", newline="") as file:
        try:
            if not path.endswith(".jsonl"):
                yield file.read()
                return
            for number, line in enumerate(file, 1):
                document = json.loads(line)
                if not isinstance(document, dict) or not isinstance(document.get("text"), str):
                    raise Error(f'{path}: line {number}: expected an object with a "text"')
                yield document["text"]
        except UnicodeDecodeError:
            raise Error(f"{path}: not UTF-8") from None
        except ValueError as e:
            raise Error(f"{path}: line {number}: not JSON: {e}") from None


def documents(kind, paths):
    """(context, target, the text as it came) of every document."""
    for path in paths:
        for text in texts_of(path):
            if kind == "wikitext":
                for article in articles(text):
                    yield "", detokenised(article), article
            elif kind == "lambada":
                context, space, word = text.rstrip().rpartition(" ")
                if not space or not context.strip():
                    raise Error(f"{path}: {text[:40]!r}: expected a passage of two words or more")
                yield context, " " + word, " " + word
            elif text:
                yield "", text, text


def count_words(text):
    """What white space splits, and so an empty word before a first or behind a last space, as the field counts."""
    return len(re.split(r"\s+", text))


def make(kind, paths, out, tokenizer):
    if tokenizer == "gpt2":
        encoding, end, number = gpt2(), END_OF_TEXT, TOKENIZER_GPT2
        encode = encoding.encode_ordinary
    else:
        encode, end, number = lambda text: list(text.encode()), BYTES_END_OF_TEXT, TOKENIZER_BYTES
    shard, spans = AtomicFile(f"{out}.bin"), AtomicFile(f"{out}.spans.jsonl")
    try:
        shard.write(bytes(1024))
        tokens = count = 0
        for context, target, text in documents(kind, paths):
            before, ids = encode(context), encode(target)
            if not ids:
                continue
            span = {"begin": tokens, "context": len(before), "target": len(ids),
                    "words": 1 if kind == "lambada" else count_words(text), "bytes": len(text.encode())}
            spans.write((json.dumps(span) + "\n").encode())
            ids = [end] + before + ids
            shard.write(array.array("H", ids))
            tokens += len(ids)
            count += 1
        if not count:
            raise Error(f"{paths[0]}: no text in it")
        shard.write_front(struct.pack("<5I", SHARD_MAGIC, SHARD_VERSION, tokens, number, 0))
        shard.commit()
        spans.commit()
    finally:
        shard.discard()
        spans.discard()
    print(f"{out}.bin, {out}.spans.jsonl: {count} documents, {tokens - count} tokens ({tokenizer})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("plain", "wikitext", "lambada"))
    parser.add_argument("files", metavar="FILE", nargs="+")
    parser.add_argument("--out", metavar="NAME", required=True, help="the two files, without what they end in")
    parser.add_argument("--tokenizer", choices=("gpt2", "bytes"), default="gpt2", help="[%(default)s]")
    options = parser.parse_args()
    make(options.kind, options.files, options.out, options.tokenizer)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("moex: stopped")
    except Error as e:
        sys.exit(f"moex: {e}")
    except OSError as e:
        sys.exit(f"moex: {e.filename or 'file'}: {e.strerror or e}")
