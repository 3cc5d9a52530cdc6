"""The benchmarks: every number the README quotes has its command here.

Owns: traffic, measuring, plots, results/. Must not: be imported by what it measures.
"""
