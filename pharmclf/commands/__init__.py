"""The commands of `pharmclf`: each module has its help text as docstring, and a function main."""
