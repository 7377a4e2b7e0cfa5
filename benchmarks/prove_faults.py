"""Break runs in every way that can be thought of, go on with them, and compare the bytes with an undisturbed run.

python -m benchmarks.prove_faults [FAULT ...]      # all; needs Linux, Ray, and the right to mount a tmpfs:
unshare --map-root-user --mount python -m benchmarks.prove_faults     # where this user has it not
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.prove_kill import draw_photos
from figureground.storage import jsonlines

_IMAGES, _SHARD = 80, 2
_PATIENCE_S = 300
_DEADLY = ("008.jpg", "009.jpg", "060.jpg")
# What every Python process of a run does first, where PYTHONPATH says so: a real segmentation fault, or the kernel's
# kill, when a certain file is opened; or a clock that jumps by years at every look.
_POISON = f"""
import ctypes, os, signal, sys
def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith({_DEADLY[:2]!r}):
        ctypes.string_at(0)
    if event == "open" and str(arguments[0]).endswith({_DEADLY[2]!r}):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
"""
_CLOCK = """
import random, time
time.time = lambda: random.uniform(0, 4e9)
"""


class Lab:
    """A folder with photographs, what an undisturbed run made of them, and a new run for each fault.

    Args:
        folder: An empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.faults, self._runs = folder, 0, 0
        self._started: list[subprocess.Popen[str]] = []
        draw_photos(folder / "photos", _IMAGES, random.Random(0))
        self.calm = folder / "calm"
        _expect(self.start(self.calm), 3)
        self.names = sorted(path.name for path in (folder / "photos").iterdir() if path.name != "broken.jpg")

    def new_run(self) -> Path:
        """A folder for a run."""
        self._runs += 1
        return self.folder / f"run{self._runs}"

    def start(self, out: Path, *options: str, site: str = "") -> subprocess.Popen[str]:
        """Start the program; with ``site``, all its processes run that first."""
        command = [sys.executable, "-m", "figureground", "label", str(self.folder / "photos"), "--out", str(out)]
        command += ["--method", "background", "--set", "size=96", "--set", f"shard_size={_SHARD}", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if site:
            path = self.folder / f"site{abs(hash(site))}"
            path.mkdir(exist_ok=True)
            (path / "sitecustomize.py").write_text(site)
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(path), os.environ.get("PYTHONPATH")]))
        pipe = subprocess.PIPE
        # A session of its own: what is sent to its group, as a terminal does, reaches its processes and no other.
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=pipe,
            stderr=pipe,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def end(self) -> None:
        """End what still runs, after a failure."""
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def await_shards(self, process: subprocess.Popen[str], out: Path, count: int) -> None:
        """Wait until so many shards are done, while it runs."""
        deadline = time.monotonic() + _PATIENCE_S
        while len(list((out / "shards").glob("*.done.json"))) < count:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"no moment for a fault: {process.communicate()[1] if process.poll() else 'hung'}")
            time.sleep(0.005)

    def check(self, out: Path, like: Path | None = None, without: Sequence[str] = ()) -> None:
        """Stop with an error if images are missing, doubled, or not those of the undisturbed run to the byte."""
        images = [image["file_name"] for image in json.loads((out / "annotations.json").read_text())["images"]]
        expected = [name for name in self.names if name not in without]
        if images != expected:
            lost, doubled = sorted(set(expected) - set(images)), len(images) - len(set(images))
            raise SystemExit(f"{out}: lost {lost}, {doubled} doubled")
        like = like or self.calm
        files = ["annotations.json", "failures.jsonl"]
        files += [f"shards/{path.name}" for path in sorted((like / "shards").glob("*.json.gz"))]
        for file in files:
            if (out / file).read_bytes() != (like / file).read_bytes():
                raise SystemExit(f"{out / file} differs from {like / file}")
        left = [path for folder in (out, out / "shards") for path in folder.glob(".*.tmp")]
        if left:
            raise SystemExit(f"left behind: {left}")

    def count(self, fault: str) -> None:
        """A fault was made."""
        self.faults += 1
        print(f"{self.faults:3d}  {fault}", flush=True)


def _expect(process: subprocess.Popen[str], code: int) -> str:
    """Wait for the end of a run; its last words."""
    _, errors = process.communicate(timeout=2 * _PATIENCE_S)
    if process.returncode != code:
        raise SystemExit(f"exit code {process.returncode}, not {code}:\n{errors}")
    return errors


def _workers(of: int, mark: str) -> list[psutil.Process]:
    """The living descendants of a process whose command line holds a mark."""
    found = []
    for child in psutil.Process(of).children(recursive=True):
        try:
            if mark in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def _await_end(processes: Sequence[psutil.Process]) -> None:
    if psutil.wait_procs(processes, timeout=30)[1]:
        raise SystemExit("workers outlive the process that started them")


PROCESSES, RAY = ("--workers", "2"), ("--runner", "ray", "--workers", "2")
_SPAWNED, _ACTOR = "spawn_main", "ray::_Server"


def workers_killed(lab: Lab) -> None:
    """Each of the two kinds of workers; the run goes on without them."""
    for kind, options, mark in (("worker process", PROCESSES, _SPAWNED), ("Ray actor", RAY, _ACTOR)):
        out = lab.new_run()
        process = lab.start(out, *options)
        for shards in (3, 20):
            lab.await_shards(process, out, shards)
            victim = random.Random(shards).choice(_workers(process.pid, mark))
            victim.kill()
            lab.count(f"kill -9 of a {kind} after {shards} shards")
        _expect(process, 3)
        lab.check(out)


def driver_killed(lab: Lab) -> None:
    """The process that was started by the user; its workers end with it, and another goes on, with another runner."""
    moments = (("processes", PROCESSES, _SPAWNED, (5, 15, 25)), ("Ray", RAY, _ACTOR, (10,)))
    for kind, options, mark, kills in moments:
        out = lab.new_run()
        for shards in kills:
            process = lab.start(out, *options)
            lab.await_shards(process, out, shards)
            workers = _workers(process.pid, mark)
            process.kill()
            lab.count(f"kill -9 of the driver of {kind} after {shards} shards")
            process.communicate()
            _await_end(workers)
        _expect(lab.start(out, "--runner", "serial"), 3)
        lab.check(out)


def stopped(lab: Lab) -> None:
    """Ctrl-C in a terminal."""
    for kind, options in (("serial", ()), ("processes", PROCESSES), ("Ray", RAY)):
        out = lab.new_run()
        process = lab.start(out, *options)
        lab.await_shards(process, out, 10)
        os.killpg(process.pid, signal.SIGINT)
        lab.count(f"Ctrl-C, {kind}")
        if "Traceback" in _expect(process, 130):
            raise SystemExit("a traceback at Ctrl-C")
        _expect(lab.start(out), 3)
        lab.check(out)


def node_killed(lab: Lab) -> None:
    """One of two Ray nodes dies with all that is on it; what it was at is done by the other."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    settings = {"num_cpus": 1, "object_store_memory": 2**27, "include_dashboard": False}
    os.environ["OMP_NUM_THREADS"] = "1"
    cluster = Cluster(initialize_head=True, head_node_args=settings)
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=2**27)
        out = lab.new_run()
        process = lab.start(out, "--address", str(cluster.address), "--workers", "2")
        [raylet] = second.all_processes["raylet"]
        deadline = time.monotonic() + _PATIENCE_S
        # Not before it works.
        while not _workers(raylet.process.pid, _ACTOR) and time.monotonic() < deadline:
            time.sleep(0.05)
        lab.await_shards(process, out, 10)
        raylet.process.kill()
        lab.count("kill -9 of a Ray node")
        _expect(process, 3)
        lab.check(out)
    finally:
        cluster.shutdown()


def disk_full(lab: Lab) -> None:
    """A disk too small for the run, then larger."""
    for kind, options in (("serial", ()), ("processes", PROCESSES)):
        disk = lab.new_run()
        with _mounted(disk, "200k") as enlarge:
            error = _expect(lab.start(disk / "run", *options), 1)
            lab.count(f"disk full, {kind}")
            if "The disk is full" not in error or "Traceback" in error:
                raise SystemExit(f"not the word for a full disk: {error}")
            enlarge("64m")
            _expect(lab.start(disk / "run", *options), 3)
            lab.check(disk / "run")


@contextmanager
def _mounted(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    def mount(*options: str) -> None:
        if subprocess.run(["mount", *options, str(folder)], check=False).returncode:
            raise SystemExit("no right to mount: unshare --map-root-user --mount python -m benchmarks.prove_faults")

    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs")
    try:
        yield lambda size: mount("-o", f"remount,size={size}")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def poisoned(lab: Lab) -> None:
    """Images at which the process dies, two of them of one shard: each is found and named, the rest is as without."""
    first: Path | None = None
    for kind, options in (("processes", PROCESSES), ("Ray", RAY)):
        out = lab.new_run()
        _expect(lab.start(out, *options, site=_POISON), 3)
        for name in _DEADLY:
            lab.count(f"{name} kills the process that decodes it, {kind}")
        failures = {entry["path"]: entry["error"] for entry in jsonlines.read(out / "failures.jsonl")}
        if failures.keys() != {*_DEADLY, "broken.jpg"} or any("died" not in failures[name] for name in _DEADLY):
            raise SystemExit(f"not the images that are deadly: {failures}")
        lab.check(out, like=first or out, without=_DEADLY)
        first = first or shutil.copytree(out, lab.folder / "poisoned")
        # Where they do no harm they are looked at again.
        _expect(lab.start(out), 3)
        lab.check(out)


def clock_changed(lab: Lab) -> None:
    """A clock that jumps by decades with every look, and photographs from the future and the past."""
    out = lab.new_run()
    for shards in (10, 25):
        process = lab.start(out, *PROCESSES, site=_CLOCK)
        lab.await_shards(process, out, shards)
        process.kill()
        process.communicate()
        for index, path in enumerate(sorted((lab.folder / "photos").iterdir())):
            when = 4e9 if (index + shards) % 2 else 0.0
            os.utime(path, (when, when))
        lab.count(f"clocks and file times changed, kill after {shards} shards")
    _expect(lab.start(out, *PROCESSES, site=_CLOCK), 3)
    lab.check(out)


def two_at_once(lab: Lab) -> None:
    """A second run in the folder is refused, whatever its runner, and does the first no harm."""
    out = lab.new_run()
    process = lab.start(out, *PROCESSES)
    lab.await_shards(process, out, 2)
    # Held still, so that it is there for as long as the others take to start.
    workers = [psutil.Process(process.pid), *_workers(process.pid, _SPAWNED)]
    for each in workers:
        each.suspend()
    for options in ((), PROCESSES):
        error = _expect(lab.start(out, *options), 1)
        if "Another process is writing" not in error:
            raise SystemExit(f"not the word for a folder in use: {error}")
        lab.count("a second run in the same folder")
    for each in workers:
        each.resume()
    _expect(process, 3)
    lab.check(out)


FAULTS = (workers_killed, driver_killed, stopped, node_killed, disk_full, poisoned, clock_changed, two_at_once)


def main() -> None:
    start = time.monotonic()
    chosen = [fault for fault in FAULTS if not sys.argv[1:] or fault.__name__ in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as name:
        lab = Lab(Path(name))
        try:
            for fault in chosen:
                fault(lab)
        finally:
            lab.end()
    print(f"{time.monotonic() - start:.0f} s")
    print(f"{lab.faults} faults, 0 images lost, 0 duplicated, same bytes")


if __name__ == "__main__":
    main()
