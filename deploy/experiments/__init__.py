"""Experiments: suites of methods, tuned with equal budgets, run over seeds, compared with intervals and reported.

`suite.py` reads what a suite is, `cells.py` and `runner.py` run it, `tuning.py` chooses step sizes, `finished.py` reads
the runs back, `statistics.py`, `comparison.py` and `hypotheses.py` judge, `tables.py` and the `report_*` modules show.
"""
