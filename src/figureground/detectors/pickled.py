"""Pickles of NumPy arrays in plain containers, read without letting them run anything."""

import collections
import pickle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from figureground.errors import WeightsError


def read_pickle(path: Path) -> Any:
    """Read a pickle of dictionaries, lists, texts, numbers and NumPy arrays of numbers.

    Raises:
        WeightsError: If it names anything else, by name, or is damaged.
    """
    with path.open("rb") as file:
        try:
            return _plain(_Unpickler(file, path).load())
        except WeightsError:
            raise
        except Exception as error:  # damaged bytes make the reader raise whatever it meets
            reason = " ".join(str(error).split()) or type(error).__name__
            raise WeightsError(f"{path} cannot be read as a pickle of weights ({reason}).") from error


class _Dtype:
    """What a pickle makes of ``numpy.dtype``."""

    def __init__(self, code: str, *_: Any) -> None:
        self.value = np.dtype(code)
        if self.value.kind not in "biuf":
            raise ValueError(f"an array of {self.value}")

    def __setstate__(self, state: tuple) -> None:
        self.value = self.value.newbyteorder(state[1])


class _Array:
    """What a pickle makes of ``numpy.ndarray``."""

    def __init__(self, *_: Any) -> None:
        self.value = np.empty(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, by_columns, content = state
        self.value = _from_bytes(content, dtype, shape, "F" if by_columns else "C")


def _from_bytes(content: Any, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """An array of its own; Python 2 wrote its bytes as a text."""
    content = content.encode("latin1") if isinstance(content, str) else content
    return np.frombuffer(content, dtype.value).reshape(shape, order=order).astype(dtype.value.newbyteorder("="))


def _number(dtype: _Dtype, content: Any) -> Any:
    return _from_bytes(content, dtype, (), "C").item()


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """How pickles of the protocols before 3 spell bytes; no other codec is to be called."""
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How the same pickles spell bytes that are none."""
    return b""


# What a pickle may name, and what it gets instead of NumPy's: nothing of it runs but the functions above.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1_bytes,
    ("__builtin__", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): collections.OrderedDict,
}
# NumPy 2 renamed the package that pickles of NumPy 1 name.
for _package in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_package}.multiarray", "_reconstruct"] = _Array
    _ADMITTED[f"{_package}.multiarray", "scalar"] = _number
    _ADMITTED[f"{_package}.numeric", "_frombuffer"] = _from_bytes


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            self._refuse(f"{module}.{name}")
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> NoReturn:
        self._refuse("a persistent object")

    def _refuse(self, what: str) -> NoReturn:
        raise WeightsError(
            f"{self._path} names {what}, which weights have no need of; it was not read.",
            "Get the file from a source you trust, or convert it to .safetensors.",
        )


def _plain(content: Any) -> Any:
    if isinstance(content, (_Array, _Dtype)):
        return content.value
    if isinstance(content, dict):
        return {_plain(key): _plain(value) for key, value in content.items()}
    return type(content)(map(_plain, content)) if isinstance(content, (list, tuple)) else content
