"""Methods x probes x seeds: `plan.py` lists the jobs, `runner.py` runs them, `report.py` writes the page."""
