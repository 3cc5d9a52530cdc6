"""Decisions: who holds how many bytes, and who leaves when room is needed.

Owns: policies, the ledger, the plan. Must not: read a clock, wait, do I/O or import
anything outside the standard library; everything it knows it was told.
"""
