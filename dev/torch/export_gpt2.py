#!/usr/bin/env python3
"""A dense moex checkpoint as a GPT-2 of Hugging Face: export_gpt2.py CHECKPOINT OUT_FOLDER

Writes OUT_FOLDER/model.safetensors and config.json, which transformers' GPT2LMHeadModel.from_pretrained reads.
Only what GPT-2 can be goes: a dense model of act gelu (tanh) or relu; anything else is refused by name. What
import_gpt2.py reads again is the same checkpoint, byte for byte, but for its step. Needs torch and numpy.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import moex
from import_gpt2 import FIXED, GPT2_VOCABULARY, tensors_of


def export_gpt2(checkpoint, folder) -> moex.Config:
    """Writes the folder and returns the model's config."""
    model = moex.load(checkpoint)
    config, tensors = model.config, model.state_dict()
    if config.ffn != "dense":
        raise ValueError(f"{checkpoint}: ffn is {config.ffn}, expected dense: GPT-2 has no mixture of experts")
    if config.act not in ("gelu", "relu"):
        raise ValueError(f"{checkpoint}: act is {config.act}, expected gelu or relu: GPT-2 has no other")
    settings = dict(FIXED, architectures=["GPT2LMHeadModel"], n_layer=config.n_layer, n_head=config.n_head,
                    n_embd=config.n_embd, n_positions=config.block_size, n_ctx=config.block_size,
                    n_inner=config.n_expert_active * config.d_expert, vocab_size=config.vocab_size,
                    activation_function={"gelu": "gelu_new", "relu": "relu"}[config.act],
                    attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, torch_dtype="float32")
    if config.vocab_size == GPT2_VOCABULARY:
        settings.update(bos_token_id=GPT2_VOCABULARY - 1, eos_token_id=GPT2_VOCABULARY - 1)
    theirs = {f"transformer.{name}": (tensors[name].T if turned else tensors[name])
              for name, (_, turned) in tensors_of(config).items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    moex.write_safetensors(folder / "model.safetensors", theirs, {"format": "pt"})
    with open(folder / "config.json.tmp", "w") as file:
        json.dump(settings, file, indent=2)
        file.write("\n")
    os.replace(folder / "config.json.tmp", folder / "config.json")
    return config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("folder", metavar="OUT_FOLDER")
    args = parser.parse_args()
    try:
        config = export_gpt2(args.checkpoint, args.folder)
    except (ValueError, OSError) as error:
        print(f"moex: {error}", file=sys.stderr)
        return 1
    print(f"{args.folder}: GPT-2 of {config.n_layer} layers, {config.n_head} heads, {config.n_embd} channels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
