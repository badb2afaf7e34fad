"""Checks of machines, storage and data before a run: what there is, what is wrong, and the remedy.

Facts are collected on the node that they describe (`inspect_*`, `probe_*`); pure functions judge them (`check_*`).
"""
