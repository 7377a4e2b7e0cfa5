"""Run a function over shards: in this process, in several, or on a cluster."""

from figureground.runners.choice import RunnerName, create_runner
from figureground.runners.interface import Job, Lost, Report, Runner
from figureground.runners.processes import ProcessRunner
from figureground.runners.ray import RayRunner
from figureground.runners.serial import run_serial

__all__ = [
    "Job",
    "Lost",
    "ProcessRunner",
    "RayRunner",
    "Report",
    "Runner",
    "RunnerName",
    "create_runner",
    "run_serial",
]
