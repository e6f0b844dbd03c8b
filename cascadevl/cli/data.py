"""Somebody's data before training: is it right, what does a model see of it, how long is it?"""

import tyro

from cascadevl.cli.data_check import Check, check
from cascadevl.cli.data_diff import Diff, diff
from cascadevl.cli.data_schema import Schema, schema
from cascadevl.cli.data_show import Show, show
from cascadevl.cli.data_stats import Stats, stats


def main(arguments: list[str]) -> int:
    order = tyro.extras.subcommand_cli_from_dict(
        {"check": Check, "show": Show, "stats": Stats, "diff": Diff, "schema": Schema},
        prog="cascadevl data",
        description="Look at data before training. Reads tokenizer and spec of a model, never weights.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    match order:
        case Check():
            return check(order)
        case Show():
            return show(order)
        case Stats():
            return stats(order)
        case Diff():
            return diff(order)
        case _:
            return schema(order)
