"""Methods x probes x seeds: `plan.py` says what is to be run, `carry_out.py` runs it, `report.py` writes the page."""
