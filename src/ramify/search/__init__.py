"""`ramify search`: hyper-parameter search whose trials are runs that pause and continue."""
