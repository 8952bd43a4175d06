"""Where a model runs: chosen_device, and check_fork, which refuses a process in which it would wait for ever.

Test: tests/encoders/test_devices.py.
"""

from __future__ import annotations

import os

import torch

from m2bert.errors import M2BertError
from m2ops._library import cuda_loaded


def chosen_device(name: str | None, who: str) -> torch.device:
    """The device of that name; for None the GPU, if there is one and m2ops has kernels for it, else the CPU.

    Raises M2BertError, beginning with `who`, for a name of neither and for a device that is not there.
    """
    usable = cuda_loaded and torch.cuda.is_available()
    if name is None:
        return torch.device("cuda" if usable else "cpu")
    kind, _, number = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise M2BertError(f"{who}: device must be cpu, cuda, or cuda: and a number, got {name!r}; name one of these")
    if kind == "cpu":
        return torch.device("cpu")
    if not usable:
        why = "m2ops has no kernels for it" if torch.cuda.is_available() else "torch sees no GPU"
        raise M2BertError(f"{who}: device {name!r} must be there, but {why}; use 'cpu'")
    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise M2BertError(
            f"{who}: device {name!r} must be there, but there are {count} GPUs, cuda:0 to cuda:{count - 1}"
        )
    return torch.device(name)


_computed_in: int | None = None
"""The process that has computed with several threads, or its child that a fork made."""


def check_fork(who: str) -> None:
    """Raise M2BertError, beginning with `who`, in a fork of a process that has computed with several threads.

    The fork has torch's list of these threads and not the threads, and whatever it gives them is never done.
    """
    global _computed_in
    if torch.get_num_threads() == 1 or _computed_in == os.getpid():
        return
    if _computed_in is not None:
        raise M2BertError(
            f"{who}: this process is a fork of one that has computed with several threads, which it does not have, and "
            "would wait for them for ever; start it with multiprocessing's 'spawn', or torch.set_num_threads(1) in it"
        )
    _computed_in = os.getpid()
