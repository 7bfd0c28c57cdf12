"""Process-wide settings for torch, made once by each stage that computes."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import warnings

import torch

# Read by transformers at every call of its attention.
FORCE_GQA = "TRANSFORMERS_SDPA_FORCE_GQA"

_X86 = ("x86_64", "amd64")
# glibc's mallopt parameters (malloc.h).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def prepare(seed: int) -> torch.device:
    """Seed torch, ask for deterministic kernels and return the device to compute on.

    CUDA where there is one, else CPU with one thread a core (or ``OMP_NUM_THREADS``). Results are
    reproducible to the byte on the same machine and device, not across machines.
    """
    if sys.platform == "linux":
        _keep_freed_memory()
    # cuBLAS needs this to be deterministic; it must be set before the first CUDA call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # A debugging aid that comes with it: NaN in every new tensor, for 4% of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device().type == "cuda":
        return device()
    repeatable_products()
    # Else transformers copies the keys for every query head, or packs heads so that a row's bits
    # depend on its batch.
    os.environ.setdefault(FORCE_GQA, "1")
    torch.set_num_threads(_threads())
    return device()


def repeatable_products() -> None:
    """Let a row of a float32 product have the same bits whatever rows and threads are beside it.

    Without it MKL picks a kernel by the number of rows: with AVX-512 up to 12 of them have other
    bits, on two threads far more. MKL reads this at its first product in a process, so it comes
    before that; a setting of the user's stands. Only for Intel's processors that compute in
    float32: it is not known to hold on others, and bfloat16 is not multiplied by MKL.
    """
    maker = str(torch.cpu.get_capabilities().get("cpu_name", ""))
    if maker.startswith("Intel") and not cpu_has_bfloat16():
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def compute_dtype(device: torch.device) -> torch.dtype:
    """In what to multiply matrices: bfloat16 where the hardware does, else float32.

    Without AVX-512 (x86) torch has no bfloat16 kernel, and the loop that stands in for one is some
    eighty times slower than float32. With AVX-512 but without its bfloat16 instructions there is a
    kernel that converts, three times slower than float32 (22 against 60 to 84 GFLOP/s on a core).
    A GPU before Ampere emulates it too.
    """
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = cpu_has_bfloat16()
    return torch.bfloat16 if fast else torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself, and torch has kernels that let it."""
    if not torch.backends.mkldnn.is_available():
        return False
    kernels = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if platform.machine().lower() in _X86:
        # oneDNN has them for every AVX-512. Processors with AMX have these instructions too.
        return kernels and bool(torch.cpu.get_capabilities()["avx512_bf16"])
    return kernels


def device() -> torch.device:
    """CUDA where there is one, else CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _threads() -> int:
    """A thread a core, unless ``OMP_NUM_THREADS`` says how many this process may use."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said):
        return int(said)
    return cores()


def cores() -> int:
    """Cores that this process may use; 4 where the system doesn't say."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 4


def training_attention(device: torch.device) -> str:
    """Attention to train with: transformers' plain one on CPU, the fused one elsewhere.

    On CPU the fused kernel's backward took a quarter of a step of 8 x 138 tokens; without it the
    step is 1.3 times as fast.
    """
    return "eager" if device.type == "cpu" else "sdpa"


def quiet_transformers() -> None:
    """Keep transformers' own bars and advice out of the stage's output; errors still show."""
    from transformers.utils import logging

    # Deprecations inside of transformers are not the user's to mend.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _keep_freed_memory() -> None:
    """Stop glibc from returning every freed tensor to the kernel.

    By default each large tensor is mapped and unmapped anew, and page faults cost a third of a
    training step on CPU. The usual environment variables would need a restart of the process.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # musl: another allocator, nothing to tune
        return
    for parameter, value in (
        (_M_MMAP_THRESHOLD, 1 << 30),
        (_M_TRIM_THRESHOLD, 2**31 - 1),
        (_M_TOP_PAD, 1 << 26),
    ):
        libc.mallopt(parameter, value)
