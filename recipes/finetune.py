"""Fine-tune an encoder into a stock image classifier, on a fold of a prepared corpus.

    python recipes/finetune.py --config recipes/configs/busi/finetune.yaml \
        --corpus data/busi --fold 0 --model_name_or_path runs/busi/pretrain_texture/export

The corpus is the output of prepare_corpus.py. The model is chosen on the validation part, its probabilities are
calibrated there (--calibrate), and the test part is looked at once, at the end. ViT-B/16 at 224 pixels wants a GPU.
`output_dir` receives config.yaml (resolved), metrics.jsonl, all_results.json, predictions.parquet (the test part),
validation_predictions.parquet, checkpoints and export/ (a stock classifier of transformers with its processor and card,
as it goes to the Hub).
"""

from collections.abc import Callable, Sequence
from typing import Any

from commandline import answer_early, run_main
from training.classifier_options import FINETUNING_OPTIONS
from training.options import MORE_OPTIONS


def check(*arguments: Any) -> Callable[[], None] | None:
    """Find what is wrong; returns the training."""
    from training.finetuning import FineTuning  # here: a mistyped option need not wait for these
    from training.run import prepare_run

    return prepare_run(FineTuning, *arguments)


def main(argv: Sequence[str] | None = None) -> None:
    answer_early(FINETUNING_OPTIONS, argv, __doc__, MORE_OPTIONS)
    from training.arguments import FINETUNING, MISTAKES  # here: it needs torch, and help does not

    run_main(check, FINETUNING, argv, __doc__, MISTAKES)


if __name__ == "__main__":
    main()
