"""A cluster, by Ray: its actors on as many machines as it has, and on new ones as they come.

Only Ray's core is used. Ray Data is not: its own actor pool hangs once the actors hold every CPU.
"""

import logging
import os
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from figureground.errors import RunError, UsageError
from figureground.runners.cores import share_cores, thread_variables
from figureground.runners.interface import Job, Lost, Report, Result, Task
from figureground.runners.pool import Died, Done, Event, Ready, attempt, drive

_log = logging.getLogger(__name__)
# Of each core that a worker has, so much is asked for: what is left lets anything else run beside the workers.
_CPU_SHARE = 0.9
# Results are small and go by the files; Ray's own default is a third of the memory.
_OBJECT_STORE_BYTES = 128 * 2**20
# Without any worker for so long, the user is told what they wait for.
_PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class RayRunner:
    """Does tasks in Ray actors; see :class:`~figureground.runners.interface.Runner`.

    The tasks wait here and not in Ray; of the actors that are asked for, those that find no room yet stay in Ray's own
    queue, which is what its autoscaler looks at, and take tasks as soon as a machine comes.

    Attributes:
        workers: How many at most; ``None``: one for each accelerator, or core, that the cluster has at the start.
        address: Of the cluster, ``auto`` (that of this machine) or ``host:port``; ``None``: that of ``RAY_ADDRESS``,
            else a cluster on this machine for as long as the tasks take.
        gpus: Accelerators for each worker; several workers can share one, as 0.5.
    """

    workers: int | None = None
    address: str | None = None
    gpus: float = 0

    def __call__(
        self, job: Job[Task, Result], tasks: Sequence[Task], report: Report
    ) -> Generator[Result | Lost[Task], None, None]:
        """Do every task; nothing is said while a worker is at one."""
        if not tasks:
            return
        ray = _import_ray()
        joined = not ray.is_initialized()
        if joined:
            _join(ray, self.address)
        try:
            count, threads, cpus = self._size(ray)
            actors = _Actors(ray, job, threads, cpus, self.gpus)
            with closing(drive(actors, tasks, count, report)) as results:
                yield from results
        finally:
            if joined:
                ray.shutdown()

    def _size(self, ray: Any) -> tuple[int, int, float]:
        """How many workers, the threads of each, and the CPUs that are asked for each."""
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = [int(machine.get("CPU", 0)) for machine in machines]
        gpus = sum(machine.get("GPU", 0) for machine in machines)
        count = self.workers or int(gpus // self.gpus if self.gpus else sum(cpus))
        if not count:
            missing = "accelerator" if self.gpus else "CPU"
            raise UsageError(f"The cluster has no {missing}.", "If some will come, say how many with --workers.")
        # A worker is on one machine, and must find room there.
        largest = max(1, *cpus, 0)
        threads = share_cores(min(sum(cpus), largest * count), count)
        return count, threads, _CPU_SHARE * min(threads, largest)


def _import_ray() -> Any:
    # No word to its makers of how it is used, unless the user has asked for that.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("--runner ray needs Ray.", "Install it: pip install 'figureground[ray]'") from None
    return ray


def _join(ray: Any, address: str | None) -> None:
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level="ERROR",
            **(local if address == "local" else {}),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunError(
            f"There is no Ray cluster at {address!r}: {str(error).splitlines()[0]}", "See `ray status`."
        ) from None


class _Server:
    """What an actor is."""

    def __init__(self, job: bytes) -> None:
        self._job, self._function = job, None

    def begin(self) -> Event:
        """Make the function."""
        return attempt(self._begin)

    def work(self, task: Any) -> Event:
        """Do a task."""
        return attempt(lambda: Done(self._function(task, _say_nothing)))  # type: ignore[misc]

    def _begin(self) -> Event:
        from ray import cloudpickle

        self._function = cloudpickle.loads(self._job)()
        return Ready()


def _say_nothing(word: Any) -> None:
    """Words would have to cross the network one by one; a result says enough."""


class _Actor:
    """An actor, and the answer that it owes, if it owes one."""

    def __init__(self, ray: Any, handle: Any) -> None:
        self._ray, self._handle = ray, handle
        self.owed: Any = handle.begin.remote()

    def give(self, task: Any) -> None:
        self.owed = self._handle.work.remote(task)

    def hear(self) -> Event:
        owed, self.owed = self.owed, None
        try:
            return self._ray.get(owed)
        except self._ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            # A traceback says what it is about in its last line, Ray's own errors in the first.
            return Died(lines[-1 if isinstance(error, self._ray.exceptions.RayTaskError) else 0])

    def end(self) -> None:
        self._ray.kill(self._handle)


class _Actors:
    """Asks for actors and listens to all of them."""

    def __init__(self, ray: Any, job: Job, threads: int, cpus: float, gpus: float) -> None:
        self._ray = ray
        self._any_ready = False
        self._job = ray.cloudpickle.dumps(job)
        self._class = ray.remote(
            num_cpus=cpus,
            num_gpus=gpus,
            # A lost one is replaced here, wherever there is room, and not by Ray.
            max_restarts=0,
            # In its environment from the start: Ray brings NumPy in before the job.
            runtime_env={"env_vars": thread_variables(threads)},
        )(_Server)

    def start(self, others: Collection[_Actor]) -> _Actor:
        return _Actor(self._ray, self._class.remote(self._job))

    def wait(self, workers: Collection[_Actor]) -> Iterator[tuple[_Actor, Event]]:
        by_answer = {worker.owed: worker for worker in workers if worker.owed is not None}
        answered, _ = self._ray.wait(list(by_answer), num_returns=1, timeout=_PATIENCE_S)
        if not answered and not self._any_ready:
            there = {name: self._ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
            _log.warning("No worker has found room yet; the cluster has %s. Waiting.", there)
        for answer in answered:
            self._any_ready = True
            yield by_answer[answer], by_answer[answer].hear()
