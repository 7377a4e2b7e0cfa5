"""Forty-odd files that broke somebody's run: each writes itself and says what must come of it."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

Write = Callable[[Path], object]


def picture(width: int = 96, height: int = 64, mode: str = "RGB") -> Image.Image:
    """A red disc on a grey ground, with a little texture."""
    noise = np.random.default_rng(0).integers(100, 120, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ImageDraw.Draw(image).ellipse([width // 4, height // 4, width * 3 // 4, height * 3 // 4], fill=(220, 40, 30))
    return image.convert(mode)


def _save(image: Image.Image, format: str = "PNG", **options: object) -> Write:
    def write(path: Path) -> None:
        image.save(path, format, **options)  # type: ignore[arg-type]

    return write


def _array(values: np.ndarray, format: str = "TIFF") -> Write:
    return _save(Image.fromarray(values), format)


def _bytes(content: bytes) -> Write:
    return lambda path: path.write_bytes(content)


def _encoded(format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    picture().save(buffer, format)
    return buffer.getvalue()


def _exif(orientation: int) -> Write:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _save(picture(), "JPEG", exif=exif)


def _animated(format: str) -> Write:
    frames = [picture(), Image.new("RGB", (96, 64), (0, 0, 255))]
    return _save(frames[0], format, save_all=True, append_images=frames[1:])


def _bomb(path: Path) -> None:
    """A PNG header that promises 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def _palette_with_transparency(path: Path) -> None:
    image = picture().quantize(16)
    image.info["transparency"] = 0
    image.save(path, "PNG", transparency=0)


def _link_to(target: str) -> Write:
    return lambda path: os.symlink(target, path)


def _wide(values: np.ndarray) -> np.ndarray:
    values[16:48, 24:72] += 900
    return values


# name -> how it is written; each of these can be used.
USABLE: dict[str, Write] = {
    "plain.jpg": _save(picture(), "JPEG"),
    "grey.png": _save(picture(mode="L")),
    "grey-alpha.png": _save(picture(mode="LA")),
    "one-bit.png": _save(picture(mode="1")),
    "palette.png": _save(picture().quantize(16)),
    "palette-transparent.png": _palette_with_transparency,
    "alpha.png": _save(picture(mode="RGBA")),
    "cmyk.jpg": _save(picture(mode="CMYK"), "JPEG"),
    "cmyk.tif": _save(picture(mode="CMYK"), "TIFF"),
    "ycbcr.jpg": _save(picture(mode="YCbCr"), "JPEG"),
    "lab.tif": _save(picture(mode="LAB"), "TIFF"),
    "sixteen-bit.png": _array(_wide(np.full((64, 96), 400, np.uint16)), "PNG"),
    "sixteen-bit.tif": _array(_wide(np.full((64, 96), 400, np.uint16))),
    "thirty-two-bit.tif": _array(_wide(np.full((64, 96), 400, np.int32))),
    "float.tif": _array(_wide(np.full((64, 96), 400, np.float32)) / 1000),
    "constant-float.tif": _array(np.full((64, 96), 0.5, np.float32)),
    "animated.gif": _animated("GIF"),
    "animated.webp": _animated("WEBP"),
    "multi-page.tif": _animated("TIFF"),
    "picture.bmp": _save(picture(), "BMP"),
    "picture.webp": _save(picture(), "WEBP"),
    "picture.ppm": _save(picture(), "PPM"),
    "UPPER.JPG": _save(picture(), "JPEG"),
    "png-called.jpg": _save(picture(), "PNG"),
    "one-pixel.png": _save(Image.new("RGB", (1, 1), (5, 6, 7))),
    "one-by-5000.png": _save(picture(5000, 64).resize((5000, 1))),
    "5000-by-one.png": _save(picture(64, 5000).resize((1, 5000))),
    "three-by-two.png": _save(picture().resize((3, 2))),
    "constant.png": _save(Image.new("RGB", (80, 60), (12, 34, 56))),
    "black.png": _save(Image.new("RGB", (80, 60))),
    "white.jpg": _save(Image.new("RGB", (80, 60), (255, 255, 255)), "JPEG"),
    "noise.png": _array(np.random.default_rng(1).integers(0, 256, (60, 80, 3), dtype=np.uint8), "PNG"),
    **{f"exif-{value}.jpg": _exif(value) for value in range(1, 9)},
    "damaged-exif.jpg": _save(picture(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"),
    "name with spaces.jpg": _save(picture(), "JPEG"),
    "emoji-🦊-é.jpg": _save(picture(), "JPEG"),
    "quotes-'\"-&<b>.jpg": _save(picture(), "JPEG"),
    "<script>alert(1)<slash>.jpg": _save(picture(), "JPEG"),
    "new\nline.jpg": _save(picture(), "JPEG"),
    "linked.jpg": _link_to("plain.jpg"),
}

# name -> how it is written, and a word of the sentence that names what is wrong.
BROKEN: dict[str, tuple[Write, str]] = {
    "empty.jpg": (_bytes(b""), "empty"),
    "text.jpg": (_bytes(b"this is no image"), "not an image"),
    "html.png": (_bytes(b"<html><body>404 not found</body></html>"), "not an image"),
    "zeros.png": (_bytes(b"\0" * 1000), "not an image"),
    "truncated.jpg": (_bytes(_encoded()[:600]), "damaged or cut short"),
    "truncated.png": (_bytes(_encoded("PNG")[:-400]), "damaged or cut short"),
    "header-only.jpg": (_bytes(_encoded()[:4]), "not an image"),
    "bad-crc.png": (_bytes(_encoded("PNG").replace(b"IDAT", b"IDAX", 1)), "not an image"),
    "bomb.png": (_bomb, "too large"),
    "nan.tif": (_array(np.full((20, 20), np.nan, np.float32)), "NaN"),
    "dangling.jpg": (_link_to("nowhere.jpg"), "does not exist"),
    "link-to-itself.jpg": (_link_to("link-to-itself.jpg"), "link"),
}


def write_all(folder: Path) -> None:
    """Write every odd file, and links that loop between folders."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, write in USABLE.items():
        write(folder / name)
    for name, (write, _) in BROKEN.items():
        write(folder / name)
    nested = folder / "nested"
    nested.mkdir()
    os.symlink(folder, nested / "loop")
    picture().save(nested / "plain.jpg")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.jpg").write_bytes(b"")
