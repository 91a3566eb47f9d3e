"""A stand-in GPU: a torch device over the host's memory, with the CPU's kernels and CUDA's rules.

What a test without a GPU can't see otherwise: tensors that are left on the other device, work that the host does in
place of the device, and how often the host waits. It can't show memory, speed, CUDA's own kernels and their rounding,
streams, compiled code, or several devices.

The name of a torch device is for the whole process and can't be taken back, so only programs import ``device``:
``device_checks.py``, ``compare.py`` and ``mutants.py``, which tests start as processes of their own.
"""
