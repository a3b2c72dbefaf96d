"""One training step in detail: time by phase, operations, memory by kind."""
