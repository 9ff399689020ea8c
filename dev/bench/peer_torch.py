"""The benchmark's peer: training steps of MoE-X, or of its dense twin, as a good PyTorch program does them.

    python3 dev/bench/peer_torch.py --ffn moe --act relu --threads 2 --check
    python3 dev/bench/peer_torch.py --device cuda --dtype bf16 --compile --check --layers 12 --heads 12
        --embd 768 --seq 1024 --batch 32 --vocab 50304 --d-expert 3072

The weights, their first values and the optimizer's groups are those of the twin (dev/torch/moex.py); the
forward pass is another one, for speed. Tokens are sorted by expert, so that experts are a few large matrix
products; three ways of doing those are timed and the fastest is kept, as is the faster library for products.
Attention is scaled_dot_product_attention, AdamW is fused, where torch has them. --check first compares logits
and gradients with the twin's. Prints text for people, then one line of JSON. A step is a whole one: forward,
backward, clipping, update.
"""

import argparse
import dataclasses
import inspect
import json
import math
import os
import statistics
import sys
import time


def options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value, text in (
            ("layers", 4, "layers"), ("heads", 4, "attention heads"), ("embd", 128, "channels"),
            ("seq", 256, "positions"), ("batch", 4, "rows per step"), ("vocab", 96, "vocabulary"),
            ("experts", 8, "experts"), ("active", 2, "experts per token"),
            ("d-expert", 256, "units per expert; the dense twin has active * d-expert"),
            ("steps", 30, "timed steps"), ("warmup-steps", 5, "steps before them"),
            ("threads", os.cpu_count(), "CPU threads")):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (%(default)s)")
    add = parser.add_argument
    add("--ffn", choices=["moe", "dense"], default="moe")
    add("--act", choices=["relu", "gelu"], default="relu")
    add("--router", choices=["sparsity", "topk"], default="sparsity")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--dtype", choices=["fp32", "bf16"], default="fp32", help="of the activations; weights stay fp32")
    add("--compile", nargs="?", const="default", metavar="MODE", help="use torch.compile, in this mode")
    add("--experts-by", choices=["auto", "loop", "bmm", "grouped"], default="auto",
        help="the experts' products; auto times all ways and keeps the fastest (each is compiled); grouped is "
             "loop where torch has no grouped product")
    add("--products-by", choices=["auto", "blas", "onednn"], default="auto",
        help="all other products of an fp32 run on a CPU; auto keeps the faster")
    add("--check", action="store_true", help="first compare logits and gradients with the twin's")
    return parser.parse_args()


opt = options()
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read when torch is imported
    os.environ[variable] = str(opt.threads)

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "torch"))
import moex  # noqa: E402

AUX_WEIGHT = 1e-3
GELU = torch.nn.GELU(approximate="tanh")


# ---------------------------------------------------------------------------------------------------------
# Products. torch multiplies fp32 matrices on a CPU with its BLAS, which is MKL in the wheels and leaves
# AVX-512 unused on AMD processors. oneDNN, in the same wheels, does not, and has x W' + b. (torch.compile
# cannot take that call. Debian's torch uses Debian's BLAS, which is slow unless libopenblas0 is installed.)

use_onednn = False


class OneDnn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w, b):  # (M,K) (N,K) (N) -> (M,N)
        ctx.save_for_backward(x, w)
        ctx.has_bias = b is not None
        return onednn(x, w, b)

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        return onednn(dy, w.T), onednn(dy.T, x.T), dy.sum(0) if ctx.has_bias else None


def onednn(x, w, b=None):
    return torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], "")


def product(x, w, b=None):
    """x W' + b: x (M,K), w (N,K), b (N) -> (M,N), in the type of x."""
    w, b = w.to(x.dtype), None if b is None else b.to(x.dtype)
    if use_onednn and x.dtype == torch.float32 and len(x) > 0:  # it refuses an expert without tokens
        return OneDnn.apply(x, w, b)
    return F.linear(x, w, b)


def choose_product(device, dtype):
    """Measures what there is, on (1024,512) x (512,512); returns name -> GFLOP/s."""
    global use_onednn
    x, w = torch.randn(1024, 512, device=device), torch.randn(512, 512, device=device)
    ways = {"blas": lambda: F.linear(x, w)}
    has_onednn = device == "cpu" and dtype == torch.float32 and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if has_onednn and not opt.compile:
        ways["onednn"] = lambda: onednn(x, w)
    rate = {}
    for name, way in ways.items():
        ms = [timed(way, device) for _ in range(20)]
        rate[name] = round(2 * 1024 * 512 * 512 / statistics.median(ms) / 1e6)
    if opt.products_by != "auto" and opt.products_by not in rate:
        sys.exit(f"moex: peer_torch.py: no {opt.products_by} for {opt.dtype} on {device} in this torch")
    use_onednn = (max(rate, key=rate.get) if opt.products_by == "auto" else opt.products_by) == "onednn"
    return rate


# ---------------------------------------------------------------------------------------------------------
# Experts. Tokens sorted by expert stand in x (N*K,C): owner (N*K) is the expert of each row, and the rows of
# expert j end at ends[j]. Each way gives act(x W_enc[j]' + b_enc[j]) W_dec[j], (N*K,C); the decoder's bias is
# added with the weighted sum.


def experts_loop(x, layer, owner, ends, act):
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    parts = []
    weights = layer.w_enc.unbind(), layer.b_enc.unbind(), layer.w_dec.unbind()
    for rows, enc, b, dec in zip(x.split(sizes), *weights):
        # oneDNN compiles a kernel for each shape it meets: a multiple of 64 rows keeps them few.
        padded = F.pad(rows, (0, 0, 0, -len(rows) % 64)) if use_onednn else rows
        parts.append(product(act(product(padded, enc, b)), dec.T)[:len(rows)])
    return torch.cat(parts)


def experts_bmm(x, layer, owner, ends, act):
    """Every expert's rows padded to the number of the fullest: one batched product for all."""
    E, C = layer.b_dec.shape
    sizes = ends.diff(prepend=ends.new_zeros(1))
    most = int(sizes.max())
    shift = torch.arange(E, device=x.device) * most - ends + sizes  # from a sorted row to its padded place
    place = torch.arange(len(x), device=x.device) + shift[owner]
    padded = x.new_zeros(E * most, C).index_copy(0, place, x).view(E, most, C)
    w_enc, b_enc, w_dec = (p.to(x.dtype) for p in (layer.w_enc, layer.b_enc, layer.w_dec))
    z = act(torch.baddbmm(b_enc[:, None], padded, w_enc.transpose(1, 2)))
    return torch.bmm(z, w_dec).view(E * most, C).index_select(0, place)


def experts_grouped(x, layer, owner, ends, act):
    """torch's grouped GEMM reads the row counts on the device: no shape depends on the data, nothing waits
    for the host. The bias is a product too, so that its gradient needs no atomics."""
    grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm
    w_enc, b_enc, w_dec = (p.to(x.dtype) for p in (layer.w_enc, layer.b_enc, layer.w_dec))
    one_hot = (owner[:, None] == torch.arange(len(ends), device=x.device)).to(x.dtype)  # (N*K,E)
    z = act(grouped_mm(x, w_enc.transpose(1, 2), offs=ends.int()) + one_hot @ b_enc)
    return grouped_mm(z, w_dec, offs=ends.int())


EXPERTS = {"loop": experts_loop, "bmm": experts_bmm, "grouped": experts_grouped}


# Gather to expert order and the sum back to tokens are each other's transpose, so each one's backward is the
# other's forward: gathers both, where autograd would scatter with additions. token (N*K): whose row stands at
# each sorted place. place (N,K): where each token's K assignments went.


class Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, token, place):  # (N,C) -> (N*K,C)
        ctx.save_for_backward(place)
        return x.index_select(0, token)

    @staticmethod
    def backward(ctx, dy):
        return sum_by_token(dy, *ctx.saved_tensors), None, None


class Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, token, place):  # (N*K,C) -> (N,C)
        ctx.save_for_backward(token)
        return sum_by_token(y, place)

    @staticmethod
    def backward(ctx, d):
        return d.index_select(0, *ctx.saved_tensors), None, None


def sum_by_token(y, place):
    if not y.is_cuda and y.dtype != torch.bfloat16:
        return F.embedding_bag(place, y, mode="sum")
    return y.index_select(0, place.view(-1)).view(*place.shape, y.shape[1]).sum(1)


# ---------------------------------------------------------------------------------------------------------
# The forward pass, on the twin's parameters. Router and loss are computed in fp32, all else in `dtype`.
# The residual stream x is (N,C), N = B*T.


def layer_norm(x, layer):
    return F.layer_norm(x, layer.weight.shape, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def attention(x, layer, T):  # (N,C) -> (N,C)
    C = x.shape[1]
    qkv = product(x, layer.c_attn.weight, layer.c_attn.bias).view(-1, T, 3, layer.n_head, C // layer.n_head)
    q, k, v = qkv.transpose(1, 3).unbind(2)  # (B,NH,T,HS)
    if hasattr(F, "scaled_dot_product_attention"):
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:  # torch 1.13
        future = x.new_full((T, T), -math.inf).triu(1)
        y = (q @ k.transpose(2, 3) / math.sqrt(C // layer.n_head) + future).softmax(-1) @ v
    return product(y.transpose(1, 2).reshape(-1, C), layer.c_proj.weight, layer.c_proj.bias)


def mean_and_variance(w):
    m = w.mean(1, keepdim=True)
    return m.squeeze(1), (w - m).square().mean(1)  # on a CPU 2.7 times as fast as torch.var_mean


def moe(x, layer, experts, act):  # x (N,C) -> y (N,C), aux
    K, E = layer.config.n_expert_active, layer.config.n_expert
    wide = x.to(layer.w_enc.dtype)
    if layer.config.router == "topk":
        g = wide @ layer.router.T
    else:
        (m, v), (mb, vb) = mean_and_variance(layer.w_enc), mean_and_variance(layer.b_enc)
        sd = torch.addmm(vb + 1e-12, wide * wide, v.T).sqrt()
        g = -torch.erf(torch.addmm(mb, wide, m.T) / (math.sqrt(2) * sd))
    top, chosen = g.topk(K)                           # (N,K)
    weights = top.softmax(1)

    owner, order = chosen.view(-1).sort(stable=True)  # (N*K)
    ends = torch.searchsorted(owner, torch.arange(E, device=x.device), right=True)
    token, place = order // K, torch.empty_like(order)
    place[order] = torch.arange(len(order), device=x.device)
    place = place.view(chosen.shape)

    rows = experts(Dispatch.apply(x, token, place), layer, owner, ends, act)
    rows = rows * weights.view(-1, 1).index_select(0, order).to(x.dtype)
    gates = torch.zeros_like(g).scatter(1, chosen, weights)  # (N,E): the decoder biases' weights
    y = Combine.apply(rows, token, place) + (gates @ layer.b_dec).to(x.dtype)

    f = ends.diff(prepend=ends.new_zeros(1)) / len(order)
    return y, E * (f * g.softmax(1).mean(0)).sum()


def forward(model, tokens, targets, experts, dtype):
    """Returns logits (N,V), mean cross-entropy and the sum of the layers' aux."""
    T = tokens.shape[1]
    act = torch.relu if model.config.act == "relu" else GELU
    x = (F.embedding(tokens, model.wte.weight) + model.wpe.weight[:T]).flatten(0, 1).to(dtype)
    aux = 0
    for block in model.h:
        x = x + attention(layer_norm(x, block.ln_1), block.attn, T)
        h = layer_norm(x, block.ln_2)
        if model.config.ffn == "moe":
            y, layer_aux = moe(h, block.moe, experts, act)
            x, aux = x + y, aux + layer_aux
        else:
            h = act(product(h, block.mlp.c_fc.weight, block.mlp.c_fc.bias))
            x = x + product(h, block.mlp.c_proj.weight, block.mlp.c_proj.bias)
    logits = product(layer_norm(x, model.ln_f), model.wte.weight)
    wide = logits.float() if dtype == torch.bfloat16 else logits
    return logits, F.cross_entropy(wide, targets.view(-1)), aux


# ---------------------------------------------------------------------------------------------------------
# Check, and the timed steps


def compare(config, tokens, targets, way, dtype):
    """Worst relative error of logits, loss, aux and gradients against the twin's, on random weights in
    `dtype` (bf16: weights that bf16 can hold, with the twin in fp32)."""
    twin = moex.MoeX(config).to(tokens.device, torch.float32 if dtype == torch.bfloat16 else dtype)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            ones = "ln_" in name and name.endswith("weight")
            p.copy_((0.05 * torch.randn_like(p) + ones).to(dtype))
    parameters = list(twin.parameters())
    results = []
    for out in (forward(twin, tokens, targets, EXPERTS[way], dtype), twin(tokens, targets)):
        gradients = torch.autograd.grad(out[1] + AUX_WEIGHT * out[2], parameters)
        tensors = (out[0].flatten(), out[1], torch.as_tensor(out[2]), *gradients)
        results.append([t.detach().double() for t in tensors])
    return max(float((a - b).norm() / b.norm().clamp(min=1e-300)) for a, b in zip(*results))


def check(config, tokens, targets, ways, dtype):
    """In float64 where possible, then in the type that is timed. In bf16 some tokens choose another expert,
    so that only gross differences tell."""
    for way in ways:
        wide = [torch.float64] if tokens.device.type == "cpu" and way != "grouped" else []
        for kind in wide + [dtype]:
            error = compare(config, tokens, targets, way, kind)
            tolerance = {torch.float64: 1e-9, torch.float32: 1e-2, torch.bfloat16: 0.5}[kind]
            print(f"check: experts by {way} in {kind}: within {error:.2g} of the twin, allowed {tolerance:g}")
            if not error <= tolerance:
                sys.exit("moex: peer_torch.py: the fast forward pass differs from the twin")


def has_grouped_mm(config, device, dtype):
    """Not every torch and card has one: tried on a model of one short layer."""
    small = dataclasses.replace(config, n_layer=1, vocab_size=64, block_size=64)
    tokens = torch.zeros(1, 64, dtype=torch.long, device=device)
    try:
        compare(small, tokens, tokens, "grouped", dtype)
        return True
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def timed(f, device):
    """Milliseconds."""
    start = time.perf_counter()
    f()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def make_optimizer(model):
    for kind in ("fused", "foreach"):  # fused on a CPU is younger than torch 1.13
        try:
            return moex.make_optimizer(model, 1e-4, **{kind: True}), kind
        except (RuntimeError, TypeError):
            pass


def training_times(config, tokens, targets, way, dtype, steps):
    """Milliseconds of each of `steps` training steps after opt.warmup_steps others; the kind of AdamW."""
    torch.manual_seed(1)
    model = moex.MoeX(config).to(tokens.device)
    parameters = list(model.parameters())
    optimizer, kind = make_optimizer(model)
    run, experts = forward, EXPERTS[way]
    if opt.compile:
        run = torch.compile(forward, mode=opt.compile, dynamic=False)
        if way != "grouped":  # row counts as shapes: compiled anew at every step
            experts = torch.compiler.disable(experts)
    clip = torch.nn.utils.clip_grad_norm_
    clip_options = {"foreach": True} if "foreach" in inspect.signature(clip).parameters else {}

    def step():
        optimizer.zero_grad(set_to_none=True)
        _, loss, aux = run(model, tokens, targets, experts, dtype)
        (loss + AUX_WEIGHT * aux).backward()
        clip(parameters, 1.0, **clip_options)
        optimizer.step()
        return loss.detach()

    ms = [timed(step, opt.device) for _ in range(opt.warmup_steps + steps)][opt.warmup_steps:]
    if not math.isfinite(float(step())):
        sys.exit("moex: peer_torch.py: the loss is not finite")
    return ms, kind


def main():
    torch.set_num_threads(opt.threads)
    torch.set_float32_matmul_precision("high" if opt.device == "cuda" else "highest")  # TF32 on a GPU alone
    torch.manual_seed(1)
    dtype = torch.bfloat16 if opt.dtype == "bf16" else torch.float32
    config = moex.Config(n_layer=opt.layers, n_head=opt.heads, n_embd=opt.embd, block_size=opt.seq,
                         vocab_size=opt.vocab, d_expert=opt.d_expert, n_expert=opt.experts,
                         n_expert_active=opt.active, ffn=opt.ffn, act=opt.act, router=opt.router)
    text = torch.randint(opt.vocab, (opt.batch, opt.seq + 1), device=opt.device)
    tokens, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()

    rate = choose_product(opt.device, dtype)
    products_by = "onednn" if use_onednn else "blas"
    print(f"products: {', '.join(f'{name} {r} GFLOP/s' for name, r in rate.items())}; using {products_by}")
    ways = list(EXPERTS) if opt.experts_by == "auto" else [opt.experts_by]
    if opt.ffn == "dense":
        ways = ["loop"]  # which nothing calls
    elif "grouped" in ways and not has_grouped_mm(config, opt.device, dtype):
        ways.remove("grouped")
        print(f"experts: torch {torch.__version__} has no grouped product for {opt.dtype} on {opt.device}")
        ways = ways or ["loop"]
    if opt.check:
        check(config, tokens, targets, ways, dtype)
    if len(ways) > 1:
        trials = {way: training_times(config, tokens, targets, way, dtype, 7)[0] for way in ways}
        trials = {way: statistics.median(ms) for way, ms in trials.items()}
        ways = [min(trials, key=trials.get)]
        print(f"experts: {', '.join(f'{way} {t:.1f} ms/step' for way, t in trials.items())}; using {ways[0]}")

    ms, adamw = training_times(config, tokens, targets, ways[0], dtype, opt.steps)
    median = statistics.median(ms)
    tok_s = opt.batch * opt.seq / median * 1e3
    what = f"moe-{opt.act}-{opt.router}" if opt.ffn == "moe" else f"dense-{opt.act}"
    device = torch.cuda.get_device_name() if opt.device == "cuda" else "cpu"
    print(f"{what}, torch {torch.__version__}, {device}, {opt.threads} threads, {opt.dtype}: "
          f"{median:.1f} ms/step (fastest {min(ms):.1f}, slowest {max(ms):.1f}, {opt.steps} steps), "
          f"{tok_s:.0f} tok/s")
    result = {"what": what, "ms_median": round(median, 3), "ms_min": round(min(ms), 3),
              "tok_s": round(tok_s, 1), "torch": torch.__version__, "threads": opt.threads, "device": device,
              "dtype": opt.dtype, "compile": opt.compile, "experts_by": ways[0] if opt.ffn == "moe" else None,
              "products_by": products_by, "gemm_gflops": rate, "adamw": adamw}
    if opt.device == "cuda":
        result["peak_mib"] = torch.cuda.max_memory_allocated() >> 20
    print(json.dumps(result))


if __name__ == "__main__":
    main()
