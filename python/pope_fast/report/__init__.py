"""Evaluations as people and programs want them: terminal table, HTML page, JSON and Arrow.

Every module here reads a finished :class:`~pope_fast.evaluate.results.Evaluation` and computes no statistics.

- :mod:`pope_fast.report.table`: a table for the terminal, or as plain text;
- :mod:`pope_fast.report.html`: a self-contained page, also what a notebook shows;
- :mod:`pope_fast.report.json`: plain dicts, and the shape of lm-evaluation-harness results;
- :mod:`pope_fast.report.arrow`: one row per policy and metric.
"""
