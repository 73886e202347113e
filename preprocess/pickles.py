"""Pickled batches, such as CIFAR's, read without running anything of what they ask for."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from fairseq_csp.data.files import read_whole
from fairseq_csp.errors import UserError

_LARGEST = 512 << 20  # CIFAR-100's train file has 155 MB
_KINDS = {f"{kind}{size}": f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"b1": "b1"}


def read_pickle(file: BinaryIO, where: str, what: str) -> dict[str, object]:
    """Read a pickled dictionary: numbers, strings, plain containers, arrays of whole numbers.

    Args:
        file: The pickle, of any protocol.
        where: How to call it in a message.
        what: What it should be, in a message.

    Returns:
        The dictionary; keys that are bytes, as Python 2 wrote them, as text.

    Raises:
        UserError: it is damaged, no dictionary, or asks for anything else.
    """
    content = io.BytesIO(read_whole(file, where, _LARGEST))
    try:
        found = _PlainUnpickler(content, encoding="bytes").load()
        if not isinstance(found, dict):
            raise UserError("it holds no dictionary")
        return {
            key.decode() if isinstance(key, bytes) else key: value.array()
            if isinstance(value, _Array)
            else value
            for key, value in found.items()
        }
    except UserError as error:
        raise UserError(f"{where} is not a {what}: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise UserError(f"{where} is not a {what} ({error})") from error


def whole_numbers(values: object, what: str) -> np.ndarray:
    """Return a list or array of whole numbers as int64 (n,).

    Args:
        values: What a pickle holds.
        what: How to call it in a message.

    Raises:
        UserError: it is something else.
    """
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype.kind in "iu":
        return values.astype(np.int64)
    if isinstance(values, list | tuple):
        numbers = [value.item() if isinstance(value, _Scalar) else value for value in values]
        if all(type(number) is int and abs(number) < 1 << 63 for number in numbers):
            return np.array(numbers, dtype=np.int64)
    raise UserError(f"{what} are no list or array of whole numbers")


class _Type:
    """What a pickle says of the type of an array."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        self._name = name.decode() if isinstance(name, bytes) else name
        self._order = "="

    def __setstate__(self, state: tuple) -> None:
        self._order = state[1].decode() if isinstance(state[1], bytes) else state[1]

    def dtype(self) -> np.dtype:
        """Return the type.

        Raises:
            UserError: it is not one of whole numbers.
        """
        if self._name not in _KINDS or self._order not in ("<", ">", "|", "="):
            raise UserError(f"an array holds {self._name}, expected whole numbers")
        return np.dtype(_KINDS[self._name]).newbyteorder(self._order)


class _Array:
    """What a pickle says of an array; nothing is made of it before it is asked for."""

    def __init__(self, *_: object) -> None:
        self._state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self._state = state

    @classmethod
    def of_buffer(cls, content: bytes, dtype: _Type, shape: tuple, order: str) -> _Array:
        """Return the array that pickle protocol 5 describes."""
        array = cls()
        array._state = (1, shape, dtype, order != "C", content)
        return array

    def array(self) -> np.ndarray:
        """Return the array.

        Raises:
            UserError: it does not hold whole numbers, or another number of them than it says.
        """
        _, shape, dtype, by_columns, content = self._state
        found = dtype.dtype()
        if math.prod(shape) * found.itemsize != len(content):
            raise UserError(f"an array of shape {shape} holds {len(content):,} bytes")
        return np.frombuffer(content, found).reshape(shape, order="F" if by_columns else "C")


class _Scalar:
    """What a pickle says of a single NumPy number."""

    def __init__(self, dtype: _Type, content: bytes) -> None:
        self._dtype, self._content = dtype, content

    def item(self) -> int:
        """Return the number."""
        return np.frombuffer(self._content, self._dtype.dtype())[0].item()


def _from_numpy(*path: str) -> dict[tuple[str, str], Callable]:
    """Return what takes the place of NumPy's functions, in its old and its new modules."""
    own = {
        ("multiarray", "_reconstruct"): _Array,
        ("multiarray", "scalar"): _Scalar,
        ("numeric", "_frombuffer"): _Array.of_buffer,
    }
    return {(f"{top}.{module}", name): own[module, name] for top in path for module, name in own}


class _PlainUnpickler(pickle._Unpickler):
    """Loads what :func:`read_pickle` names, and nothing that runs code.

    The one in Python: that in C allocates as much memory as a pickle of a few bytes tells it to.
    """

    dispatch = dict(pickle._Unpickler.dispatch)
    _ALLOWED = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Type,
        **_from_numpy("numpy.core", "numpy._core"),
        # bytes, as Python 3 writes them for Python 2
        ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
    }

    def find_class(self, module: str, name: str) -> object:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise UserError(f"the pickle asks for {module}.{name}, which is refused") from None

    def _load_bytearray8(self) -> None:
        # Python's own allocates what is claimed before it reads
        size = int.from_bytes(self.read(8), "little")
        self.append(self.read(size))

    dispatch[pickle.BYTEARRAY8[0]] = _load_bytearray8
