"""Step times that nobody has measured, by a cost model fitted to those that were: `ramify bench predict`."""
