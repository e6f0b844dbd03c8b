"""A linear layer with weights of few bits, and how a model gets them.

The layer keeps its weight once, in the order that its kernel wants; what it saves are the plain tensors of
ops/formats.py, `quants`, `scales` and perhaps `zeros` and `bias`, which any machine can load.
"""

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn

from cascadevl.core.errors import ConfigError
from cascadevl.ops.formats import Format, Quantized
from cascadevl.ops.native import linear as native
from cascadevl.ops.native import serve
from cascadevl.ops.quantize import dequantize, quantize


class QuantLinear(nn.Module):
    """Stands where an nn.Linear stood. Gradients reach its inputs; it has no parameters.

    It stays on the device of the tensors it was made of.
    """

    def __init__(self, quantized: Quantized, bias_F: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = quantized.shape
        self.format = quantized.format
        self._hold(quantized, bias_F)

    def _hold(self, quantized: Quantized, bias_F: Tensor | None) -> None:
        self._bias_F = None if bias_F is None else bias_F.detach()
        self._weight = serve.prepare(quantized, self._bias_F) or quantized

    @classmethod
    def of(cls, linear: nn.Linear, format: Format) -> Self:
        """Round the weight of a layer; its bias stays as it is."""
        return cls(quantize(linear.weight, format), linear.bias)

    @property
    def quantized(self) -> Quantized:
        """The weight as plain tensors, made for this call where a kernel holds it otherwise."""
        return native.unpack(self._weight) if isinstance(self._weight, native.Packed) else self._weight

    def forward(self, x: Tensor) -> Tensor:
        return serve.linear(x, self._weight, self._bias_F)

    def dequantized(self) -> nn.Linear:
        """The same layer with its rounded weights in fp32."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self._bias_F is not None, device="meta")
        linear.weight = nn.Parameter(dequantize(self.quantized))
        if self._bias_F is not None:
            linear.bias = nn.Parameter(self._bias_F.clone())
        return linear

    def _tensors(self) -> dict[str, Tensor]:
        tensors = self.quantized.tensors()
        return tensors if self._bias_F is None else {**tensors, "bias": self._bias_F}

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
            bias_F = given.pop("bias", None)
            self._hold(Quantized(self.format, **given), bias_F)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, format={self.format}"


def quantize_linears(module: nn.Module, select: Callable[[str], bool], format: Format) -> list[str]:
    """Replace, in place, every nn.Linear below `module` whose dotted name is selected; gives their names."""
    chosen = [name for name, child in module.named_modules() if type(child) is nn.Linear and name and select(name)]
    if not chosen:
        raise ConfigError("No nn.Linear of this model was selected, so nothing would be quantised.")
    for name in chosen:
        linear = module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        format.check_width(linear.in_features)  # before anything is replaced
    for name in chosen:
        parent, _, own_name = name.rpartition(".")
        linear = module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        setattr(module.get_submodule(parent), own_name, QuantLinear.of(linear, format))
    return chosen
