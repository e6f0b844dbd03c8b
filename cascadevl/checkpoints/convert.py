"""One official layout into the other, with the proof beside it."""

import os
from pathlib import Path
from typing import Any

import torch

import cascadevl
from cascadevl.checkpoints.adapters import merge, read_adapter
from cascadevl.checkpoints.layouts import layouts, locate, read_json, recognise
from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.save import check_target, write_parts
from cascadevl.core.errors import CheckpointError
from cascadevl.core.files import atomic_folder, content_hash, write_json
from cascadevl.core.messages import Conversation
from cascadevl.models.internvl import InternVL

REPORT = "parity.json"
PROBE = "What is in the picture?"


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    layout: str,
    *,
    adapter: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Write `source` to `target` in `layout`; returns the parity report, which is also written there.

    With `adapter`, a PEFT LoRA folder, what is written and compared is the model with it merged.

    The converted folder is loaded again and compared: every weight bit for bit, the prompt and the
    tiles of a probe, and its logits in fp32 where memory allows. A difference is an error, and then
    nothing is written.
    """
    check_target(Path(target), layout)
    folder = locate(source)
    parts = load_parts(source, dtype="stored", device="cpu")
    if adapter is not None:
        merge(parts.model, read_adapter(adapter, parts.model))
    report: dict[str, Any] = {
        "cascadevl": cascadevl.__version__,
        "source": str(source),
        **({"adapter": str(adapter)} if adapter is not None else {}),
        "source_layout": recognise(read_json(folder / "config.json"), folder),
        "layout": layout,
        "dtype": str(parts.model.dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in parts.model.parameters()),
        "fingerprint": fingerprint(parts.model),
        "spec_hash": parts.spec.hash,
    }
    with atomic_folder(Path(target)) as work:
        write_parts(parts, work, layouts()[layout])
        report |= _compare(parts, work)
        write_json(work / REPORT, report)
    return report


def fingerprint(model: InternVL) -> str:
    """16 hexadecimal digits over all weights by name: equal exactly when the weights are."""
    digests = [
        f"{name} {content_hash(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())}"
        for name, tensor in sorted(model.state_dict().items())
    ]
    return content_hash("\n".join(digests))


@torch.inference_mode()
def _compare(parts: Parts, folder: Path) -> dict[str, Any]:
    """Load what was written and hold it against what it came from."""
    probe = Conversation.ask(PROBE, [_probe_picture(parts)])
    before = parts.processor(probe)
    expected = fingerprint(parts.model)
    needed = 4 * sum(p.numel() for p in parts.model.parameters())
    logits = None
    if needed < _memory_bytes() / 3:
        logits = parts.model.float()(before.token_ids, before.tiles)
    written = load_parts(folder, dtype="stored", device="cpu")
    after = written.processor(probe)
    checks = {
        "weights_equal": fingerprint(written.model) == expected,
        "spec_equal": written.spec == parts.spec,
        "token_ids_equal": torch.equal(before.token_ids, after.token_ids),
        "tiles_equal": torch.equal(before.tiles, after.tiles),
    }
    failed = [name for name, good in checks.items() if not good]
    if failed:
        raise CheckpointError(
            f"The converted folder differs from its source ({', '.join(failed)}): nothing was written."
        )
    if logits is None:
        return {**checks, "logits": f"not compared: two copies in fp32 need {2 * needed / 1e9:.0f} GB"}
    again = written.model.float()(after.token_ids, after.tiles)
    return {
        **checks,
        "logits_max_abs": float(logits.abs().max()),
        "logits_max_abs_difference": float((logits - again).abs().max()),
    }


def _probe_picture(parts: Parts) -> Any:
    """A deterministic picture that needs several tiles."""
    from PIL import Image

    side = parts.spec.tile_px
    return Image.linear_gradient("L").resize((2 * side + 7, side)).convert("RGB")


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
