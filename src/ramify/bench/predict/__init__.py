"""Predicted step times by a cost model fitted to measurements: `ramify bench predict`."""
