"""Kill a run with SIGKILL at random moments, resume it each time, and compare the bytes with an undisturbed run.

python -m benchmarks.prove_kill [KILLS]        # default 20
"""

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    chance = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_photos(folder / "photos", 60, chance)
        command = [sys.executable, "-m", "figureground", "label", str(folder / "photos")]
        command += ["--set", "shard_size=2", "--set", "size=256", "--out"]
        start = time.monotonic()
        _finish([*command, str(folder / "calm")])
        calm_s = time.monotonic() - start
        run = folder / "killed"
        done, landed = 0, 0
        while landed < kills:
            process = subprocess.Popen([*command, str(run)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                # Any moment of the process's life, start-up and the writing of the results included.
                process.wait(chance.uniform(0.2, 1) * calm_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                landed += 1
                print(f"kill {landed}: {len(list((run / 'shards').glob('*.done.json')))} of 30 shards done", flush=True)
            else:
                # Finished before the kill: compare, and start again from nothing.
                done += 1
                compare(folder)
                subprocess.run(["rm", "-r", str(run)], check=True)
        _finish([*command, str(run)])
        compare(folder)
    print(f"{kills} kills, {done + 1} runs brought to their end, 0 images lost, 0 duplicated, same bytes")


def _finish(command: list[str]) -> None:
    code = subprocess.run(command, capture_output=True, check=False).returncode
    if code != 3:  # done, but for the file that is no image
        raise SystemExit(f"the run ended with exit code {code}, not 3")


def compare(folder: Path) -> None:
    """Stop with an error if the two runs differ."""
    for file in ("annotations.json", "failures.jsonl"):
        if (folder / "calm" / file).read_bytes() != (folder / "killed" / file).read_bytes():
            raise SystemExit(f"{file} differs from that of the undisturbed run")


def draw_photos(folder: Path, count: int, chance: random.Random) -> None:
    """Coloured shapes on a ground, and one file that is no image."""
    folder.mkdir()
    for index in range(count - 1):
        image = Image.new("RGB", (chance.randint(80, 200), chance.randint(80, 200)), _colour(chance))
        draw = ImageDraw.Draw(image)
        for _ in range(3):
            x, y = chance.randint(0, 120), chance.randint(0, 120)
            draw.ellipse([x, y, x + chance.randint(20, 80), y + chance.randint(20, 80)], fill=_colour(chance))
        image.save(folder / f"{index:03d}.jpg")
    (folder / "broken.jpg").write_bytes(b"no image")


def _colour(chance: random.Random) -> tuple[int, int, int]:
    return (chance.randrange(256), chance.randrange(256), chance.randrange(256))


if __name__ == "__main__":
    main()
