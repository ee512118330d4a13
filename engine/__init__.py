"""The engine process: vLLM's LLMEngine behind the messages of `engine/messages.py`. Knows token ids, not chat.

Started as `python -m engine` by `server/engine_process.py`. One file per step of its life: `__main__` (the
process), `checkpoint` and `defaults` (checked and chosen before anything heavy is imported), `loading` (the engine
comes up), `loop` (requests in, steps out), `token_budget` (when a second part is due), `blame` (which
request makes steps fail), `vllm_internals` (all that
reaches inside vLLM), `transport` (the socket).
"""

import signal

USER_ERROR = 2
"""Exit status of an engine process that cannot come up with this model and these options."""
DUMP_SIGNAL = signal.SIGUSR2
"""Has an engine process write the stacks of all its threads to its log."""
