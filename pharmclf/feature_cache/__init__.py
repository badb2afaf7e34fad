"""Frozen activations: what the frozen part of a backbone gives for every image and view, computed once and kept.

They lie under `<storage>/activations/<key>/`: shards of equal shape, and `index.json`, written last. The key is the
fingerprint of everything that decides their values, so that phases, workers, resumed runs and all trials of a sweep
share them, and nothing else does.
"""
