"""Memory by address: what is read and written, and in which order the machine code does it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from everwall import kernels
from everwall.kernels import (
    fence,
    fence_acquire,
    fence_release,
    kernel,
    load32,
    load32_acquire,
    load64,
    prefetch,
    store32,
    store32_release,
    store64,
)

pytestmark = pytest.mark.kernel

_INDEX = 0  # bytes from the start of the memory of a little ring: its index, then a row
_ROW = 8


@kernel
def _copy(from_, to):
    """Every intrinsic once: words of ``from_`` to ``to``."""
    source, target = np.int64(from_.ctypes.data), np.int64(to.ctypes.data)
    prefetch(source)
    store32(target, load32(source))
    store32(target + 4, 0)
    store64(target + 8, load64(source + 8))
    store32_release(target + 16, load32_acquire(source + 16))
    store32_release(target + 20, -1)
    fence()


def _words() -> npt.NDArray[np.int64]:
    return np.array([0x7_FFFF_FFFE, -5, 0x1_8000_0001], np.int64)


def test_words_are_read_and_written_where_the_address_says() -> None:
    target = np.zeros(4, np.int64)
    _copy(_words(), target)
    assert target.view(np.uint32).tolist() == [
        0xFFFFFFFE,
        0,  # the low half only was stored
        0xFFFFFFFB,
        0xFFFFFFFF,
        0x80000001,
        0xFFFFFFFF,
        0,
        0,
    ]


@kernel
def _load_all(words, out):
    at = np.int64(words.ctypes.data)
    out[0] = load32(at)
    out[1] = load32_acquire(at + 16)
    out[2] = load64(at + 8)


def test_32_bits_come_without_sign_and_64_with() -> None:
    out = np.zeros(3, np.int64)
    _load_all(_words(), out)
    assert out.tolist() == [0xFFFFFFFE, 0x80000001, -5]


# The order of accesses ---------------------------------------------------------------------------------


def _produce(at):
    """A row, then the index that publishes it, then the next row in the same place."""
    store64(at + _ROW, 0x111)
    store32_release(at + _INDEX, 1)
    store64(at + _ROW, 0x222)


def _consume(at):
    """The row before the index is read, which may also happen later, and after it, which may not happen earlier."""
    before = load64(at + _ROW)
    index = load32_acquire(at + _INDEX)
    return load64(at + _ROW) - before + index


def _publish(at):
    """As ``_produce``, for an index in an array, as the rings between threads have it."""
    store64(at + _ROW, 0x111)
    fence_release()
    store64(at + _INDEX, 1)
    store64(at + _ROW, 0x222)  # may be seen with the index, not before the first row


def _look(at):
    """As ``_consume``, for the same."""
    index = load64(at + _INDEX)
    fence_acquire()
    return load64(at + _ROW) + index


def _separate(at):
    """A store and a load that only a full barrier keeps in order."""
    store32(at + _INDEX, 1)
    fence()
    return load32(at + 64)


def _code(function: Callable[..., Any], machine: str) -> list[str]:
    """The instructions that ``function`` becomes on ``machine``; those of its entry from Python left out."""
    import llvmlite.binding as llvm
    import numba

    compiled = numba.njit("(int64,)", nogil=True, error_model="numpy", _nrt=False)(function)
    text = compiled.inspect_llvm()[(numba.types.int64,)]
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(machine).create_target_machine(opt=3)
    text = re.sub(r'target triple = ".*"', f'target triple = "{machine}"', text)
    text = re.sub(r'target datalayout = ".*"', f'target datalayout = "{target.target_data}"', text)
    assembly = target.emit_assembly(llvm.parse_assembly(text))
    body = re.search(rf"^_ZN[^\n]*{function.__name__}[^\n]*:\n(.*?)\n\.Lfunc_end", assembly, re.S | re.M)
    assert body is not None, assembly
    remark = "//" if machine == ARM else "#"
    lines = (line.split(remark)[0].strip() for line in body[1].split("\n"))
    return [line for line in lines if line and not line.startswith((".", "_")) and not line.endswith(":")]


def _steps(code: list[str], *patterns: str) -> list[int]:
    """Where each pattern stands in the code, the next one always after the one before."""
    found, at = [], 0
    for pattern in patterns:
        fits = [i for i in range(at, len(code)) if re.search(pattern, code[i])]
        assert fits, f"{pattern} does not follow in: {code}"
        found.append(fits[0])
        at = fits[0] + 1
    return found


X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"

compiled_only = pytest.mark.skipif(not kernels.JIT, reason="reads machine code; there is none here")


@compiled_only
def test_on_x86_64_the_compiler_leaves_the_accesses_where_they_are() -> None:
    # Stores become visible in the order of the program there, and loads are done in it.
    _steps(_code(_produce, X86), r"movq\s+\$273, 8\(", r"movl\s+\$1, \(", r"movq\s+\$546, 8\(")
    code = _code(_consume, X86)
    row = r"q\s+8\(%\w+\), %"
    _steps(code, r"movl\s+\(%\w+\), %", row)
    assert len([line for line in code if re.search(row, line)]) == 2
    _steps(_code(_separate, X86), r"movl\s+\$1, \(", r"mfence|lock", r"movl\s+64\(%\w+\), %")


@compiled_only
def test_one_sided_fences_are_no_instruction_on_x86_64_and_keep_the_order_on_both() -> None:
    code = _code(_publish, X86)
    _steps(code, r"movq\s+\$273, 8\(", r"movq\s+\$1, \(", r"movq\s+\$546, 8\(")
    assert not [line for line in code if re.search(r"fence|lock|xchg", line)]
    code = _code(_look, X86)
    _steps(code, r"movq\s+\(%\w+\), %", r"q\s+8\(%\w+\), %")
    assert not [line for line in code if re.search(r"fence|lock|xchg", line)]
    _steps(_code(_publish, ARM), r"str\s+x\d+, \[x\d+, #8\]", r"dmb\s+ish$", r"st[rp]\s+.*\[x\d+\]")
    _steps(_code(_look, ARM), r"ldr\s+x\d+, \[x\d+\]", r"dmb\s+ishld", r"ldr\s+x\d+, \[x\d+, #8\]")


@compiled_only
def test_on_arm64_the_index_is_read_by_ldar_and_written_by_stlr() -> None:
    # STLR: all stores before it are seen before it. LDAR: nothing after it is read before it.
    _steps(_code(_produce, ARM), r"str\s+x\d+, \[x\d+, #8\]", r"stlr\s+w", r"str\s+x\d+, \[x\d+, #8\]")
    _steps(_code(_consume, ARM), r"ldar\s+w", r"ldr\s+x\d+, \[x\d+, #8\]")
    _steps(_code(_separate, ARM), r"str\s+w", r"dmb\s+ish$", r"ldr\s+w")


@compiled_only
def test_a_prefetch_is_an_instruction_on_both() -> None:
    def _fetch(at):
        prefetch(at)

    _steps(_code(_fetch, X86), r"prefetcht0")
    _steps(_code(_fetch, ARM), r"prfm\s+pldl1keep")
