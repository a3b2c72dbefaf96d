"""Damaged and hostile files: whatever is read, there is a result or a `RamifyError`, in bounded time, and no crash.

`RAMIFY_FUZZ=20` tries twenty times as many files of each kind, and other ones each time.
"""
