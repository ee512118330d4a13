"""The operations of a bfloat16 model on a GPU against torch in float64: `python -m benchmarks.gpu.kernels`.

For the libraries whose code for other GPUs was left out by `pack.py`. Relative errors of 2e-3 are bfloat16's own.
"""

from typing import Any

import torch
from vllm import _custom_ops as ops
from vllm.platforms import current_platform

from benchmarks.gpu.results import result

DEVICE = "cuda"
PAGE, QUERIES, KEYS = 16, 8, 2


def main() -> None:
    """Prints a relative error for each."""
    current_platform.import_kernels()
    torch.manual_seed(0)
    _rows()
    for size, window in ((32, 128), (64, None), (128, 4096), (128, None)):
        _attention(size, window)


def _off(name: str, got: Any, want: Any) -> None:
    torch.cuda.synchronize()
    result(f"kernels {name}", f"relative error {((got.double() - want).norm() / want.norm()).item():.1e}")


def _rows() -> None:
    x = torch.randn(300, 2048, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.rand(2048, device=DEVICE, dtype=torch.bfloat16) + 0.5
    out = torch.full_like(x, float("nan"))
    ops.rms_norm(out, x, weight, 1e-5)
    exact = x.double()
    _off("rms_norm", out, exact * (exact.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * weight.double())
    out = torch.full((300, 1024), float("nan"), device=DEVICE, dtype=torch.bfloat16)
    torch.ops._C.silu_and_mul(out, x)
    _off("silu_and_mul", out, torch.nn.functional.silu(exact[:, :1024]) * exact[:, 1024:])


def _attention(size: int, window: int | None) -> None:
    """Forty tokens behind 960 in pages that lie anywhere; heads of `size`."""
    from vllm.vllm_flash_attn import flash_attn_varlen_func  # noqa: PLC0415 - is not in vLLM's build for CPUs

    length, new = 1000, 40
    pages = -(-length // PAGE)
    q = torch.randn(new, QUERIES, size, device=DEVICE, dtype=torch.bfloat16)
    k, v = torch.randn(2, length, KEYS, size, device=DEVICE, dtype=torch.bfloat16)
    table = torch.randperm(pages, device=DEVICE, dtype=torch.int32)
    k_cache, v_cache = torch.zeros(2, pages, PAGE, KEYS, size, device=DEVICE, dtype=torch.bfloat16)
    slots = (table.long()[:, None] * PAGE + torch.arange(PAGE, device=DEVICE))[None].flatten()[:length]
    one = torch.ones((), device=DEVICE)
    ops.reshape_and_cache_flash(k, v, k_cache, v_cache, slots, "auto", one, one)
    out = torch.full_like(q, float("nan"))
    flash_attn_varlen_func(
        q=q,
        k=k_cache,
        v=v_cache,
        out=out,
        max_seqlen_q=new,
        max_seqlen_k=length,
        causal=True,
        fa_version=3,
        cu_seqlens_q=torch.tensor([0, new], device=DEVICE, dtype=torch.int32),
        seqused_k=torch.tensor([length], device=DEVICE, dtype=torch.int32),
        block_table=table[None],
        window_size=[-1, -1] if window is None else [window - 1, 0],
    )
    at = torch.arange(length - new, length, device=DEVICE)[:, None] - torch.arange(length, device=DEVICE)
    seen = (at >= 0) & (at < (window or length))
    scores = torch.einsum("qhc,khc->hqk", q.double(), k.double().repeat_interleave(QUERIES // KEYS, 1)) * size**-0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    want = torch.einsum("hqk,khc->qhc", weights, v.double().repeat_interleave(QUERIES // KEYS, 1))
    _off(f"FA3 head {size} window {window}", out, want)


if __name__ == "__main__":
    main()
