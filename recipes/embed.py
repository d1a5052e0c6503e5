"""Features of every image of a corpus, as a Parquet table.

    python recipes/embed.py --corpus path/to/images --features texture --output_dir features
    python recipes/embed.py --corpus data/busi --features mean --model_name_or_path path/to/export --plot pca
    python recipes/embed.py --corpus data/busi --features mean --model_name_or_path path/to/export --neighbours 8

`cls`, `mean`, `grid`: of the last layer of an encoder (an export of pretrain.py, a classifier of finetune.py, any ViT
or ViTMAE checkpoint) the CLS token, the mean of the patch tokens, or their means in each of 3 x 3 parts of the image,
row by row, side by side: nine times as many columns, which tell where. Nothing is masked and nothing is random: the
same image gives the same numbers, whatever the batch size, to float32 rounding (1e-5).

`texture`: the 25 co-occurrence features of IBSI (`modeling_glcm_mae.texture_features`) of the grey image at its own
size. Grey levels are equal parts of the range from black to white (`--levels`), pairs are counted in both orders, four
directions per distance, and each feature is averaged over directions and distances.

`--neighbours K`: the K nearest images of each, by cosine similarity of the encoder's features. An image is not its own
neighbour; copies and images of the same group are, and marked. Writes neighbours.parquet (file_name, rank, neighbour,
similarity, identical, same_group, and both labels where there are any), and neighbours.png, a row for each of at most
12 images.

Writes features.parquet (file_name, label, group and sha256 if the corpus has them, one column per feature: names of
IBSI, or 0000, 0001, ...; the order of the corpus), config.yaml, and with `--plot pca` the picture features.png.
"""

from collections.abc import Sequence

from commandline import run_main
from images.looking import EmbedArguments


def run(args: EmbedArguments) -> None:
    """Compute the features, and print where they are."""
    from training.embedding import embed  # here: it needs torch, and help does not

    features = embed(args)
    print(f"features {features}")
    for picture in ("features.png", "neighbours.png"):
        if (features.parent / picture).exists():
            print(f"picture  {features.parent / picture}")


def main(argv: Sequence[str] | None = None) -> None:
    run_main(run, (EmbedArguments,), argv, __doc__)


if __name__ == "__main__":
    main()
