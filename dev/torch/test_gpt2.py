"""import_gpt2.py and export_gpt2.py against GPT-2 itself: test_gpt2.py BUILD_FOLDER

The other side is transformers' GPT2LMHeadModel where that package is installed, and then the test says so; and
always a GPT-2 written here with plain torch from its published definition, on Conv1D weights as they are in the
file. Small models with random weights, every tensor of them, are made here. BUILD_FOLDER holds train_moex_cpu and
evaluate, which go on with the imported file. Prints failures and the line `N passed, N failed`.
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import moex
from export_gpt2 import export_gpt2
from import_gpt2 import import_gpt2

try:
    from transformers import GPT2Config, GPT2LMHeadModel
except ImportError:
    GPT2LMHeadModel = None

passed = failed = 0


def check(ok, what):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print("FAILED", what)


def check_raises(f, part, what):
    try:
        f()
        message = "no error"
    except ValueError as error:
        message = str(error)
    check(part in message and "\n" not in message, f"{what}: {message}, expected ...{part}...")


def check_close(got, want, what):
    error = float((got - want).abs().max()) if got.shape == want.shape else math.inf
    check(error <= 1e-4 and float(want.abs().max()) > 0.1, f"{what}: differs by {error}, expected at most 1e-4")


def settings_of(**changes):
    return dict(dict(model_type="gpt2", n_layer=3, n_head=4, n_embd=24, n_positions=20, vocab_size=257,
                     n_inner=None, activation_function="gelu_new", layer_norm_epsilon=1e-5), **changes)


def random_tensors(settings, prefix):
    """Tensors as GPT-2 has them, in its own shapes: random, biases and LayerNorm too."""
    C = settings["n_embd"]
    W = settings["n_inner"] or 4 * C
    shapes = {"wte.weight": (settings["vocab_size"], C), "wpe.weight": (settings["n_positions"], C),
              "ln_f.weight": (C,), "ln_f.bias": (C,)}
    for l in range(settings["n_layer"]):
        for name, shape in (("ln_1.weight", (C,)), ("ln_1.bias", (C,)), ("ln_2.weight", (C,)), ("ln_2.bias", (C,)),
                            ("attn.c_attn.weight", (C, 3 * C)), ("attn.c_attn.bias", (3 * C,)),
                            ("attn.c_proj.weight", (C, C)), ("attn.c_proj.bias", (C,)),
                            ("mlp.c_fc.weight", (C, W)), ("mlp.c_fc.bias", (W,)),
                            ("mlp.c_proj.weight", (W, C)), ("mlp.c_proj.bias", (C,))):
            shapes[f"h.{l}.{name}"] = shape
    return {prefix + name: 0.3 * torch.randn(shape) + (".ln_" in f".{name}" and name.endswith("weight"))
            for name, shape in shapes.items()}


def write_gpt2(folder, settings, tensors):
    folder.mkdir(exist_ok=True)
    moex.write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def plain_gpt2(tensors, settings, tokens):
    """Logits of GPT-2 (Radford et al., 2019), a Conv1D being x W + b."""
    def norm(x, name):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / torch.sqrt(var + 1e-5) * tensors[name + ".weight"] + tensors[name + ".bias"]

    def conv(x, name):
        return x @ tensors[name + ".weight"] + tensors[name + ".bias"]

    def gelu_new(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))

    T, heads = tokens.shape[1], settings["n_head"]
    size = settings["n_embd"] // heads
    act = {"gelu_new": gelu_new, "relu": torch.relu}[settings["activation_function"]]
    x = tensors["wte.weight"][tokens] + tensors["wpe.weight"][:T]
    for l in range(settings["n_layer"]):
        q, k, v = conv(norm(x, f"h.{l}.ln_1"), f"h.{l}.attn.c_attn").split(settings["n_embd"], 2)
        parts = []
        for h in range(heads):
            at = slice(h * size, (h + 1) * size)
            scores = q[..., at] @ k[..., at].transpose(1, 2) / math.sqrt(size)
            scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
            parts.append(scores.softmax(-1) @ v[..., at])
        x = x + conv(torch.cat(parts, 2), f"h.{l}.attn.c_proj")
        x = x + conv(act(conv(norm(x, f"h.{l}.ln_2"), f"h.{l}.mlp.c_fc")), f"h.{l}.mlp.c_proj")
    return norm(x, "ln_f") @ tensors["wte.weight"].T


@torch.no_grad()
def check_import(folder):
    tokens = torch.randint(0, 257, (2, 20))
    for i, (prefix, changes) in enumerate((("", {}), ("transformer.", {}), ("", dict(n_inner=40)),
                                           ("transformer.", dict(activation_function="relu")))):
        settings = settings_of(**changes)
        tensors = random_tensors(settings, "")
        file = {prefix + name: t for name, t in tensors.items()}
        file[f"{prefix}h.0.attn.bias"] = torch.ones(1, 1, 20, 20).tril()
        if i % 2:
            file["lm_head.weight"] = tensors["wte.weight"]
        out = folder / f"{i}.safetensors"
        import_gpt2(write_gpt2(folder / f"gpt2_{i}", settings, file), out)
        model = moex.load(out)
        check(model.config.tokenizer == "" and model.config.ffn == "dense", f"import {i}: {model.config}")
        check_close(model(tokens).logits, plain_gpt2(tensors, settings, tokens), f"import {i}: logits")
        # There and back again: the same tensors, the same bytes.
        export_gpt2(out, folder / f"back_{i}")
        again, _ = moex.read_safetensors(folder / f"back_{i}" / "model.safetensors")
        check(set(again) == {f"transformer.{name}" for name in tensors}, f"export {i}: names")
        check(all(torch.equal(again[f"transformer.{name}"], t) for name, t in tensors.items()), f"export {i}")
        import_gpt2(folder / f"back_{i}", folder / "again.safetensors")
        check((folder / "again.safetensors").read_bytes() == out.read_bytes(), f"export {i}: and back")
    half = {name: t.half() for name, t in tensors.items()}
    import_gpt2(write_gpt2(folder / "half", settings, half), folder / "half.safetensors", "bytes")
    model = moex.load(folder / "half.safetensors")
    check(torch.equal(model.wte.weight, half["wte.weight"].float()), "import of fp16")
    check(model.config.tokenizer == "bytes", "import: the tokenizer that is said")


@torch.no_grad()
def check_transformers(folder):
    """Both ways against transformers itself."""
    if GPT2LMHeadModel is None:
        return
    for changes in ({}, dict(n_inner=40, activation_function="relu")):
        theirs = GPT2LMHeadModel(GPT2Config(**settings_of(**changes), attn_pdrop=0, embd_pdrop=0, resid_pdrop=0))
        for p in theirs.parameters():
            p.copy_(0.3 * torch.randn(p.shape) + (1 if float(p.mean()) > 0.5 else 0))
        theirs.eval().save_pretrained(folder / "theirs", safe_serialization=True)
        import_gpt2(folder / "theirs", folder / "theirs.safetensors")
        model, tokens = moex.load(folder / "theirs.safetensors"), torch.randint(0, 257, (2, 20))
        check_close(model(tokens).logits, theirs(tokens).logits, "transformers: logits of an imported model")
        export_gpt2(folder / "theirs.safetensors", folder / "ours")
        ours = GPT2LMHeadModel.from_pretrained(folder / "ours").eval()
        check_close(ours(tokens).logits, model(tokens).logits, "transformers: logits of an exported model")


def check_refusals(folder):
    settings, tensors = settings_of(), random_tensors(settings_of(), "")
    out = folder / "refused.safetensors"

    def refused(part, what, changes=None, more=None, less=None):
        changed = dict(tensors, **(more or {}))
        changed.pop(less, None)
        write_gpt2(folder / "bad", dict(settings, **(changes or {})), changed)
        check_raises(lambda: import_gpt2(folder / "bad", out), part, f"refused: {what}")

    refused("model_type is 'llama'", "another model", dict(model_type="llama"))
    refused("activation_function is 'gelu'", "gelu by erf", dict(activation_function="gelu"))
    refused("layer_norm_epsilon", "another epsilon", dict(layer_norm_epsilon=1e-6))
    refused("scale_attn_weights", "unscaled attention", dict(scale_attn_weights=False))
    refused("scale_attn_by_inverse_layer_idx", "attention by layer", dict(scale_attn_by_inverse_layer_idx=True))
    refused("add_cross_attention", "cross-attention", dict(add_cross_attention=True))
    refused("tie_word_embeddings", "a head of its own", dict(tie_word_embeddings=False))
    refused("n_head is 'four'", "a size that is none", dict(n_head="four"))
    refused("not divisible", "heads", dict(n_head=5))
    refused("h.2.attn.c_attn.bias: a GPT-2 of 2 layers has no such tensor", "a layer too many", dict(n_layer=2))
    refused("h.3.ln_1.weight: no such tensor", "a layer too few", dict(n_layer=4))
    refused("h.1.mlp.c_fc.bias: no such tensor", "a tensor too few", less="h.1.mlp.c_fc.bias")
    refused("score.weight: a GPT-2", "a classifier", more={"score.weight": torch.ones(2, 24)})
    refused("wpe.weight is [20, 24], expected [30, 24]", "positions", dict(n_positions=30))
    refused("h.0.attn.c_attn.weight is [72, 24], expected [24, 72]", "a matrix the other way",
            more={"h.0.attn.c_attn.weight": torch.ones(72, 24)})
    refused("lm_head.weight is not wte.weight", "an untied head", more={"lm_head.weight": torch.ones(257, 24)})
    refused("no finite number", "not a number", more={"ln_f.bias": torch.full((24,), math.nan)})
    refused("twice", "a name twice", more={"transformer.ln_f.bias": torch.ones(24)})
    (folder / "bad" / "config.json").write_text("{")
    check_raises(lambda: import_gpt2(folder / "bad", out), "config.json: not JSON", "refused: no JSON")
    (folder / "bad" / "config.json").unlink()
    check_raises(lambda: import_gpt2(folder / "bad", out), "config.json: not there", "refused: no config")
    check_raises(lambda: import_gpt2(folder / "nowhere", out), "nowhere: not there", "refused: no folder")
    check(not out.exists(), "what is refused leaves no file")
    for changes, part in ((dict(ffn="moe"), "ffn is moe"), (dict(act="geglu"), "act is geglu"),
                          (dict(act="solu"), "act is solu")):
        config = dict(dict(n_layer=1, n_head=1, n_embd=8, block_size=4, vocab_size=9, d_expert=8, ffn="dense",
                           act="gelu"), **changes)
        moex.save(moex.MoeX(moex.Config(**config)), folder / "mine.safetensors")
        check_raises(lambda: export_gpt2(folder / "mine.safetensors", folder / "out"), part, f"export of {part}")
    check(not (folder / "out").exists(), "what is refused leaves no folder")


def check_programs(folder, build):
    """The programs read the file: the loss is the twin's, and --upcycle starts from it."""
    text = ("the cat saw the dog. " * 400).encode()
    shard = folder / "text.bin"
    header = torch.zeros(256, dtype=torch.int32)
    header[:5] = torch.tensor([20240520, 1, len(text), 1, 0])
    shard.write_bytes(header.numpy().tobytes() + torch.tensor(list(text), dtype=torch.int16).numpy().tobytes())
    settings = settings_of()
    tensors = {name: t / 3 for name, t in random_tensors(settings, "").items()}
    checkpoint = folder / "bytes.safetensors"
    import_gpt2(write_gpt2(folder / "bytes", settings, tensors), checkpoint, "bytes")

    def run(*command):
        return subprocess.run([str(word) for word in command], capture_output=True, text=True)

    found = run(build / "evaluate", "--ckpt", checkpoint, "--val", shard, "--rows", 40, "--json", folder / "e.json")
    check(found.returncode == 0, f"evaluate: {found.stderr}")
    rows = torch.tensor(list(text[:40 * 20 + 1]))
    loss = moex.load(checkpoint)(rows[:-1].view(40, 20), rows[1:].view(40, 20)).loss
    got = json.loads((folder / "e.json").read_text())["loss"] if found.returncode == 0 else math.nan
    check(abs(got - float(loss)) < 1e-4, f"evaluate: loss {got}, expected {float(loss)}")
    found = run(build / "train_moex_cpu", "--init", checkpoint, "--upcycle", "--experts", 4, "--active", 2,
                "--d-expert", 48, "--act", "relu", "--train", shard, "--val", shard, "--steps", 2, "--batch", 2,
                "--checkpoint-every", 2, "--sample-every", 0, "--out", folder / "run")
    check(found.returncode == 0, f"train_moex_cpu --upcycle: {found.stderr}")
    grown = moex.load(folder / "run" / "model_00000002.safetensors").config if found.returncode == 0 else None
    check(grown and (grown.ffn, grown.n_expert, grown.d_expert, grown.act) == ("moe", 4, 48, "relu"), f"{grown}")


def main():
    if len(sys.argv) != 2 or not Path(sys.argv[1], "train_moex_cpu").exists():
        print("moex: usage: test_gpt2.py BUILD_FOLDER, which holds train_moex_cpu and evaluate", file=sys.stderr)
        return 2
    torch.manual_seed(1)
    print("transformers is " + ("not installed: plain torch alone is the other side" if GPT2LMHeadModel is None else
                                "installed, and compared with"))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        check_import(folder)
        check_transformers(folder)
        check_refusals(folder)
        check_programs(folder, Path(sys.argv[1]).resolve())
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
