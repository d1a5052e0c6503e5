"""Where results go: links and mounted folders, what of others lies beside them, and what is known before the work."""

import errno
import importlib
import os
import threading
from pathlib import Path

import pytest
import yaml
from helpers import encode, grey, write
from test_prepare_corpus import arguments, picture
from transformers import TrainingArguments

import output_folder
import prepare_corpus
from commandline import UsageError
from hub.export import write_export
from hub.never_published import files_of
from images.transform import ImageTransform
from modeling_glcm_mae import GLCMMAEForPreTraining
from output_folder import WRITTEN_LIST, check_output, delete, replaced_file, replaced_folder
from prepare_corpus import prepare
from training.resume import begin_run, checkpoint_to_resume, earlier_run

SCRIPTS = {
    "prepare_corpus": ["--corpus", "folder", "--data_dir", "nowhere"],
    "pretrain": ["--corpus", "nowhere", "--use_cpu", "true"],
    "finetune": ["--corpus", "nowhere", "--use_cpu", "true"],
    "cross_validate": ["--corpus", "nowhere"],
    "cross_validate compare": ["nowhere", "nor/here"],
    "embed": ["--corpus", "nowhere"],
    "explain": ["--corpus", "nowhere", "--model_name_or_path", "nowhere"],
}


@pytest.fixture
def raw(tmp_path) -> Path:
    """A folder with two classes of 8 pictures."""
    for index in range(16):
        write(tmp_path / "raw" / ("a", "b")[index % 2] / f"{index:02d}.png", encode(picture(index, 64)))
    return tmp_path / "raw"


@pytest.fixture
def model(tiny_config) -> GLCMMAEForPreTraining:
    return GLCMMAEForPreTraining(tiny_config("texture"))


def export(folder: Path, model: GLCMMAEForPreTraining) -> None:
    write_export(folder, model, ImageTransform(32).processor(), {}, [], {"title": "t", "repo_id": "r"})


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {WRITTEN_LIST}


# ------------------------------------------------------------------------------------------------- nothing of others


@pytest.mark.parametrize("writer", ["prepare_corpus", "export"])
def test_what_lies_beside_the_output_stays(writer, raw, model, tmp_path):
    out = tmp_path / "out"
    for name in ("out.old", "out.partial"):
        write(tmp_path / name / "notes.txt", b"two years of annotations")
    for _ in range(2):
        if writer == "export":
            export(out, model)
        else:
            prepare(arguments(raw, num_folds=2, overwrite_output_dir=True))
    assert names(tmp_path) == {"raw", "out", "out.old", "out.partial"}
    for name in ("out.old", "out.partial"):
        assert (tmp_path / name / "notes.txt").read_bytes() == b"two years of annotations"
    assert not [name for name in names(out) if name.startswith(".")]


def test_an_overwritten_corpus_keeps_what_prepare_corpus_did_not_write(raw):
    folder = prepare(arguments(raw, num_folds=2))
    write(folder / "annotations.csv", b"mine")
    write(raw / "a" / "new.png", encode(picture(77, 64)))
    before = names(folder)
    prepare(arguments(raw, num_folds=2, overwrite_output_dir=True))
    assert names(folder) == before and (folder / "annotations.csv").read_bytes() == b"mine"
    assert "a/new.png" in (folder / "splits.json").read_text()


def test_what_others_put_into_an_export_stays_through_exports_and_runs(model, tmp_path, caplog):
    out = tmp_path / "run" / "export"
    export(out, model)
    ours = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    theirs = {"mine.txt", "pretraining/mine.md", "own/deep/mine.txt"}
    for name in theirs:
        write(out / name, b"mine")
    stale = write(out / "README.md", b"edited")

    def holds(expected: set[str]) -> bool:
        found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
        return found == expected and all((out / name).read_bytes() == b"mine" for name in theirs)

    for _ in range(2):
        export(out, model)
        assert holds(ours | theirs) and stale.read_bytes() != b"edited"
    published, left_out = files_of(out)
    assert theirs <= published.keys() and WRITTEN_LIST not in published and not left_out
    (said,) = [record.message for record in caplog.records if "published too" in record.message]
    assert said.endswith("though not written by the recipe: mine.txt, own/deep/mine.txt, pretraining/mine.md")
    write(out.parent / "config.yaml", b"training: {}")
    begin_run(out.parent, ("config.yaml", "export"), None, {"training": {"seed": 1}})
    assert holds(theirs | {WRITTEN_LIST, f"pretraining/{WRITTEN_LIST}"})
    export(out, model)
    assert holds(ours | theirs)


def test_what_others_put_into_the_folders_of_a_corpus_stays(raw):
    for options in ({"keep_file_names": False}, {"keep_file_names": False}, {"keep_file_names": True}):
        folder = prepare(arguments(raw, num_folds=2, overwrite_output_dir=True, **options))
        for name in ("data/own.txt", "private/own.txt"):
            if options["keep_file_names"] or (folder / name).exists():
                assert (folder / name).read_bytes() == b"mine"
            write(folder / name, b"mine")
    assert names(folder / "private") == {"own.txt"} and (folder / "private").stat().st_mode & 0o777 == 0o700
    assert len(names(folder / "data")) == 2
    prepare(arguments(raw, num_folds=2, overwrite_output_dir=True))
    assert (folder / "private" / "own.txt").exists()


def test_a_folder_without_a_list_is_one_of_before_and_replaced_whole(tmp_path):
    write(tmp_path / "export" / "pretraining" / "code.py", b"former")
    with replaced_folder(tmp_path / "export") as new:
        write(new / "model", b"latter")
    assert names(tmp_path / "export") == {"model"}


def test_what_is_called_like_ours_is_not_an_earlier_run(tmp_path):
    written = ("config.yaml", "metrics.jsonl", "export")
    (tmp_path / "export").mkdir()
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for args.overwrite_output_dir in (False, True):
        assert checkpoint_to_resume(args, written) is None  # nothing is lost with an empty folder
    for name in ("export/mine.txt", "config.yaml"):
        write(tmp_path / name, b"corpus: mine")
        for args.overwrite_output_dir in (False, True):
            with pytest.raises(UsageError, match=f"holds .*{name.split('/')[0]}.* not of an earlier run: move it away"):
                checkpoint_to_resume(args, written)
        begin_run(tmp_path / "new", written, None, {"training": {}})
    assert (tmp_path / "export" / "mine.txt").exists()
    (tmp_path / "checkpoint-3").mkdir()
    assert checkpoint_to_resume(args, written) is None  # which may be overwritten
    args.overwrite_output_dir = False
    with pytest.raises(UsageError, match="holds an earlier run"):
        checkpoint_to_resume(args, written)


def test_a_run_that_is_being_deleted_is_still_known_as_one(tmp_path, monkeypatch):
    for name in ("config.yaml", "checkpoint-3/model", "export/model"):
        write(tmp_path / name, b"training: {}")

    def killed(path: Path) -> None:
        delete(path)
        if path.name == "checkpoint-3":
            raise KeyboardInterrupt

    monkeypatch.setattr("training.resume.delete", killed)
    with pytest.raises(KeyboardInterrupt):
        begin_run(tmp_path, ("config.yaml", "export"), None, {"training": {}})
    assert earlier_run(tmp_path, ("config.yaml", "export")) == [tmp_path / "config.yaml"]


def test_an_error_while_writing_leaves_what_was_there(tmp_path):
    write(tmp_path / "out" / "a.txt", b"former")
    for folder in ("out", "new"):
        with pytest.raises(RuntimeError, match="full"), replaced_folder(tmp_path / folder) as new:
            write(new / "a.txt", b"latter")
            raise RuntimeError("full")
    with pytest.raises(RuntimeError, match="full"), replaced_file(tmp_path / "out" / "a.txt") as new:
        new.write_bytes(b"latter")
        raise RuntimeError("full")
    assert names(tmp_path) == {"out"} and names(tmp_path / "out") == {"a.txt"}
    assert (tmp_path / "out" / "a.txt").read_bytes() == b"former"


def test_an_entry_that_cannot_be_moved_leaves_what_was_there(tmp_path, monkeypatch):
    for name in "abc":
        write(tmp_path / name, b"former")
    rename = Path.rename

    def once_denied(path: Path, target: Path) -> Path:
        if path.parent.name == "new" and path.name == "b":
            raise PermissionError(errno.EACCES, "denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", once_denied)
    with pytest.raises(PermissionError), replaced_folder(tmp_path, "abc") as new:
        for name in "abd":
            write(new / name, b"latter")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == dict.fromkeys("abc", b"former")


def test_others_may_read_what_is_written_and_what_was_killed_is_cleared_away(tmp_path):
    write(tmp_path / f"{output_folder.STAGING}x" / "new" / "left.parquet", b"half")
    with replaced_folder(tmp_path / "out", ()) as new:
        write(new / "data" / "a.txt", b"1")
    with replaced_file(tmp_path / "b.txt") as file:
        file.write_bytes(b"2")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "out" / "data").stat().st_mode & 0o777 == 0o777 & ~mask
    assert (tmp_path / "b.txt").stat().st_mode & 0o777 == 0o666 & ~mask
    with replaced_folder(tmp_path, ()):
        pass
    assert names(tmp_path) == {"out", "b.txt"}


def test_former_content_that_was_never_put_back_is_not_deleted(tmp_path):
    left = tmp_path / "export" / f"{output_folder.STAGING}x"
    write(left / "old" / "model", b"the only copy")
    (left / "new").mkdir()
    with pytest.raises(UsageError, match=f"{left / 'old'} holds the former content of {tmp_path / 'export'}"):
        with replaced_folder(tmp_path / "export") as new:
            write(new / "model", b"latter")
    for output in (tmp_path / "export", tmp_path):  # and known before the work
        with pytest.raises(UsageError, match="holds the former content"):
            check_output(output)
    assert (left / "old" / "model").read_bytes() == b"the only copy" and names(tmp_path / "export") == {left.name}
    delete(left / "old" / "model")
    with replaced_folder(tmp_path / "export") as new:
        write(new / "model", b"latter")
    assert names(tmp_path / "export") == {"model"}


def test_a_kill_after_the_exchange_leaves_nothing_to_be_put_back(tmp_path, monkeypatch):
    write(tmp_path / "a", b"former")
    with monkeypatch.context() as killed:
        killed.setattr(output_folder.shutil, "rmtree", lambda *args, **kwargs: None)
        with replaced_folder(tmp_path, "a") as new:
            write(new / "a", b"latter")
    assert len(names(tmp_path)) == 2
    with replaced_folder(tmp_path, ()):
        pass
    assert names(tmp_path) == {"a"} and (tmp_path / "a").read_bytes() == b"latter"


def test_a_file_that_is_being_written_survives_a_folder_that_is_replaced_beside_it(tmp_path):
    with replaced_file(tmp_path / "mine.txt") as file:
        file.write_bytes(b"1")
        with replaced_folder(tmp_path, ()):
            pass
    assert names(tmp_path) == {"mine.txt"}


def test_an_overwritten_run_loses_what_it_wrote_only(tmp_path):
    for name in ("config.yaml", "checkpoint-3/model", "checkpoint-notes.txt", "checkpoint-mine/model", "disk/model"):
        write(tmp_path / name, b"former")
    (tmp_path / "export").symlink_to(tmp_path / "disk")
    begin_run(tmp_path, ("config.yaml", "metrics.jsonl", "export"), None, {"training": {"seed": 1}})
    assert names(tmp_path) == {"config.yaml", "checkpoint-notes.txt", "checkpoint-mine", "disk", "export"}
    assert not names(tmp_path / "disk") and (tmp_path / "checkpoint-mine" / "model").exists()
    assert "seed: 1" in (tmp_path / "config.yaml").read_text()


def test_a_resume_of_a_checkpoint_elsewhere_replaces_what_its_killed_attempt_left(tmp_path):
    written = ("config.yaml", "metrics.jsonl", "all_results.json", "export")
    checkpoint = write(tmp_path / "a" / "checkpoint-5" / "trainer_state.json", b'{"global_step": 5}').parent
    args = TrainingArguments(output_dir=str(tmp_path / "b"), resume_from_checkpoint=str(checkpoint), use_cpu=True)
    args.overwrite_output_dir = False
    for name in ("config.yaml", "metrics.jsonl", "checkpoint-6/model"):
        write(tmp_path / "b" / name, b"training: {}")
    assert checkpoint_to_resume(args, written) == checkpoint
    begin_run(tmp_path / "b", written, checkpoint, {"training": {"seed": 1}})
    assert names(tmp_path / "b") == {"config.yaml"} and names(tmp_path / "a") == {"checkpoint-5"}
    write(tmp_path / "b" / "all_results.json")
    with pytest.raises(UsageError, match="b holds an earlier run, and not that of .*checkpoint-5"):
        checkpoint_to_resume(args, written)
    args.overwrite_output_dir = True
    assert checkpoint_to_resume(args, written) == checkpoint
    with pytest.raises(UsageError, match="which would be deleted"):
        checkpoint_to_resume(args, written, [str(tmp_path / "b" / "all_results.json")])


def test_a_configuration_that_cannot_be_written_leaves_the_former_one(tmp_path):
    write(tmp_path / "config.yaml", b"seed: 1")
    checkpoint = write(tmp_path / "checkpoint-5" / "trainer_state.json", b'{"global_step": 5}').parent
    with pytest.raises((TypeError, yaml.YAMLError)):
        begin_run(tmp_path, ("config.yaml",), checkpoint, {"training": {"lock": threading.Lock()}})
    assert (tmp_path / "config.yaml").read_bytes() == b"seed: 1" and names(tmp_path) == {"config.yaml", "checkpoint-5"}


# -------------------------------------------------------------------------------------- links, mounts, this folder


@pytest.mark.parametrize("kind", ["link", "mount", "here"])
@pytest.mark.parametrize("writer", ["prepare_corpus", "export"])
def test_the_output_may_be_a_link_a_mounted_folder_or_this_one(writer, kind, raw, model, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    # A mounted folder can be written to and cannot be renamed: it is to be the same folder afterwards.
    before = disk.stat().st_ino
    out = {"link": tmp_path / "out", "mount": disk, "here": Path(".")}[kind]
    if kind == "link":
        out.symlink_to(disk)
    monkeypatch.chdir(disk if kind == "here" else tmp_path)
    for _ in range(2):
        if writer == "export":
            export(out, model)
        else:
            prepare(arguments(raw, num_folds=2, output_dir=str(out), overwrite_output_dir=True))
    assert disk.stat().st_ino == before and names(tmp_path) - {"out"} == {"raw", "disk"}
    assert out.is_symlink() == (kind == "link")
    assert (disk / "README.md").is_file() and not [name for name in names(disk) if name.startswith(".")]


def test_deleting_keeps_the_link_and_what_it_does_not_hold(tmp_path):
    write(tmp_path / "disk" / "deep" / "a.txt")
    (tmp_path / "export").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "elsewhere").symlink_to(write(tmp_path / "mine.txt"))
    delete(tmp_path / "export")
    assert names(tmp_path) == {"disk", "export", "mine.txt"} and not names(tmp_path / "disk")


# ------------------------------------------------------------------------------------------------ before the work


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_folder_that_cannot_be_written_is_known_before_the_work(script, tmp_path, monkeypatch):
    name, *more = script.split()
    main = importlib.import_module(name).main
    write(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "unmounted")

    def said(output: Path) -> str:
        with pytest.raises(SystemExit) as stopped:
            main([*more, *SCRIPTS[script], "--output_dir", str(output)])
        return str(stopped.value)

    # `nowhere` would be the next mistake to be found
    assert "file is not a folder" in said(tmp_path / "file") and "file is not a folder" in said(tmp_path / "file" / "x")
    assert f"link is a link to {tmp_path / 'unmounted'}, which does not exist" in said(tmp_path / "link" / "x")

    def read_only(**kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(output_folder.tempfile, "TemporaryFile", read_only)
    assert f"nothing can be written to {tmp_path} (Read-only file system)" in said(tmp_path / "new")
    assert names(tmp_path) == {"file", "link"}


def test_the_check_makes_nothing_and_takes_a_folder_that_will_be_made(tmp_path):
    assert check_output(tmp_path / "a" / "b") == tmp_path / "a" / "b" and not names(tmp_path)
    with pytest.raises(UsageError, match="^json "):
        check_output(write(tmp_path / "file"), "json")


def test_a_corpus_is_not_prepared_into_a_folder_of_something_else(raw, tmp_path):
    write(tmp_path / "out" / "thesis.txt", b"mine")
    for overwrite in ("false", "true"):
        with pytest.raises(SystemExit, match="error: output_dir .*is not empty"):
            prepare_corpus.main(
                ["--data_dir", str(raw), "--output_dir", str(tmp_path / "out"), "--overwrite_output_dir", overwrite]
            )
    assert names(tmp_path / "out") == {"thesis.txt"}


def test_features_do_not_replace_the_settings_of_a_run(tmp_path):
    import embed

    for index in range(3):
        write(tmp_path / "images" / f"{index}.png", encode(grey(seed=index)))
    given = ["--corpus", str(tmp_path / "images"), "--output_dir", str(tmp_path / "out")]
    write(tmp_path / "out" / "config.yaml", b"of: a run")
    with pytest.raises(SystemExit, match="holds the config.yaml of something else"):
        embed.main(given)
    assert (tmp_path / "out" / "config.yaml").read_bytes() == b"of: a run"
    (tmp_path / "out" / "config.yaml").unlink()
    write(tmp_path / "out" / "notes.txt", b"mine")
    embed.main([*given, "--plot", "pca"])
    embed.main(given)  # the picture is of the former features, and goes with them
    assert names(tmp_path / "out") == {"features.parquet", "config.yaml", "notes.txt"}
