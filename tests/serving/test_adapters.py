"""An adapter is a model by its own name; requests to it and to the model run side by side."""

from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch

from cascadevl.checkpoints.adapters import attach, read_adapter
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.serving.app import Service
from cascadevl.serving.config import ServingConfig
from tests.checkpoints.adapter_folders import random_lora, write
from tests.serving.conftest import running


def test_an_adapter_is_asked_as_a_model_is(tmp_path):
    parts = tiny_parts("qwen3", std=0.3)
    linears = {
        name: (module.out_features, module.in_features)
        for name, module in parts.model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith("language_model.model")
    }
    attach(parts.model, read_adapter(write(tmp_path / "a", random_lora(linears)), parts.model), "changed")
    with running(Service(parts, ServingConfig(port=0))) as server:
        client = server.client
        assert [model.id for model in client.models.list()] == [parts.name, "changed"]

        def ask(model):
            answer = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "Hello"}], max_tokens=12
            )
            return answer.model, answer.choices[0].message.content

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(ask, [parts.name, "changed"] * 4))
        assert len(set(found)) == 2
        assert {model for model, _ in found} == {parts.name, "changed"}
        with pytest.raises(openai.NotFoundError, match="but 'tiny-qwen3', 'changed'"):
            ask("other")
