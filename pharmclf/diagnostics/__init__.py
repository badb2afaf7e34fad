"""Examines machines, storage and data before a run: what is there, what is wrong with it, and how to mend it.

Each check collects facts on the node that they are about, and a pure function judges them.
"""
