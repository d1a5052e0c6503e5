"""Pretrain a masked autoencoder on your own images, judged by texture.

    python recipes/pretrain.py --config recipes/configs/quickstart.yaml

runs on two CPU cores in minutes. ViT-B/16 at 224 pixels wants a GPU: recipes/README.md has the configs of the corpora,
many GPUs, and how to resume. `output_dir` receives config.yaml (resolved), metrics.jsonl, all_results.json,
reconstructions/*.png, checkpoints and export/ (the encoder, the whole model and a card, as they go to the Hub).
"""

from collections.abc import Callable, Sequence
from typing import Any

from commandline import answer_early, run_main
from training.options import MORE_OPTIONS, PRETRAINING_OPTIONS


def check(*arguments: Any) -> Callable[[], None] | None:
    """Find what is wrong; returns the training."""
    from training.pretraining import Pretraining  # here: a mistyped option need not wait for these
    from training.run import prepare_run

    return prepare_run(Pretraining, *arguments)


def main(argv: Sequence[str] | None = None) -> None:
    answer_early(PRETRAINING_OPTIONS, argv, __doc__, MORE_OPTIONS)
    from training.arguments import MISTAKES, PRETRAINING  # here: it needs torch, and help does not

    run_main(check, PRETRAINING, argv, __doc__, MISTAKES)


if __name__ == "__main__":
    main()
