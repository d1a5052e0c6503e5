"""Pretrain a masked autoencoder on your own images, judged by texture.

    accelerate launch recipes/pretrain.py --config recipes/configs/quickstart.yaml

runs on two CPU cores in minutes. ViT-B/16 at 224 pixels wants a GPU: recipes/README.md has the configs of the corpora,
many GPUs, and how to resume. `output_dir` receives config.yaml (resolved), metrics.jsonl, all_results.json,
reconstructions/*.png, checkpoints and export/ (the encoder, the whole model and a card, as they go to the Hub).
"""

import logging
import sys
from collections.abc import Sequence

from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError

from commandline import UsageError, parse_args
from corpora.record import BadImageError
from training.arguments import DataArguments, ModelArguments, PretrainingArguments
from training.pretraining import Run

logger = logging.getLogger("pretrain")


def main(argv: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        arguments = parse_args((ModelArguments, DataArguments, PretrainingArguments), argv, description=__doc__)
        if not PartialState().is_main_process:
            logging.getLogger().setLevel(logging.ERROR)
        run = Run(*arguments)
    except (ValueError, OSError, StrictDataclassError) as error:
        logger.debug("where it was found", exc_info=True)
        sys.exit(f"error: {error}")
    try:
        run.train()
    except (FloatingPointError, BadImageError, UsageError) as error:
        sys.exit(f"error: {error}")
    run.trainer.end()


if __name__ == "__main__":
    main()
