"""The report: results of studies as one HTML page, and as Markdown with pictures beside it.

It knows tables, charts, examples and bars (studies/figures.py), and no study by name.
"""
