"""Are our mixtures of experts slower than transformers' anywhere? Interleaved, fp32, one thread.

python benchmarks/experts.py [--json OUT]
Both sides hold the same random weights and get the same tokens. The peer runs each of its experts
implementations; `grouped_mm` is the one it takes by default. `learn` is forward and backward. Seconds are
the thread's own: what other programs do on the same core meanwhile does not count.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP as GptOssPeer
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig, Qwen3MoeSparseMoeBlock

from cascadevl.models.config import ExpertsConfig
from cascadevl.models.experts import SparseMLP
from cascadevl.models.gpt_oss import GptOssMLP

REPEATS, LEAST_SAMPLE_S = 11, 4e-3
SIZES = {"tiny": (32, 8, 2, 64), "medium": (512, 32, 4, 256), "large": (1024, 64, 8, 768)}
"""D, E, k, F."""
LEARN = (("tiny", 256), ("medium", 256))
PREDICT = (
    *(("tiny", num) for num in (1, 4, 256, 1024)),
    *(("medium", num) for num in (1, 4, 256, 1024)),
    *(("large", num) for num in (1, 4, 256)),
)
Step = Callable[[Tensor], Any]


def qwen3_moe(size: str) -> tuple[nn.Module, Callable[[str], nn.Module]]:
    width, num_experts, num_per_token, mlp_size = SIZES[size]

    def peer(implementation: str) -> nn.Module:
        config = Qwen3MoeConfig(
            hidden_size=width,
            num_experts=num_experts,
            num_experts_per_tok=num_per_token,
            moe_intermediate_size=mlp_size,
            norm_topk_prob=True,
        )
        config._experts_implementation = implementation
        return Qwen3MoeSparseMoeBlock(config)

    return SparseMLP(width, config_of(size)), peer


def gpt_oss(size: str) -> tuple[nn.Module, Callable[[str], nn.Module]]:
    width, num_experts, num_per_token, mlp_size = SIZES[size]

    def peer(implementation: str) -> nn.Module:
        config = GptOssConfig(
            hidden_size=width,
            num_local_experts=num_experts,
            num_experts_per_tok=num_per_token,
            intermediate_size=mlp_size,
        )
        config._experts_implementation = implementation
        return GptOssPeer(config)

    return GptOssMLP(width, config_of(size)), peer


def config_of(size: str) -> ExpertsConfig:
    _, num_experts, num_per_token, mlp_size = SIZES[size]
    return ExpertsConfig(num_experts=num_experts, num_per_token=num_per_token, mlp_size=mlp_size, normalise=True)


FAMILIES = {"qwen3_moe": qwen3_moe, "gpt_oss": gpt_oss}


def sides(family: str, size: str, implementations: tuple[str, ...]) -> dict[str, Step]:
    """What to call with (T, D), ours and each of the peer's ways; all share one set of weights."""
    ours, peer_of = FAMILIES[family](size)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(0, SIZES[size][0] ** -0.5)
    steps: dict[str, Step] = {"ours": ours}
    for implementation in implementations:
        peer = peer_of(implementation)
        peer.load_state_dict(ours.state_dict(), assign=True)
        steps[implementation] = lambda hidden_TD, peer=peer: first(peer(hidden_TD[None]))[0]
    return steps


def first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def agree(steps: dict[str, Step], hidden_TD: Tensor) -> None:
    ours_TD = steps["ours"](hidden_TD)
    for name, step in steps.items():
        torch.testing.assert_close(step(hidden_TD), ours_TD, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def interleaved(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each: A, B, A, B … so that a busy moment of the machine meets all of them."""
    number: dict[str, int] = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        started = time.thread_time()
        call()
        number[name] = max(1, round(LEAST_SAMPLE_S / (time.thread_time() - started)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            # Untimed: nobody pays for what its predecessor left in the caches.
            call()
            started = time.thread_time()
            for _ in range(number[name]):
                call()
            seconds[name].append((time.thread_time() - started) / number[name])
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure(family: str, size: str, num_tokens: int, learn: bool) -> dict[str, Any]:
    # batched_mm copies the weights of every assignment: bearable for a few tokens only.
    implementations = ("eager", "grouped_mm", "batched_mm") if num_tokens <= 4 else ("eager", "grouped_mm")
    steps = sides(family, size, implementations)
    hidden_TD = torch.randn(num_tokens, SIZES[size][0], requires_grad=learn)
    with torch.inference_mode(not learn):
        agree(steps, hidden_TD)
        if learn:
            calls = {name: lambda step=step: step(hidden_TD).square().sum().backward() for name, step in steps.items()}
        else:
            calls = {name: lambda step=step: step(hidden_TD) for name, step in steps.items()}
        medians = interleaved(calls)
    row: dict[str, Any] = {"family": family, "size": size, "tokens": num_tokens, "learn": learn}
    row |= {f"{name}_ms": round(1e3 * value, 4) for name, value in medians.items()}
    return row | {f"over_{name}": round(medians[name] / medians["ours"], 2) for name in implementations}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'family':10} {'size':7} {'tokens':>6} {'ours ms':>9}   how many times faster than …")
    rows = []
    for family in FAMILIES:
        for learn, cases in ((False, PREDICT), (True, LEARN)):
            for size, num_tokens in cases:
                row = measure(family, size, num_tokens, learn)
                rows.append(row)
                ratios = "  ".join(f"{k.removeprefix('over_')} {v}" for k, v in row.items() if k.startswith("over_"))
                learns = "  (learn)" if learn else ""
                print(f"{family:10} {size:7} {num_tokens:6} {row['ours_ms']:9.3f}   {ratios}{learns}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
