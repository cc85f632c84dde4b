"""Studies: one command and one YAML each, from a trained run to a result that the report shows.

`pit-train study CONFIG` comes to run.py: it trains what is missing (variants.py), asks the systems
(systems.py) through `pit serve` (asking.py), has the answers judged (judging.py), and writes one JSON file
(figures.py). What each study measures is a file of its own; `run.STUDIES` names them all.
"""
