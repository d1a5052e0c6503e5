"""Pretrain a masked autoencoder on your own images, judged by texture.

    accelerate launch recipes/pretrain.py --config recipes/configs/quickstart.yaml

runs on two CPU cores in minutes. ViT-B/16 at 224 pixels wants a GPU: recipes/README.md has the configs of the corpora,
many GPUs, and how to resume. `output_dir` receives config.yaml (resolved), metrics.jsonl, all_results.json,
reconstructions/*.png, checkpoints and export/ (the encoder, the whole model and a card, as they go to the Hub).
"""

from collections.abc import Sequence

from training.arguments import PRETRAINING
from training.pretraining import Pretraining
from training.run import run_training


def main(argv: Sequence[str] | None = None) -> None:
    run_training(Pretraining, PRETRAINING, argv, __doc__)


if __name__ == "__main__":
    main()
