"""The saved model in the formats of other runtimes, each one tried in its own runtime before it is handed over."""
