"""OpenAI's TorchScript archives, read without TorchScript: the tensors and nothing that runs.

Such an archive is a zip of a pickle (data.pkl), its tensors' bytes (data/<n>) and code. torch.jit.load would compile
and may run the code; torch.load refuses these archives under weights_only. Here the pickle may name tensors, plain
containers and the archive's own classes, which become bags of attributes; anything else is refused.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

_DTYPES = {
    "HalfStorage": torch.float16, "FloatStorage": torch.float32, "DoubleStorage": torch.float64,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class _Module:
    """An object of a class of the archive: its attributes, no behaviour."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


class _Reader(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self._archive, self._root = archive, root
        self._stored: dict[str, torch.Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return lambda value, tag: value
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> torch.Tensor:
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"persistent {kind!r}")
        if key not in self._stored:
            data = self._archive.read(f"{self._root}data/{key}")
            self._stored[key] = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self._stored[key]


def _tensor(
    storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> torch.Tensor:
    return storage.as_strided(size, stride, offset)


def is_archive(path: Path) -> bool:
    """Whether the file is a TorchScript archive, not what torch.save writes."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_archive(path: Path) -> tuple[dict[str, torch.Tensor], bool]:
    """Tensors by their dotted names, and whether the model's activation is QuickGELU (else GELU), by its code.

    Raises pickle.UnpicklingError naming what the pickle asks for beside tensors.
    """
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = next(name for name in names if name.endswith("/constants.pkl")).removesuffix("constants.pkl")
        model = _Reader(archive, root).load()
        code = [archive.read(name) for name in names if name.startswith(f"{root}code/") and name.endswith(".py")]
    tensors: dict[str, torch.Tensor] = {}
    _collect(model, "", tensors)
    return tensors, not any(b"torch.gelu(" in source for source in code)


def _collect(module: _Module, prefix: str, found: dict[str, torch.Tensor]) -> None:
    for name, value in vars(module).items():
        if isinstance(value, torch.Tensor):
            found[prefix + name] = value
        elif isinstance(value, _Module):
            _collect(value, f"{prefix}{name}.", found)
