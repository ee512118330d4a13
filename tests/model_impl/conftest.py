"""Settings under which vLLM runs here; they have to stand before the first import of it."""

import os

# The engine's worker lives in the test process, so that tests can look into it, and leaves its CPU affinity alone,
# which every process started later would inherit.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
