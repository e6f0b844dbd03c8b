"""Serve a model over HTTP to whatever speaks OpenAI's API.

Every check that needs no weights is made before torch is imported, so a mistake is answered at once.
"""

import importlib.util
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cascadevl.checkpoints.layouts import locate
from cascadevl.core.errors import ConfigError, MissingExtra
from cascadevl.engine.config import EngineConfig
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.listen import address, bind

PACKAGES = ("fastapi", "uvicorn", "pydantic", "prometheus_client")


@dataclass(frozen=True, kw_only=True, slots=True)
class Serve:
    """Serve a model over HTTP: cascadevl serve --model nano --port 8000

    Any OpenAI client can talk to it: base_url is http://127.0.0.1:8000/v1.
    """

    model: str = "nano"
    """An embedded model, a folder, or a hub id such as OpenGVLab/InternVL3_5-1B."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What is computed in; auto: the stored type, or float32 where the processor has no fast units for it."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    adapter: dict[str, Path] = field(default_factory=dict)
    """PEFT LoRA folders by name; a client asks for one as it would for a model."""
    api_key_env: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Environment variable that holds the key which clients must send; None: no key is asked for."""
    server: tyro.conf.OmitArgPrefixes[ServingConfig] = field(default_factory=ServingConfig)
    engine: tyro.conf.OmitArgPrefixes[EngineConfig] = field(default_factory=EngineConfig)


def main(arguments: list[str]) -> int:
    if sum(word.split("=")[0] == "--adapter" for word in arguments) > 1:  # the last alone would count
        raise ConfigError("Give --adapter once: --adapter one FOLDER other FOLDER")
    order = tyro.cli(Serve, prog="cascadevl serve", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", order.device):
        raise ConfigError(f"Unknown device {order.device!r}: expected auto, cpu, cuda or cuda:N.")
    api_key = read_key(order.api_key_env)
    order.server.check_key(api_key)
    missing = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise MissingExtra(f"Serving needs {', '.join(missing)}: pip install 'cascadevl[serve]'")
    locate(order.model)
    for name, folder in order.adapter.items():
        if not (folder / "adapter_config.json").is_file():
            raise ConfigError(f"--adapter {name}: {folder} holds no adapter_config.json; expected a PEFT folder.")

    listener = bind(order.server)

    from cascadevl.api import load
    from cascadevl.checkpoints.adapters import attach, read_adapter
    from cascadevl.serving.app import Service
    from cascadevl.serving.server import serve

    bundle = load(order.model, dtype=order.dtype, device=order.device)
    for name, folder in order.adapter.items():
        attach(bundle.model, read_adapter(folder, bundle.model), name)
    service = Service(bundle, order.server, order.engine)
    service.preparer.start()
    listener.listen(1024)  # who comes from now on waits until the server runs, and is answered
    print(f"cascadevl serves {bundle.name} at {address(listener)}/v1 (spec {bundle.spec.hash})", flush=True)
    for note in bundle.parts.notes:
        print(f"({note})", file=sys.stderr)
    serve(service, listener, api_key)
    return 0


def read_key(name: str | None) -> str | None:
    """The key in an environment variable: on the command line, everybody on this machine could read it."""
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(f"The environment variable {name!r} holds no key: set it, or leave --api-key-env out.")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"The key in {name!r} has characters that a client cannot send in a header: take letters, digits and "
            "signs of ASCII alone."
        )
    return key
