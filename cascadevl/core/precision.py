"""Names of number formats, for whoever must know them without torch."""

from typing import Literal, get_args

KVFormat = Literal["float32", "bfloat16", "float16", "fp8", "int8", "int4"]
"""How keys and values may be kept; ops/kv_formats.py says what each means."""

KV_FORMATS: tuple[KVFormat, ...] = get_args(KVFormat)
