"""Where training's kernels run: wherever the CPU has what they are written for, beside a matrix unit too."""

import pytest

from model_impl.cpu import native

FLAGS = "avx512f avx512bw avx512vl avx512_bf16 fma"


def information(flags: str) -> str:
    return f"processor : 0\nflags\t\t: {flags}\n"


@pytest.mark.parametrize("flags", [FLAGS, f"{FLAGS} amx_bf16"])
def test_kernels_without_large_products_run_beside_a_matrix_unit(flags: str) -> None:
    native._check_cpu(information(flags), multiplies=False)


def test_what_the_cpu_lacks_is_told_all_the_same() -> None:
    with pytest.raises(native.KernelsUnavailableError, match="avx512_bf16"):
        native._check_cpu(information("avx512f avx512bw avx512vl fma amx_bf16"), multiplies=False)
