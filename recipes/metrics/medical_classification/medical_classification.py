"""Clinical figures of a classifier, as a module of `evaluate`."""

import inspect

import datasets
import evaluate

from .figures import classification_figures

_DESCRIPTION = """\
Accuracy, balanced accuracy, sensitivity, specificity, AUROC and F1 of predicted probabilities: of two classes those of
the positive one, of more their macro means, each class against the rest, and collapsed to two classes.
"""

_CITATION = """\
@article{pedregosa2011scikit,
  title = {Scikit-learn: Machine Learning in Python},
  author = {Pedregosa, Fabian and others},
  journal = {Journal of Machine Learning Research},
  year = {2011}
}
"""


class MedicalClassification(evaluate.Metric):
    """`compute` takes, returns and raises what `classification_figures` does."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=inspect.getdoc(classification_figures),
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, positive=None, class_names=None, folds=None):
        return classification_figures(predictions, references, positive, class_names, folds)
