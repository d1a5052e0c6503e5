"""From a raw download to a checked data set: Parquet, splits, a quality report and a card.

    python recipes/prepare_corpus.py --corpus busi --data_dir path/to/download --output_dir data/busi

`--corpus`: busi, pneumonia, covid_ct, gbcu, bus_uclm, medmnist, speckle (generated), OWNER/NAME (a data set on the
Hub), or folder: any tree with a folder a class, a table (`--table FILE.csv` with columns file, label, patient), DICOM
files, or Parquet files. No GPU; minutes for thousands of images, which do not pass through memory all at once;
`--num_workers` decodes them in several processes.

`output_dir` receives data/*.parquet (`datasets.load_dataset(output_dir)` reads them), splits.json, report.json,
report.md and pictures of what was found, README.md (the data set's card) and config.yaml. Images and patients of your
own get names of our own there; private/names.csv, which is never published, knows the original ones.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import yaml
from huggingface_hub import DatasetCard, DatasetCardData

from commandline import UsageError, run_main
from corpora.facts import FACTS, CorpusFacts, facts_of, known_name
from hub.cards import DATA_ADDRESS
from hub.contents import PublishArguments, publication_of
from hub.repository import publish
from images.arguments import MIN_SALT, PrepareArguments
from images.pseudonyms import PRIVATE, STOPPED, publishable, with_written_names, write_names
from output_folder import STAGING, WRITTEN_LIST, check_output, replaced_folder

logger = logging.getLogger("prepare_corpus")
CARD_TEMPLATE = Path(__file__).resolve().parent.parent / "hub_cards" / "dataset.md"
WRITTEN = (
    *("data", "splits.json", "report", "report.json", "report.md", "README.md", "config.yaml"),
    *(".gitignore", PRIVATE),
)
NOT_PUBLISHED = ("salt", "data_dir", "table", "output_dir", "num_workers")  # a secret, and what is of this machine


def prepare(args: PrepareArguments) -> Path:
    """Do all of it; returns the output folder. What it receives is put in place when it is whole.

    Raises:
        ValueError, OSError: on a mistake in the arguments or the images, in one clear message.
    """
    # Here: these need torch and more, and help does not.
    from corpora.load import parquet_files
    from hub.export import without_paths
    from images.fingerprint import merged_groups, similar_pairs
    from images.grouping import pairs_that_join, told_of_few_groups
    from images.items import (
        features_of,
        find_conflicts,
        find_unlisted,
        read_items,
        tell_clipping,
        warn_of_mixed_depths,
        without_images,
        write_parquet,
    )
    from images.known import Known, remember
    from images.report import write_report
    from images.splits import SplitError, make_splits

    output = check_output(args.output_dir)
    stopped = output / STOPPED
    before_ours = () if stopped.exists() and not (stopped / WRITTEN_LIST).is_file() else (STOPPED,)
    occupied = output.exists() and any(
        not entry.name.startswith(STAGING) and entry.name not in (*before_ours, WRITTEN_LIST)
        for entry in output.iterdir()
    )
    if occupied and not args.overwrite_output_dir:
        raise UsageError(
            f"output_dir {output} is not empty: pass --overwrite_output_dir to replace it, or another folder"
        )
    for name in ("data_dir", "table"):
        source = getattr(args, name)
        if source is not None and Path(source).expanduser().resolve().is_relative_to(output.resolve()):
            raise UsageError(f"output_dir {output} holds {name} {source}, which would be deleted: give another folder")
    # A data set in there would be part of the download from then on.
    if args.data_dir is not None and output.resolve().is_relative_to(Path(args.data_dir).expanduser().resolve()):
        raise UsageError(f"output_dir {output} must not be inside data_dir {args.data_dir}: give another folder")
    if occupied and not (output / "splits.json").is_file():
        raise UsageError(f"output_dir {output} is not empty and not a prepared corpus: give another folder")
    if len(args.salt) < MIN_SALT:
        logger.warning("salt has %d characters, which can be guessed: take at least %d", len(args.salt), MIN_SALT)
    if args.push_to_hub and args.keep_file_names and args.corpus not in FACTS:
        source = args.data_dir or args.corpus
        logger.warning("keep_file_names: file names and patients of %s are published as they are", source)
    items, class_names, left_out = read_items(args)
    left_out |= find_unlisted(args, items, sum(left_out.values(), []))
    if args.keep_file_names:
        reasons = {why: [reason for _, reason in files] for why, files in left_out.items()}
    else:
        items = with_written_names(items, args.salt)
        reasons = {why: sorted(publishable(file, args.salt) for file in files) for why, files in left_out.items()}
    pairs = similar_pairs([item.print for item in items])
    conflicts = find_conflicts(items, pairs)
    if conflicts:
        logger.warning(
            "%d image(s) are left out, since a copy of each has another label: see report.md", len(conflicts)
        )
    patients = [item.group for item in items]
    joined = pairs_that_join(pairs, patients, args.near_identical)
    groups = merged_groups(patients, joined)
    apart = [pair for pair in pairs if groups[pair.first] != groups[pair.second]]
    if apart:
        logger.warning(
            "%d pair(s) of images look alike and are in different groups, as near_identical %s has it: where they show "
            "one patient, figures will be too good",
            *(len(apart), args.near_identical),
        )
    kept = [i for i in range(len(items)) if i not in conflicts]
    warn_of_mixed_depths(items[i] for i in kept)
    tell_clipping([items[i] for i in kept])
    features = features_of([items[i] for i in kept], class_names)
    table = without_images([items[i] for i in kept], [groups[i] for i in kept], features)
    official = [items[i].record.split for i in kept] if items[0].record.split else None
    how = {"num_folds": args.num_folds, "seed": args.seed, "by_content": not args.keep_file_names}
    before = [item.original or item.record for item in items]  # what the user knows them by
    known_as = [before[i].group or before[i].file_name for i in kept]
    try:
        splits = make_splits(table, official=official, known_as=known_as, **how)
    except SplitError as error:
        with replaced_folder(stopped, None if before_ours else ("report", "report.json", "report.md")) as new:
            write_report(new, items, pairs, joined, conflicts, groups, reasons, {"official": None}, {})
        classes = [None if i in conflicts else item.record.label for i, item in enumerate(items)]
        names = [record.file_name for record in before]
        why = told_of_few_groups(args.num_folds, args.near_identical, classes, patients, groups, joined, names)
        told = ". ".join(filter(None, (str(error), why, f"All that was found is in {stopped / 'report.md'}")))
        raise SplitError(told) from error
    splits["near_identical"] = args.near_identical
    with replaced_folder(output, (*WRITTEN, *before_ours)) as new:
        counts = {}
        (new / "data").mkdir()
        for split in ("train", "validation", "test"):
            chosen = [i for i in kept if (items[i].record.split if official else "train") == split]
            if chosen:
                counts[split] = len(chosen)
                write_parquet([items[i] for i in chosen], [groups[i] for i in chosen], features, new / "data", split)
        (new / "splits.json").write_text(json.dumps(splits, indent=1) + "\n")
        settings = {name: value for name, value in asdict(args).items() if name not in NOT_PUBLISHED}
        settings["corpus"] = known_name(args.corpus, args.data_dir) or args.corpus  # by which its facts are found
        (new / "config.yaml").write_text(yaml.safe_dump(without_paths(settings), sort_keys=False))
        report = write_report(new, items, pairs, joined, conflicts, groups, reasons, splits, counts)
        if not args.keep_file_names:
            write_names(new, items, groups, conflicts, sum(left_out.values(), []), args.salt)
        _write_card(new / "README.md", args, report, counts, class_names, features)
    # What a training would find.
    names = {i: items[i].record.file_name for i in kept}
    alike = [(names[pair.first], names[pair.second]) for pair in apart if {pair.first, pair.second} <= names.keys()]
    written = {items[i].print.sha256: (*items[i].size, items[i].deep) for i in kept}
    remember([file for of_split in parquet_files(output).values() for file in of_split], Known(alike, written))
    return output


def _write_card(file: Path, args: PrepareArguments, report: dict, counts: dict, class_names, features) -> None:
    facts = facts_of(args.corpus, args.data_dir) or CorpusFacts(title="Images of a folder")
    total = sum(counts.values())
    size = next(
        (name for limit, name in ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K")) if total < limit), "100K<n<1M"
    )
    gating = {}
    if facts.no_copies:
        gating = {
            "extra_gated_prompt": facts.no_copies,
            "extra_gated_fields": {"Name": "text", "Institution": "text", "I have the authors' permission": "checkbox"},
        }
    metadata = DatasetCardData(
        pretty_name=facts.title,
        license=facts.licence_id,
        license_name=facts.licence_name,
        task_categories=["image-classification"] if class_names else None,
        size_categories=[size],
        tags=["medical", "image"],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in counts],
                # datasets (5.2) caches a local folder by its name and this section only: without something of the
                # content, a corpus that was prepared anew would load as it was before.
                "description": f"sha256 of the images and labels: {report['content_sha256']}",
            }
        ],
        **gating,
    )
    card = DatasetCard.from_template(
        metadata,
        template_path=str(CARD_TEMPLATE),
        facts=facts,
        repo_id=DATA_ADDRESS,
        counts=counts,
        class_counts=report["class_counts"],
        report=report,
        columns=list(features),
        num_folds=args.num_folds,
        seed=args.seed,
        keep_file_names=args.keep_file_names,
    )
    card.save(file)


def push(output: Path, repo_id: str, private: bool) -> None:
    """Publish the folder, and print where.

    Raises:
        UsageError: what is wrong, and how to go on.
    """
    publication, _ = publication_of(PublishArguments(str(output), repo_id, "dataset", private=private))
    how_to_go_on = f"to go on: {publication.command}"  # the same command would prepare it anew
    try:
        for line in publish(publication, "Prepared data set", output, how_to_go_on):
            print(line, flush=True)
    except (UsageError, OSError) as error:
        raise UsageError(f"push_to_hub: {error}") from error


def run(args: PrepareArguments) -> Callable[[], None] | None:
    """Prepare the corpus; pushing it, where that is asked for, is what is left to do."""
    output = prepare(args)
    print(f"data set {output}")
    print(f"report   {output / 'report.md'}")
    if not args.keep_file_names:
        print(f"names    {output / PRIVATE / 'names.csv'}, which is not published")
    return (lambda: push(output, args.push_to_hub, args.private)) if args.push_to_hub else None


def main(argv: Sequence[str] | None = None) -> None:
    run_main(run, (PrepareArguments,), argv, __doc__)


if __name__ == "__main__":
    main()
