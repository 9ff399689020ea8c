"""Checkpoint files against the safetensors package: what we write loads there, what it writes loads here.

usage: test_safetensors_interop.py TEST_SAFETENSORS DIR

TEST_SAFETENSORS is the built test/test_safetensors.cpp, which writes and checks the tensors described here a
second time in Python; DIR receives the files. Any other *.safetensors in DIR (a checkpoint) is loaded too.
Ends with `N passed, N failed`; without the package it says so and ends with status 0.
"""
import glob
import os
import subprocess
import sys

try:
    import numpy as np
    import safetensors
    from safetensors.numpy import load_file, save_file
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(0)
try:
    import safetensors.torch
    import torch
except ImportError:
    torch = None

METADATA = {"format": "pt", "model": "moex", "empty": "", "note": '"quoted" \\ \n\t caf\u00e9 \U0001F642'}
TYPES = {"BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "F16": np.float16,
         "BF16": None, "U32": np.uint32, "I32": np.int32, "F32": np.float32, "U64": np.uint64, "I64": np.int64,
         "F64": np.float64}
SHAPES = {"odd": ("U8", (5,)), **{f"h.0.{d}": (d, (2, 3)) for d in TYPES}, "scalar": ("F32", ()),
          "empty": ("F32", (0, 4)), "deep": ("I64", (1, 2, 1, 3, 1)), 'caf\u00e9 "\\\n': ("BF16", (1,)),
          "empty at the end": ("F64", (3, 0))}

passed = failed = 0


def check(ok, what):
    global passed, failed
    if ok:
        passed += 1
    else:
        failed += 1
        print("FAILED", what)


def values(dtype, shape):
    """The array of a sample tensor; bf16, which numpy lacks, as the upper halves of floats."""
    i = np.arange(int(np.prod(shape, dtype=np.int64)))
    if dtype == "BOOL":
        v = i % 2
    elif dtype.startswith("U"):
        v = 3 * i + 1
    else:
        v = (i - 2) * (1 if dtype.startswith("I") else 0.5)
    if dtype == "BF16":
        return (v.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).reshape(shape)
    return v.astype(TYPES[dtype]).reshape(shape)


def main(binary, folder):
    os.makedirs(folder, exist_ok=True)
    ours, theirs = os.path.join(folder, "ours.safetensors"), os.path.join(folder, "theirs.safetensors")

    # Ours, read by the package: names, types, shapes, bytes, metadata.
    subprocess.run([binary, "--write", ours], check=True)
    with open(ours, "rb") as f:
        tensors = dict(safetensors.deserialize(f.read()))
    check(set(tensors) == set(SHAPES), "names in our file")
    for name, (dtype, shape) in SHAPES.items():
        t = tensors[name]
        check(t["dtype"] == dtype and tuple(t["shape"]) == shape, f"type and shape of {name!r} in our file")
        check(bytes(t["data"]) == values(dtype, shape).tobytes(), f"data of {name!r} in our file")
    with safetensors.safe_open(ours, framework="numpy") as f:
        check(f.metadata() == METADATA, "metadata in our file")
        for name, (dtype, shape) in SHAPES.items():
            if TYPES[dtype]:
                array = f.get_tensor(name)
                check(array.dtype == TYPES[dtype] and array.shape == shape and
                      np.array_equal(array, values(dtype, shape)), f"array {name!r} in our file")

    # Theirs, read by ours: the package puts the tensors into an order of its own. numpy has no bf16, torch has.
    def read_by_ours(count):
        run = subprocess.run([binary, "--read", theirs, str(count)], capture_output=True, text=True)
        check(run.returncode == 0, f"their file of {count} tensors, read by ours: {run.stdout}{run.stderr}")

    arrays = {name: values(dtype, shape) for name, (dtype, shape) in SHAPES.items() if TYPES[dtype]}
    save_file(arrays, theirs, metadata=METADATA)
    read_by_ours(len(arrays))
    if torch:
        with safetensors.safe_open(ours, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name, (dtype, _) in SHAPES.items() if dtype in ("BF16", "F32")}
        check(tensors["h.0.BF16"].float().flatten().tolist() == [-1, -0.5, 0, 0.5, 1, 1.5], "bf16 in our file")
        safetensors.torch.save_file(tensors, theirs, metadata=METADATA)
        read_by_ours(len(tensors))

    # Every other file there, a model's checkpoint for instance, loads and survives the package's own writing.
    for path in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        if path in (ours, theirs):
            continue
        arrays = load_file(path)
        again = path + ".again"
        save_file(arrays, again)
        back = load_file(again)
        os.remove(again)
        check(arrays and all(np.array_equal(arrays[k], back[k], equal_nan=True) for k in arrays), path)

    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2]))
