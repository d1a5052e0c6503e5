"""The report of prepare_corpus.py: what was found in a corpus, as JSON, as a table, and as pictures of the pairs."""

import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from images.decode import decode_image
from images.fingerprint import COPY_BITS, COPY_CORRELATION, MAX_BITS, MIN_CORRELATION, MIN_SIDE, SimilarPair

MAX_PICTURES = 24  # pairs in a picture; all are listed in report.json
LISTED = 20  # file names a finding in report.md
SAMPLES = "report/samples.png"
SAMPLES_SHOWN, CLASSES_SHOWN = 6, 20  # images of a class, and classes
SIDE_SHOWN = 160  # pixels

TITLES = {
    "identical_pairs": "pairs of byte-identical images",
    "near_identical_pairs": "pairs of near-identical images",
    "label_conflicts": "pairs of copies with different labels (left out)",
    "suspected_conflicts": "pairs of near-identical images with different labels (kept)",
    "apart": "pairs of near-identical images in different groups (as near_identical has it)",
    "across_official_split": "pairs of (near-)identical images across the official split",
    "patients_across_official_split": "patients on both sides of the official split",
    "excluded": "images left out for a conflict of labels",
    "official_left_out": "training images left out of the official split, whose group is in its test part",
    "coloured": "colour images",
    "tiny": f"images with a side below {MIN_SIDE} pixels",
    "flat": "flat images",
    "other_white": "images with another white level than most, a mixture that finetune.py refuses (kept)",
    "unreadable": "files that cannot be read (left out)",
    "no_pictures": "DICOM files that are not pictures, by their SOP class (left out)",
    "unlabelled": "images without a label (left out)",
    "unlisted": "images that the table does not list (left out)",
    "not_infected": "slices that are not marked as infected (left out)",
}


def write_report(
    folder: Path,
    items: list,
    pairs: list[SimilarPair],
    joined: list[SimilarPair],
    conflicts: set[int],
    groups: list[str],
    left_out: dict[str, list[str]],
    splits: dict[str, Any],
    counts: dict[str, int],
) -> dict[str, Any]:
    """Write report.json, report.md and report/*.png.

    Args:
        folder: receives them.
        items: every image that was read (`items.Item`).
        pairs: of `similar_pairs`, by position in `items`.
        joined: those of them whose images are kept in one group.
        conflicts: positions that are left out.
        groups: of each image.
        left_out: finding ("unreadable"; "no_pictures", for their SOP class; "unlabelled"; "unlisted", by the
            table; "not_infected") -> of each file that is not among the images, its name and why.
        splits: of `make_splits`.
        counts: images of each split that is written.

    Returns:
        What report.json holds.
    """
    names = [item.record.file_name for item in items]
    official = [item.record.split for item in items]
    labels = [item.record.label for item in items]

    def described(pair: SimilarPair) -> dict[str, Any]:
        ends = (pair.first, pair.second)
        return {
            "files": [names[i] for i in ends],
            "labels": [labels[i] for i in ends],
            "splits": [official[i] for i in ends],
            "different_bits": pair.bits,
            "correlation": round(pair.correlation, 4),
        }

    def differ(values: list, pair: SimilarPair) -> bool:
        ends = values[pair.first], values[pair.second]
        return ends[0] != ends[1] and None not in ends

    chosen = {
        "identical_pairs": [pair for pair in pairs if pair.identical],
        "near_identical_pairs": [pair for pair in pairs if not pair.identical],
        "label_conflicts": [pair for pair in pairs if pair.is_copy and differ(labels, pair)],
        "suspected_conflicts": [pair for pair in pairs if not pair.is_copy and differ(labels, pair)],
        "apart": [pair for pair in pairs if groups[pair.first] != groups[pair.second]],
        "across_official_split": [pair for pair in pairs if differ(official, pair)],
    }
    sides: dict[str, set] = defaultdict(set)
    for item in items:
        if item.group is not None and item.record.split is not None:
            sides[item.group].add(item.record.split)
    own = splits["official"]
    kept = [i for i in range(len(items)) if i not in conflicts]
    whites = Counter(items[i].white for i in kept)
    usual = max(whites, key=whites.get, default=None)
    findings: dict[str, list] = {name: [described(pair) for pair in found] for name, found in chosen.items()}
    findings |= {
        "patients_across_official_split": sorted(name for name, found in sides.items() if len(found) > 1),
        "excluded": [names[i] for i in sorted(conflicts)],
        "official_left_out": own["left_out"] if own else [],
        "coloured": [names[i] for i in kept if items[i].coloured],
        "tiny": [names[i] for i in kept if min(items[i].size) < MIN_SIDE],
        "flat": [names[i] for i in kept if items[i].flat],
        "other_white": [names[i] for i in kept if items[i].white != usual],
        **left_out,
    }
    majority = len(findings["coloured"]) > len(kept) / 2
    if majority:  # a corpus in colour: only in a grey one are they a fault
        findings["coloured"] = []
    # What could not be looked for has no row in the tables: 0 would say that there is none.
    unchecked = set()
    patients = any(item.group is not None for item in items)
    # most corpora have no DICOM files at all, no table and no marked slices
    unchecked |= {name for name in ("no_pictures", "unlabelled", "unlisted", "not_infected") if not left_out[name]}
    if own is None:
        unchecked |= {"across_official_split", "patients_across_official_split", "official_left_out"}
    if not patients:
        unchecked.add("patients_across_official_split")
    if not chosen["apart"]:
        unchecked.add("apart")
    if len(whites) < 2:
        unchecked.add("other_white")
    if len(set(labels) - {None}) < 2:
        unchecked |= {"label_conflicts", "suspected_conflicts", "excluded"}
    if majority:
        unchecked.add("coloured")
    class_counts: dict[str, Counter] = defaultdict(Counter)
    of_class: dict[str, list] = defaultdict(list)
    content = hashlib.sha256()
    for i in kept:
        class_counts[labels[i] or "unlabelled"][official[i] or "train"] += 1
        of_class[labels[i] or "unlabelled"].append(items[i])
        content.update(repr((names[i], items[i].print.sha256, labels[i], official[i], groups[i])).encode())
    sizes = Counter(groups[i] for i in kept)
    report = {
        "content_sha256": content.hexdigest(),
        "images_read": len(items),
        "images_written": sum(counts.values()),
        "num_groups": len(sizes),
        "largest_group": max(sizes.values(), default=0),
        "share_of_pixels": {
            name: {"black": _mean(item.black for item in found), "white": _mean(item.bright for item in found)}
            for name, found in sorted(of_class.items())
        },
        "class_counts": {name: dict(by_split) for name, by_split in sorted(class_counts.items())},
        "official_split": own is not None,
        "official_left_out": len(findings["official_left_out"]),
        "rule": {
            "near_identical": f"at most {MAX_BITS} of 256 bits of the perceptual hash differ, correlation of 32 x 32 "
            f"thumbnails at least {MIN_CORRELATION}; or correlation at least {COPY_CORRELATION}",
            "copy": f"the same bytes, or at most {COPY_BITS} bits and correlation at least {COPY_CORRELATION}",
            "joined": f"{len(joined)} of the {len(pairs)} pairs keep their images in one group",
            "conflict": "all images of a pair of copies with different labels are left out",
        },
        "patients_known": patients,
        "white_levels": {f"{white:g}": count for white, count in sorted(whites.items())},
        "counts": {TITLES[name]: len(found) for name, found in findings.items() if name not in unchecked},
        "findings": findings,
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    (folder / "report").mkdir()
    if of_class:
        _draw_samples(folder / SAMPLES, of_class)
    pictures = {}
    for name, found in chosen.items():
        if found:
            pictures[name] = f"report/{name}.png"
            _draw_pairs(folder / pictures[name], TITLES[name], items, found)
    (folder / "report.md").write_text(_markdown(report, findings, pictures, any(item.original for item in items)))
    return report


def _markdown(report: dict[str, Any], findings: dict[str, list], pictures: dict[str, str], renamed: bool) -> str:
    lines = [
        "# Quality report",
        "",
        f"{report['images_read']} images read, {report['images_written']} written, in {report['num_groups']} groups "
        f"(the largest has {report['largest_group']} images).",
        *(["", f"![images of each class]({SAMPLES})"] if report["class_counts"] else []),
        "",
        "| class | images | pixels that are black | that are white |",
        "|---|---|---|---|",
        *(
            f"| {name} | {sum(counts.values())} | {report['share_of_pixels'][name]['black']:.0%} | "
            f"{report['share_of_pixels'][name]['white']:.0%} |"
            for name, counts in report["class_counts"].items()
        ),
        *(
            ["", "Files and patients have new names: whoever prepared the data set can look up the original ones."]
            * renamed
        ),
        "",
        "| finding | how many |",
        "|---|---|",
        *(f"| {title} | {count} |" for title, count in report["counts"].items()),
        "",
        *(f"- {name}: {text}." for name, text in report["rule"].items()),
    ]
    for name, found in findings.items():
        if not found:
            continue
        lines += ["", f"## {TITLES[name].capitalize()}", ""]
        if name in pictures:
            lines += [f"![{TITLES[name]}]({pictures[name]})", ""]
        for entry in found[:LISTED]:
            if isinstance(entry, dict):
                ends = zip(entry["files"], entry["labels"], strict=True)
                lines.append("- " + " and ".join(f"`{file}` ({label or 'no label'})" for file, label in ends))
            else:
                lines.append(f"- `{entry}`")
        if len(found) > LISTED:
            lines.append(f"- and {len(found) - LISTED} more, in report.json")
    return "\n".join(lines) + "\n"


def _mean(shares: Iterable[float]) -> float:
    return round(fmean(shares), 4)


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a name is a dollar
def _draw_samples(file: Path, of_class: dict[str, list]) -> None:
    """Images of each class, evenly spread, as a training will see their grey."""
    largest = sorted(of_class, key=lambda name: -len(of_class[name]))[:CLASSES_SHOWN]
    figure = Figure(figsize=(1.6 * SAMPLES_SHOWN, 1.8 * len(largest)), layout="constrained")
    if len(largest) < len(of_class):
        figure.suptitle(f"the {len(largest)} largest of {len(of_class)} classes")
    axes = figure.subplots(len(largest), SAMPLES_SHOWN, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for row, name in zip(axes, sorted(largest), strict=True):
        items = of_class[name]
        for axis, k in zip(row, range(min(SAMPLES_SHOWN, len(items))), strict=False):
            item = items[k * len(items) // min(SAMPLES_SHOWN, len(items))]
            image = decode_image(
                item.data.read(), name=item.record.file_name, num_channels=3, white_level=item.white_level
            )
            shown = Image.fromarray((image * 255).round().astype(np.uint8))
            shown.thumbnail((SIDE_SHOWN, SIDE_SHOWN))
            axis.imshow(shown)
        row[0].set_title(f"{name}, {len(items)}", fontsize=8, loc="left")
    figure.savefig(file, dpi=80)


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a name is a dollar
def _draw_pairs(file: Path, title: str, items: list, pairs: list[SimilarPair]) -> None:
    shown = sorted(pairs, key=lambda pair: (pair.bits, -pair.correlation))[:MAX_PICTURES]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.5 * rows + 0.6), layout="constrained")
    figure.suptitle(f"{title}: {len(pairs)}" + (f", the {len(shown)} most alike" if len(shown) < len(pairs) else ""))
    axes = figure.subplots(rows, 2 * columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for k, pair in enumerate(shown):
        for side, i in enumerate((pair.first, pair.second)):
            axis = axes[k // columns, 2 * (k % columns) + side]
            image = Image.open(io.BytesIO(items[i].data.read()))
            image.thumbnail((256, 256))
            deep = image.mode.startswith(("I", "F"))
            axis.imshow(image if deep else image.convert("RGB"), cmap="gray")
            record = items[i].record
            axis.set_title(f"{Path(record.file_name).name}\n{record.split or ''} {record.label or ''}", fontsize=7)
    figure.savefig(file, dpi=80)
