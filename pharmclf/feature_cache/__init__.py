"""Feature cache: the outputs of the frozen part of a backbone for every image and view, computed once and stored.

A cache is a folder `<storage>/activations/<key>/`: shards of equal shape, and `index.json`, written last. The key is
the fingerprint of everything that decides the values. Phases, workers, resumed runs and all trials of a sweep with the
same key share one cache.
"""
