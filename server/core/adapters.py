"""The LoRA adapters that are served beside the model: by name, loaded and unloaded while the server runs."""

import asyncio
import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import PurePath

from engine.adapter_files import AdapterError, read_adapter
from engine.messages import Adapter
from server.engine_client import EngineClient, RequestFailed
from server.errors import BadRequestError, UnknownModelError
from server.settings import LoraModule


def numbered(modules: Iterable[LoraModule]) -> list[Adapter]:
    """Those of the command line, as the engine knows them."""
    return [Adapter(number, module.name, module.path) for number, module in enumerate(modules, 1)]


def base_warnings(modules: Iterable[LoraModule], model: str) -> Iterator[str]:
    """What the operator may not have meant: adapters that fit the checkpoint `model`, and say that they are of another.

    Only last parts of names are compared: folders and hub ids name the same model. Adapters on a hub are not asked.
    """
    for module in modules:
        with contextlib.suppress(AdapterError):  # they were looked at before
            files = read_adapter(module.path)
            if files is not None and files.base and _last_part(files.base) != _last_part(model):
                yield f"The adapter {module.name} says that it was made from {files.base}; it is served with {model}."


def _last_part(model: str) -> str:
    return PurePath(model).name.lower()


class Adapters:
    """Names are the client's model names. What is loaded by a name anew is another adapter, and shares no pages with
    the one before.
    """

    def __init__(self, engine: EngineClient, modules: Sequence[LoraModule] = ()) -> None:
        self._engine = engine
        self._by_name = {adapter.name: adapter for adapter in numbered(modules)}
        self._numbers = count(len(self._by_name) + 1)
        self._one_by_one = asyncio.Lock()

    @property
    def by_name(self) -> Mapping[str, Adapter]:
        """In the order in which they were loaded."""
        return self._by_name

    async def load(self, name: str, path: str, taken: Collection[str], *, replaces: bool = False) -> None:
        """Serves the adapter in the folder `path` on this machine as `name`. `taken`: names of other models.

        Raises BadRequestError, naming `lora_name` or `lora_path`, and EngineUnavailable.
        """
        async with self._one_by_one:
            before = self._by_name.get(name)
            if name in taken:
                raise BadRequestError(f"lora_name: {name!r} is the name of another model here.", param="lora_name")
            if before is not None and not replaces:
                raise BadRequestError(
                    f"lora_name: the adapter {name!r} is loaded already; load_inplace replaces it.", param="lora_name"
                )
            adapter = Adapter(next(self._numbers), name, path)
            try:
                await self._engine.load_adapter(adapter)
            except RequestFailed as error:
                raise BadRequestError(f"lora_path: {error}.", param="lora_path") from error
            self._by_name[name] = adapter
            if before is not None:
                self._engine.unload_adapter(before.id)

    async def unload(self, name: str, served: str) -> None:
        """Serves it no more; what runs with it goes on. Raises UnknownModelError, naming `lora_name`."""
        async with self._one_by_one:
            adapter = self._by_name.pop(name, None)
            if adapter is None:
                raise UnknownModelError(name, served, "lora_name", adapters=list(self._by_name))
            self._engine.unload_adapter(adapter.id)
