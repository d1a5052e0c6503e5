"""Where does a classifier look, and where does a texture surprise an autoencoder? Heat maps over images.

    python recipes/explain.py --model_name_or_path path/to/classifier --corpus path/to/images --output_dir overlays
    python recipes/explain.py --method surprise --model_name_or_path path/to/encoder --corpus path/to/images

Occlusion and attention roll-out show where a classifier's answer is sensitive. They do not show why, do not outline a
lesion, and look convincing for a wrong answer too. Use them to find models that look at calipers and labels, not to
trust one.

Surprise takes the export of a pretraining with a texture head: each patch is hidden several times, and the map shows
how far its co-occurrence matrices are from what the head predicts from what is around it (KL divergence, in nats).
Borders, labels and noise surprise too; a lesion that looks like its surroundings does not. CPU is enough for all.
"""

from collections.abc import Sequence

from commandline import run_main
from images.looking import ExplainArguments


def run(args: ExplainArguments) -> None:
    """Draw the overlays, and print where they are."""
    from training.explaining import explain  # here: it needs torch, and help does not

    print(f"{len(explain(args))} overlays in {args.output_dir}")


def main(argv: Sequence[str] | None = None) -> None:
    run_main(run, (ExplainArguments,), argv, __doc__)


if __name__ == "__main__":
    main()
