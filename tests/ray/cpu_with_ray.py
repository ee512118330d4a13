"""vLLM's CPU platform as one that Ray knows: its workers take what the cluster says are GPUs. Named by its plug-in."""

from vllm.platforms.cpu import CpuPlatform


class CpuWithRay(CpuPlatform):
    """vLLM asks a platform by what name Ray counts its devices; that of CPUs has none."""

    ray_device_key = "GPU"
