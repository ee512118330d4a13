"""LoRA adapters of one engine: has vLLM load them before a request needs them, so that no step fails on one."""

from vllm.lora.request import LoRARequest
from vllm.v1.engine.llm_engine import LLMEngine

from engine.adapter_files import AdapterError, check_fits, read_adapter
from engine.messages import Adapter


class Adapters:
    """Those that vLLM has, by our ids. An engine without `--enable-lora` takes none."""

    def __init__(self, engine: LLMEngine) -> None:
        self._engine = engine
        config = engine.vllm_config.lora_config
        self.most = 0 if config is None else config.max_loras
        """How many may be in one batch."""
        self._max_rank = 0 if config is None else config.max_lora_rank
        self._used: dict[str, int] = {}  # request id → its adapter's
        self._leaving: set[int] = set()

    def load(self, adapter: Adapter) -> LoRARequest:
        """Has it at hand, and makes what vLLM wants with a request for it; raises AdapterError.

        The files are looked at only where vLLM has not got it: it puts away those used longest ago.
        """
        request = LoRARequest(f"{adapter.name}:{adapter.id}", adapter.id, adapter.path)
        if not self.most:
            raise AdapterError("the engine was started without --enable-lora")
        if adapter.id in self._engine.list_loras():
            return request
        files = read_adapter(adapter.path)
        if files is not None:
            if files.rank > self._max_rank:
                raise AdapterError(f"its rank is {files.rank}, and the engine takes {self._max_rank}: --max-lora-rank")
            check_fits(files, self._engine.vllm_config.model_config.model)
        try:
            self._engine.add_lora(request)
        except Exception as error:
            self._engine.remove_lora(adapter.id)  # what was written of it would be taken for the whole
            if isinstance(error, AssertionError | ValueError | RuntimeError | KeyError | OSError):
                raise AdapterError(_words(error)) from error
            raise
        return request

    def begin(self, request_id: str, adapter: Adapter) -> LoRARequest:
        """The same for a request, which keeps it until `end`; raises AdapterError."""
        lora_request = self.load(adapter)
        self._used[request_id] = adapter.id
        return lora_request

    def end(self, request_id: str) -> None:
        """The request needs its adapter no more, if it had one."""
        self._used.pop(request_id, None)

    def unload(self, adapter_id: int) -> None:
        """Forgets it, once no request runs with it: vLLM would read its files again, which may be another's by then."""
        if self.most:
            self._leaving.add(adapter_id)

    def sweep(self) -> None:
        """Between steps: removes those to be forgotten that no request has any more."""
        if self._leaving:
            for adapter_id in self._leaving.difference(self._used.values()):
                self._leaving.remove(adapter_id)
                self._engine.remove_lora(adapter_id)


def _words(error: Exception) -> str:
    """VLLM's own, in one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
