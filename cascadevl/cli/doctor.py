"""What this machine has, what is missing, and what that would unlock. Works without torch."""

import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import cascadevl
from cascadevl.checkpoints.layouts import EMBEDDED
from cascadevl.core.errors import CheckpointError
from cascadevl.core.hardware import cpu_flags
from cascadevl.preprocessing.spec_file import read_spec

EXTRAS = {
    "video": "reading video files (a GIF, a folder or a list of frames goes without)",
    "sentencepiece": "models whose tokenizer is a tokenizer.model: InternLM2, Yi, Phi-3 (InternVL 1.5 to 3)",
    "constraints": "answers bound to a JSON schema, a regular expression or a list of choices",
    "serve": "`cascadevl serve`: an OpenAI-compatible server",
    "gpu": "kernels for weights, keys and values of few bits on a GPU",
    "data": "reading parquet files",
    "train": "curves of `cascadevl train` in TensorBoard; log.jsonl and report.html go without",
    "ocr": "comparing readings of a page (`cascadevl app ocr`); the readers themselves are named by its errors",
    "dev": "running the tests and `make check`",
}
"""Extra of pyproject.toml -> what it unlocks."""

FAST_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16")
"""CPU features that decide how fast products are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Doctor:
    """Report what this machine has, what is missing, and what that would unlock."""

    json: bool = False
    """Print one JSON object."""
    network: bool = False
    """Ask the hub for one page, to see whether it can be reached; otherwise nothing is sent."""


def main(arguments: list[str]) -> int:
    order = tyro.cli(Doctor, prog="cascadevl doctor", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    facts = examine(network=order.network)
    print(json.dumps(facts, indent=2, ensure_ascii=False) if order.json else "\n".join(lines(facts)))
    return 0


def examine(*, network: bool = False) -> dict[str, Any]:
    return {
        "cascadevl": cascadevl.__version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "cpu": cpu(),
        "memory_gb": memory_gb(),
        **compute(),
        "models": embedded_models(),
        "extras": extras(),
        "hub": hub(network),
    }


def cpu() -> dict[str, Any]:
    flags = cpu_flags()
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "model": _first_match(r"model name\s*: (.*)", "/proc/cpuinfo") or platform.processor() or platform.machine(),
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "features": [flag for flag in FAST_FLAGS if flag in flags],
    }


def memory_gb() -> dict[str, float] | None:
    """Total and available; None where the system does not tell."""
    found = {
        name: _first_match(rf"{key}:\s*(\d+) kB", "/proc/meminfo")
        for name, key in (("total", "MemTotal"), ("available", "MemAvailable"))
    }
    return {name: round(int(kb) / 2**20, 1) for name, kb in found.items() if kb} or None


def compute() -> dict[str, Any]:
    """torch, the devices it sees, and what "auto" comes to here for weights stored in bfloat16."""
    try:
        import torch
    except ImportError as problem:
        return {
            "torch": f"missing ({problem}): models cannot run; pip install torch",
            "gpus": [],
            "dtype_auto": None,
        }
    from cascadevl.checkpoints.load import resolve_dtype

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    dtype, notes = resolve_dtype("auto", {torch.bfloat16}, torch.device("cuda" if gpus else "cpu"))
    reason = "; ".join(notes) or f"the {'GPU' if gpus else 'CPU'} multiplies it directly"
    return {
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "gpus": gpus,
        "dtype_auto": {"dtype": str(dtype).removeprefix("torch."), "reason": reason},
    }


def embedded_models() -> dict[str, str]:
    """Name -> hash of its preprocessing spec, or what is wrong with it."""
    found = {}
    for folder in sorted(path.parent for path in EMBEDDED.glob("*/config.json")):
        try:
            spec = read_spec(folder)
            found[folder.name] = f"spec {spec.hash}" if spec else "no preprocessing spec"
        except CheckpointError as problem:
            found[folder.name] = f"damaged: {problem}"
    return found


def extras() -> dict[str, dict[str, Any]]:
    """Extra -> whether it is complete, what is missing, and what it unlocks."""
    return {
        name: {
            "missing": [package for package in packages if not _installed(package)],
            "unlocks": EXTRAS.get(name, ""),
        }
        for name, packages in declared_extras().items()
    }


def declared_extras() -> dict[str, list[str]]:
    """Extra -> its packages, as the installed package declares them."""
    found: dict[str, list[str]] = {}
    try:
        requirements = importlib.metadata.requires("cascadevl") or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder, not installed
        return found
    for requirement in requirements:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        package = re.match(r"[\w.-]+", requirement)
        if extra and package:
            found.setdefault(extra[1], []).append(package[0])
    return found


def hub(network: bool) -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "switched off by HF_HUB_OFFLINE: models come from folders and the cache"
    if not network:
        return "not asked (--network asks)"
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(endpoint, timeout=5):
            return f"reachable: {endpoint}"
    except OSError as problem:
        return f"not reachable: {endpoint} ({problem}); give folders instead of hub ids"


def lines(facts: Mapping[str, Any]) -> list[str]:
    """The report for people, one fact a line."""
    cpu, memory, auto = facts["cpu"], facts["memory_gb"], facts["dtype_auto"]
    rows = [
        ("cascadevl", facts["cascadevl"]),
        ("python", facts["python"]),
        ("system", facts["system"]),
        ("cpu", f"{cpu['model']}, {cpu['cores']} cores; {' '.join(cpu['features']) or 'no features known'}"),
        ("memory", f"{memory['total']} GB, {memory.get('available', '?')} GB free" if memory else "unknown"),
        ("torch", facts["torch"]),
        ("gpu", ", ".join(facts["gpus"]) or "none"),
        (
            "dtype auto",
            f"bfloat16 weights compute in {auto['dtype']}: {auto['reason']}" if auto else "needs torch",
        ),
        (
            "models",
            "; ".join(f"{name} ({note})" for name, note in facts["models"].items()) or "none embedded",
        ),
        ("hub", facts["hub"]),
    ]
    for name, extra in facts["extras"].items():
        missing = ", ".join(extra["missing"])
        state = f"missing {missing}: pip install 'cascadevl[{name}]' unlocks" if missing else "complete:"
        rows.append((f"[{name}]", f"{state} {extra['unlocks']}"))
    return [f"{title:<11} {text}" for title, text in rows]


def _first_match(pattern: str, path: str) -> str | None:
    try:
        match = re.search(pattern, Path(path).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return match[1].strip() if match else None


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
