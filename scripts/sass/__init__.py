"""Machine code of NVIDIA GPUs, read, run and timed without one; scripts/gpu_model.py is made of it.

listing: what nvdisasm prints, as instructions. arithmetic: what they compute. threads: the threads of a block through a
kernel, and what they ask of memory. multiprocessor: what that takes.
"""
