"""The engine as a process: `python -m engine --socket-fd N --model MODEL [-- ENGINE OPTIONS]`.

Exit status: 0 after Shutdown or when the front end is gone, USER_ERROR when the model or the options must change
(starting again cannot help), 1 with a traceback for everything else.
"""

import argparse
import faulthandler
import gc
import os
import socket
import sys
import threading
import traceback

from engine import DUMP_SIGNAL, USER_ERROR
from engine.checkpoint import ModelError, check_model
from engine.defaults import Nodes, engine_defaults, use_environment
from engine.follower import serve_workers
from engine.heap import return_free_memory
from engine.messages import Failed, Loading
from engine.transport import Connection
from model_impl.cpu.native import compile_ahead


def main() -> int:
    """Loads the engine and serves the connection until Shutdown."""
    arguments = _parse_arguments()
    faulthandler.enable()  # a crash in native code names the Python line that led to it
    faulthandler.register(DUMP_SIGNAL)
    connection = Connection(socket.socket(fileno=arguments.socket_fd))
    threading.Thread(target=_die_with_front_end, args=(connection,), daemon=True).start()
    try:
        _serve(arguments.model, arguments.engine_options, connection)
    except ModelError as error:
        traceback.print_exc()
        connection.send(Failed(str(error)))
        return USER_ERROR
    except ConnectionError:
        return 0
    except Exception as error:  # noqa: BLE001 - the border of the process: told to the front end, traceback in the log
        traceback.print_exc()
        connection.send(Failed(f"the engine failed: {type(error).__name__}: {error}"))
        return 1
    return 0


def _serve(model: str, options: list[str], connection: Connection) -> None:
    def report(stage: str, fraction: float) -> None:
        connection.send(Loading(stage, fraction))

    report("importing vLLM", 0.0)
    check_model(model)
    defaults = engine_defaults(model, options)
    use_environment(defaults)
    compile_ahead()
    gc.disable()  # what is made until the engine is up stays: to look through it again and again delays the start
    # These import vLLM, which takes seconds and reads the environment.
    from engine.loading import describe, describe_workers, eos_token_ids, load_engine, load_workers, warm  # noqa: PLC0415
    from engine.loop import EngineLoop  # noqa: PLC0415
    from engine.vllm_internals.attach import attach, end_workers  # noqa: PLC0415

    if Nodes.of(options).rank > 0:
        workers = load_workers(model, options, defaults, report)
        serve_workers(workers, connection, describe_workers(workers.vllm_config))
        workers.shutdown()
        return
    engine = load_engine(model, options, defaults, report)
    internals = attach(engine, connection.has_input)
    ready = describe(engine, internals)
    warm(engine, internals, model)
    gc.freeze()
    gc.enable()
    return_free_memory()
    connection.send(ready)
    EngineLoop(engine, internals, eos_token_ids(engine), connection).run()
    end_workers(engine)


def _die_with_front_end(connection: Connection) -> None:
    """Nobody is left to serve, and the main thread may be deep in loading or in a long step."""
    connection.wait_for_hang_up()
    os._exit(0)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m engine", description="Started by twogear serve.")
    parser.add_argument("--socket-fd", type=int, required=True, help="an inherited, connected stream socket")
    parser.add_argument("--model", required=True, help="a checkpoint's folder, or a hub id")
    parser.add_argument("engine_options", nargs="*", help="after --: vLLM's engine options")
    return parser.parse_args()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # nothing is left to be saved, and Python takes seconds to unload torch
