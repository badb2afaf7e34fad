"""The end of a run, and the evaluation of saved models: tested from images, scored, shown."""

from pharmclf.finish.again import finish_again, untested
from pharmclf.finish.run import finish
from pharmclf.finish.saved import EvaluationOptions, evaluate_saved
from pharmclf.finish.sets import extra_sets

__all__ = ["EvaluationOptions", "evaluate_saved", "extra_sets", "finish", "finish_again", "untested"]
