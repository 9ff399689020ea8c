#!/usr/bin/env python3
"""A GPT-2 of Hugging Face as a dense moex checkpoint: import_gpt2.py MODEL OUT.safetensors [--tokenizer WORD]

MODEL is a folder with config.json and model.safetensors, or that file with config.json beside it. Its names may
begin with `transformer.` or not. GPT-2 keeps its matrices as Conv1D, (in,out); ours are (out,in). What GPT-2 can
be and a moex model cannot (another activation, a head of its own, attention scaled by layer) is refused by name.

    python3 dev/torch/import_gpt2.py gpt2 runs/gpt2.safetensors
    build/train_moex --init runs/gpt2.safetensors --upcycle --experts 8 --active 2 --train .. --out runs/upcycled

export_gpt2.py goes the other way. Needs torch and numpy.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Dict, Optional, Tuple

import torch
from torch import Tensor

import moex

ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}  # theirs: ours
GPT2_VOCABULARY = 50257

# What config.json may say beside the sizes, and the only value that a moex model can have. An entry that is not
# there has this value.
FIXED = {"model_type": "gpt2", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "tie_word_embeddings": True,
         "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}


MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # buffers of old files: the causal mask


def tensors_of(config: moex.Config) -> Dict[str, Tuple[Tuple[int, ...], bool]]:
    """Name, shape in a moex checkpoint, and whether GPT-2 keeps it turned. Both call them the same."""
    C, W = config.n_embd, config.n_expert_active * config.d_expert
    of_layer = {"ln_1.weight": ((C,), False), "ln_1.bias": ((C,), False),
                "attn.c_attn.weight": ((3 * C, C), True), "attn.c_attn.bias": ((3 * C,), False),
                "attn.c_proj.weight": ((C, C), True), "attn.c_proj.bias": ((C,), False),
                "ln_2.weight": ((C,), False), "ln_2.bias": ((C,), False),
                "mlp.c_fc.weight": ((W, C), True), "mlp.c_fc.bias": ((W,), False),
                "mlp.c_proj.weight": ((C, W), True), "mlp.c_proj.bias": ((C,), False)}
    out = {"wte.weight": ((config.vocab_size, C), False), "wpe.weight": ((config.block_size, C), False)}
    for l in range(config.n_layer):
        out.update({f"h.{l}.{name}": entry for name, entry in of_layer.items()})
    out.update({"ln_f.weight": ((C,), False), "ln_f.bias": ((C,), False)})
    return out


def read_config(path: Path, tokenizer: Optional[str]) -> moex.Config:
    """The moex config of a GPT-2's config.json, or ValueError that names what it cannot be."""
    try:
        theirs = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(theirs, dict):
        raise ValueError(f"{path}: not an object of settings")
    for name, wanted in FIXED.items():
        if theirs.get(name, wanted) != wanted:
            raise ValueError(f"{path}: {name} is {theirs[name]!r}, expected {wanted!r}")
    activation = theirs.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{path}: activation_function is {activation!r}, expected one of {', '.join(ACTIVATIONS)}")
    sizes = {}
    for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size"):
        sizes[name] = theirs.get(name)
        if type(sizes[name]) is not int or sizes[name] < 1:
            raise ValueError(f"{path}: {name} is {sizes[name]!r}, expected a whole number above 0")
    width = theirs.get("n_inner")
    width = 4 * sizes["n_embd"] if width is None else width
    if tokenizer is None:
        tokenizer = "gpt2" if sizes["vocab_size"] == GPT2_VOCABULARY else ""
    try:
        return moex.Config(n_layer=sizes["n_layer"], n_head=sizes["n_head"], n_embd=sizes["n_embd"],
                           block_size=sizes["n_positions"], vocab_size=sizes["vocab_size"], d_expert=width,
                           n_expert_active=1, ffn="dense", act=ACTIVATIONS[activation], tokenizer=tokenizer)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def moex_tensors(theirs: Dict[str, Tensor], config: moex.Config, path: Path) -> Dict[str, Tensor]:
    """The tensors of a GPT-2 file by our names, fp32, or ValueError that names the first that does not fit."""
    found = {}
    for name, t in theirs.items():
        name = name[len("transformer."):] if name.startswith("transformer.") else name
        if name in found:
            raise ValueError(f"{path}: {name} is there twice, with and without transformer.")
        if not MASK.fullmatch(name):
            found[name] = t
    head = found.pop("lm_head.weight", None)
    expected, out = tensors_of(config), {}
    for name in sorted(set(found) - set(expected)):
        raise ValueError(f"{path}: {name}: a GPT-2 of {config.n_layer} layers has no such tensor")
    for name, (shape, turned) in expected.items():
        if name not in found:
            raise ValueError(f"{path}: {name}: no such tensor, expected one in a GPT-2 of {config.n_layer} layers")
        t, wanted = found[name], shape[::-1] if turned else shape
        if tuple(t.shape) != wanted:
            raise ValueError(f"{path}: {name} is {list(t.shape)}, expected {list(wanted)}")
        if not t.is_floating_point() or not bool(torch.isfinite(t).all()):
            raise ValueError(f"{path}: {name} holds what is no finite number")
        out[name] = (t.T if turned else t).float().contiguous()
    if head is not None and not torch.equal(head, found["wte.weight"]):
        raise ValueError(f"{path}: lm_head.weight is not wte.weight, expected a tied head")
    return out


def import_gpt2(source, out, tokenizer: Optional[str] = None) -> moex.Config:
    """Writes the checkpoint and returns its config. tokenizer None: gpt2 where the vocabulary is GPT-2's."""
    source = Path(source)
    file = source / "model.safetensors" if source.is_dir() else source
    settings = file.parent / "config.json"
    for path in (file, settings):
        if not path.is_file():
            raise ValueError(f"{path}: not there, expected it of a GPT-2 of Hugging Face")
    config = read_config(settings, tokenizer)
    theirs, _ = moex.read_safetensors(file)
    moex.write_safetensors(out, moex_tensors(theirs, config, file), moex.metadata_of(config, 0))
    return config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("out", metavar="OUT.safetensors")
    parser.add_argument("--tokenizer", choices=("gpt2", "bytes", "chess-32"),
                        help=f"of its tokens (default: gpt2 where there are {GPT2_VOCABULARY}, else unstated)")
    args = parser.parse_args()
    try:
        config = import_gpt2(args.model, args.out, args.tokenizer)
    except (ValueError, OSError) as error:
        print(f"moex: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {config.n_layer} layers, {config.n_head} heads, {config.n_embd} channels, "
          f"{config.d_expert} units a layer, {config.vocab_size} tokens{f' ({config.tokenizer})' if config.tokenizer else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
