"""Compares the C++ reference with the PyTorch twin, in float64: test_torch.py DIR

DIR is what build/dump_reference wrote: one folder per variant, with model.safetensors (a checkpoint) and
expect.safetensors (tokens, and what the reference made of them: logits, loss, aux, every gradient, the
weights and losses of 10 AdamW steps). Every item is checked, NaN fails, and a missing variant fails. After
that come checks of the twin itself, which need no dump. Prints failures and the line `N passed, N failed`;
the exit status is 0 when there were checks and all passed.
"""

import json
import math
import sys
import tempfile
from pathlib import Path

import torch

import moex

passed = failed = 0

# A variant is told by its config, not by the name of its folder.
VARIANTS = {"moe-relu-sparsity", "moe-gelu-topk", "moe-relu-topk", "moe-gelu-sparsity", "dense-gelu",
            "dense-relu", "dense-geglu", "dense-solu", "monet-hd share 1", "monet-hd share 2",
            "monet-vd share 1", "monet-vd share 2", "peer-gelu", "peer-relu", "moe-relu-sparsity gate=all",
            "moe-gelu-topk K=1 gate=all", "moe-relu-sparsity balance=bias", "moe-relu-sparsity sd=scaled",
            "moe-relu-sparsity sd=full", "moe-relu-sparsity unit_top", "moe-relu-sparsity l0 l1", "dense-relu l1",
            "moe-relu-sparsity K=1", "moe-relu-sparsity K=E"}


def variant_of(c, metadata):
    if c.ffn.startswith("monet"):
        return f"{c.ffn} share {c.n_share}"
    if c.ffn == "peer":
        return f"peer-{c.act}"
    penalties = "".join(f" {name}" for name in ("l0", "l1") if float(metadata[f"{name}_weight"]))
    if c.ffn == "dense":
        return f"dense-{c.act}{penalties}"
    more = (" gate=all" if c.gate == "all" else "") + (" balance=bias" if c.balance == "bias" else "")
    more += (f" sd={c.router_sd}" if c.router_sd != "diagonal" else "") + (" unit_top" if c.unit_top else "")
    experts = {1: " K=1", c.n_expert: " K=E"}.get(c.n_expert_active, "")
    return f"moe-{c.act}-{c.router}{experts}{more}{penalties}"


def check(ok, what):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print("FAILED", what)


def check_close(got, want, tolerance, what):
    """Same shape, and norm(got - want) <= tolerance * norm(want): false when anything is NaN."""
    if got.shape != want.shape:
        check(False, f"{what}: shape {list(got.shape)}, expected {list(want.shape)}")
        return
    got, want = got.detach(), want.detach()
    error = float((got - want).norm() / want.norm().clamp(min=1e-300))
    check(error <= tolerance, f"{what}: relative error {error:.3g}, expected at most {tolerance:g}")


def check_raises(f, part, what):
    try:
        f()
        message = "no error"
    except ValueError as error:
        message = str(error)
    check(part in message and "\n" not in message, f"{what}: {message}, expected ...{part}...")


# ---------------------------------------------------------------------------------------------------------
# Against the reference


def check_variant(folder):
    """Returns the variant's name."""
    model = moex.load(folder / "model.safetensors", dtype=torch.float64)
    expect, metadata = moex.read_safetensors(folder / "expect.safetensors")
    variant = variant_of(model.config, metadata)
    at = f"{folder.name} ({variant})"
    lr, final_frac, decay, clip, aux_weight = (
        float(metadata[name]) for name in ("lr", "final_lr_frac", "weight_decay", "clip", "aux_weight"))
    warmup, steps = int(metadata["warmup"]), int(metadata["steps"])
    balance_rate, l0_weight, l1_weight = (float(metadata[name]) for name in ("balance_rate", "l0_weight", "l1_weight"))
    parameters, all_tensors = dict(model.named_parameters()), model.state_dict()

    items = {"inputs", "targets", "logits", "loss", "aux", "losses10"}
    items |= {f"grad.{name}" for name in parameters} | {f"step10.{name}" for name in all_tensors}
    check(set(expect) == items, f"{at}: items {sorted(set(expect) ^ items)} are on one side only")
    if set(expect) != items:
        return variant

    tokens, targets = expect["inputs"], expect["targets"]
    out = model(tokens, targets)
    check_close(out.logits, expect["logits"], 1e-9, f"{at} logits")
    check_close(out.loss.view(1), expect["loss"], 1e-9, f"{at} loss")
    check_close(out.aux.view(1), expect["aux"], 1e-9, f"{at} aux")
    (out.loss + aux_weight * out.aux + l0_weight * out.share + l1_weight * out.l1).backward()
    for name, p in parameters.items():
        check_close(p.grad, expect[f"grad.{name}"], 1e-8, f"{at} gradient of {name}")

    optimizer = moex.make_optimizer(model, lr, decay)
    rates = [moex.learning_rate(step, lr, warmup, steps, final_frac) for step in range(10)]
    losses = [moex.train_step(model, optimizer, tokens, targets, rate, aux_weight, clip, balance_rate, l0_weight,
                              l1_weight)[0]
              for rate in rates]
    losses = torch.tensor(losses, dtype=torch.float64)
    check_close(losses, expect["losses10"], 1e-8, f"{at} losses of 10 steps")
    for name, p in model.state_dict().items():
        check_close(p, expect[f"step10.{name}"], 1e-7, f"{at} {name} after 10 steps")
    return variant


def check_reference(root):
    found = set()
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        try:
            found.add(check_variant(folder))
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            check(False, f"{folder.name}: {type(error).__name__}: {error}")
    for variant in sorted(VARIANTS):
        check(variant in found, f"{root}: variant {variant} is missing")


# ---------------------------------------------------------------------------------------------------------
# The twin by itself


def small_model(**changes):
    """Every tensor is random, biases and LayerNorm too, so that no term can hide behind a zero or a one."""
    sizes = dict(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=32, d_expert=24, n_expert=4,
                 n_expert_active=2, tokenizer="chess-32")
    sizes.update(changes)
    model = moex.MoeX(moex.Config(**sizes)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, dtype=torch.float64) + (1 if p.mean() > 0.5 else 0))
    return model


def check_layer_by_hand():
    """One token through a layer of C 1, E 3, K 2, D 2, in numbers that can be followed on paper:
    x 2, m (2, -1, 1), v (1, 1, 0), mu (4, -2, 2), sd (2, 2, 0), so g = (-erf(sqrt 2), erf(sqrt .5), -1)."""
    layer = moex.MoeLayer(moex.Config(1, 1, 1, 1, 1, d_expert=2, n_expert=3)).double()
    with torch.no_grad():
        layer.w_enc.copy_(torch.tensor([[1., 3.], [0., -2.], [1., 1.]]).view(3, 2, 1))
        layer.b_enc.zero_()
        layer.w_dec.copy_(torch.tensor([[1., 10.], [5., 7.], [1., 1.]]).view(3, 2, 1))
        layer.b_dec.copy_(torch.tensor([[0.5], [-0.5], [9.]]))
    y, aux, info = layer(torch.tensor([[[2.]]], dtype=torch.float64), trace=True)
    g = [-math.erf(math.sqrt(2)), math.erf(math.sqrt(0.5)), -1.0]
    w = 1 / (1 + math.exp(g[0] - g[1]))               # of expert 1, whose units are 0 and relu(-4) = 0
    total = sum(map(math.exp, g))
    check_close(info.g[0, 0], torch.tensor(g, dtype=torch.float64), 1e-12, "by hand: scores")
    check(info.chosen[0, 0].tolist() == [1, 0], "by hand: choice")
    check_close(info.hidden[0, 0], torch.tensor([[0., 0.], [2., 6.]]).double(), 0, "by hand: hidden")
    check(info.l0.tolist() == [[2]], "by hand: l0")
    check(abs(y.item() - (w * -0.5 + (1 - w) * (2 * 1 + 6 * 10 + 0.5))) < 1e-12, "by hand: output")
    check(abs(aux.item() - 3 * 0.5 * (math.exp(g[0]) + math.exp(g[1])) / total) < 1e-12, "by hand: aux")


def check_ties():
    """All scores equal: the lower indices win."""
    layer = small_model(router="topk", n_expert=40).h[0].moe
    torch.nn.init.zeros_(layer.router)
    info = layer(torch.randn(2, 6, 16, dtype=torch.float64), trace=True)[2]
    check((info.chosen == torch.tensor([0, 1])).all(), "tie: the lower index")
    check((info.weights == 0.5).all(), "tie: equal weights")


def check_calibration():
    """With Gaussian rows, D*Phi(mu/sd) is the number of units that fire."""
    D, C = 20000, 32
    layer = moex.MoeLayer(moex.Config(1, 1, C, 1, 1, d_expert=D, n_expert=3)).double()
    with torch.no_grad():
        for j, shift in enumerate((-0.4, 0.0, 0.3)):
            layer.w_enc[j].normal_(shift / 8, 1)
            layer.b_enc[j].normal_(shift, 0.5)
    x = torch.randn(1, C, dtype=torch.float64)
    active = (x @ layer.w_enc.transpose(1, 2) + layer.b_enc[:, None] > 0).sum((1, 2))  # (E)
    expected = D * (1 - layer.scores(x)[0].detach()) / 2  # Phi(mu/sd) = (1 + erf(mu / (sqrt(2) sd))) / 2
    worst = float((active - expected).abs().max()) / math.sqrt(D / 4)
    check(worst < 5, f"calibration: active units {worst:.1f} standard deviations from D*Phi(mu/sd)")


def check_dense_equality():
    """One expert that is always chosen is a dense MLP."""
    moe = small_model(n_expert=1, n_expert_active=1)
    dense = small_model(n_expert_active=1, ffn="dense")
    tokens = torch.randint(0, 32, (2, 12))
    weights = moe.state_dict()
    for layer in ("h.0.", "h.1."):
        weights[layer + "mlp.c_fc.weight"] = weights.pop(layer + "moe.w_enc")[0]
        weights[layer + "mlp.c_fc.bias"] = weights.pop(layer + "moe.b_enc")[0]
        weights[layer + "mlp.c_proj.weight"] = weights.pop(layer + "moe.w_dec")[0].T
        weights[layer + "mlp.c_proj.bias"] = weights.pop(layer + "moe.b_dec")[0]
    dense.load_state_dict(weights)
    check_close(moe(tokens).logits, dense(tokens).logits, 1e-12, "one expert against dense")


def check_mega_decoder():
    """y = concat_j(w_j z_j) W_dec + sum_j w_j b_dec[j], with W_dec as one (E*D, C) matrix."""
    model = small_model()
    E, D = model.config.n_expert, model.config.d_expert
    info = model(torch.randint(0, 32, (2, 12)), trace=True).layers[1]
    layer = model.h[1].moe
    gates = torch.zeros_like(info.g).scatter(2, info.chosen, info.weights)                      # (B,T,E)
    code = torch.zeros(2, 12, E, D, dtype=torch.float64)
    code.scatter_(2, info.chosen[..., None].expand_as(info.hidden), info.weights[..., None] * info.hidden)
    y = code.flatten(2) @ layer.w_dec.flatten(0, 1) + gates @ layer.b_dec
    check_close(y, info.y, 1e-12, "mega-decoder")


def check_schedule():
    rates = [moex.learning_rate(s, 1.0, 4, 12, 0.1) for s in (0, 3, 4, 8, 12, 99)]
    check(all(abs(a - b) < 1e-12 for a, b in zip(rates, (0.25, 1, 1, 0.55, 0.1, 0.1))), f"schedule: {rates}")
    model = small_model(router="topk")
    matrix, vector = moex.make_optimizer(model, 1e-3).param_groups
    check(vector["weight_decay"] == 0 and len(vector["params"]) == 2 + 2 * 8, "decay: biases and LayerNorm")
    check(matrix["weight_decay"] == 0.1 and len(matrix["params"]) == 2 + 2 * 5, "decay: matrices")


def check_learning():
    """From scratch to a text known by heart, and generate() recites it."""
    model = moex.MoeX(moex.Config(2, 2, 32, 24, 32, d_expert=32, n_expert=4, tokenizer="chess-32"))
    ids = torch.tensor([moex.encode(";1.e4 e5 2.Nf3 Nc6 3.Bb5", "chess-32")])
    optimizer = moex.make_optimizer(model, 1e-2)
    first, *_, last = (moex.train_step(model, optimizer, ids[:, :-1], ids[:, 1:], 1e-2)[0] for _ in range(60))
    check(3 < first < 4 and last < 0.1, f"learning: loss {first:.3f} to {last:.3f}")
    text = moex.decode(moex.generate(model, moex.encode(";1.e", "chess-32"), 20, temperature=0), "chess-32")
    check(text == ";1.e4 e5 2.Nf3 Nc6 3.Bb5", f"learning: recites {text!r}")
    draws = [moex.generate(model, [1, 2], 30, temperature=3, top_k=20, seed=seed) for seed in (1, 1, 2)]
    check(draws[0] == draws[1] != draws[2] and len(draws[0]) == 32, "generate: follows its seed")


def check_files(folder):
    """Save, load, save gives the same bytes; the metadata is the contract's; damaged files are refused."""
    model = small_model()
    model.step = 7
    first, second = Path(folder, "a.safetensors"), Path(folder, "b.safetensors")
    moex.save(model, first)
    again = moex.load(first, dtype=torch.float64)
    moex.save(again, second)
    data = first.read_bytes()
    check(data == second.read_bytes(), "files: save, load, save")
    tensors, metadata = moex.read_safetensors(first)
    check(metadata == dict(format="pt", model="moex", n_layer="2", n_head="2", n_embd="16", block_size="12",
                           vocab_size="32", ffn="moe", n_expert="4", n_expert_active="2", d_expert="24",
                           act="relu", router="sparsity", tokenizer="chess-32", step="7"),
          f"files: metadata {metadata}")
    check(set(tensors) == set(model.state_dict()) and "lm_head.weight" not in tensors, "files: names")
    for dtype in (torch.float32, torch.bfloat16):
        moex.save(model, second, dtype=dtype)
        want = model.wte.weight.to(dtype).double()
        check(torch.equal(moex.load(second, dtype=torch.float64).wte.weight, want), f"files: {dtype}")
    try:
        from safetensors.torch import load_file, save_file
        theirs = load_file(first)
        check(all(torch.equal(theirs[n], t) for n, t in tensors.items()), "files: safetensors reads ours")
        save_file(theirs, second, metadata)
        theirs, _ = moex.read_safetensors(second)
        check(all(torch.equal(theirs[n], t) for n, t in tensors.items()), "files: we read safetensors's")
    except ImportError:
        pass

    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])

    def refused(part, what, content=None, **changes):
        if content is None:
            text = json.dumps(dict(header, __metadata__=dict(metadata, **changes))).encode()
            content = len(text).to_bytes(8, "little") + text + data[start:]
        second.write_bytes(content)
        check_raises(lambda: moex.load(second), part, f"files: {what}")

    for cut in (0, 7, 8, 100, len(data) - 1):
        refused("", f"cut to {cut} bytes", data[:cut])
    refused("not a safetensors file", "huge header", b"\xff" * 64)
    refused("bad safetensors header", "deep JSON", (100000).to_bytes(8, "little") + b"[" * 100000)
    refused("bad safetensors header", "header is no object", (2).to_bytes(8, "little") + b"[]")
    refused("model=moex", "another model", model="gpt2")
    refused("invalid literal", "a size that is no number", n_layer="two")
    refused("at least 1", "a size of zero", d_expert="0")
    refused("not divisible", "heads", n_head="3")
    refused("5 active experts of 4", "K above E", n_expert_active="5")
    refused("expected one of", "unknown router", router="hash")
    refused("geglu goes with ffn dense", "an activation of dense layers", act="geglu")
    refused("fewer numbers", "a model larger than the file", n_layer="1000000000")
    refused("h.0.moe.router: no such tensor", "a tensor too few", router="topk")
    refused("h.1.attn.c_attn.bias: [48], expected no such tensor", "tensors too many", n_layer="1")
    refused("wpe.weight: [12, 16], expected [11, 16]", "wrong shape", block_size="11")
    check_raises(lambda: model(torch.zeros(1, 13, dtype=torch.long)), "13 positions", "T above block_size")
    check_raises(lambda: moex.encode("1.e4 e5!", "chess-32"), "'!'", "a character chess-32 lacks")


def main():
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print("moex: usage: test_torch.py DIR, a folder that dump_reference wrote", file=sys.stderr)
        return 2
    torch.manual_seed(1)
    check_reference(Path(sys.argv[1]))
    for f in (check_layer_by_hand, check_ties, check_calibration, check_dense_equality, check_mega_decoder,
              check_schedule, check_learning):
        f()
    with tempfile.TemporaryDirectory() as folder:
        check_files(folder)
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
