"""One hash of a value's content, so that a saved result can tell whether it belongs to what is asked for now."""

from __future__ import annotations

import copyreg
import dataclasses
import enum
import hashlib
import os
import types
import weakref
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import nn

from entangle.errors import EntangleError
from entangle.storage.modules import PLAIN, VERSIONED, settings_of, tensors_of
from entangle.storage.tensors import tensor_hash

MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SCALARS = (
    *(type(None), bool, int, float, complex, str, bytes, os.PathLike),
    *(np.generic, torch.dtype, torch.device, enum.Enum),
)


def digest(value: Any) -> str:
    """32 hexadecimal digits that change with any number, name, weight or line of code inside `value`.

    A function is known by its code, what it closes over, its defaults and those globals of its own file that it names;
    a module by its weights and settings; any other object by its fields and the code of its methods, or by what it
    would be pickled as. An object that is not known by its fields alone, such as one that stands for a file, says by
    what in `content()`.

    Args:
        value: Anything that has content.

    Returns:
        The digits, the same in every process.

    Raises:
        EntangleError: Something inside has no content that can be compared, such as an open file.

    Example:
        >>> en.storage.digest({"layers": [0, 1]}) == en.storage.digest({"layers": [0, 1]})
        True
        >>> en.storage.digest(lambda x: x + 1) == en.storage.digest(lambda x: x + 2)
        False
        >>> len(en.storage.digest(torch.zeros(2)))
        32
    """
    try:
        return hashlib.sha256(_bytes(value, ())).hexdigest()[:32]
    except RecursionError:
        raise EntangleError(
            f"a {type(value).__qualname__} is too deep to be compared; give it a content() that says what decides it"
        ) from None


def _bytes(value: Any, inside: tuple[int, ...]) -> bytes:  # noqa: PLR0912 (a case for each kind)
    """The content of a value; `inside` are the functions and objects that it is part of, which it may name again."""
    value = _referent(value)
    kind = type(value).__qualname__.encode()
    if type(value) in PLAIN or isinstance(value, SCALARS):
        return kind + b":" + repr(value).encode()
    if isinstance(value, torch.Tensor):  # a parameter as the tensor it is
        return b"Tensor:" + tensor_hash(value).encode()
    if id(value) in inside:
        return b"again:" + str(inside[::-1].index(id(value))).encode()
    inside = (*inside, id(value))
    part = partial(_part, inside=inside)
    match value:
        case np.ndarray() if value.dtype.hasobject:
            body = part(value.tolist())
        case np.ndarray():
            body = f"{value.dtype}{value.shape}".encode() + value.tobytes()
        case _ if callable(getattr(value, "content", None)) and not isinstance(value, type):
            body = part(value.content())
        case nn.Module():
            body = part(weights_hash(value)) + part(settings_of(value))
        case Mapping():
            body = b"".join(part(key) + part(value[key]) for key in sorted(value, key=repr))
        case Set():
            body = b"".join(sorted(map(part, value)))
        case Sequence():
            body = b"".join(map(part, value))
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = dataclasses.fields(value)
            body = b"".join(part(field.name) + part(getattr(value, field.name)) for field in fields)
            body += _methods(type(value), part)
        case types.FunctionType():
            body = _function(value, part)
        case types.MethodType():
            body = part(value.__self__) + part(value.__func__)
        case _ if callable(value) and hasattr(value, "__wrapped__"):  # such as functools.lru_cache makes
            body = part(value.__wrapped__)
        case _ if isinstance(value, types.ModuleType) or (callable(value) and hasattr(value, "__qualname__")):
            # A class, or a function that is not written in Python, goes by its name.
            body = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value.__name__)}".encode()
        case partial():
            body = part((value.func, value.args, value.keywords))
        case _ if hasattr(value, "__dict__"):
            body = part(vars(value)) + _methods(type(value), part)
        case _:
            body = _reduced(value, part)
    return kind + b":" + body


def folder_digest(folder: str | os.PathLike[str]) -> str:
    """The digest of a model's folder: of every byte of its weights, its configuration and its tokenizer.

    Example:
        >>> model.save_pretrained("saved")
        >>> en.storage.folder_digest("saved") == en.storage.folder_digest("saved")
        True
    """
    files = sorted(path for path in Path(folder).iterdir() if path.suffix in (".safetensors", ".bin", ".gguf"))
    files += [path for name in MODEL_FILES if (path := Path(folder) / name).is_file()]
    parts = {}
    for path in files:
        hasher = xxhash.xxh3_128()
        with open(path, "rb") as file:
            while piece := file.read(2**24):
                hasher.update(piece)
        parts[path.name] = hasher.hexdigest()
    return digest(parts)


def weights_hash(module: nn.Module) -> str:
    """A hash of every bit that `tensors_of` finds in a module, each tensor read once however many names it has.

    Example:
        >>> before = en.storage.weights_hash(model)
        >>> before == en.storage.weights_hash(model), len(before)
        (True, 32)
    """
    hashes: dict[Any, str] = {}
    parts = {}
    for name, x in tensors_of(module).items():
        key = _where(x)
        parts[name] = hashes.get(key) or _hash(x() if isinstance(x, partial) else x)
        if key is not None:
            hashes[key] = parts[name]
    return digest(repr(sorted(parts.items())))


def _hash(x: Any) -> str:
    return tensor_hash(x) if isinstance(x, torch.Tensor) else digest(x)


def _where(x: Any) -> Any:
    """What tells that two tensors are the same memory read in the same way; `None` where that is not known."""
    if type(x) not in (torch.Tensor, nn.Parameter) or x.layout is not torch.strided or x.is_meta or not x.numel():
        return None
    flags = x.is_conj(), x.is_neg(), x.is_quantized
    return x.data_ptr(), x.dtype, tuple(x.shape), x.stride(), x.device, flags


def _referent(value: Any) -> Any:
    """What a weak reference or proxy leads to: that is what it computes with."""
    if isinstance(value, weakref.ReferenceType):
        return value()
    # A proxy answers for its referent in all but its own type; a bound method of the referent knows it.
    return value.__repr__.__self__ if type(value) in weakref.ProxyTypes else value


def _part(value: Any, inside: tuple[int, ...]) -> bytes:
    """The hash and not the content, so that where one part ends and the next begins matters."""
    return hashlib.sha256(_bytes(value, inside)).digest()


def _function(function: types.FunctionType, part: Callable[[Any], bytes]) -> bytes:
    """What a function computes by: its code, defaults, closure, and the globals of its own file that it names."""
    closure = []
    for cell in function.__closure__ or ():
        try:
            closure.append(cell.cell_contents)
        except ValueError:  # not yet filled
            closure.append(None)
    namespace = {} if str(function.__module__).partition(".")[0] in VERSIONED else function.__globals__
    named = {
        name: namespace[name]
        for name in sorted(_names(function.__code__))
        if name in namespace and _is_own(namespace[name], function.__module__)
    }
    settings = (function.__defaults__, function.__kwdefaults__, closure, named)
    return f"{function.__module__}.{function.__qualname__}".encode() + _code(function.__code__, part) + part(settings)


def _methods(kind: type, part: Callable[[Any], bytes]) -> bytes:
    """The code of an object's methods, but for those of packages whose version tells it."""
    written = [base for base in kind.__mro__ if base.__module__.partition(".")[0] not in VERSIONED]
    return b"".join(
        part(name) + _code(method.__code__, part)
        for base in written
        for name, method in sorted(vars(base).items())
        if isinstance(method, types.FunctionType)
    )


def _is_own(value: Any, module: str) -> bool:
    """Whether a global is more than a name of another module: a value, or a function of the same file."""
    if isinstance(value, types.ModuleType | type | types.BuiltinFunctionType):
        return False
    return not isinstance(value, types.FunctionType) or value.__module__ == module


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _code(code: types.CodeType, part: Callable[[Any], bytes]) -> bytes:
    """The instructions, without line numbers and file names."""
    constants = [
        _code(constant, part) if isinstance(constant, types.CodeType) else part(constant) for constant in code.co_consts
    ]
    return code.co_code + b"".join(constants) + part((code.co_names, code.co_varnames, code.co_freevars))


def _reduced(value: Any, part: Callable[[Any], bytes]) -> bytes:
    """What an object without fields would be pickled as; nothing is pickled."""
    kind = type(value)
    try:
        own = copyreg.dispatch_table.get(kind)
        reduced = value.__reduce_ex__(4) if own is None else own(value)
    except Exception:  # each refuses in its own way
        reduced = None
    if reduced is not None and not isinstance(reduced, str):
        arguments = [each for each in reduced[1] if each is not kind]
        rest = [each if each is None or not hasattr(each, "__next__") else list(each) for each in reduced[2:]]
        if arguments or any(each is not None for each in rest):
            return part((arguments, rest))
    raise EntangleError(
        f"a {kind.__qualname__} has no content that can be compared; use a dataclass of numbers and texts, or give it "
        "a content() that says what decides it"
    )
