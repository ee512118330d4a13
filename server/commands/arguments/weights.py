"""The flag of `twogear serve` that says in how many bits the weights are held."""

import argparse
from collections.abc import MutableMapping

from model_impl.weights import DEFAULT, FORMATS, VARIABLE, Format, weights_format
from server.cli_errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The default is the environment's."""
    group = parser.add_argument_group("weights")
    group.add_argument(
        "--weights",
        choices=FORMATS,
        help=f"in how many bits weights are held, on CPUs; int8 and int4 are quantized as they are loaded; left out, "
        f"what {VARIABLE} says in the environment, else int8 for large models where the CPU can (the start says so), "
        f"else {DEFAULT}",
    )


def of_arguments(args: argparse.Namespace, environment: MutableMapping[str, str]) -> dict[str, Format | None]:
    """Fields of Settings: the format, and what was asked for. `environment`, which the engine inherits, says it too.

    Raises UsageError.
    """
    try:
        weights: Format = args.weights or weights_format(environment)
    except ValueError as error:
        raise UsageError(str(error)) from error
    asked = weights if args.weights or environment.get(VARIABLE) else None
    environment[VARIABLE] = weights
    return {"weights": weights, "weights_asked": asked}
