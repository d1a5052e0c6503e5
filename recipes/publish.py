"""Publish an export on the Hugging Face Hub: one commit, loaded back in a fresh process, and a tag.

    python recipes/publish.py --export_dir runs/busi/texture --repo_id ORG/glcm-mae-busi --dry_run true
    python recipes/publish.py --export_dir runs/busi/texture --repo_id ORG/glcm-mae-busi

`--export_dir` is the export/ of pretrain.py or finetune.py, or the output of cross_validate.py, of which one fold's
classifier is published with the figures of all. With `--repo_type dataset` it is the output of prepare_corpus.py, with
`--repo_type space` a folder of hub_cards/ or recipes/metrics/. A repository that this did not write is refused.
`--onnx true` also publishes onnx/model.onnx, which runs without PyTorch (needs the extra `onnx`).
Interrupted, the same command goes on. Log in first with `hf auth login`, or set HF_TOKEN.
"""

import logging
from collections.abc import Sequence

from huggingface_hub import ModelCard

from commandline import run_main
from hub.contents import PublishArguments, publication_of
from hub.repository import publish, shown
from judging.tables import NOTHING_SHOWN

logger = logging.getLogger("publish")


def run(args: PublishArguments) -> None:
    """Publish, or show what would be published."""
    publication, folder = publication_of(args)
    if args.repo_type == "model" and not ModelCard(publication.files["README.md"].decode()).data.license:
        logger.warning("the card names no licence: --license ID, e.g. cc-by-4.0")
    if args.repo_type == "model" and NOTHING_SHOWN in publication.files["README.md"].decode():
        logger.warning("what is published has learned nothing that can be shown; its card says so first")
    if args.dry_run:
        print("\n".join(shown(publication)))
        return
    for name, reason in publication.left_out.items():
        logger.info("left out %s: %s", name, reason)
    what = "Model" if args.repo_type == "model" else folder.name
    loaded_back = None if args.repo_type == "space" else folder
    for line in publish(publication, f"{what}, published with GLCM-MAE", loaded_back):
        print(line, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    run_main(run, (PublishArguments,), argv, __doc__)


if __name__ == "__main__":
    main()
