"""The instruction set in use is the one asked for, and a wrong name is an error that lists the right ones."""

from __future__ import annotations

import subprocess

import pytest
from forking import run_forked

import m2ops
from m2ops._library import binding

PROGRAM = "import torch, m2ops; m2ops.short_conv(torch.ones(1, 1, 4), torch.ones(1, 2)); print(m2ops.current_isa())"


def run(isa: str) -> subprocess.CompletedProcess[str]:
    return run_forked(PROGRAM, env={"M2OPS_ISA": isa})


def test_environment_variable_forces_each_instruction_set() -> None:
    for isa in m2ops.available_isas():
        assert run(isa).stdout.strip() == isa


def test_a_wrong_name_lists_the_available_ones() -> None:
    result = run("sse9")
    assert result.returncode != 0
    assert "M2OPS_ISA: the instruction set must be one this machine has" in result.stderr
    assert ", ".join(m2ops.available_isas()) in result.stderr and "'sse9'" in result.stderr
    with pytest.raises(ValueError, match="scalar"), m2ops.use_isa("neon"):
        pass


def test_scalar_is_always_there_and_use_isa_restores() -> None:
    assert m2ops.available_isas()[-1] == "scalar"
    before = m2ops.current_isa()
    with m2ops.use_isa("scalar"):
        assert m2ops.current_isa() == "scalar"
    assert m2ops.current_isa() == before


def test_build_info_and_module_report() -> None:
    assert set(binding.build_info()) == {"compiler", "build_type", "torch_built_against", "cuda_archs"}
    report = run_forked("import runpy; runpy.run_module('m2ops', run_name='__main__')").stdout
    assert f"{m2ops.current_isa()} (in use)" in report and "fft_conv" in report and "CUDA library" in report
