"""Damaged and hostile files: reading ends with a result or a `RamifyError`, in bounded time, without a crash.

`RAMIFY_FUZZ=20` tries twenty times as many files of each kind, different ones each time.
"""
