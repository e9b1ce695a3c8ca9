"""Matrices as integers in groups of columns, laid out as GPTQ, AWQ and compressed-tensors save them.

    python grouped.py    # compares the layouts with what the tools' own packers make

A value is scale * (code - zero). Rounded to the nearest: what those tools do beyond that is which codes they choose.
"""
import importlib.machinery
import importlib.util
import sys
import types

import numpy as np

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def pack(codes, bits, order=None):
    """Neighbours of the last dimension in words of 32 bits, the first in the lowest bits, or in this order."""
    n = 32 // bits
    words = codes.reshape(*codes.shape[:-1], -1, n)[..., order or list(range(n))].astype(np.uint32)
    return np.bitwise_or.reduce(words << (np.arange(n, dtype=np.uint32) * bits), axis=-1).view(np.int32)


def quantise(matrix, rng, form, bits, group, zeros=False, sorted=False):
    """What is saved of a matrix [rows, cols], by the ends of its names, and the values that it stands for."""
    rows, cols = matrix.shape
    group = group or cols
    count = cols // group
    # Sorted by importance before they were grouped: as good as any order.
    of_col = (rng.permutation(cols) if sorted else np.arange(cols)) // group
    codes, scale, zero = np.zeros((rows, cols), np.int64), np.zeros((rows, count)), np.zeros((rows, count), np.int64)
    largest = 2**bits - 1
    for g in range(count):
        part = matrix[:, of_col == g]
        low, high = part.min(1), part.max(1)
        if zeros:
            scale[:, g] = np.float16((high - low) / largest)
            zero[:, g] = np.clip(np.rint(-low / scale[:, g]), 0, largest)
        else:
            scale[:, g] = np.float16(np.maximum(high, -low) * 2 / largest)
            zero[:, g] = 2 ** (bits - 1)
        codes[:, of_col == g] = np.clip(np.rint(part / scale[:, g, None]) + zero[:, g, None], 0, largest)
    values = scale[:, of_col] * (codes - zero[:, of_col])
    scale = scale.astype(np.float16)
    if form.startswith("gptq"):
        stored = (zero - (form == "gptq")) & largest
        return dict(qweight=pack(codes, bits).T.copy(), qzeros=pack(stored.T, bits), scales=scale.T.copy(), g_idx=of_col.astype(np.int32)), values
    if form == "awq":
        return dict(qweight=pack(codes.T, bits, AWQ_ORDER), qzeros=pack(zero.T, bits, AWQ_ORDER), scales=scale.T.copy()), values
    if form == "packed":
        shape = np.array([rows, cols], np.int64)
        return dict(weight_packed=pack(codes, bits), weight_scale=scale, weight_zero_point=pack(zero.T, bits).T.copy(), weight_shape=shape), values
    return dict(weight=(codes - 128).astype(np.int8), weight_scale=scale), values


def gptq(form, bits, group, zeros=False, sorted=False):
    return dict(quant_method="gptq", bits=bits, group_size=group or -1, sym=not zeros, desc_act=sorted, checkpoint_format=form)


def awq(form, bits, group, zeros=False):
    return dict(quant_method="awq", bits=bits, group_size=group, zero_point=zeros, version="gemm")


def compressed(format):
    def config(form, bits, group, zeros=False):
        weights = dict(num_bits=bits, type="int", symmetric=not zeros, strategy="group" if group else "channel", group_size=group)
        return dict(quant_method="compressed-tensors", format=format, config_groups=dict(group_0=dict(targets=["Linear"], weights=weights)))

    return config


CONFIGS = {
    "gptq": gptq, "gptq_v2": gptq, "awq": awq, "packed": compressed("pack-quantized"), "bytes": compressed("int-quantized"),
}



def unpack(words, bits):
    n = 32 // bits
    return (words.view(np.uint32)[..., None] >> (np.arange(n, dtype=np.uint32) * bits) & (2**bits - 1)).reshape(*words.shape[:-1], -1)


def without_init(name):
    """A package without what its `__init__` imports, which wants other versions of transformers."""
    found = importlib.util.find_spec(name)
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = list(found.submodule_search_locations)
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)


def compare(name, ours, theirs):
    for part in theirs:
        assert np.array_equal(ours[part], theirs[part].numpy()), f"{name}: {part} differs"
    print(f"{name} lays out the same: {', '.join(theirs)}")


def compare_with_tools():
    """pip install torch compressed-tensors; pip install --no-deps autoawq auto-gptq accelerate"""
    import torch

    without_init("awq")
    without_init("auto_gptq")
    from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear
    from awq.modules.linear.gemm import WQLinear_GEMM
    from compressed_tensors.compressors import pack_to_int32

    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((64, 96))
    tensor = lambda array: torch.from_numpy(array.copy())
    linear = torch.nn.Linear(96, 64, bias=False)

    parts, values = quantise(matrix, rng, "awq", 4, 32, zeros=True)
    linear.weight.data = tensor(values).half()
    order = [AWQ_ORDER.index(row) for row in range(8)]
    zeros = unpack(parts["qzeros"], 4).reshape(3, -1, 8)[..., order].reshape(3, 64)
    theirs = WQLinear_GEMM.from_linear(linear, 4, 32, scales=tensor(parts["scales"]), zeros=tensor(zeros.astype(np.float64)))
    compare("AutoAWQ", parts, theirs.state_dict())

    for bits, is_sorted in [(4, False), (4, True), (8, False)]:
        parts, values = quantise(matrix, rng, "gptq", bits, 32, zeros=True, sorted=is_sorted)
        linear.weight.data = tensor(values).float()
        zeros = (unpack(parts["qzeros"], bits) + 1 & 2**bits - 1).T.astype(np.float32)
        theirs = QuantLinear(bits, 32, 96, 64, False)
        theirs.pack(linear, tensor(parts["scales"].T).float(), tensor(zeros), tensor(parts["g_idx"]))
        compare(f"AutoGPTQ with {bits} bits", parts, theirs.state_dict())

    for bits in [4, 8]:
        parts, _ = quantise(matrix, rng, "packed", bits, 32, zeros=True)
        signed = lambda codes: tensor(codes.astype(np.int64) - 2 ** (bits - 1)).to(torch.int8)
        codes, zeros = unpack(parts["weight_packed"], bits), unpack(parts["weight_zero_point"].T.copy(), bits).T
        theirs = dict(weight_packed=pack_to_int32(signed(codes), bits), weight_zero_point=pack_to_int32(signed(zeros), bits, packed_dim=0))
        compare(f"compressed-tensors with {bits} bits", parts, theirs)


if __name__ == "__main__":
    compare_with_tools()
