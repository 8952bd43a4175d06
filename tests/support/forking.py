"""Programs in a process of their own, forked from an interpreter that has already imported what takes seconds."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

# What a training run imports.
TRAINING = ("torch", "accelerate", "m2bert.train.pretrain", "m2bert.train.finetune", "m2bert.train.distill")

# A fork leaves the loop and runs the program as the interpreter would: its exceptions and its end are the usual ones.
# One thread until then, since threads do not survive a fork.
SERVER = """
import json, os, sys
for name in sys.argv[1:]:
    __import__(name)
for line in sys.stdin:
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
program, sys.argv, surroundings, folder, outputs = json.loads(line)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
for number, path in enumerate(outputs, 1):
    os.dup2(os.open(path, os.O_WRONLY), number)
os.environ.clear()
os.environ.update(surroundings)
os.chdir(folder)
exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
"""


@functools.cache
def server(modules: tuple[str, ...]) -> subprocess.Popen[str]:
    """The interpreter that has imported `modules`, which lives as long as this process."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SERVER, *modules]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    atexit.register(process.communicate)  # no more programs: it ends
    return process


def run_forked(
    program: str,
    *arguments: str,
    imported: tuple[str, ...] = ("torch",),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run([sys.executable, "-c", program, *arguments]) with its texts captured; `imported` lie in memory.

    The variables in `env` come beside those of this process, and count for what is imported later. Where fork is not
    safe (macOS) the program is run anew.
    """
    surroundings = {**os.environ, **(env or {})}
    if sys.platform != "linux":
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, env=surroundings, cwd=cwd, capture_output=True, text=True, check=False)
    process = server(imported)
    assert process.stdin is not None and process.stdout is not None
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        job = [program, ["-c", *arguments], surroundings, str(cwd or Path.cwd()), [out.name, err.name]]
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        code = int(process.stdout.readline())
        return subprocess.CompletedProcess([program, *arguments], code, out.read(), err.read())
