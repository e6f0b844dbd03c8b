"""A linear layer with weights of few bits, and how a model gets them.

The layer keeps its weight once, in the order that its kernel wants; what it saves are the plain tensors of
ops/formats.py, `quants`, `scales` and perhaps `zeros`, `bias` and `order`, which any machine can load.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from cascadevl.core.errors import ConfigError
from cascadevl.models.experts import Experts
from cascadevl.models.gpt_oss import GptOssExperts
from cascadevl.ops.formats import Format, Quantized
from cascadevl.ops.native import linear as native
from cascadevl.ops.native import serve
from cascadevl.ops.quantize import dequantize, quantize


class QuantLinear(nn.Module):
    """Stands where an nn.Linear stood. Gradients reach its inputs; it has no parameters.

    It stays on the device of the tensors it was made of.
    """

    def __init__(self, quantized: Quantized, bias_F: Tensor | None = None, *, order_D: Tensor | None = None) -> None:
        """`order_D`: which input each column of the weight belongs to (GPTQ's act-order); None: each to its own."""
        super().__init__()
        self.out_features, self.in_features = quantized.shape
        self.format = quantized.format
        self.order_D = order_D
        self._hold(quantized, bias_F)

    def _hold(self, quantized: Quantized, bias_F: Tensor | None) -> None:
        self._bias_F = None if bias_F is None else bias_F.detach()
        self._weight = serve.prepare(quantized, self._bias_F) or quantized

    @classmethod
    def of(cls, linear: nn.Linear, format: Format) -> Self:
        """Round the weight of a layer; its bias stays as it is."""
        return cls(quantize(linear.weight, format), linear.bias)

    @property
    def packed(self) -> native.Packed | None:
        """The weight as its kernel reads it; None where none does, or inputs must be put in order first."""
        return self._weight if isinstance(self._weight, native.Packed) and self.order_D is None else None

    @property
    def quantized(self) -> Quantized:
        """The weight as plain tensors, made for this call where a kernel holds it otherwise."""
        return serve.plain(self._weight)

    @property
    def bias(self) -> Tensor | None:
        return self._bias_F

    def forward(self, x: Tensor) -> Tensor:
        if self.order_D is not None:
            x = x.index_select(-1, self.order_D)
        return serve.linear(x, self._weight, self._bias_F)

    def dequantized(self) -> nn.Linear:
        """The same layer with its rounded weights in fp32."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self._bias_F is not None, device="meta")
        weight_FD = dequantize(self.quantized)
        linear.weight = nn.Parameter(weight_FD if self.order_D is None else weight_FD[:, self.order_D.argsort()])
        if self._bias_F is not None:
            linear.bias = nn.Parameter(self._bias_F.clone())
        return linear

    def _tensors(self) -> dict[str, Tensor]:
        more = {"bias": self._bias_F, "order": self.order_D}
        return {**self.quantized.tensors(), **{name: tensor for name, tensor in more.items() if tensor is not None}}

    # nn.Module's own names: state_dict and load_state_dict come through here.
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination.update({prefix + name: tensor for name, tensor in self._tensors().items()})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = self._tensors()
        given = {name: state_dict[prefix + name] for name in own if prefix + name in state_dict}
        missing_keys.extend(prefix + name for name in own if name not in given)
        stray = (key for key in state_dict if key.startswith(prefix) and key.removeprefix(prefix) not in own)
        unexpected_keys.extend(stray if strict else ())
        for name, tensor in given.items():
            if tensor.shape != own[name].shape:
                error_msgs.append(f"{prefix}{name} has the shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}.")
        if len(given) == len(own) and not error_msgs:
            bias_F, self.order_D = given.pop("bias", None), given.pop("order", None)
            self._hold(Quantized(self.format, **given), bias_F)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, format={self.format}"


STACKS = (Experts, GptOssExperts)
"""Modules whose parameters are stacked over experts; of few bits they are a ModuleList of a QuantLinear for each."""


def put(model: nn.Module, name: str, weight: Quantized, order_D: Tensor | None = None) -> None:
    """Put few bits in the place of the parameter `name`; rows of a stack are those of all its experts in turn."""
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    if not isinstance(owner, STACKS):
        model.set_submodule(path, QuantLinear(weight, owner.bias, order_D=order_D))  # type: ignore[arg-type]
        return
    num_experts = len(getattr(owner, attribute))
    rows = weight.shape[0] // num_experts
    parts = [cut(weight, expert * rows, rows) for expert in range(num_experts)]
    delattr(owner, attribute)
    owner.add_module(attribute, nn.ModuleList(QuantLinear(part, order_D=order_D) for part in parts if part is not None))


def few_bits(model: nn.Module) -> dict[str, list[QuantLinear]]:
    """The names that parameters of few bits would have in full -> their layers, one for each expert of a stack."""
    found: dict[str, list[QuantLinear]] = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            path, _, last = name.rpartition(".")
            found.setdefault(path if last.isdigit() and ".experts." in path else f"{name}.weight", []).append(module)
    return found


def cut(weight: Quantized, start: int, rows: int) -> Quantized | None:
    """Some outputs of a matrix; None where outputs that share a scale would be parted."""
    shared = weight.format.outputs
    if start % shared or (rows % shared and start + rows != weight.shape[0]):
        return None
    few = slice(start // shared, -(-(start + rows) // shared))
    zeros = None if weight.zeros is None else weight.zeros[few]
    return Quantized(weight.format, weight.quants[start : start + rows], weight.scales[few], zeros)


def joined(parts: list[Quantized]) -> Quantized | None:
    """One below the other; None where formats differ, or outputs of two would have to share a scale."""
    format = parts[0].format
    if any(part.format != format for part in parts) or any(part.shape[0] % format.outputs for part in parts[:-1]):
        return None
    if len(parts) == 1:
        return parts[0]
    together = {name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()}
    return Quantized(format, **together)


def quantize_linears(module: nn.Module, select: Callable[[str], bool], format: Format) -> list[str]:
    """Replace, in place, every nn.Linear and stack of experts below `module` whose dotted name is selected.

    Gives their names.
    """
    kinds = (nn.Linear, *STACKS)
    chosen = {name: child for name, child in module.named_modules() if type(child) in kinds and name and select(name)}
    if not chosen:
        raise ConfigError("No nn.Linear of this model was selected, so nothing would be quantised.")
    for child in chosen.values():  # before anything is replaced
        for weight_FD in _matrices(child).values():
            format.check_width(weight_FD.shape[-1])
    for name, child in chosen.items():
        if isinstance(child, nn.Linear):
            module.set_submodule(name, QuantLinear.of(child, format))
            continue
        for attribute, weight_EFD in _matrices(child).items():
            delattr(child, attribute)
            layers = (QuantLinear(quantize(weight_FD.contiguous(), format)) for weight_FD in weight_EFD)
            child.add_module(attribute, nn.ModuleList(layers))
    return list(chosen)


def _matrices(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a layer or of a stack of experts, outputs first; those that are whole."""
    if isinstance(module, nn.Linear):
        return {"weight": module.weight}
    stacks = {name: stack for name, stack in module.named_parameters(recurse=False) if stack.ndim == 3}
    return {name: stack.mT if isinstance(module, GptOssExperts) else stack for name, stack in stacks.items()}


def quantize_decoder(language_model: nn.Module, format: Format, *, head: bool = False) -> list[str]:
    """Round the matrices of all layers, and the output matrix if asked; what routes tokens to experts stays."""

    def select(name: str) -> bool:
        return (name.startswith("model.layers.") and not name.endswith(ROUTERS)) or (head and name == "lm_head")

    return quantize_linears(language_model, select, format)


ROUTERS = (".mlp.gate", ".mlp.router")
"""Small, and a token sent to the wrong expert is lost."""
