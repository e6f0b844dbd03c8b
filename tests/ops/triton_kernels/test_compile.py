"""The kernels compile for GPUs that are not here: for Ampere and for Hopper, down to machine code."""

import inspect
from typing import Any

import pytest

from cascadevl.ops.triton import OPTIONS, available

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not available(), reason="Triton is not installed: pip install triton"),
]

CAPABILITIES = [80, 90]

MULTIPLY = {"PANEL": 64, "WIDE": False}
ATTEND = {
    "PAGE": 16, "SIZE": 128, "NUM_KV_HEADS": 8, "GROUP": 2, "BLOCK_G": 16, "BLOCK_N": 64, "LEAST": 256, "WIDE": False,
}  # fmt: skip
PLACE = {"PAGE": 16, "HALF": 64, "NUM_HEADS": 16, "NUM_KV_HEADS": 8, "BLOCK": 64}
FEW = {"BLOCK_T": 16, "BLOCK_F": 64, "BLOCKS": 4, "SPLITS": 8}
MANY = {"BLOCK_T": 128, "BLOCK_F": 128, "BLOCKS": 2, "SPLITS": 1}
WHOLE = {"SPLITS": 1, "BLOCK_H": 128}

KERNELS: dict[str, tuple[str, str, dict[str, Any], dict[str, str]]] = {
    "int8, few rows": ("linear", "multiply", {**MULTIPLY, **FEW, "KIND": 0, "GROUP": 0}, {"scales": "*fp32"}),
    "int8, many rows": ("linear", "multiply", {**MULTIPLY, **MANY, "KIND": 0, "GROUP": 0}, {"scales": "*fp32"}),
    "int4, few rows": ("linear", "multiply", {**MULTIPLY, **FEW, "KIND": 1, "GROUP": 128, "zeros": None}, {}),
    "int4, zeros": ("linear", "multiply", {**MULTIPLY, **FEW, "KIND": 1, "GROUP": 32}, {}),
    "int4, many rows": ("linear", "multiply", {**MULTIPLY, **MANY, "KIND": 1, "GROUP": 64, "zeros": None}, {}),
    "MXFP4": ("linear", "multiply", {**MULTIPLY, **FEW, "KIND": 2, "GROUP": 32}, {"scales": "*u8"}),
    "FP8 blocks": ("linear", "multiply", {**MULTIPLY, **FEW, "KIND": 3, "GROUP": 128}, {"scales": "*fp32"}),
    "parts": ("linear", "add_up", {"BLOCK": 1024}, {}),
    "bf16 pages": ("paged_attention", "attend", {**ATTEND, **WHOLE, "KIND": 0, "WIDTH": 128}, {"keys": "*bf16"}),
    "fp8 pages": ("paged_attention", "attend", {**ATTEND, **WHOLE, "KIND": 1, "WIDTH": 128}, {}),
    "int8 pages": ("paged_attention", "attend", {**ATTEND, **WHOLE, "KIND": 2, "WIDTH": 128}, {}),
    "int4 pages": (
        "paged_attention", "attend", {**ATTEND, "KIND": 3, "WIDTH": 64, "SPLITS": 4, "BLOCK_H": 64}, {"out": "*fp32"},
    ),
    "merge": ("paged_attention", "merge", {"SIZE": 128, "NUM_HEADS": 16, "BLOCK_H": 128, "BLOCK_SPLITS": 4}, {}),
    "norm": ("fused", "rms_norm", {"BLOCK": 1024}, {}),
    "SwiGLU": ("fused", "silu_times", {"BLOCK": 1024}, {}),
    "placing bf16": ("fused", "place_heads", {**PLACE, "KIND": 0, "LEVELS": 0}, {"keys": "*bf16"}),
    "placing fp8": ("fused", "place_heads", {**PLACE, "KIND": 1, "LEVELS": 0, "q_norm": None, "k_norm": None}, {}),
    "placing int4": ("fused", "place_heads", {**PLACE, "KIND": 3, "LEVELS": 15}, {}),
}  # fmt: skip
"""Case -> file, kernel, what is fixed, and types of pointers other than TYPES'. Activations are bf16."""

TYPES = {
    **dict.fromkeys(("quants", "zeros", "keys", "values"), "*u8"),
    **dict.fromkeys(("parts", "bias", "sinks", "tops", "sums", "key_ranges", "value_ranges"), "*fp32"),
    **dict.fromkeys(("tables", "request", "position"), "*i32"),
    **dict.fromkeys(("eps", "scale"), "fp32"),
    "scales": "*fp16",
}
POINTERS = ("x", "out", "q", "k", "v", "hidden", "weight", "added", "gate", "up", "q_norm", "k_norm", "cos", "sin")


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", KERNELS)
def test_it_compiles(name: str, capability: int, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    file, kernel_name, constants, own = KERNELS[name]
    kernel = getattr(importlib.import_module(f"cascadevl.ops.triton.{file}_kernel"), kernel_name)
    types = {**TYPES, **dict.fromkeys(POINTERS, "*bf16"), **own}
    if "keys" in own:
        types["values"] = own["keys"]
    names = inspect.signature(kernel.fn).parameters
    signature = {each: "constexpr" if each in constants else types.get(each, "i32") for each in names}
    assert set(constants) <= set(names)
    fixed = {(list(names).index(each),): value for each, value in constants.items()}
    compiled = triton.compile(
        ASTSource(kernel, signature, fixed), target=GPUTarget("cuda", capability, 32), options=OPTIONS
    )
    assert compiled.asm["cubin"]
    if kernel_name in ("multiply", "attend"):
        assert "mma" in compiled.asm["ptx"], "products are left to the tensor cores"
