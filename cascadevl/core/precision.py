"""Names of number formats, for whoever must know them without torch."""

from typing import Literal, get_args

KVFormat = Literal["float32", "bfloat16", "float16", "fp8", "int8", "int4"]
"""How keys and values may be kept; ops/kv_formats.py says what each means."""

KV_FORMATS: tuple[KVFormat, ...] = get_args(KVFormat)

WEIGHT_FORMATS = (
    *("int8", "int8-g64", "int4", "int4-g32", "int4-g64", "int4-g128"),
    *("int4-g32-zeros", "int4-g64-zeros", "int4-g128-zeros", "mxfp4", "fp8", "fp8-blocks"),
)
"""What weights may be rounded to; ops/formats.py says what each means."""
