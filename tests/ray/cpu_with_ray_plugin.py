"""The entry point of `vllm.platform_plugins` by which vLLM takes the platform in `cpu_with_ray`."""


def platform() -> str:
    """Its name. vLLM imports it later: it asks before its own platforms can be imported."""
    return "tests.ray.cpu_with_ray.CpuWithRay"
