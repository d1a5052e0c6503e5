"""From downloads to a release on the Hub: prepare, pretrain and fine-tune in every fold, publish all that came of it.

    python recipes/release.py --org ORG --data_dir DATA --corpora busi covid_ct pneumonia gbcu --output_dir runs/release

DATA holds a folder for each corpus, called as it is: DATA/busi, DATA/gbcu. Published are for each an encoder, a
classifier with the figures of all folds, and the data set where its licence allows; then the metric, the demo, and a
collection of them all. `--dry_run true` checks and shows the plan. The same command again goes on where it stopped. At
ViT-B this takes a GPU and days. `output_dir` receives data/<corpus> (of prepare_corpus.py), <corpus> (of
cross_validate.py).
"""

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from commandline import ending_children, run_main
from hub.contents import PublishArguments, publication_of
from hub.publication import Publication
from hub.repository import check_owner, look_at_repository, open_repository, publish, set_variable
from output_folder import check_output
from training.release_plan import Corpus, ReleaseArguments, corpora_of

logger = logging.getLogger("release")
RECIPES = Path(__file__).resolve().parent
DEMO = RECIPES.parent / "hub_cards" / "space"
METRIC = RECIPES / "metrics" / "medical_classification"


def step(script: str, options: Sequence[str], environment: dict[str, str] | None = None) -> None:
    """Run another recipe, whose messages are those of this one."""
    logger.info("%s.py %s", script, shlex.join(options))
    command = [sys.executable, str(RECIPES / f"{script}.py"), *options]
    with ending_children():
        code = subprocess.run(command, env={**os.environ, **(environment or {})}).returncode
    if code:
        sys.exit(code if code > 0 else f"error: {script}.py was ended by signal {-code}")


def rehearse(corpus: Corpus) -> None:
    """Find what is wrong with settings and images, unless cross_validate.py, which does so too, has begun."""
    if corpus.prepared and not (corpus.run / "config.yaml").is_file():
        one = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
        step("pretrain", corpus.pretrain, one)
        step("finetune", corpus.finetune, one)


def cross_validate(corpus: Corpus, args: ReleaseArguments) -> None:
    """Train and judge every fold that is not finished."""
    given = {"pretrain_options": args.pretrain_options, "finetune_options": args.finetune_options, "folds": args.folds}
    more = [text for name, values in given.items() if values for text in (f"--{name}", *values)]
    configs = ["--pretrain_config", corpus.configs[0], "--finetune_config", corpus.configs[1]]
    where = ["--corpus", str(corpus.data), "--output_dir", str(corpus.run), "--jobs", str(args.jobs)]
    step("cross_validate", [*where, *configs, *more])


def repository_of(asked: dict[str, Any]) -> Publication:
    """The publication as far as it is known before a training; of a space, whole."""
    if asked.get("repo_type") == "space":
        return publication_of(PublishArguments(**asked))[0]
    names = ("repo_id", "repo_type", "private")
    return Publication(Path(asked["export_dir"]), **{name: asked[name] for name in names if name in asked})


def publish_one(asked: dict[str, Any]) -> None:
    """Publish, unless that very content is there already."""
    publication, folder = publication_of(PublishArguments(**asked))
    repo_type = asked.get("repo_type", "model")
    print(f"-- {repo_type} {publication.repo_id}", flush=True)
    what = {"model": "Model", "dataset": "Data set", "space": folder.name}[repo_type]
    for line in publish(publication, f"{what}, published with GLCM-MAE", None if repo_type == "space" else folder):
        print(line, flush=True)


def show_plan(args: ReleaseArguments, corpora: list[Corpus], asked: list[dict[str, Any]]) -> None:
    """What is done, and what would be published where; only reads."""
    for corpus in corpora:
        print("\n".join(corpus.state()))
        if corpus.kept_back:
            print(f"data set {corpus.name} is not published: {corpus.kept_back}")
    print("would publish to (where it is, only if something has changed)")
    for one in asked:
        there = "is there" if look_at_repository(repository_of(one)) else "is new"
        print(f"  {one.get('repo_type', 'model'):<8} {one['repo_id']:<48} {there}")
    print(f"and list all of them in the collection {args.collection!r} of {args.org}")


def run(args: ReleaseArguments) -> Callable[[], None] | None:
    """Check everything that can be known; what is left to do is the work."""
    args.output_dir = str(check_output(args.output_dir))  # without ~
    corpora = corpora_of(args)
    for_all = {"private": args.private, "collection": args.collection}
    asked = {corpus.name: [one | for_all for one in corpus.published(args)] for corpus in corpora}
    metric = {"export_dir": METRIC, "repo_id": f"{args.org}/medical_classification", "repo_type": "space"} | for_all
    demo = {"export_dir": DEMO, "repo_id": f"{args.org}/glcm-mae-demo", "repo_type": "space"} | for_all
    everything = [*(one for found in asked.values() for one in found), metric, demo]
    check_owner(repository_of(demo))
    if args.dry_run:
        show_plan(args, corpora, everything)
        for corpus in corpora:
            rehearse(corpus)
        return None
    for one in everything:  # those of others are known before any is made
        look_at_repository(repository_of(one))
    for one in everything:
        open_repository(repository_of(one))

    def work() -> None:
        for corpus in corpora:
            if not corpus.prepared:
                step("prepare_corpus", corpus.prepare)
        for corpus in corpora[1:]:  # the first one is trained at once
            rehearse(corpus)
        for corpus in corpora:
            cross_validate(corpus, args)
            for one in asked[corpus.name]:
                publish_one(one)
            if corpus.kept_back:
                logger.warning("data set %s is not published: %s", corpus.name, corpus.kept_back)
        publish_one(metric)
        set_variable(repository_of(demo), "GLCM_MAE_MODEL", asked[corpora[0].name][-1]["repo_id"])
        publish_one(demo)

    return work


def main(argv: Sequence[str] | None = None) -> None:
    run_main(run, (ReleaseArguments,), argv, __doc__)


if __name__ == "__main__":
    main()
