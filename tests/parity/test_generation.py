"""Cached greedy generation against `generate` of transformers, token for token."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cascadevl
from cascadevl.checkpoints.tiny import TINY_DECODERS
from cascadevl.core.generation import Sampling
from cascadevl.engine.simple import banned_ids

Make = Callable[..., Any]


@pytest.mark.parametrize("family", TINY_DECODERS)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_answers_are_the_same_tokens(
    family: str, penalty: float, conversation: list, make_member: Make, read_oracle: Make, oracle_inputs: Make
) -> None:
    folder = make_member(family).folder
    bundle = cascadevl.load(folder)
    inputs = bundle.preprocess(conversation)
    with torch.inference_mode():
        theirs = read_oracle(folder).generate(
            **oracle_inputs(inputs, bundle.spec),
            max_new_tokens=40,
            do_sample=False,
            repetition_penalty=penalty,
            suppress_tokens=list(banned_ids(bundle.parts)),
            eos_token_id=list(bundle.parts.stop_ids),
            pad_token_id=0,
        )[0, len(inputs.token_ids) :]
    sampling = Sampling(max_new_tokens=40, repetition_penalty=penalty, loop_guard=False)
    ours = bundle.generate(conversation, sampling)
    assert list(ours.token_ids) == theirs.tolist()
    assert len(set(ours.token_ids)) > 5, "an answer of one token would prove little"


def test_an_answer_stops_where_theirs_stops(
    one_picture: list, make_member: Make, read_oracle: Make, oracle_inputs: Make, tmp_path: Path
) -> None:
    """A token in the middle of the answer is declared a stop token on both sides."""
    folder = tmp_path / "model"
    shutil.copytree(make_member().folder, folder)
    bundle = cascadevl.load(folder)
    free = bundle.generate(one_picture, Sampling(max_new_tokens=30, loop_guard=False)).token_ids
    stop = free[12]
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": [{stop}, 257]}}')
    bundle = cascadevl.load(folder)
    assert set(bundle.parts.stop_ids) == {stop, 257, bundle.tokenizer.id("<|im_end|>")}
    ours = bundle.generate(one_picture, Sampling(max_new_tokens=30, loop_guard=False))
    inputs = bundle.preprocess(one_picture)
    with torch.inference_mode():
        theirs = read_oracle(folder).generate(
            **oracle_inputs(inputs, bundle.spec),
            max_new_tokens=30,
            do_sample=False,
            suppress_tokens=list(banned_ids(bundle.parts)),
            eos_token_id=list(bundle.parts.stop_ids),
            pad_token_id=0,
        )[0, len(inputs.token_ids) :]
    assert list(ours.token_ids) == theirs.tolist() == list(free[: free.index(stop) + 1])
    assert ours.finish_reason == "stop"
