"""The servers that hotset is measured against, each a small file: how to get it, how to
start it, how to ask it. Nothing here measures (bench/hit.py, bench/fleet.py)."""
