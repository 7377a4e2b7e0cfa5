"""What all runners promise, and each alone."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from figureground.errors import ImageError, RunError, UsageError
from figureground.runners import Lost, ProcessRunner, RayRunner, Runner, create_runner, run_serial
from figureground.runners.cores import count_cores, environment, share_cores, thread_variables
from tests.runners import jobs


@pytest.fixture(params=["serial", "processes"])
def runner(request: pytest.FixtureRequest) -> Runner:
    return run_serial if request.param == "serial" else ProcessRunner(2)


class TestAll:
    """The third, Ray, in tests of its own: a worker of it takes seconds to start."""

    def test_every_task_is_done_once(self, runner: Runner) -> None:
        assert isinstance(runner, Runner)
        said: list[int] = []
        results: list[Any] = list(runner(jobs.square, range(7), said.append))
        assert sorted(results) == [0, 1, 4, 9, 16, 25, 36]
        assert sorted(said) == list(range(7))

    @pytest.mark.parametrize("each", [run_serial, ProcessRunner(2), RayRunner(2)])
    def test_nothing_to_do_starts_nothing(self, each: Runner) -> None:
        assert list(each(jobs.broken, [], print)) == []

    def test_an_error_is_raised_as_it_was(self, runner: Runner) -> None:
        with pytest.raises(RunError, match="three is too many") as caught:
            list(runner(jobs.failing, [1, 3], print))
        assert caught.value.remedy == "Take two."
        with pytest.raises(ImageError, match="no function today"):
            list(runner(jobs.refused, [1], print))


class TestProcesses:
    def test_a_death_costs_what_it_interrupts_and_that_is_tried_again(self, tmp_path: Path) -> None:
        tasks = ["a", "once", "always", "b", "c"]
        check_deaths(list(ProcessRunner(2)(partial(jobs.deadly, tmp_path), tasks, print)))

    def test_workers_that_cannot_start_end_the_run(self) -> None:
        with pytest.raises(RunError, match=r"before they can take a task \(exit code 7\)"):
            list(ProcessRunner(2)(jobs.broken, [1, 2, 3], print))

    def test_an_error_that_cannot_be_sent_is_told(self) -> None:
        with pytest.raises(RunError, match="UnsendableError in a worker: 1 and 2"):
            list(ProcessRunner(2)(jobs.unsendable, [1], print))

    def test_a_worker_has_its_share_of_the_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        tasks = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"]
        results: list[Any] = list(ProcessRunner(1)(jobs.environment, tasks, print))
        assert [threads for _, threads in results] == ["3", "3"]

    def test_to_stop_ends_the_workers(self) -> None:
        workers: list[int] = []

        def stop(worker: int) -> None:
            workers.append(worker)
            if len(workers) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            list(ProcessRunner(2)(jobs.slow, [1, 2], stop))
        assert not any(_lives(worker) for worker in workers)

    @pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
    def test_workers_end_with_the_process_that_started_them(self, end: signal.Signals, tmp_path: Path) -> None:
        program = (
            "import signal\nfrom figureground.runners import ProcessRunner\nfrom tests.runners import jobs\n"
            "if __name__ == '__main__':\n"
            # What runs in the background of a script, as these tests may, is born deaf to Ctrl-C.
            "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "    list(ProcessRunner(2)(jobs.slow, [1, 2], lambda worker: print(worker, flush=True)))\n"
        )
        (tmp_path / "main.py").write_text(program)
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "main.py")],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        workers = [int(process.stdout.readline()) for _ in range(2)]
        if end == signal.SIGINT:
            # As a terminal does: to all of them.
            os.killpg(process.pid, end)
        else:
            process.send_signal(end)
        _, errors = process.communicate(timeout=60)
        assert not any(_lives(worker) for worker in workers)
        assert errors.count(b"KeyboardInterrupt") == (end == signal.SIGINT)

    def test_accelerators_are_taken_in_turn(self) -> None:
        runner = ProcessRunner(accelerators=("3", "GPU-5"))
        tasks = ["CUDA_VISIBLE_DEVICES"] * 40
        seen: set[Any] = set(runner(jobs.environment, tasks, print))
        assert {device for _, device in seen} <= {"3", "GPU-5"}
        assert len(seen) <= 2


def check_deaths(results: list[Any]) -> None:
    assert [result for result in results if isinstance(result, Lost)] == [Lost("always")]
    done = [result for result in results if not isinstance(result, Lost)]
    assert sorted(name for name, _ in done) == ["a", "b", "c", "once"]
    assert os.getpid() not in {process for _, process in done}


def _lives(process: int, patience_s: float = 20) -> bool:
    """Whether a process is still there after a while."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
            return False
        time.sleep(0.02)
    return True


class TestRay:
    def test_without_it_the_error_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(UsageError, match="needs Ray") as caught:
            list(RayRunner()(jobs.square, [1], print))
        assert "figureground[ray]" in caught.value.remedy

    def test_on_a_cluster(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """All in one test: a cluster takes seconds to start."""
        ray = pytest.importorskip("ray", reason="ray is not installed (pip install 'figureground[ray]')")
        # More than the machine has: room is asked for on one that there is.
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
        try:
            with pytest.raises(UsageError, match="no accelerator"):
                list(RayRunner(gpus=1)(jobs.square, [1], print))
            tasks = ["a", "once", "always", "b", "c"]
            check_deaths(list(RayRunner(2)(partial(jobs.deadly, tmp_path), tasks, print)))
            results = iter(RayRunner(1)(jobs.environment, ["OMP_NUM_THREADS", ""], print))
            seen: Any = next(results)
            assert seen[1] == "3"
            with pytest.raises(RunError, match="no name, no value") as caught:
                next(results)
            assert caught.value.remedy == "Take another."
        finally:
            ray.shutdown()


class TestChoice:
    def test_what_is_given_says_which(self) -> None:
        assert create_runner() is run_serial
        assert create_runner(workers=3) == ProcessRunner(3)
        assert create_runner("processes") == ProcessRunner()
        assert create_runner(address="auto") == RayRunner(address="auto")
        assert create_runner("ray", 4, device="cuda") == RayRunner(4, gpus=1)
        assert create_runner("processes", device="cuda:1") == ProcessRunner(1)

    def test_contradictions(self) -> None:
        with pytest.raises(UsageError, match="serial: it has no workers"):
            create_runner("serial", workers=2)
        with pytest.raises(UsageError, match="the runner is processes"):
            create_runner("processes", address="auto")
        with pytest.raises(UsageError, match="not 'cuda:1'"):
            create_runner("ray", device="cuda:1")

    def test_accelerators_are_those_that_can_be_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert create_runner("processes", device="cuda") == ProcessRunner(accelerators=("0", "1"))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
        assert create_runner("processes", device="cuda") == ProcessRunner(accelerators=("4", "7"))
        monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
        with pytest.raises(UsageError, match="no CUDA device"):
            create_runner("processes", device="cuda")


class TestCores:
    def test_shares(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert count_cores() >= 1
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert [share_cores(8, workers) for workers in (1, 3, 8, 20)] == [8, 2, 1, 1]
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        assert share_cores(8, 8) == 5

    def test_the_environment_is_as_before(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
        with environment(thread_variables(2)):
            assert (os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("2", "2")
        assert os.environ["OMP_NUM_THREADS"] == "7"
        assert "MKL_NUM_THREADS" not in os.environ
