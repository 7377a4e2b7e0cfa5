"""Images in tars are found and read as those in folders; what is broken is said or left out."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from figureground.data.images import load_image
from figureground.data.squares import load_squares, read_square
from figureground.data.tars import ImageFile, list_image_files, list_members
from figureground.errors import ImageError, RunError, UsageError
from tests.data.odd_images import BROKEN, USABLE, picture


def encoded(width: int = 40, height: int = 30, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(width, height).save(buffer, format)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


class TestListing:
    def test_folders_files_and_tars_together(self, tmp_path: Path) -> None:
        (tmp_path / "photos" / "birds").mkdir(parents=True)
        picture().save(tmp_path / "photos" / "birds" / "wren.jpg")
        (tmp_path / "photos" / "notes.txt").write_text("")
        members = {"z/2.png": encoded(), "./a/1.PNG": encoded(), "a/1.json": b"{}", "a/.hidden.png": encoded()}
        write_tar(tmp_path / "photos" / "more.tar", members)
        picture().save(tmp_path / "single.png")
        listed = list_image_files([tmp_path / "photos", tmp_path / "single.png"])
        # Members in the order of the archive, so that it is read from its beginning to its end.
        assert [file.name for file in listed.files] == [
            "photos/birds/wren.jpg",
            "photos/more.tar/z/2.png",
            "photos/more.tar/a/1.PNG",
            "single.png",
        ]
        assert listed.root == tmp_path
        assert listed.ignored == 3

    def test_links_and_folders_in_a_tar_are_no_images(self, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            folder, link = tarfile.TarInfo("folder.png"), tarfile.TarInfo("link.png")
            folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(folder)
            tar.addfile(link)
        assert list_members(tmp_path / "a.tar", "a.tar") == ([], 1)
        with pytest.raises(UsageError, match=r"No images were found in a\.tar \(1 other files\)"):
            list_image_files([tmp_path / "a.tar"])

    def test_the_last_member_of_a_name_counts(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "a.tar", {"x.png": encoded(10, 10)})
        with tarfile.open(path, "a") as tar:
            info = tarfile.TarInfo("x.png")
            info.size = len(encoded(12, 8))
            tar.addfile(info, io.BytesIO(encoded(12, 8)))
        [file], ignored = list_members(path, "a.tar")
        assert file.decode()[1] == (8, 12)
        assert ignored == 1

    def test_an_empty_tar_is_no_error_beside_others(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "empty.tar", {})
        picture().save(tmp_path / "a.png")
        assert [file.name for file in list_image_files([tmp_path]).files] == ["a.png"]

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda content: b"", "empty file"),
            (lambda content: content[:300], "truncated header"),
            (lambda content: content[:700], "unexpected end of data"),
            (lambda content: content[: content.index(b"2.png") + 200], "cut short"),
            (lambda content: content[: content.index(b"2.png")] + b"\7" * 6000, "damaged"),
            (lambda content: b"no tar " * 300, "cannot be read as a tar"),
            (gzip.compress, "cannot be read as a tar"),
        ],
    )
    def test_a_damaged_tar_is_an_error(self, damage: Callable[[bytes], bytes], said: str, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "a.tar", {"1.png": encoded(), "2.png": encoded()})
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(UsageError, match=rf"a\.tar .*{said}"):
            list_image_files([tmp_path])

    @pytest.mark.parametrize("name", ["photos.tar.gz", "photos.tgz", "photos.zip"])
    def test_a_compressed_archive_is_refused(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(UsageError, match="compressed archive"):
            list_image_files([tmp_path / name])

    def test_a_tar_of_another_set_is_told_by_its_name(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            write_tar(tmp_path / f"{name}.tar", {"x.png": encoded()})
        assert len({file.name for file in list_image_files([tmp_path]).files}) == 2


class TestReading:
    def test_a_member_is_what_the_file_was(self, tmp_path: Path) -> None:
        """Every odd file: the same pixels, or the same sentence on what is wrong."""
        names = [name for name in (*USABLE, *BROKEN) if "link" not in name and "dangling" not in name]
        for name in names:
            (USABLE.get(name) or BROKEN[name][0])(tmp_path / name)
        write_tar(tmp_path / "all.tar", {name: (tmp_path / name).read_bytes() for name in names})
        members, ignored = list_members(tmp_path / "all.tar", "all.tar")
        assert (len(members), ignored) == (len(names), 0)
        for name, member in zip(names, members, strict=True):
            if name in BROKEN:
                with pytest.raises(ImageError, match=BROKEN[name][1]):
                    member.decode()
            else:
                np.testing.assert_array_equal(member.decode()[0], load_image(tmp_path / name))

    def test_a_tar_that_goes_or_shrinks_under_way(self, tmp_path: Path) -> None:
        path = write_tar(tmp_path / "a.tar", {"1.png": encoded()})
        [member], _ = list_members(path, "a.tar")
        path.write_bytes(path.read_bytes()[:600])
        with pytest.raises(ImageError, match="damaged or cut short"):
            member.decode()
        path.unlink()
        with pytest.raises(ImageError, match="cannot be read"):
            member.decode()


class TestSquares:
    @pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (3, 2), (200, 100)])
    def test_every_shape_becomes_a_square(self, size: tuple[int, int], tmp_path: Path) -> None:
        picture(*size).save(tmp_path / "x.png")
        square, aspect = read_square(ImageFile("x.png", tmp_path / "x.png"), 24)
        assert square.shape == (24, 24, 3)
        assert aspect == pytest.approx(size[0] / size[1])

    def test_a_large_jpeg_is_read_small_and_looks_the_same(self, tmp_path: Path) -> None:
        picture(1600, 800).save(tmp_path / "x.jpg")
        square, aspect = read_square(ImageFile("x.jpg", tmp_path / "x.jpg"), 50)
        whole = Image.fromarray(load_image(tmp_path / "x.jpg")).resize((50, 50), Image.Resampling.LANCZOS)
        assert aspect == 2
        assert np.abs(square.astype(int) - np.asarray(whole)).mean() < 2

    @pytest.mark.parametrize("workers", [0, 1])
    def test_the_next_readable_one_takes_a_place(self, workers: int, tmp_path: Path) -> None:
        good = {f"{name}.png": encoded(20 + name, 20) for name in (1, 2, 5)}
        write_tar(tmp_path / "a.tar", {"0.png": b"bad", **good, "6.png": b"", "7.png": b"bad"})
        files = list_image_files([tmp_path]).files
        failed: dict[str, str] = {}
        squares = load_squares(files, 16, workers=workers, failed=failed.__setitem__)
        assert list(failed) == ["a.tar/0.png", "a.tar/6.png", "a.tar/7.png"]
        assert failed["a.tar/6.png"] == "The file is empty."
        assert squares.rows.tolist() == [0, 0, 1, 2, 0, 0]
        torch.testing.assert_close(squares.aspects, torch.tensor([21, 22, 25]) / 20)
        for place, row in ((1, 0), (2, 1), (3, 2)):
            np.testing.assert_array_equal(squares.pixels[row], read_square(files[place], 16)[0])

    def test_none_that_can_be_read(self, tmp_path: Path) -> None:
        write_tar(tmp_path / "a.tar", {"0.png": b"bad", "1.png": b""})
        with pytest.raises(RunError, match="None of the 2 images"):
            load_squares(list_image_files([tmp_path]).files, 16)
