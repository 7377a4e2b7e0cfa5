import os
import sys
import tracemalloc
from pathlib import Path

import pytest

from figureground.data.listing import list_images
from figureground.data.resize import fit_size
from figureground.errors import UsageError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_folders_recursively_sorted_and_unique(tmp_path: Path) -> None:
    for name in ("b/1.jpg", "a/2.PNG", "a/1.jpg", "a/notes.txt", "a/.hidden.jpg"):
        touch(tmp_path / name)
    found = list_images([tmp_path, tmp_path / "a", tmp_path / "b" / "1.jpg"])
    assert found.names == ("a/1.jpg", "a/2.PNG", "b/1.jpg")
    assert found.root == tmp_path
    assert found.path("a/1.jpg") == tmp_path / "a" / "1.jpg"


def test_same_base_name_in_two_folders_stays_apart(tmp_path: Path) -> None:
    touch(tmp_path / "x" / "same.jpg")
    touch(tmp_path / "y" / "same.jpg")
    assert list_images([tmp_path / "y", tmp_path / "x"]).names == ("x/same.jpg", "y/same.jpg")


def test_a_named_file_counts_whatever_its_extension(tmp_path: Path) -> None:
    file = touch(tmp_path / "picture.dat")
    assert list_images([file]).names == ("picture.dat",)
    with pytest.raises(UsageError, match="1 other files"):
        list_images([tmp_path])


def test_links_that_loop_end(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "1.jpg")
    os.symlink(tmp_path, tmp_path / "a" / "up")
    os.symlink("itself", tmp_path / "itself")
    assert list_images([tmp_path]).names == ("a/1.jpg",)


def test_a_linked_folder_is_followed(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "1.jpg")
    (tmp_path / "photos").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "photos" / "linked")
    assert list_images([tmp_path / "photos"]).names == ("linked/1.jpg",)


def test_the_run_itself_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path / "1.jpg")
    touch(tmp_path / "run" / "2.jpg")
    assert list_images([tmp_path], exclude=tmp_path / "run").names == ("1.jpg",)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No images were given"):
        list_images([])
    with pytest.raises(UsageError, match="no file or folder"):
        list_images([tmp_path / "missing"])
    with pytest.raises(UsageError, match="No images were found"):
        list_images([tmp_path])


@pytest.mark.parametrize("size", [(480, 640), (1, 1), (1, 5000), (5000, 1), (3, 2), (10_000, 10_000), (333, 500)])
@pytest.mark.parametrize("patch", [8, 14, 16])
def test_fitted_sizes_are_whole_patches_of_bounded_number(size: tuple[int, int], patch: int) -> None:
    height, width = fit_size(size, 480, patch)
    assert height % patch == width % patch == 0
    assert min(height, width) >= patch
    assert height * width <= 1.1 * 480**2
    if min(size) > 100:
        assert width / height == pytest.approx(size[1] / size[0], rel=0.05)


def test_a_long_list_is_its_names_and_nothing_else(tmp_path: Path) -> None:
    """While it is made and afterwards: what a million images take follows from what 5,000 do."""
    folders, each = 5, 1000
    for folder in range(folders):
        (tmp_path / f"n{folder:08d}").mkdir()
        for image in range(each):
            os.close(os.open(tmp_path / f"n{folder:08d}" / f"{folder:04d}_{image:08d}.JPEG", os.O_CREAT | os.O_WRONLY))
    tracemalloc.start()
    # Twice the same: each counts once.
    found = list_images([tmp_path, tmp_path / "n00000003"])
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.names) == len(set(found.names)) == folders * each
    names = sum(sys.getsizeof(name) for name in found.names)
    assert size < 1.1 * names + 8 * len(found.names)
    assert peak < 1.3 * names + 16 * len(found.names)
