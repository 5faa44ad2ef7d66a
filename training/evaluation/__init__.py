"""How good is a router, beside everything cheaper: report, plots and the baselines."""
