"""Fine-tune an encoder into a stock image classifier, on a fold of a prepared corpus.

    accelerate launch recipes/finetune.py --config recipes/configs/busi/finetune.yaml \
        --corpus data/busi --fold 0 --model_name_or_path runs/busi/pretrain_texture/export

The corpus is the output of prepare_corpus.py. The model is chosen on the validation part, its probabilities are
calibrated there (--calibrate), and the test part is looked at once, at the end. ViT-B/16 at 224 pixels wants a GPU.
`output_dir` receives config.yaml (resolved), metrics.jsonl, all_results.json, predictions.parquet (the test part),
validation_predictions.parquet, checkpoints and export/ (a stock classifier of transformers with its processor and card,
as it goes to the Hub).
"""

from collections.abc import Sequence

from training.arguments import FINETUNING
from training.finetuning import FineTuning
from training.run import run_training


def main(argv: Sequence[str] | None = None) -> None:
    run_training(FineTuning, FINETUNING, argv, __doc__)


if __name__ == "__main__":
    main()
