"""What this machine is, as far as a decision depends on it."""

import functools
from pathlib import Path


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Instruction-set names as Linux lists them; empty where it cannot be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    listed = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(listed, "").split())


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has units for bf16 products; elsewhere bf16 is 6–300× slower than fp32."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
