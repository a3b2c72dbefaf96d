"""Speed and memory of training on this machine: `ramify bench`."""
