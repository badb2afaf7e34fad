"""The end of a run, and the evaluation of saved models: tested from images, scored, shown."""

from pharmclf.evaluation.datasets import external_datasets
from pharmclf.finish.again import finish_again, untested
from pharmclf.finish.run import finish
from pharmclf.finish.saved import EvaluationOptions, evaluate_saved

__all__ = ["EvaluationOptions", "evaluate_saved", "external_datasets", "finish", "finish_again", "untested"]
