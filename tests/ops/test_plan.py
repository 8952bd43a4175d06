"""Transform lengths, plans, and the search over plans."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch
from forking import run_forked

import m2ops._plans
from m2ops._library import binding
from m2ops._plans import PLANS_VARIABLE, machine_name, use_kept_plans
from m2ops.testing import assert_matches


def test_fft_size_is_the_smallest_of_its_form() -> None:
    forms = sorted(64 * odd << a for odd in (1, 3, 5) for a in range(17) if 64 * odd << a <= 1 << 22)
    for seqlen in [*range(1, 1400, 7), 4096, 4097, 32768, 32769, 1 << 22]:
        assert m2ops.fft_size(seqlen) == binding.fft_size(seqlen) == min(n for n in forms if n >= seqlen)


@pytest.mark.parametrize("size", [64, 128, 192, 256, 320, 640, 768, 1280, 4096, 5120, 98304, 1 << 22])
def test_fft_plan_factors_the_size(size: int) -> None:
    plan = binding.fft_plan(size)
    assert plan.outer * plan.n1 * plan.n2 == plan.size == size and plan.n1 % plan.lanes == plan.n2 % 16 == 0
    assert math.prod(plan.radices1) == plan.n1 and math.prod(plan.radices2) == plan.n2
    # Two complex transforms cost at least 2 * 4 n log2 n operations (split radix), at most 2.5 times that and products.
    assert 8 * size * math.log2(size) < plan.flops < 20 * size * math.log2(size) + 40 * size


@pytest.mark.parametrize("size", [0, 100, 257, 1792])
def test_fft_plan_refuses_other_sizes(size: int) -> None:
    with pytest.raises(ValueError, match="fft_size must be 64"):
        binding.fft_plan(size)


@pytest.mark.parametrize("seqlen", [0, -1, (1 << 22) + 1])
def test_fft_size_refuses_lengths_out_of_range(seqlen: int) -> None:
    with pytest.raises(ValueError, match="seqlen must be between 1"):
        m2ops.fft_size(seqlen)
    with pytest.raises(ValueError, match="seqlen must be between 1"):
        binding.fft_size(seqlen)


def run(code: str, plans: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, with `plans` as the file of plans."""
    return run_forked(code, env={"M2OPS_PLANS": str(plans)})


# A child a plan, forked before anything is computed: a plan cannot be changed once it is in use.
CONVOLVE = """
import os, torch, m2ops
from m2ops._library import binding
torch.set_num_threads(1)
for outer, n1 in binding.fft_factors(m2ops.fft_size({seqlen})):
    if os.fork():
        assert os.wait()[1] == 0
        continue
    binding.choose_fft_factors(m2ops.fft_size({seqlen}), outer, n1)
    u, k, k_rev, dout = (x.requires_grad_() for x in torch.load({inputs!r}))
    out = m2ops.fft_conv(u, k, k_rev, torch.ones(3), u, u)
    grads = torch.autograd.grad(out, [u, k, k_rev], dout)
    torch.save([x.detach() for x in (out, *grads)], f"{{outer}}-{{n1}}.pt")
    assert (m2ops.fft_plan({seqlen}).outer, m2ops.fft_plan({seqlen}).n1) == (outer, n1)
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("seqlen", [250, 4000, 5000])
def test_every_plan_gives_the_same_convolution(tmp_path: Path, seqlen: int) -> None:
    inputs = [torch.randn(shape) for shape in ((2, 3, seqlen), (3, seqlen), (3, seqlen), (2, 3, seqlen))]
    torch.save(inputs, tmp_path / "inputs")
    program = CONVOLVE.format(seqlen=seqlen, inputs=str(tmp_path / "inputs"))
    run_forked(program, cwd=tmp_path).check_returncode()
    u, k, k_rev, dout = (x.double().requires_grad_() for x in inputs)
    out = m2ops.fft_conv_ref(u, k, k_rev, torch.ones(3), u, u)
    exact = [out, *torch.autograd.grad(out, [u, k, k_rev], dout)]
    factors = binding.fft_factors(m2ops.fft_size(seqlen))
    assert len(factors) == {250: 1, 4000: 14, 5000: 6}[seqlen]
    for outer, n1 in factors:
        for got, want in zip(torch.load(tmp_path / f"{outer}-{n1}.pt"), exact, strict=True):
            assert_matches(got, want.detach())


def test_search_keeps_the_fastest_plan_for_later_processes(tmp_path: Path) -> None:
    plans = tmp_path / "cache" / "plans.json"
    search = (
        "import m2ops; [found] = m2ops.search_fft_plans([100]); print(found.plan.outer, found.plan.n1, found.seconds)"
    )
    done = run(search, plans)
    assert done.returncode == 0, done.stderr
    outer, n1, seconds = done.stdout.split()
    assert 0 < float(seconds) < 1e-3
    assert json.loads(plans.read_text()) == {machine_name(): {"128": [int(outer), int(n1)]}}
    assert [path.name for path in plans.parent.iterdir()] == ["plans.json"]
    shown = run("from m2ops.__main__ import show_plans; show_plans([100], search=False)", plans).stdout
    assert f"128 = {outer} x {n1} (" in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "must hold plans as search_fft_plans writes them"), ("[1]", "must hold plans"), (None, "cannot use")],
)
def test_a_damaged_file_of_plans_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    plans = tmp_path / "plans.json"
    plans.write_text(json.dumps({machine_name(): {"256": [3, 16]}}) if text is None else text)
    done = run("import m2ops", plans)
    assert done.returncode != 0 and message in done.stderr and str(plans) in done.stderr and "delete it" in done.stderr


def test_a_home_that_may_not_be_entered_has_no_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package could not be imported there."""

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(m2ops._plans, "_read", refused)
    monkeypatch.delenv(PLANS_VARIABLE, raising=False)
    use_kept_plans()
    monkeypatch.setenv(PLANS_VARIABLE, "/a/b")
    with pytest.raises(ValueError, match=rf"{PLANS_VARIABLE} names /a/b, which cannot be read \(Permission denied\)"):
        use_kept_plans()


def test_plans_of_other_machines_are_left_alone(tmp_path: Path) -> None:
    plans = tmp_path / "plans.json"
    plans.write_text(json.dumps({"another": {"128": [1, 8]}, machine_name(): {"64": [1, 4]}}))
    assert run("import m2ops; m2ops.search_fft_plans([128])", plans).returncode == 0
    kept = json.loads(plans.read_text())
    assert kept["another"] == {"128": [1, 8]} and set(kept[machine_name()]) == {"64", "128"}


def test_a_plan_in_use_cannot_be_changed() -> None:
    m2ops.filter_spectrum(torch.ones(1, 512), None, 512)
    plan = m2ops.fft_plan(512)
    binding.choose_fft_factors(512, plan.outer, plan.n1)  # the same: nothing to complain about
    other = next(factors for factors in binding.fft_factors(512) if factors != (plan.outer, plan.n1))
    with pytest.raises(ValueError, match="before their first use"):
        binding.choose_fft_factors(512, *other)
    with pytest.raises(ValueError, match="must be among"):
        binding.fft_plan(512, 1, 48)
