#!/usr/bin/env python3
"""Texts made by data/text_eval.py and measured by evaluate --text, against a slow count: the logits of the PyTorch
twin for one window at a time, softmax and sums in numpy, and windows written down as the rule says, a token at a
time. test_text_eval.py FOLDER, which holds evaluate. Needs torch and numpy; GPT-2's tokens where tiktoken is.
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [f"{ROOT}/dev/torch", f"{ROOT}/data"]
import moex       # noqa: E402
import text_eval  # noqa: E402

passed = failed = 0


def check(ok, what):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print("FAILED", what)


def near(got, want, what):
    check(abs(got - want) <= 1e-4 * abs(want), f"{what}: {got}, expected {want}")


def make(folder, kind, text, name="file.txt", more=("--tokenizer", "bytes")):
    path = f"{folder}/{name}"
    with open(path, "w") as file:
        file.write(text)
    done = subprocess.run([sys.executable, f"{ROOT}/data/text_eval.py", kind, path, "--out", f"{folder}/{kind}", *more],
                          capture_output=True, text=True)
    if done.returncode:
        return done.stderr, None
    with open(f"{folder}/{kind}.spans.jsonl") as file:
        spans = [json.loads(line) for line in file]
    with open(f"{folder}/{kind}.bin", "rb") as file:
        shard = np.frombuffer(file.read()[1024:], np.uint16).astype(int)
    return spans, shard


def check_maker(folder):
    spans, shard = make(folder, "plain", "Two words\n and  more ")
    check(spans == [dict(begin=0, context=0, target=21, words=5, bytes=21)], f"plain: {spans}")
    check(shard.tolist() == [256] + list(b"Two words\n and  more "), "plain: the shard")
    lines = "".join(json.dumps({"text": t}) + "\n" for t in ("one", "\u00e9t\u00e9 two"))
    spans, shard = make(folder, "plain", lines, "file.jsonl")
    check([s["begin"] for s in spans] == [0, 4] and spans[1]["bytes"] == 9 and spans[1]["words"] == 2, f"{spans}")
    spans, shard = make(folder, "lambada", json.dumps({"text": "He said the last word"}), "file.jsonl")
    check(spans == [dict(begin=0, context=16, target=5, words=1, bytes=5)], f"lambada: {spans}")
    check(bytes(shard[1:].tolist()) == b"He said the last word", "lambada: the shard")
    first = " = First = \n \n A @-@ b , c . \n = = Part = = \n ( x ) 's \n"
    second = " = Second one = \n 1 @,@ 000 ; \" q \" \n"
    spans, shard = make(folder, "wikitext", " \n" + first + second)
    texts = [bytes(shard[s["begin"] + 1:s["begin"] + 1 + s["target"]].tolist()).decode() for s in spans]
    check(texts == [" = First =\n\nA-b, c.\n== Part ==\n(x)'s\n", " = Second one =\n1,000; \"q\"\n"], f"wikitext: {texts}")
    check([s["bytes"] for s in spans] == [len(first), len(second)], f"wikitext: bytes {spans}")
    check(spans[1]["words"] == 13, f"wikitext: {spans}")  # = Second one = 1 @,@ 000 ; " q " and two empty ones
    for kind, text, part in (("plain", "", "no text"), ("lambada", "word", "two words"),
                             ("wikitext", "no title", "articles")):
        error, _ = make(folder, kind, text)
        check(error.startswith("moex: ") and part in error and error.count("\n") == 1, f"{kind}: {error}")
    error, _ = make(folder, "plain", "{\n", "file.jsonl")
    check("line 1: not JSON" in error, error)
    error, _ = make(folder, "plain", '{"body": 1}\n', "file.jsonl")
    check('"text"' in error, error)
    check(text_eval.count_words("a b\nc") == 3, "words")


def log_p_of(model, tokens):
    """log p(next token) at the last place, in double by numpy."""
    with torch.no_grad():
        z = model(torch.tensor([tokens])).logits[0, -1].numpy()
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def slow(model, spans, shard, T, stride):
    """LL of every document and whether all of it was most probable, a token at a time from the rule in words."""
    scores = []
    for span in spans:
        text = shard[span["begin"]:span["begin"] + 1 + span["context"] + span["target"]].tolist()
        total, exact, window_end = 0.0, True, T
        for i in range(1 + span["context"], len(text)):  # text[i] is predicted
            if span["context"]:
                first = max(1, len(text) - 1 - T)
            else:
                while i > window_end:
                    window_end = min(window_end + stride, len(text) - 1)
                first = max(0, window_end - T) if len(text) - 1 > T else 0
            p = log_p_of(model, text[first:i])
            total += p[text[i]]
            exact &= int(p.argmax()) == text[i]
        scores.append((total, exact))
    return scores


def check_numbers(folder, evaluate):
    torch.manual_seed(1)
    model = moex.MoeX(moex.Config(2, 2, 16, 12, 257, d_expert=16, n_expert=4, tokenizer="bytes")).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, dtype=torch.float64))
    optimizer = moex.make_optimizer(model, 3e-3)  # so that something is right: it learns a little of `a a a a`
    tokens = torch.tensor([list(b"a a a a a a a"), list(b" a a a a a a ")])
    for _ in range(40):
        moex.train_step(model, optimizer, tokens[:, :-1], tokens[:, 1:], 3e-3)
    moex.save(model, f"{folder}/model.safetensors", dtype=torch.float32)
    model = moex.load(f"{folder}/model.safetensors", dtype=torch.float64)

    def measured(kind, T, stride):
        command = [evaluate, "--ckpt", f"{folder}/model.safetensors", "--text", f"{folder}/{kind}.spans.jsonl", "--seq",
                   str(T), "--stride", str(stride), "--json", f"{folder}/out.json"]
        done = subprocess.run(command, capture_output=True, text=True)
        check(done.returncode == 0, f"{kind} {T} {stride}: {done.stderr}")
        with open(f"{folder}/out.json") as file:
            return json.load(file), done.stdout

    texts = "".join(json.dumps({"text": t}) + "\n" for t in ("a", "abcabc ab", "a longer one, of 32 bytes or so, ",
                                                             "exactly 12 b", "thirteen byte"))
    spans, shard = make(folder, "plain", texts, "file.jsonl")
    for T, stride in ((12, 0), (12, 12), (12, 5), (12, 1), (5, 2), (1, 1)):
        scores = slow(model, spans, shard, T, stride or T)
        total = sum(s for s, _ in scores)
        sums = {name: sum(s[name] for s in spans) for name in ("target", "words", "bytes")}
        found, said = measured("plain", T, stride)
        for name, by in (("token", "target"), ("word", "words"), ("byte", "bytes")):
            near(found[f"{name}_perplexity"]["value"], np.exp(-total / sums[by]), f"{name}, windows {T}, {stride}")
            check(f"{name} perplexity" in said, said)
        near(found["bits_per_byte"]["value"], -total / sums["bytes"] / np.log(2), f"bits, windows {T}, {stride}")
    texts = "".join(json.dumps({"text": t}) + "\n" for t in ("a a a a a a a a a", "this and a", "some longer passage aaa",
                                                             "two words", "aaaa aaaaaaaa aa"))
    spans, shard = make(folder, "lambada", texts, "file.jsonl")
    for T in (12, 7):
        scores = slow(model, spans, shard, T, T)
        found, said = measured("lambada", T, 0)
        near(found["accuracy"]["value"], np.mean([e for _, e in scores]), f"accuracy, {T}")
        near(found["target_perplexity"]["value"], np.exp(-np.mean([s for s, _ in scores])), f"target perplexity, {T}")
        check(0 < found["accuracy"]["value"] < 1, f"accuracy {found['accuracy']}: says nothing of the test")


def main():
    if len(sys.argv) != 2 or not os.path.exists(f"{sys.argv[1]}/evaluate"):
        print("moex: usage: test_text_eval.py FOLDER, which holds evaluate", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        check_maker(folder)
        check_numbers(folder, f"{sys.argv[1]}/evaluate")
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
