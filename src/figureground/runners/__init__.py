"""Run a function over shards."""

from figureground.runners.serial import Runner, run_serial

__all__ = ["Runner", "run_serial"]
