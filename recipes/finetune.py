"""Fine-tune an encoder into a stock image classifier, on a fold of a prepared corpus.

    accelerate launch recipes/finetune.py --config recipes/configs/busi/finetune.yaml \
        --corpus data/busi --fold 0 --model_name_or_path runs/busi/pretrain_texture/export

The corpus is the output of prepare_corpus.py. The model is chosen on the validation part, and the test part is looked
at once, at the end. ViT-B/16 at 224 pixels wants a GPU. `output_dir` receives config.yaml (resolved), metrics.jsonl,
all_results.json, predictions.parquet (the test part), validation_predictions.parquet, checkpoints and export/ (a stock
`ViTForImageClassification` with its processor and card, as it goes to the Hub).
"""

import logging
import sys
from collections.abc import Sequence

from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError

from commandline import UsageError, parse_args
from corpora.record import BadImageError
from training.arguments import ClassifierArguments, FinetuningArguments, LabelledDataArguments
from training.finetuning import Run

logger = logging.getLogger("finetune")


def main(argv: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        arguments = parse_args(
            (ClassifierArguments, LabelledDataArguments, FinetuningArguments), argv, description=__doc__
        )
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
    run.trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
