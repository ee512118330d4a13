"""What stands in a GGUF file: its fields, and where its tensors lie. The `gguf` package reads the container."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from gguf import GGUFReader, GGUFValueType

from model_impl.gguf import GgufError

T = TypeVar("T")


class Tensor(NamedTuple):
    """`kind`: GGML's name of its type, such as Q4_K. `shape`: outputs first. `offset` and `size` in bytes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    size: int


class Gguf(NamedTuple):
    """A file that was read, without its weights."""

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def architecture(self) -> str:
        """By llama.cpp's name."""
        return self.need("general.architecture", str)

    def need(self, name: str, kind: type[T]) -> T:
        """A field; raises GgufError where there is none of that type."""
        value = self.fields.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            found = "no" if value is None else "a strange"
            raise GgufError(f"{self.path} has {found} {name}; is it a language model, and converted by llama.cpp?")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A field of the architecture, from float32 to the number that was meant: 1e-05, not 9.999999747378752e-06."""
        value = self.own(name, float) if default is None or self.other(name) is not None else default
        return float(str(np.float32(value)))

    def own(self, name: str, kind: type[T]) -> T:
        """A field of the architecture."""
        return self.need(f"{self.architecture}.{name}", kind)

    def other(self, name: str, default: Any = None) -> Any:
        """A field of the architecture that may be left out."""
        return self.fields.get(f"{self.architecture}.{name}", default)

    def floats(self, name: str) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """The values of a small tensor in float32."""
        tensor = self.tensors[name]
        if tensor.kind != "F32":
            raise GgufError(f"{self.path} has {name} as {tensor.kind}; F32 is what converters write")
        return np.fromfile(self.path, np.float32, tensor.size // 4, offset=tensor.offset)


class _Reader(GGUFReader):
    """The package's, which takes a vocabulary apart word by word in tens of seconds, with lists read at once."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        element, first = GGUFValueType(kind[0]), orig_offs + 12
        types = [GGUFValueType.ARRAY, element]
        if element in self.gguf_scalar_to_np:
            values = self._get(first, self.gguf_scalar_to_np[element], count[0])
            return 12 + values.nbytes, [kind, count, values], [2], types
        if element != GGUFValueType.STRING:
            raise ValueError(f"a list of {element.name}")
        mapped: Any = self.data
        parts, at, data = [], first, memoryview(mapped)
        for _ in range(int(count[0])):
            start = at + 8
            at = start + int.from_bytes(data[at:start], "little")
            if at > len(data):
                raise ValueError("it ends within a list")
            parts.append(data[start:at])
        return at - orig_offs, [kind, count, *parts], list(range(2, 2 + len(parts))), types


def read(path: Path) -> Gguf:
    """Raises GgufError for a file that is cut off, damaged or no GGUF."""
    try:
        reader = _Reader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {
            tensor.name: Tensor(
                tensor.name,
                tensor.tensor_type.name,
                tuple(int(length) for length in reversed(tensor.shape)),
                tensor.data_offset,
                tensor.n_bytes,
            )
            for tensor in reader.tensors
        }
    except OSError as error:
        raise GgufError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise GgufError(f"{path} is no GGUF file, or cut off; is the download complete? ({error})") from error
    parts = fields.get("split.count", 1)
    if parts != 1:
        raise GgufError(
            f"{path} is one of {parts} parts; llama.cpp's `llama-gguf-split --merge` makes one file of them"
        )
    return Gguf(path, fields, tensors)
