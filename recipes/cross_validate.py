"""Cross-validate: for every fold pretrain, fine-tune and predict; then one table, with intervals and curves.

    python recipes/cross_validate.py --corpus data/busi --output_dir runs/busi/texture \
        --pretrain_config recipes/configs/busi/pretrain_texture.yaml \
        --finetune_config recipes/configs/busi/finetune.yaml

Each fold pretrains on its own training part only. Without `--pretrain_config`, `--checkpoint` gives the encoders: one
for all folds, or a path with `{fold}` in it. The same command again goes on where it was interrupted.

    python recipes/cross_validate.py --corpus data/busi --output_dir runs/busi/classical --mode texture_features

No network, but a logistic regression on co-occurrence features: the bar to pass, in minutes on a CPU.

    python recipes/cross_validate.py compare runs/busi/texture runs/busi/classical runs/busi/mse \
        --baseline runs/busi/mse --output_dir runs/busi/compared

Two runs or more, each against the baseline (the last one if left out).

`output_dir` receives fold_<k>/pretrain and fold_<k>/finetune (or fold_<k>/texture_features), predictions.parquet (every
fold), summary.json, summary.md and curves.png; `compare` writes comparison.json, comparison.md and comparison.png.
"""

import itertools
import sys
from collections.abc import Sequence

from commandline import ending_children, run_main
from hub.contents import PublishArguments, publication_of
from hub.publication import Publication
from hub.repository import open_repository, publish
from output_folder import check_output
from training.fold_options import CompareArguments, CrossValidationArguments


def run_folds(args: CrossValidationArguments) -> None:
    """Train and judge every fold, and publish if that is asked for."""
    from training.cross_validation import cross_validate  # here: it needs torch, and help does not

    output = check_output(args.output_dir)
    if args.push_to_hub:  # known before hours of training
        open_repository(Publication(output, args.hub_model_id, private=args.hub_private_repo))
    with ending_children():
        output = cross_validate(args)
    print((output / "summary.md").read_text())
    print(f"curves {output / 'curves.png'}", flush=True)
    if args.push_to_hub:
        asked = PublishArguments(str(output), args.hub_model_id, private=args.hub_private_repo)
        publication, model = publication_of(asked)
        for line in publish(publication, "Cross-validated", model):
            print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] != ["compare"]:
        run_main(run_folds, (CrossValidationArguments,), given, __doc__)
        return
    runs = list(itertools.takewhile(lambda word: not word.startswith("-"), given[1:]))
    if len(runs) < 2:
        sys.exit("error: compare needs two folders or more: compare RUN_A RUN_B")

    def compare(args: CompareArguments) -> None:
        from training.cross_validation import compare_runs  # here, as above

        output = compare_runs(runs, args)
        print((output / "comparison.md").read_text())
        print(f"curves {output / 'comparison.png'}")

    run_main(compare, (CompareArguments,), given[1 + len(runs) :], __doc__)


if __name__ == "__main__":
    main()
