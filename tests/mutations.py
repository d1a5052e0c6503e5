"""Edits that break the code on purpose, each with the tests that must notice: `make mutations` tries them all.

Each edit is made in a copy of the working tree, where the tests named beside it are run: at least one must fail. Before
that, the same tests must pass in a copy without any edit. `make mutations ARGS="--only statistics"` tries the edits
whose file or test contains that word.
"""

import argparse
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parent.parent
OURS = {ROOT, ROOT / "recipes", ROOT / "tests"}  # what an editable install and the start of this file put on the path
OUTPUT = "output_of_the_tests.txt"
SECONDS = 900  # after which the tests of one edit are stopped


@dataclass(frozen=True)
class Mutation:
    """One edit.

    Attributes:
        file: the file it is made in, from the root of the repository.
        old: text that stands in that file exactly once.
        new: what takes its place.
        tests: pytest node ids, separated by blanks; at least one of these tests must fail.
    """

    file: str
    old: str
    new: str
    tests: str


# ------------------------------------------------------------------------------------------------ the package
PACKAGE = [
    Mutation(
        "modeling_glcm_mae/glcm.py",
        "[round(math.sin(angle) * distance), round(math.cos(angle) * distance)]",
        "[round(math.cos(angle) * distance), round(math.sin(angle) * distance)]",
        "tests/test_glcm.py::test_offsets_from_angles",
    ),
    Mutation(
        "modeling_glcm_mae/glcm.py",
        "return bump(u) + bump(-u) + bump(2 * levels - u)",
        "return bump(u)",
        "tests/test_glcm.py::test_weights_of_a_pixel_sum_to_one",
    ),
    Mutation(
        "modeling_glcm_mae/glcm.py",
        "u = in_bins(x, levels, value_range).clamp(0, levels).unsqueeze(-1)",
        "u = in_bins(x, levels, value_range).unsqueeze(-1)",
        "tests/test_glcm.py::test_weights_of_a_pixel_sum_to_one",
    ),
    Mutation(
        "modeling_glcm_mae/glcm.py",
        "(1 - (u.clamp(0.5, levels - 0.5) - k - 0.5).abs())",
        "(1 - (u - k - 0.5).abs())",
        "tests/test_glcm.py::test_linear_by_hand",
    ),
    Mutation(
        "modeling_glcm_mae/glcm.py",
        "glcm = glcm + glcm.transpose(-1, -2)",
        "glcm = glcm + glcm",
        "tests/test_glcm.py::test_flags_of_the_matrix",
    ),
    Mutation(
        "modeling_glcm_mae/glcm.py",
        "            total = glcm.sum(dim=(-2, -1), keepdim=True)\n            # Not a clamp",
        "            total = glcm.sum(dim=-1, keepdim=True)\n            # Not a clamp",
        "tests/test_glcm.py::test_flags_of_the_matrix",
    ),
    Mutation(
        "modeling_glcm_mae/glcm.py",
        "                rows, shifted_rows = pair_slices(dy, height)\n"
        "                columns, shifted_columns = pair_slices(dx, width)\n",
        "                rows, shifted_rows = pair_slices(dx, height)\n"
        "                columns, shifted_columns = pair_slices(dy, width)\n",
        "tests/test_glcm.py::test_matrix_is_the_sum_over_pairs",
    ),
    Mutation(
        "modeling_glcm_mae/glcm.py",
        "(rows, shifted_rows), (columns, shifted_columns) = pair_slices(dy, height), pair_slices(dx, width)",
        "(shifted_rows, rows), (columns, shifted_columns) = pair_slices(dy, height), pair_slices(dx, width)",
        "tests/test_glcm.py::test_matrix_is_the_sum_over_pairs",
    ),
    Mutation(
        "modeling_glcm_mae/glcm.py",
        "image = image.masked_fill(~mask, 0)",
        "image = image.contiguous()",
        "tests/test_glcm.py::test_what_lies_outside_the_mask_does_not_matter",
    ),
    Mutation(
        "modeling_glcm_mae/glcm.py",
        "weights = weights * mask.unsqueeze(-1)",
        "weights = weights.contiguous()",
        "tests/test_glcm.py::test_matrix_is_the_sum_over_pairs",
    ),
    Mutation(
        "modeling_glcm_mae/glcm.py",
        "counts = torch.zeros(len(images), levels**2, dtype=torch.float64, device=place)\n"
        "        matrices.append(counts.scatter_add_(1, cell, (weight[first] * weight[second]).flatten(1).double())",
        "counts = torch.zeros(len(images), levels**2, dtype=dtype, device=place)\n"
        "        matrices.append(counts.scatter_add_(1, cell, (weight[first] * weight[second]).flatten(1))",
        "tests/test_glcm.py::test_hard_counts_beyond_the_whole_numbers_of_float32",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_support.py",
        'device.type == "mps" and',
        'device.type == "xpu" and',
        "tests/test_glcm.py::test_devices_without_float64_leave_counts_in_it_to_the_cpu",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_backends.py",
        "pred, target = pred.to(place), target.to(place)",
        "pred, target = pred.contiguous(), target.contiguous()",
        "tests/test_glcm.py::test_devices_without_float64_leave_counts_in_it_to_the_cpu",
    ),
    Mutation(
        "modeling_glcm_mae/glcm.py",
        "return glcm * (total - glcm) / torch.where(total > 0, total, 1)",
        "return glcm * (total - glcm) / torch.where(total > 0, total + 1, 1)",
        "tests/test_glcm.py::test_loss_by_hand[True-False-False-False-dense]",
    ),
    Mutation(
        "modeling_glcm_mae/glcm.py",
        "difference = difference.cumsum(-2).cumsum(-1)",
        "difference = difference.cumsum(-2)",
        "tests/test_glcm.py::test_loss_by_hand[False-True-False-False-dense]",
    ),
    Mutation(
        "modeling_glcm_mae/glcm.py",
        "    if not (pred.is_floating_point() and target.is_floating_point()):",
        "    if not pred.is_floating_point():",
        "tests/test_glcm.py::test_every_backend_refuses_what_is_not_floating_point",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_sparse.py",
        "value=-1 / total)\n    else:",
        "value=-2 / total)\n    else:",
        "tests/test_glcm.py::test_loss_by_hand[True-False-False-False-sparse]",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_sparse.py",
        "            scale = 1 / total**2 if normalize else 1\n            index_first",
        "            scale = 1 / total if normalize else 1\n            index_first",
        "tests/test_glcm.py::test_loss_by_hand[False-False-True-False-sparse]",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_sparse.py",
        "cell, value = torch.cat([cell, mirrored], 2), torch.cat([value, value], 2)",
        "cell, value = torch.cat([cell, cell], 2), torch.cat([value, value], 2)",
        "tests/test_glcm.py::test_loss_by_hand[False-False-False-True-sparse]",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_sparse.py",
        "count = len(offsets) * cells\n",
        "count = cells\n",
        "tests/test_glcm.py::test_loss_by_hand[False-False-False-False-sparse]",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_sparse.py",
        "by_first = (by_value * weight_second[::2]).sum(2)",
        "by_first = -(by_value * weight_second[::2]).sum(2)",
        "tests/test_glcm.py::test_gradcheck_of_the_loss[sigmoid-5.0-False-False-False-False-sparse]",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_sparse.py",
        "by_value = of_pred.addcmul(of_pred, g_pred, value=-2 / total)",
        "by_value = of_pred.addcmul(of_pred, g_pred, value=-1 / total)",
        "tests/test_glcm.py::test_what_the_scratch_holds_reaches_no_patch",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_sparse.py",
        "by_cell = difference.flip(1, 2).cumsum(1).cumsum(2).flip(1, 2).flatten(1)",
        "by_cell = difference.cumsum(1).cumsum(2).flatten(1)",
        "tests/test_glcm.py::test_gradcheck_of_the_loss[sigmoid-5.0-False-False-False-True-sparse]",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_support.py",
        "clamped = u.clamp(0, levels)\n",
        "clamped = u\n",
        "tests/test_glcm.py::test_backend_with_fewer_levels_than_its_window[3-sigmoid-sparse]",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_support.py",
        "index = torch.where(index < 0, -1 - index, index)",
        "index = torch.where(index < 0, 0, index)",
        "tests/test_glcm.py::test_backend_with_fewer_levels_than_its_window[3-sigmoid-sparse]",
    ),
    Mutation(
        "modeling_glcm_mae/glcm.py",
        "    with torch.autocast(image.device.type, enabled=False):",
        "    with torch.autocast(image.device.type, enabled=torch.is_autocast_enabled(image.device.type)):",
        "tests/test_glcm.py::test_autocast_changes_nothing[dtype0-dense]",
    ),
    Mutation(
        "modeling_glcm_mae/ssim.py",
        "c1, c2 = 0.01**2, 0.03**2",
        "c1, c2 = 0.01**2, 0.3**2",
        "tests/test_glcm.py::test_ssim_against_scipy",
    ),
    Mutation(
        "modeling_glcm_mae/ssim.py",
        "(2 * 1.5**2)",
        "(2 * 1.6**2)",
        "tests/test_glcm.py::test_ssim_against_scipy",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_numba.py",
        "pixel_gradient[second] += by_slope",
        "pixel_gradient[second] -= by_slope",
        "tests/test_glcm.py::test_gradcheck_of_the_loss[sigmoid-5.0-False-False-False-False-numba]",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_numba.py",
        "difference *= one - (of_pred + of_target) * per_total",
        "difference *= one - of_pred * per_total",
        "tests/test_glcm.py::test_loss_by_hand[True-False-False-False-numba]",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_numba.py",
        "if signature not in _kept.overloads:",
        "if not _kept.overloads:",
        "tests/test_glcm_numba.py::test_code_of_other_types_is_made_anew",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_numba.py",
        "                    index.unlink()",
        "                    index.exists()",
        "tests/test_glcm_numba.py::test_a_damaged_file_is_made_anew",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_numba.py",
        'with WeakFileLock(folder / "glcm_numba.lock", timeout=LOCK_SECONDS):',
        'with WeakFileLock(folder / f"{os.getpid()}.lock", timeout=LOCK_SECONDS):',
        "tests/test_glcm_numba.py::test_one_process_at_a_time_reads_or_compiles",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_numba.py",
        "            except Exception as error:  # reading",
        "            except (EOFError, OSError) as error:  # reading",
        "tests/test_glcm_numba.py::test_a_damaged_file_is_made_anew",
    ),
    Mutation(
        "modeling_glcm_mae/glcm_triton.py",
        "slope = tl.where(member == 0, -1.0, 1.0) / width",
        "slope = tl.where(member == 0, 1.0, -1.0) / width",
        "tests/test_glcm_triton.py::test_one_program_takes_many_patches",
    ),
    Mutation(
        "modeling_glcm_mae/modeling_glcm_mae.py",
        "return torch.cat([columns, rows], dim=-1).unsqueeze(0)",
        "return torch.cat([rows, columns], dim=-1).unsqueeze(0)",
        "tests/test_model.py::test_new_model_knows_where_patches_are",
    ),
    Mutation(
        "modeling_glcm_mae/modeling_glcm_mae.py",
        "init.normal_(module.mask_token, std=self.config.initializer_range)",
        "init.zeros_(module.mask_token)",
        "tests/test_model.py::test_new_tokens_and_layers_follow_mae",
    ),
    Mutation(
        "modeling_glcm_mae/modeling_glcm_mae.py",
        "init.xavier_uniform_(module.weight)",
        "init.xavier_uniform_(module.weight, gain=0.5)",
        "tests/test_model.py::test_new_tokens_and_layers_follow_mae",
    ),
    Mutation(
        "modeling_glcm_mae/modeling_glcm_mae.py",
        'mode="bicubic"',
        'mode="bilinear"',
        "tests/test_model.py::test_interpolated_positions_equal_positions_put_in_by_hand[32-new_size0]",
    ),
    Mutation(
        "modeling_glcm_mae/modeling_glcm_mae.py",
        "patches = nn.functional.interpolate(patches, size=new_grid,",
        "patches = nn.functional.interpolate(patches, size=new_grid[::-1],",
        "tests/test_model.py::test_decoder_places_patches_rightly_at_real_sizes",
    ),
    Mutation(
        "modeling_glcm_mae/modeling_glcm_mae.py",
        "extremes = [x.clamp(low, high) for x in _extremes(pred)]",
        "extremes = list(_extremes(pred))",
        "tests/test_model.py::test_terms_and_gradients_of_the_paper_written_out[True]",
    ),
    Mutation(
        "modeling_glcm_mae/modeling_glcm_mae.py",
        "visible = int(patches.shape[1] * (1 - mask_ratio))",
        "visible = int(patches.shape[1] * (1 - self.config.mask_ratio))",
        "tests/test_model.py::test_reconstruct_masks_as_many_as_are_asked_for",
    ),
    Mutation(
        "recipes/training/trainers.py",
        "texture=texture, glcm_sharpness=sharpness)",
        "texture=texture)",
        "tests/test_pretrain.py::test_sharpness_grows_by_the_same_factor_at_every_step",
    ),
    Mutation(
        "modeling_glcm_mae/modeling_glcm_mae.py",
        "masked = mask.bool()  # B N",
        "masked = ~mask.bool()  # B N",
        "tests/test_model.py::test_mse_preset_is_stock_vitmae",
    ),
    Mutation(
        "modeling_glcm_mae/modeling_glcm_mae.py",
        "            logits = logits if double else logits.float()\n            target = self",
        "            target = self",
        "tests/test_model.py::test_autocast_leaves_the_loss_in_float32[dtype0-mse]",
    ),
    Mutation(
        "modeling_glcm_mae/modeling_glcm_mae.py",
        'return patches.mean(dim=-1) if channel == "mean" else patches[..., channel]',
        'return patches[..., 0] if channel == "mean" else patches[..., channel]',
        "tests/test_model.py::test_one_channel_from_three_equals_replicated_grey",
    ),
    Mutation(
        "modeling_glcm_mae/modeling_glcm_mae.py",
        "embeddings.projection.weight.copy_(old.weight.sum(dim=1, keepdim=True))",
        "embeddings.projection.weight.copy_(old.weight.mean(dim=1, keepdim=True))",
        "tests/test_model.py::test_one_channel_from_three_equals_replicated_grey",
    ),
    Mutation(
        "modeling_glcm_mae/texture.py",
        "covariance / deviations,",
        "covariance / deviations.square(),",
        "tests/test_texture.py::test_ibsi_digital_phantom[corr]",
    ),
    Mutation(
        "modeling_glcm_mae/texture.py",
        "probabilities.clamp(min=floor).log2()",
        "probabilities.clamp(min=floor).log()",
        "tests/test_texture.py::test_ibsi_digital_phantom[joint_entr]",
    ),
    Mutation(
        "modeling_glcm_mae/texture.py",
        "(by_gap / (1 + gap / levels)).sum(-1)",
        "(by_gap / (1 + gap / (levels - 1))).sum(-1)",
        "tests/test_texture.py::test_ibsi_digital_phantom[inv_diff_norm]",
    ),
    Mutation(
        "modeling_glcm_mae/texture.py",
        "torch.expm1(-2.0 *",
        "torch.expm1(-1.0 *",
        "tests/test_texture.py::test_ibsi_digital_phantom[info_corr2]",
    ),
    Mutation(
        "modeling_glcm_mae/texture.py",
        '"clust_shade": _central_moment(by_sum, total_grey, mean_sum, 3)',
        '"clust_shade": _central_moment(by_sum, total_grey, mean_sum, 4)',
        "tests/test_texture.py::test_ibsi_digital_phantom[clust_shade]",
    ),
    Mutation(
        "modeling_glcm_mae/texture.py",
        "grey = (index + 1).to(matrix.dtype)",
        "grey = index.to(matrix.dtype)",
        "tests/test_texture.py::test_ibsi_digital_phantom[joint_avg]",
    ),
    Mutation(
        "modeling_glcm_mae/texture.py",
        "distance = (both[0] - both[1]).abs().sum((-2, -1))",
        "distance = (both[0] - both[1]).square().sum((-2, -1))",
        "tests/test_texture.py::test_fidelity_by_hand",
    ),
]

# ------------------------------------------------------------------------------------ files, runs and resuming
FILES = [
    Mutation(
        "recipes/output_folder.py",
        "    if old.is_dir() and any(old.iterdir()):",
        "    if False:",
        "tests/test_files.py::test_former_content_that_was_never_put_back_is_not_deleted",
    ),
    Mutation(
        "recipes/output_folder.py",
        '    old.rename(staging / "replaced")',
        "    pass",
        "tests/test_files.py::test_a_kill_after_the_exchange_leaves_nothing_to_be_put_back",
    ),
    Mutation(
        "recipes/output_folder.py",
        "prefix=FILE_STAGING",
        "prefix=STAGING",
        "tests/test_files.py::test_a_file_that_is_being_written_survives_a_folder_that_is_replaced_beside_it",
    ),
    Mutation(
        "recipes/training/resume.py",
        "if checkpoint is None or checkpoint.resolve().parent != output_dir.resolve():",
        "if checkpoint is None:",
        "tests/test_files.py::test_a_resume_of_a_checkpoint_elsewhere_replaces_what_its_killed_attempt_left",
    ),
    Mutation(
        "recipes/training/resume.py",
        '    with replaced_file(output_dir / "config.yaml") as new:',
        '    with (output_dir / "config.yaml").open("w") as file, replaced_file(output_dir / "config.yaml") as new:',
        "tests/test_files.py::test_a_configuration_that_cannot_be_written_leaves_the_former_one",
    ),
    Mutation(
        "recipes/output_folder.py",
        "if entry != new.parent and (ours is None or entry.name in ours or entry.name in coming)",
        "if entry != new.parent",
        "tests/test_files.py::test_an_overwritten_corpus_keeps_what_prepare_corpus_did_not_write",
    ),
    Mutation(
        "recipes/output_folder.py",
        "            target.rename(source)",
        "            pass",
        "tests/test_files.py::test_an_entry_that_cannot_be_moved_leaves_what_was_there",
    ),
    Mutation(
        "recipes/output_folder.py",
        "    if path.is_dir() and (path.is_symlink() or path.is_mount()):",
        "    if path.is_dir() and path.is_mount():",
        "tests/test_files.py::test_deleting_keeps_the_link_and_what_it_does_not_hold",
    ),
    Mutation(
        "recipes/output_folder.py",
        "    if not existing.is_dir():",
        "    if existing.is_file() and existing == output:",
        "tests/test_files.py::test_a_folder_that_cannot_be_written_is_known_before_the_work",
    ),
    Mutation(
        "recipes/explain.py",
        "    output = check_output(args.output_dir)",
        "    output = Path(args.output_dir)",
        "tests/test_files.py::test_a_folder_that_cannot_be_written_is_known_before_the_work",
    ),
    Mutation(
        "recipes/prepare_corpus.py",
        '    if occupied and not (output / "splits.json").is_file():',
        "    if False:",
        "tests/test_files.py::test_a_corpus_is_not_prepared_into_a_folder_of_something_else",
    ),
    Mutation(
        "recipes/training/run.py",
        "            rehearse(self.trainer, self._num_steps())",
        "            pass",
        "tests/test_pretrain.py::test_a_mistake_deletes_nothing tests/test_finetune.py::test_a_mistake_deletes_nothing",
    ),
    Mutation(
        "recipes/training/resume.py",
        "path.is_dir() and path.name[11:].isdecimal()",
        "path.exists()",
        "tests/test_files.py::test_an_overwritten_run_loses_what_it_wrote_only",
    ),
    Mutation(
        "recipes/training/resume.py",
        "(path == folder.resolve() or any(",
        "(any(",
        "tests/test_pretrain.py::test_a_mistake_deletes_nothing",
    ),
    Mutation(
        "recipes/training/resume.py",
        "                changed = name not in allowed and old != new",
        '                changed = name in ("learning_rate", "seed") and old != new',
        "tests/test_pretrain.py::test_resume_refuses_another_training",
    ),
    Mutation(
        "recipes/training/resume.py",
        "                changed = (old is None) != (new is None)",
        "                changed = False",
        "tests/test_pretrain.py::test_resume_refuses_another_training",
    ),
    Mutation(
        "recipes/training/resume.py",
        'if "train_file_names_sha256" in resolved["derived"] and',
        "if False and",
        "tests/test_pretrain.py::test_a_run_of_an_earlier_version_is_resumed_where_its_settings_tell_enough",
    ),
    Mutation(
        "recipes/training/resume.py",
        '    stored["derived"].setdefault("mixed_precision", asked)',
        "    pass",
        "tests/test_finetune.py::test_a_run_of_an_earlier_version_is_resumed_where_its_settings_tell_enough",
    ),
    Mutation(
        "recipes/training/trainers.py",
        "            passes, batches = int(passes), round(share * max_steps) * self.args.gradient_accumulation_steps",
        "            pass",
        "tests/test_pretrain.py::test_a_stream_is_resumed_where_it_was_after_more_than_one_pass",
    ),
    Mutation(
        "recipes/training/run.py",
        '            "mixed_precision": self.trainer.accelerator.mixed_precision,\n',
        "",
        "tests/test_finetune.py::test_a_resume_refuses_the_precision_of_another_launcher",
    ),
    Mutation(
        "recipes/training/finetuning.py",
        'return sha256_of_lines([f"{digest} {label}" for digest, label in pairs])',
        "return sha256_of_lines([digest for digest, _ in pairs])",
        "tests/test_finetune.py::test_a_resume_takes_a_moved_corpus_and_refuses_other_labels_and_another_encoder",
    ),
    Mutation(
        "recipes/training/pretraining.py",
        'derived["train_contents_sha256"] = sha256_of_lines(self.digests["train"])',
        'derived["train_contents_sha256"] = sha256_of_lines(self.data.train.dataset["file_name"])',
        "tests/test_pretrain.py::test_resume_refuses_another_training",
    ),
]

# ------------------------------------------------------------------------------------- corpora, tables, labels
CORPORA = [
    Mutation(
        "recipes/images/items.py",
        "left_out = sorted(set(pictures) - {record.path for record in records})",
        "left_out = []",
        "tests/test_corpora.py::test_a_folder_is_not_read_as_a_known_corpus_that_would_leave_something_out",
    ),
    Mutation(
        "recipes/corpora/pneumonia.py",
        ', "validation": "validation"}',
        "}",
        "tests/test_corpora.py::test_the_validation_part_of_chest_x_rays_goes_by_both_names",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "Path(os.path.abspath(existing_folder(data_dir)))",
        "existing_folder(data_dir)",
        "tests/test_corpora.py::test_a_relative_folder_takes_absolute_paths_and_nothing_outside",
    ),
    Mutation(
        "recipes/images/items.py",
        "if split.lower() not in SPLIT_NAMES]",
        "if split not in SPLIT_NAMES.values()]",
        "tests/test_corpora.py::test_a_split_of_the_hub_goes_by_its_usual_names",
    ),
    Mutation(
        "recipes/images/items.py",
        "if ours and group is not None and",
        "if False and",
        "tests/test_corpora.py::test_unknown_patients_stay_unknown_when_a_data_set_is_prepared_again",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "^pat(id|no|nr|num|number|code|key)?$|^pt(id|no|nr)$",
        "^patid$",
        "tests/test_corpora.py::test_columns_that_are_not_clear_are_an_error",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "|person|^case|",
        "|person|case|",
        "tests/test_corpora.py::test_columns_that_only_look_a_little_like_a_patient_are_none",
    ),
    Mutation(
        "recipes/prepare_corpus.py",
        "if args.data_dir is not None and output.resolve().is_relative_to(",
        "if False and output.resolve().is_relative_to(",
        "tests/test_prepare_corpus.py::test_a_data_set_inside_the_download_is_refused",
    ),
    Mutation(
        "recipes/images/splits.py",
        "free = (of_class > 0) & (others > 0).all(axis=1)",
        "free = of_class > 0",
        "tests/test_prepare_corpus.py::test_validation_takes_no_class_its_last_patient_in_training",
    ),
    Mutation(
        "recipes/images/names.py",
        'f"{salt}\\0{text}".encode',
        'f"{text}".encode',
        "tests/test_names.py::test_the_salt_decides_the_names_and_nothing_else",
    ),
    Mutation(
        "recipes/images/names.py",
        "group = item.group if record.group is None else pseudonym(salt, record.group)",
        "group = item.group",
        "tests/test_names.py::test_nothing_that_is_published_names_files_patients_or_this_machine",
    ),
    Mutation(
        "recipes/images/names.py",
        "key=lambda item: (item.print.sha256, item.record.split or",
        "key=lambda item: (item.original.file_name, item.record.split or",
        "tests/test_names.py::test_the_order_of_the_images_tells_nothing_of_the_names",
    ),
    Mutation(
        "recipes/images/names.py",
        """{after.partition(': ')[0]}""",
        """{after}""",
        "tests/test_names.py::test_the_detail_of_an_error_is_not_published",
    ),
    Mutation(
        "recipes/images/names.py",
        "annotation = annotation.replace(json.dumps(known), json.dumps(name))",
        "pass",
        "tests/test_names.py::test_masks_and_boxes_go_by_the_written_names",
    ),
    Mutation(
        "recipes/images/names.py",
        "os.open(path, flags, 0o600)",
        "os.open(path, flags, 0o644)",
        "tests/test_names.py::test_the_private_table_leads_back_to_each_file_and_only_its_owner_can_read_it",
    ),
    Mutation(
        "recipes/images/splits.py",
        "groups = pd.factorize(groups)[0]",
        "pass",
        "tests/test_names.py::test_the_salt_decides_the_names_and_nothing_else",
    ),
    Mutation(
        "recipes/hub/never_published.py",
        "if PRIVATE in parts:",
        "if False:",
        "tests/test_names.py::test_nothing_that_is_published_names_files_patients_or_this_machine",
    ),
    Mutation(
        "recipes/images/items.py",
        "self.keep_file_names = self.corpus in FACTS",
        "self.keep_file_names = True",
        "tests/test_names.py::test_names_are_kept_where_they_are_asked_for_and_of_public_corpora",
    ),
    Mutation(
        "recipes/prepare_corpus.py",
        "reasons = sorted(publishable(problem, args.salt) for problem in problems)",
        "reasons = [reason for _, reason in problems]",
        "tests/test_names.py::test_nothing_that_is_published_names_files_patients_or_this_machine",
    ),
    Mutation(
        "recipes/images/items.py",
        'mask.name if item.original is None else f"{name.stem}_mask_{number}{mask.suffix}"',
        "mask.name",
        "tests/test_names.py::test_masks_and_boxes_go_by_the_written_names",
    ),
    Mutation(
        "recipes/hub/export.py",
        "        return [without_paths(value) for value in settings]",
        "        return settings",
        "tests/test_names.py::test_paths_of_this_machine_stay_out_of_published_settings",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "values = [value.strip() for value in row]",
        "values = list(row)",
        "tests/test_corpora.py::test_blanks_in_a_table_put_no_patient_on_both_sides",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "for letter in name.lower() if letter.isalnum()",
        "for letter in name if letter.isalnum()",
        "tests/test_corpora.py::test_a_table_is_read_whatever_its_columns_are_called",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "        if suspects:\n",
        "        if False:\n",
        "tests/test_corpora.py::test_columns_that_are_not_clear_are_an_error",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "        elif len(found) > 1:\n",
        "        elif len(found) > 9:\n",
        "tests/test_corpora.py::test_columns_that_are_not_clear_are_an_error",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "        if asked == NONE:\n            chosen[thing] = None\n",
        "        if False:\n            chosen[thing] = None\n",
        "tests/test_corpora.py::test_a_label_is_declined_too",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "                yield reader.line_num, values",
        "                yield 1, values",
        "tests/test_corpora.py::test_a_table_that_is_wrong_is_told_by_file_and_line",
    ),
    Mutation(
        "recipes/corpora/record.py",
        'else "utf-8-sig"\n',
        'else "utf-8"\n',
        "tests/test_corpora.py::test_gbcu_lists_as_windows_saves_them",
    ),
    Mutation(
        "recipes/corpora/record.py",
        "    if zero:  #",
        "    if False:  #",
        "tests/test_corpora.py::test_a_table_that_is_wrong_is_told_by_file_and_line",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "        if path in lines:\n",
        "        if False:\n",
        "tests/test_corpora.py::test_a_table_that_is_wrong_is_told_by_file_and_line",
    ),
    Mutation(
        "recipes/corpora/record.py",
        "if path.is_dir() and not is_ignored(path.name)}",
        "if path.is_dir()}",
        "tests/test_corpora.py::test_what_systems_leave_behind_changes_nothing",
    ),
    Mutation(
        "recipes/corpora/record.py",
        'return name.startswith(".") or name.lower() in IGNORED',
        'return name.startswith(".") or name in IGNORED',
        "tests/test_corpora.py::test_what_systems_leave_behind_changes_nothing",
    ),
    Mutation(
        "recipes/corpora/record.py",
        " and not _leads_up(Path(folder, name))]",
        "]",
        "tests/test_corpora.py::test_links_back_to_a_folder_give_no_image_twice",
    ),
    Mutation(
        "recipes/corpora/record.py",
        "else images if is_utf8(path) else unnamed)",
        "else images)",
        "tests/test_corpora.py::test_names_that_are_not_utf8_and_broken_links",
    ),
    Mutation(
        "recipes/corpora/facts.py",
        "    for root in (folder, folder.parent):  #",
        "    for root in ():  #",
        "tests/test_corpora.py::test_a_folder_of_gbcu_is_as_little_given_out_as_gbcu",
    ),
    Mutation(
        "recipes/corpora/facts.py",
        "            if facts.no_copies and (",
        "            if name in CORPORA and (",
        "tests/test_corpora.py::test_a_layout_alone_makes_nothing_open",
    ),
    Mutation(
        "recipes/prepare_corpus.py",
        "known_name(args.corpus, args.data_dir) or args.corpus",
        "args.corpus",
        "tests/test_corpora.py::test_a_folder_of_gbcu_is_as_little_given_out_as_gbcu",
    ),
    Mutation(
        "recipes/images/items.py",
        "        facts = facts_of(self.corpus, self.data_dir)\n",
        "        facts = facts_of(self.corpus)\n",
        "tests/test_corpora.py::test_a_folder_of_gbcu_is_as_little_given_out_as_gbcu",
    ),
    Mutation(
        "recipes/training/pretraining.py",
        "self.facts = facts_of(data_args.corpus, data_args.data_dir)",
        "self.facts = facts_of(data_args.corpus)",
        "tests/test_corpora.py::test_a_folder_of_gbcu_is_as_little_given_out_as_gbcu",
    ),
    Mutation(
        "recipes/corpora/load.py",
        "for table in tables.values() for value in table.unique(column)",
        "for table in list(tables.values())[:1] for value in table.unique(column)",
        "tests/test_corpora.py::test_labels_of_every_type_become_classes_over_all_splits",
    ),
    Mutation(
        "recipes/corpora/load.py",
        "[str(value) for value in sorted(values)]",
        "[str(value) for value in sorted(values, key=str)]",
        "tests/test_corpora.py::test_labels_of_every_type_become_classes_over_all_splits",
    ),
    Mutation(
        "recipes/corpora/load.py",
        "        if None in names:\n",
        "        if False:\n",
        "tests/test_corpora.py::test_labels_that_are_none",
    ),
    Mutation(
        "recipes/corpora/load.py",
        "    return str(value).strip() or None\n",
        "    return str(value)\n",
        "tests/test_corpora.py::test_patients_of_parquet_are_text_without_blanks",
    ),
    Mutation(
        "recipes/corpora/load.py",
        "        if any(map(is_ignored, file.relative_to(folder).parts)):\n            continue\n",
        "",
        "tests/test_corpora.py::test_what_systems_leave_behind_changes_nothing",
    ),
    Mutation(
        "recipes/explain.py",
        "bad_images=args.bad_images, transform=transform",
        "transform=transform",
        "tests/test_corpora.py::test_bad_images_are_skipped_by_every_script",
    ),
    Mutation(
        "recipes/judging/summary.py",
        '@matplotlib.rc_context({"text.parse_math": False})',
        "@matplotlib.rc_context({})",
        "tests/test_corpora.py::test_a_dollar_in_a_name_is_a_dollar",
    ),
]

# ------------------------------------------------------------------------------- decoding, DICOM, what is shown
IMAGES = [
    Mutation(
        "recipes/images/dicom.py",
        "    if largest >= 2**bits:\n",
        "    if False:\n",
        "tests/test_dicom.py::test_a_voi_lut_whose_entries_need_more_bits_than_it_says_is_refused",
    ),
    Mutation(
        "recipes/images/decode.py",
        "pixels = pixels * alpha + (1 - alpha)",
        "pixels = pixels",
        "tests/test_decoding.py::test_transparent_pixels_are_white_for_training_and_processor_but_not_for_pipeline",
    ),
    Mutation(
        "recipes/images/decode.py",
        "if tags.get(_TIFF_PHOTOMETRIC) == 0 and image.mode",
        "if False and image.mode",
        "tests/test_decoding.py::test_what_training_refuses_the_evaluation_and_the_demo_refuse_with_the_same_words",
    ),
    Mutation(
        "recipes/training/feeding.py",
        "if not np.array_equal(image, (levels.astype(np.float64) / 255).astype(np.float32)):",
        "if False:",
        "tests/test_decoding.py::test_saved_processor_refuses_float_and_32_bit_files_rather_than_cutting_them",
    ),
    Mutation(
        "recipes/training/feeding.py",
        "if min(self.transform.fitted_size(*image.shape[:2])) < 1:",
        "if False:",
        "tests/test_decoding.py::test_a_strip_of_100_to_1_is_letterboxed_in_the_evaluation_and_named_by_the_demo",
    ),
    Mutation(
        "hub_cards/space/app.py",
        "elif (white != 255) if is_deep(data, name=name) else (1 < white <= 255):",
        "elif white != 255:",
        "tests/test_decoding.py::test_the_demo_reads_by_the_white_of_the_training",
    ),
    Mutation(
        "hub_cards/space/app.py",
        "pixels = decode_image(data, name=name, num_channels=3, white_level=own)",
        'pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) / 255',
        "tests/test_decoding.py::test_the_evaluation_and_the_demo_see_the_pixels_of_the_training",
    ),
    Mutation(
        "recipes/images/check.py",
        "return given if stored is None else stored",
        "return given",
        "tests/test_decoding.py::test_the_white_level_of_the_corpus_is_read_and_not_contradicted",
    ),
    Mutation(
        "recipes/images/check.py",
        "if stored is not None and given is not None and stored != given:",
        "if False:",
        "tests/test_decoding.py::test_the_white_level_of_the_corpus_is_read_and_not_contradicted",
    ),
    Mutation(
        "recipes/images/transform.py",
        "not (white > 255 if deep is None else deep)",
        "white <= 255",
        "tests/test_decoding.py::test_saved_processor_refuses_float_and_32_bit_files_rather_than_cutting_them",
    ),
    Mutation(
        "recipes/images/splits.py",
        "white = white_level_of(row, None)",
        "white = None",
        "tests/test_decoding.py::test_a_corpus_of_float_files_keeps_its_white_level_through_folds_and_exports",
    ),
    Mutation(
        "recipes/training/finetuning.py",
        "self.transform.processor(self.white, deep=self.deep)",
        "self.transform.processor(self.white)",
        "tests/test_decoding.py::test_a_corpus_of_float_files_keeps_its_white_level_through_folds_and_exports",
    ),
    Mutation(
        "recipes/explain.py",
        "        bad_images=args.bad_images,\n",
        "",
        "tests/test_decoding.py::test_explaining_leaves_bad_images_out_by_name",
    ),
    Mutation(
        "recipes/images/dicom.py",
        '(header.get("VOILUTFunction") or "LINEAR").upper()',
        '"LINEAR"',
        "tests/test_dicom.py::test_linear_exact_and_sigmoid_windows_are_those_of_the_standard",
    ),
    Mutation(
        "recipes/images/dicom.py",
        'if window is None and header.get("VOILUTSequence"):',
        "if False:",
        "tests/test_dicom.py::test_a_voi_lut_is_applied_after_the_rescale_and_before_a_window",
    ),
    Mutation(
        "recipes/images/dicom.py",
        "grey = np.where(_padding(pixels, header), 0, grey)",
        "pass",
        "tests/test_dicom.py::test_padding_is_black",
    ),
    Mutation(
        "recipes/images/dicom.py",
        "np.array(int(end)).astype(pixels.dtype)",
        "np.array(int(end))",
        "tests/test_dicom.py::test_padding_is_black",
    ),
    Mutation(
        "recipes/images/dicom.py",
        'if "Image Storage" not in uid.name',
        'if uid.name == "Segmentation Storage"',
        "tests/test_dicom.py::test_what_is_not_a_picture_is_refused_by_its_class",
    ),
    Mutation(
        "recipes/images/dicom.py",
        " and uid != EnhancedUSVolumeStorage:",
        ":",
        "tests/test_dicom.py::test_pictures_of_unusual_or_private_classes_are_read",
    ),
    Mutation(
        "recipes/images/dicom.py",
        '" ".join(str(error).split()) or',
        "str(error).splitlines()[0] or",
        "tests/test_dicom.py::test_where_a_decoder_is_missing_the_package_is_named",
    ),
    Mutation(
        "recipes/images/dicom.py",
        ", indices=frames)",
        ")",
        "tests/test_dicom.py::test_compressed_files_are_decoded_by_what_the_recipes_install",
    ),
    Mutation(
        "recipes/images/dicom.py",
        "pixels >> 8",
        "pixels & 255",
        "tests/test_dicom.py::test_a_palette_is_applied",
    ),
    Mutation(
        "recipes/images/items.py",
        "no_pictures if isinstance(error, NotAPictureError) else problems",
        "problems",
        "tests/test_dicom.py::test_objects_that_are_not_pictures_are_left_out_named_and_counted",
    ),
]

# ------------------------------------------------------------------------------------------------- pretraining
PRETRAINING = [
    Mutation(
        "recipes/training/pretraining_data.py",
        "            white = white_level_of(row, white_level)",
        "            white = white_level",
        "tests/test_pretrain.py::test_a_stream_of_float_images_takes_the_white_level_of_its_rows_and_passes_over_what_is_bad",
    ),
    Mutation(
        "recipes/training/pretraining.py",
        '(row["image"] or {}).get("bytes")',
        'row["image"].get("bytes")',
        "tests/test_pretrain.py::test_a_stream_of_float_images_takes_the_white_level_of_its_rows_and_passes_over_what_is_bad",
    ),
    Mutation(
        "recipes/training/run.py",
        "yaml.safe_dump(self.published, sort_keys=False)",
        "yaml.safe_dump(self._published(), sort_keys=False)",
        "tests/test_pretrain.py::test_a_relative_path_that_is_gone_in_the_end_is_not_published",
    ),
    Mutation(
        "recipes/training/run.py",
        "rate = args.base_learning_rate * effective / 256",
        "rate = args.base_learning_rate * effective / 128",
        "tests/test_pretrain.py::test_base_learning_rate_is_that_of_256_images_an_update",
    ),
    Mutation(
        "recipes/training/pretraining.py",
        "return set().union(*self.digests.values())",
        'return set(self.digests["train"])',
        "tests/test_pretrain.py::test_export_lists_every_image_that_was_seen",
    ),
    Mutation(
        "recipes/training/trainers.py",
        "return True, start * (end / start) ** min(progress, 1.0)",
        "return True, start + (end - start) * min(progress, 1.0)",
        "tests/test_pretrain.py::test_sharpness_grows_by_the_same_factor_at_every_step",
    ),
    Mutation(
        "recipes/training/trainers.py",
        "max(self.state.max_steps - 1 - mse_steps, 1)",
        "max(self.state.max_steps - 1, 1)",
        "tests/test_pretrain.py::test_sharpness_grows_by_the_same_factor_at_every_step",
    ),
    Mutation(
        "recipes/training/trainers.py",
        "return round(mse_epochs * max_steps)",
        "return round((1 - mse_epochs) * max_steps)",
        "tests/test_pretrain.py::test_mse_epochs_below_one_are_a_share_of_the_steps",
    ),
    Mutation(
        "recipes/training/trainers.py",
        "return round(mse_epochs * (len(self._get_train_sampler()) // self.effective_batch_size))",
        "return round(mse_epochs * max_steps / self.args.num_train_epochs)",
        "tests/test_pretrain.py::test_mse_epochs_are_epochs_whatever_the_length",
    ),
    Mutation(
        "recipes/training/trainers.py",
        '            self._stop("the gradient is not finite, though the loss is")\n        return norm',
        "            return norm\n        return norm",
        "tests/test_pretrain.py::test_gradient_that_is_not_finite_stops_with_the_files",
    ),
    Mutation(
        "recipes/training/trainers.py",
        "if not torch.isfinite(outputs.loss):",
        "if outputs.loss == 0:",
        "tests/test_pretrain.py::test_loss_that_is_not_finite_stops_with_the_files",
    ),
    Mutation(
        "recipes/training/trainers.py",
        '"patch_mean": target.mean(dim=(2, 3), keepdim=True).expand_as(target),\n        "dataset_mean":',
        '"dataset_mean": target.mean(dim=(2, 3), keepdim=True).expand_as(target),\n        "patch_mean":',
        "tests/test_pretrain.py::test_trivial_predictors_by_hand",
    ),
    Mutation(
        "recipes/training/trainers.py",
        "target.mean(dim=(2, 3), keepdim=True)",
        "target.mean(dim=(2, 3, 4), keepdim=True)",
        "tests/test_pretrain.py::test_trivial_predictors_by_hand",
    ),
    Mutation(
        "recipes/training/trainers.py",
        "return EpochSampler(len(dataset), self.effective_batch_size, self.args.seed)",
        "return EpochSampler(len(dataset), self.effective_batch_size, 0)",
        "tests/test_pretrain.py::test_seed_decides_the_order_and_the_masks",
    ),
    Mutation(
        "recipes/training/pretraining_data.py",
        '        "seed": seed,\n    }',
        '        "seed": 0,\n    }',
        "tests/test_pretrain.py::test_seed_decides_the_order_and_the_masks",
    ),
    Mutation(
        "recipes/training/pretraining_data.py",
        'images.filter(_is_not_among, fn_kwargs={"names": names})',
        'images.filter(lambda row: row["file_name"] not in names)',
        "tests/test_pretrain.py::test_held_out_images_of_a_stream_are_not_trained_on",
    ),
    Mutation(
        "recipes/training/pretraining_data.py",
        'return row["file_name"] not in names',
        'return bool(row["file_name"])',
        "tests/test_pretrain.py::test_held_out_images_of_a_stream_are_not_trained_on",
    ),
    Mutation(
        "recipes/training/feeding.py",
        "generator=keyed_generator(IMAGE_ORDER, self.seed, self.epoch)",
        "generator=keyed_generator(IMAGE_ORDER, self.epoch)",
        "tests/test_data.py::test_epoch_sampler",
    ),
    Mutation(
        "recipes/training/feeding.py",
        "noise = torch.rand(self.num_patches, generator=generator)  # first",
        "noise = torch.rand(self.num_patches)  # first",
        "tests/test_data.py::test_randomness_is_a_function_of_seed_epoch_and_index",
    ),
    Mutation(
        "recipes/training/feeding.py",
        "random_key = (TRAINING_SAMPLE, self.seed, epoch, index) if",
        "random_key = (TRAINING_SAMPLE, self.seed, index) if",
        "tests/test_data.py::test_randomness_is_a_function_of_seed_epoch_and_index",
    ),
    Mutation(
        "recipes/training/feeding.py",
        "else (EVALUATION_SAMPLE, index)\n        generator",
        "else (EVALUATION_SAMPLE, self.seed, index)\n        generator",
        "tests/test_data.py::test_evaluation_is_fixed",
    ),
]

# ------------------------------------------------------------------------------------------------- fine-tuning
FINETUNING = [
    Mutation(
        "recipes/training/arguments.py",
        "        if self.optim not in OPTIMIZERS or self.optim_args:",
        "        if self.optim not in OPTIMIZERS:",
        "tests/test_finetune.py::test_a_mistake_deletes_nothing",
    ),
    Mutation(
        "recipes/training/resume.py",
        '        stored["training"]["metric_for_best_model"] = chosen',
        "        pass",
        "tests/test_finetune.py::test_a_metric_that_the_validation_part_cannot_give_is_named_and_means_are_called_macro",
    ),
    Mutation(
        "recipes/training/cross_validation.py",
        "    args.output_dir = str(output)  # without ~\n    splits_file",
        "    splits_file",
        "tests/test_finetune.py::test_cross_validation_writes_to_the_home_folder_alone_where_that_is_asked_for",
    ),
    Mutation(
        "recipes/training/run.py",
        "list_of_images(self.seen | self._digests())",
        "list_of_images(self._digests())",
        "tests/test_finetune.py::test_an_encoder_remembers_the_images_of_its_ancestors",
    ),
    Mutation(
        "recipes/hub/export.py",
        'return [folder, folder.parent, folder.parent / "export"]',
        'return [folder, folder.parent / "export"]',
        "tests/test_finetune.py::test_an_encoder_remembers_the_images_of_its_ancestors",
    ),
    Mutation(
        "recipes/hub/export.py",
        "(Path(name_or_path) / subfolder).resolve()",
        "Path(name_or_path).resolve()",
        "tests/test_finetune.py::test_an_encoder_remembers_the_images_of_its_ancestors",
    ),
    Mutation(
        "recipes/training/pretraining.py",
        "return None if unknown else self.seen",
        "return self.seen or set()",
        "tests/test_finetune.py::test_an_encoder_with_an_unknown_ancestor_says_so_and_lists_no_images",
    ),
    Mutation(
        "recipes/training/finetuning.py",
        'for part in ("test", "validation"):\n            known',
        'for part in ("test",):\n            known',
        "tests/test_finetune.py::test_an_encoder_that_saw_images_it_is_judged_on_is_refused",
    ),
    Mutation(
        "recipes/images/transform.py",
        "**found | instead), white",
        "**found), white",
        "tests/test_finetune.py::test_a_field_given_takes_the_place_of_itself_alone",
    ),
    Mutation(
        "recipes/images/transform.py",
        "        return wanted, None\n",
        "        return wanted, resize_to\n",
        "tests/test_finetune.py::test_a_field_given_takes_the_place_of_itself_alone",
    ),
    Mutation(
        "recipes/training/finetuning.py",
        "return transform_of_processor(processor, size, **given)[0]",
        "return usual if given else transform_of_processor(processor, size)[0]",
        "tests/test_finetune.py::test_a_field_given_takes_the_place_of_itself_alone",
    ),
    Mutation(
        "recipes/training/finetuning.py",
        'args.random_resized_crop = stored.resize != "none"',
        "args.random_resized_crop = True",
        "tests/test_finetune.py::test_a_field_given_takes_the_place_of_itself_alone",
    ),
    Mutation(
        "recipes/training/arguments.py",
        "is not None and len(getattr(self, name)) != 3:",
        "is not None and len(getattr(self, name)) > 3:",
        "tests/test_finetune.py::test_a_field_that_cannot_be_is_an_error",
    ),
    Mutation(
        "recipes/training/finetuning.py",
        'for field in ("resize", "image_mean", "image_std") if',
        'for field in ("resize", "image_mean") if',
        "tests/test_finetune.py::test_what_no_processor_tells_must_be_given",
    ),
    Mutation(
        "recipes/training/finetuning.py",
        '            eval_dataset=self.datasets["validation"],\n',
        '            eval_dataset=self.datasets["test"],\n',
        "tests/test_finetune.py::test_the_epoch_is_chosen_on_the_validation_part_and_exported",
    ),
    Mutation(
        "recipes/training/finetuning.py",
        '        return self._figures_of(probabilities, self.datasets["validation"])\n',
        '        probabilities = predict(self.model, self.datasets["test"], 64, 0)\n'
        '        return self._figures_of(probabilities, self.datasets["test"])\n',
        "tests/test_finetune.py::test_the_epoch_is_chosen_on_the_validation_part_and_exported",
    ),
    Mutation(
        "recipes/training/trainers.py",
        "        self._load_from_checkpoint(self.state.best_model_checkpoint)\n",
        "",
        "tests/test_finetune.py::test_the_epoch_is_chosen_on_the_validation_part_and_exported",
    ),
    Mutation(
        "recipes/training/arguments.py",
        "load_best_model_at_end: bool = option(True,",
        "load_best_model_at_end: bool = option(False,",
        "tests/test_finetune.py::test_the_epoch_is_chosen_on_the_validation_part_and_exported",
    ),
    Mutation(
        "recipes/training/finetuning.py",
        "counts.sum() / (len(counts) * np.maximum(counts, 1))",
        "len(counts) * np.maximum(counts, 1) / counts.sum()",
        "tests/test_finetune.py::test_the_loss_is_weighted_smoothed_and_mixed_as_asked_for",
    ),
    Mutation(
        "recipes/training/trainers.py",
        '"weight": None if weights is None else weights.to(outputs.logits.device),',
        '"weight": None,',
        "tests/test_finetune.py::test_the_loss_is_weighted_smoothed_and_mixed_as_asked_for",
    ),
    Mutation(
        "recipes/training/trainers.py",
        '"label_smoothing": self.args.label_smoothing_factor,',
        '"label_smoothing": 0.0,',
        "tests/test_finetune.py::test_the_loss_is_weighted_smoothed_and_mixed_as_asked_for",
    ),
    Mutation(
        "recipes/training/trainers.py",
        'pixel_values, targets = self._mixing(pixel_values, targets, inputs["index"])',
        "pass",
        "tests/test_finetune.py::test_the_loss_is_weighted_smoothed_and_mixed_as_asked_for",
    ),
    Mutation(
        "recipes/images/augment.py",
        "share if cut else 1 - share",
        "share",
        "tests/test_finetune.py::test_mixed_targets_tell_what_is_in_the_image",
    ),
    Mutation(
        "recipes/images/augment.py",
        "keyed_generator(MIXING, self.seed, *index.tolist())",
        "keyed_generator(MIXING, *index.tolist())",
        "tests/test_finetune.py::test_mixed_targets_tell_what_is_in_the_image",
    ),
    Mutation(
        "recipes/images/augment.py",
        "torch.default_generator.manual_seed(self.seed)",
        "torch.manual_seed(self.seed)",
        "tests/test_finetune.py::test_augmentation_depends_on_seed_epoch_and_index_only",
    ),
    Mutation(
        "recipes/images/augment.py",
        "RandomCutMixV2(beta=self.cutmix, ",
        "RandomCutMixV2(",
        "tests/test_finetune.py::test_the_proportion_of_a_mix_follows_its_beta_distribution",
    ),
    Mutation(
        "recipes/images/augment.py",
        "Beta(self.mixup, self.mixup)",
        "Beta(1.0, 1.0)",
        "tests/test_finetune.py::test_the_proportion_of_a_mix_follows_its_beta_distribution",
    ),
    Mutation(
        "recipes/training/run.py",
        "args.base_learning_rate * effective / 256",
        "args.base_learning_rate * effective / 128",
        "tests/test_finetune.py::test_rates_depth_and_augmentation_are_those_that_were_asked_for",
    ),
    Mutation(
        "recipes/training/arguments.py",
        "base_learning_rate: float = option(1e-3,",
        "base_learning_rate: float = option(2e-3,",
        "tests/test_finetune.py::test_rates_depth_and_augmentation_are_those_that_were_asked_for",
    ),
    Mutation(
        "recipes/training/trainers.py",
        "args.learning_rate, args.weight_decay, self._layer_decay)",
        "args.learning_rate, args.weight_decay, 1.0)",
        "tests/test_finetune.py::test_rates_depth_and_augmentation_are_those_that_were_asked_for",
    ),
    Mutation(
        "recipes/training/models.py",
        "layer_decay ** (num_layers + 1 - depth)",
        "layer_decay**depth",
        "tests/test_finetune.py::test_rates_depth_and_augmentation_are_those_that_were_asked_for",
    ),
    Mutation(
        "recipes/training/models.py",
        "torch.linspace(0, drop_path,",
        "torch.linspace(drop_path, 0,",
        "tests/test_finetune.py::test_rates_depth_and_augmentation_are_those_that_were_asked_for",
    ),
    Mutation(
        "recipes/training/finetuning.py",
        'model_args.drop_path if model_args.mode == "finetune" else 0.0',
        "0.0",
        "tests/test_finetune.py::test_rates_depth_and_augmentation_are_those_that_were_asked_for",
    ),
    Mutation(
        "recipes/training/finetuning.py",
        "Augmentation(args.randaugment, args.random_erasing)",
        "Augmentation(0, args.random_erasing)",
        "tests/test_finetune.py::test_rates_depth_and_augmentation_are_those_that_were_asked_for",
    ),
    Mutation(
        "recipes/images/augment.py",
        "        if not self.randaugment:\n",
        "        if self.randaugment:\n",
        "tests/test_finetune.py::test_rates_depth_and_augmentation_are_those_that_were_asked_for",
    ),
    Mutation(
        "recipes/training/frozen.py",
        "weights=lambda distance: 1 - distance**2 / 4,",
        "weights=lambda distance: distance**2 / 4,",
        "tests/test_finetune.py::test_near_neighbours_weigh_more_than_far_ones",
    ),
    Mutation(
        "recipes/training/frozen.py",
        'answer = _all_columns(probe.predict_proba(scaled["validation"]), probe.classes_, num_classes)\n'
        '        probes.append((log_loss(labels["validation"]',
        'answer = _all_columns(probe.predict_proba(scaled["test"]), probe.classes_, num_classes)\n'
        '        probes.append((log_loss(labels["test"]',
        "tests/test_finetune.py::test_the_probe_is_chosen_on_the_validation_part",
    ),
    Mutation(
        "recipes/training/trainers.py",
        "        self.model_accepts_loss_kwargs = False\n",
        "        self.model_accepts_loss_kwargs = True\n",
        "tests/test_finetune.py::test_accumulated_gradients_are_those_of_the_larger_batch",
    ),
    Mutation(
        "recipes/training/trainers.py",
        "return EpochSampler(len(self.train_dataset), self.effective_batch_size, self.args.seed)",
        "return EpochSampler(len(self.train_dataset), self.effective_batch_size, 0)",
        "tests/test_finetune.py::test_seed_decides_the_order_of_the_images",
    ),
    Mutation(
        "recipes/training/cross_validation.py",
        "*common, *_options(args.pretrain_options)]",
        '"--corpus", args.corpus, *_options(args.pretrain_options)]',
        "tests/test_finetune.py::test_the_command_line_of_cross_validate",
    ),
    Mutation(
        "recipes/training/cross_validation.py",
        "*_options(args.finetune_options)]\n",
        "]\n",
        "tests/test_finetune.py::test_the_command_line_of_cross_validate",
    ),
]

# ------------------------------------------------------------------------------- splits, figures and statistics
JUDGING = [
    Mutation(
        "recipes/judging/summary.py",
        "if (everywhere[name] & ~folds_with_both(side, at)).any():",
        "if False:",
        "tests/test_metrics.py::test_a_draw_without_the_auroc_of_a_fold_is_left_out",
    ),
    # Figures
    Mutation(
        "recipes/metrics/medical_classification/figures.py",
        "chosen = each[1 if positive is None else positive[0]]",
        "chosen = {name: _mean([figure[name] for figure in each]) for name in _FIGURES}",
        "tests/test_metrics.py::test_of_two_classes_the_figures_are_those_of_the_positive_one",
    ),
    Mutation(
        "recipes/metrics/medical_classification/figures.py",
        "each[1 if positive is None else positive[0]]",
        "each[1]",
        "tests/test_metrics.py::test_of_two_classes_the_figures_are_those_of_the_positive_one",
    ),
    Mutation(
        "recipes/metrics/medical_classification/figures.py",
        'figures |= {f"macro_{name}"',
        'figures |= {f"{name}"',
        "tests/test_metrics.py::test_figures_equal_scikit_learn",
    ),
    Mutation(
        "recipes/metrics/medical_classification/figures.py",
        "np.bincount(labels * num_classes + answered",
        "np.bincount(answered * num_classes + labels",
        "tests/test_metrics.py::test_figures_equal_scikit_learn",
    ),
    Mutation(
        "recipes/metrics/medical_classification/figures.py",
        "answered == index, probabilities[:, index], parts",
        "answered == index, probabilities[:, index - 1], parts",
        "tests/test_metrics.py::test_figures_equal_scikit_learn",
    ),
    Mutation(
        "recipes/metrics/medical_classification/figures.py",
        "positives * (positives + 1) / 2",
        "positives * (positives - 1) / 2",
        "tests/test_metrics.py::test_figures_equal_scikit_learn",
    ),
    Mutation(
        "recipes/metrics/medical_classification/figures.py",
        "_rate(rejections, alarms)",
        "_rate(rejections, misses)",
        "tests/test_metrics.py::test_figures_equal_scikit_learn",
    ),
    Mutation(
        "recipes/metrics/medical_classification/figures.py",
        "parts = [slice(None)] if folds is None else",
        "parts = [slice(None)] if True else",
        "tests/test_metrics.py::test_two_folds_that_tell_all_images_apart_have_an_auroc_of_1",
    ),
    Mutation(
        "recipes/judging/summary.py",
        "positive, names, folds[at])",
        "positive, names, None)",
        "tests/test_metrics.py::test_runs_are_compared_fold_by_fold",
    ),
    Mutation(
        "recipes/judging/tables.py",
        "(positive or class_names[1:])[0]",
        "(positive or class_names)[0]",
        "tests/test_metrics.py::test_a_summary_of_two_classes_says_which_is_the_positive_one",
    ),
    Mutation(
        "recipes/judging/summary.py",
        "defined.std(ddof=1)",
        "defined.std()",
        "tests/test_metrics.py::test_a_summary_counts_answers_together_and_takes_the_mean_of_aurocs",
    ),
    Mutation(
        "recipes/judging/summary.py",
        "delong_test(*scores, truth, folds)",
        "delong_test(*scores, truth)",
        "tests/test_metrics.py::test_runs_are_compared_fold_by_fold",
    ),
    Mutation(
        "recipes/judging/summary.py",
        "found[0][name] - found[1][name]",
        "found[1][name] - found[0][name]",
        "tests/test_metrics.py::test_runs_are_compared_fold_by_fold",
    ),
    Mutation(
        "recipes/judging/summary.py",
        'for fold in sorted(table["fold"].unique())]',
        'for fold in sorted(table["fold"].unique())[:1]]',
        "tests/test_metrics.py::test_curves_are_drawn_fold_by_fold",
    ),
    Mutation(
        "recipes/training/finetuning.py",
        'if f"macro_{chosen}" in figures:',
        "if False:",
        "tests/test_finetune.py::test_a_metric_that_the_validation_part_cannot_give_is_named_and_means_are_called_macro",
    ),
    # Statistics
    Mutation(
        "recipes/judging/statistics.py",
        "random.integers(0, len(part), len(part))",
        "random.integers(0, max(len(part) - 1, 1), len(part))",
        "tests/test_metrics.py::test_bootstrap_draws_every_group_as_often_and_whole",
    ),
    Mutation(
        "recipes/judging/statistics.py",
        "whole = figures(np.arange(len(groups)))",
        "whole = draws[0]",
        "tests/test_metrics.py::test_bootstrap_draws_every_group_as_often_and_whole",
    ),
    Mutation(
        "recipes/judging/statistics.py",
        "min(1, 2 * tail / (len(defined) + 1))",
        "min(1, tail / (len(defined) + 1))",
        "tests/test_metrics.py::test_the_interval_holds_95_percent_and_p_is_two_sided",
    ),
    Mutation(
        "recipes/judging/statistics.py",
        "[(1 - LEVEL) / 2, (1 + LEVEL) / 2])",
        "[1 - LEVEL, LEVEL])",
        "tests/test_metrics.py::test_the_interval_holds_95_percent_and_p_is_two_sided",
    ),
    Mutation(
        "recipes/judging/statistics.py",
        "tail = min((defined <= 0).sum(), (defined >= 0).sum()) + 1",
        "tail = (defined <= 0).sum() + 1",
        "tests/test_metrics.py::test_the_interval_holds_95_percent_and_p_is_two_sided",
    ),
    Mutation(
        "recipes/judging/statistics.py",
        "np.asarray(groups)[at], return_inverse=True",
        "np.arange(len(at)), return_inverse=True",
        "tests/test_metrics.py::test_bootstrap_draws_every_group_as_often_and_whole",
    ),
    Mutation(
        "recipes/judging/statistics.py",
        "strata = np.zeros(len(groups), dtype=int) if strata is None else np.asarray(strata)",
        "strata = np.zeros(len(groups), dtype=int)",
        "tests/test_metrics.py::test_bootstrap_keeps_the_number_of_groups_of_every_fold",
    ),
    Mutation(
        "recipes/judging/statistics.py",
        "random = np.random.default_rng(seed)",
        "random = np.random.default_rng(0)",
        "tests/test_metrics.py::test_bootstrap_draws_every_group_as_often_and_whole",
    ),
    Mutation(
        "recipes/judging/statistics.py",
        "- 2 * covariance[0, 1]",
        "- covariance[0, 1]",
        "tests/test_metrics.py::test_delong_equals_all_pairs",
    ),
    Mutation(
        "recipes/judging/statistics.py",
        "np.cov(of_positives) / positives + np.cov(of_negatives) / negatives",
        "np.cov(of_positives) / negatives + np.cov(of_negatives) / positives",
        "tests/test_metrics.py::test_delong_equals_all_pairs",
    ),
    Mutation(
        "recipes/judging/statistics.py",
        "for _, variance in found))) / len(names)",
        "for _, variance in found) / len(names)))",
        "tests/test_metrics.py::test_delong_over_folds_is_the_mean_of_what_the_folds_say",
    ),
    Mutation(
        "recipes/judging/statistics.py",
        "p_value = 2 * norm.sf(",
        "p_value = norm.sf(",
        "tests/test_metrics.py::test_delong_equals_all_pairs",
    ),
    Mutation(
        "recipes/judging/statistics.py",
        "(~correct_a & correct_b).sum()",
        "correct_b.sum()",
        "tests/test_metrics.py::test_mcnemar_worked_by_hand",
    ),
    # Splits
    Mutation(
        "recipes/images/splits.py",
        """    check_overlap(chosen["train"], chosen["test"])\n""",
        "",
        "tests/test_prepare_corpus.py::test_an_overlap_of_any_two_parts_is_caught_when_a_fold_is_loaded",
    ),
    Mutation(
        "recipes/images/splits.py",
        """    check_overlap(chosen["validation"], chosen["test"])\n""",
        "",
        "tests/test_prepare_corpus.py::test_an_overlap_of_any_two_parts_is_caught_when_a_fold_is_loaded",
    ),
    Mutation(
        "recipes/images/splits.py",
        """    check_overlap(chosen["train"], chosen["validation"])\n""",
        "",
        "tests/test_prepare_corpus.py::test_an_overlap_of_any_two_parts_is_caught_when_a_fold_is_loaded",
    ),
    Mutation(
        "recipes/images/splits.py",
        "num_parts = min(VALIDATION_FOLDS, min(",
        "num_parts = min(2, min(",
        "tests/test_prepare_corpus.py::test_parts_have_their_share_of_each_class_and_whole_patients",
    ),
    Mutation(
        "recipes/images/splits.py",
        "divide.split(np.zeros(len(labels)), labels, groups)",
        "divide.split(np.zeros(len(labels)), np.arange(len(labels)) % 2, groups)",
        "tests/test_prepare_corpus.py::test_parts_have_their_share_of_each_class_and_whole_patients",
    ),
    Mutation(
        "recipes/images/splits.py",
        "divide.split(np.zeros(len(labels)), labels, groups)",
        "divide.split(np.zeros(len(labels)), labels, np.arange(len(labels)))",
        "tests/test_prepare_corpus.py::test_parts_have_their_share_of_each_class_and_whole_patients",
    ),
    Mutation(
        "recipes/images/splits.py",
        "shuffle=True, random_state=seed",
        "shuffle=True, random_state=0",
        "tests/test_prepare_corpus.py::test_seeds_shuffle_patients_and_orders_do_not_matter",
    ),
    Mutation(
        "recipes/images/splits.py",
        "table = table.sort_values(order, ignore_index=True)",
        "table = table.reset_index(drop=True)",
        "tests/test_prepare_corpus.py::test_seeds_shuffle_patients_and_orders_do_not_matter",
    ),
    Mutation(
        "recipes/images/splits.py",
        "if off(part).max() <= NEAR:",
        "if True:",
        "tests/test_prepare_corpus.py::test_a_patient_with_most_of_the_images_does_not_fill_the_validation_part",
    ),
    Mutation(
        "recipes/images/splits.py",
        "(chosen.sum(axis=0) <= room).all()",
        "True",
        "tests/test_prepare_corpus.py::test_a_patient_with_most_of_the_images_does_not_fill_the_validation_part",
    ),
    Mutation(
        "recipes/images/splits.py",
        "_largest(groups[of_class])",
        "_largest(groups)",
        "tests/test_prepare_corpus.py::test_where_validation_cannot_have_its_share_the_patient_is_named",
    ),
    Mutation(
        "recipes/images/splits.py",
        'f"class {class_names[label]} has {count} group(s)',
        'f"class {label} has {count} group(s)',
        "tests/test_prepare_corpus.py::test_too_few_patients_are_named_by_their_class",
    ),
]

# ----------------------------------------------------------------------------------------------------- the Hub
HUB = [
    # what is there already
    Mutation(
        "recipes/hub/repository.py",
        "    if foreign:\n",
        "    if False:\n",
        "tests/test_publish.py::test_what_others_wrote_is_replaced_only_if_one_says_so",
    ),
    Mutation(
        "recipes/hub/repository.py",
        "    if MANIFEST in there:\n",
        "    if False:\n",
        "tests/test_publish.py::test_only_what_our_last_commit_wrote_is_deleted",
    ),
    Mutation(
        "recipes/hub/repository.py",
        "publication.replace or there[name] in ours.get(name, ())",
        "True",
        "tests/test_publish.py::test_only_what_our_last_commit_wrote_is_deleted",
    ),
    Mutation(
        "recipes/hub/repository.py",
        "publication.replace or there[name] in ours.get(name, ())",
        "publication.replace or name in ours",
        "tests/test_publish.py::test_only_what_our_last_commit_wrote_is_deleted",
    ),
    Mutation(
        "recipes/hub/repository.py",
        "publication.replace or there[name] in ours.get(name, ())",
        "there[name] in ours.get(name, ())",
        "tests/test_publish.py::test_what_others_wrote_is_replaced_only_if_one_says_so",
    ),
    Mutation(
        "recipes/hub/repository.py",
        "operations = [CommitOperationDelete(name) for name in gone]",
        "operations = []",
        "tests/test_publish.py::test_only_what_our_last_commit_wrote_is_deleted",
    ),
    Mutation(
        "recipes/hub/repository.py",
        "operations=[*operations, CommitOperationAdd(MANIFEST, manifest)]",
        "operations=operations",
        "tests/test_publish.py::test_only_what_our_last_commit_wrote_is_deleted",
    ),
    Mutation(
        "recipes/hub/repository.py",
        "name not in {*publication.files, MANIFEST, ATTRIBUTES}",
        "name not in publication.files",
        "tests/test_publish.py::test_what_others_wrote_is_replaced_only_if_one_says_so",
    ),
    Mutation(
        "recipes/hub/repository.py",
        "foreign = [] if not said or said.startswith(MADE_BY_THE_HUB) else foreign",
        "foreign = []",
        "tests/test_publish.py::test_a_repository_with_only_the_card_that_the_hub_makes_is_free",
    ),
    Mutation(
        "recipes/hub/repository.py",
        "foreign = [] if not said or said.startswith(MADE_BY_THE_HUB) else foreign",
        "pass",
        "tests/test_publish.py::test_a_repository_with_only_the_card_that_the_hub_makes_is_free",
    ),
    Mutation(
        "recipes/hub/repository.py",
        "except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:",
        "except KeyError as error:",
        "tests/test_publish.py::test_a_list_of_files_that_is_not_as_we_write_it_is_told",
    ),
    Mutation(
        "recipes/hub/repository.py",
        '                logger.warning("overwrites %s, which others have written or changed", name)\n',
        "                pass\n",
        "tests/test_publish.py::test_only_what_our_last_commit_wrote_is_deleted",
    ),
    Mutation(
        "recipes/hub/repository.py",
        '            with_retries("look at the files", lambda: _there_and_ours(api, publication, base))\n',
        "",
        "tests/test_publish.py::test_a_repository_that_is_not_ours_is_known_before_the_training",
    ),
    Mutation(
        "recipes/hub/repository.py",
        '        base = with_retries("look for the branch", lambda: _base(api, publication))\n',
        "        base = publication.revision\n        api.create_branch(**where, branch=base, exist_ok=True)\n",
        "tests/test_publish.py::test_what_others_wrote_is_replaced_only_if_one_says_so",
    ),
    Mutation(
        "recipes/training/run.py",
        "                open_repository(self.publication)\n",
        "                pass\n",
        "tests/test_publish.py::test_a_repository_that_is_not_ours_is_known_before_the_training",
    ),
    Mutation(
        "recipes/cross_validate.py",
        "        open_repository(Publication(",
        "        print(Publication(",
        "tests/test_publish.py::test_a_repository_that_is_not_ours_is_known_before_the_training[cross_validate]",
    ),
    # what is loaded back
    Mutation(
        "recipes/hub/verify.py",
        "        if len(there) != len(here) or not all(map(torch.equal, there, here)):\n",
        "        if False:\n",
        "tests/test_publish.py::test_loading_back_compares_what_is_at_the_commit",
    ),
    Mutation(
        "recipes/hub/verify.py",
        '    if report["missing_keys"]:\n',
        "    if False:\n",
        "tests/test_publish.py::test_a_weight_that_is_missing_is_noticed_although_a_new_one_is_the_same",
    ),
    Mutation(
        "recipes/hub/verify.py",
        "there = answers(repo_id, architecture, part, revision=revision)",
        "there = answers(repo_id, architecture, part)",
        "tests/test_publish.py::test_loading_back_compares_what_is_at_the_commit",
    ),
    Mutation(
        "recipes/hub/verify.py",
        "AutoImageProcessor.from_pretrained(repo_id, revision=revision)",
        "AutoImageProcessor.from_pretrained(repo_id)",
        "tests/test_publish.py::test_loading_back_compares_what_is_at_the_commit",
    ),
    Mutation(
        "recipes/hub/repository.py",
        "            publication.repo_id,\n            revision,\n",
        "            publication.repo_id,\n            publication.revision,\n",
        "tests/test_publish.py::test_loading_back_compares_what_is_at_the_commit",
    ),
    Mutation(
        "recipes/hub/repository.py",
        "    if done.returncode:\n",
        "    if False:\n",
        "tests/test_publish.py::test_loading_back_compares_what_is_at_the_commit",
    ),
    Mutation(
        "recipes/hub/verify.py",
        "            if one != other:\n",
        "            if False:\n",
        "tests/test_publish.py::test_a_data_set_is_loaded_back_row_by_row",
    ),
    Mutation(
        "recipes/hub/verify.py",
        "        if there[split].features != features:\n",
        "        if False:\n",
        "tests/test_publish.py::test_a_data_set_is_loaded_back_row_by_row",
    ),
    Mutation(
        "recipes/hub/verify.py",
        "    if list(there) != list(here):\n",
        "    if False:\n",
        "tests/test_publish.py::test_a_data_set_is_loaded_back_row_by_row",
    ),
    Mutation(
        "recipes/hub/verify.py",
        "zip_longest(load_dataset(repo_id, revision=revision, **given)",
        "zip_longest(load_dataset(folder, **given)",
        "tests/test_publish.py::test_a_data_set_is_loaded_back_row_by_row",
    ),
    Mutation(
        "recipes/hub/repository.py",
        "    if local is not None:\n        for line in verify(",
        '    finish(publication, done["commit"])\n    if local is not None:\n        for line in verify(',
        "tests/test_publish.py::test_no_tag_and_no_collection_before_it_has_loaded_back",
    ),
    Mutation(
        "recipes/publish.py",
        'loaded_back = None if args.repo_type == "space" else folder',
        'loaded_back = None if args.repo_type != "model" else folder',
        "tests/test_publish.py::test_what_others_wrote_is_replaced_only_if_one_says_so",
    ),
    # what is sent, and who may see it
    Mutation(
        "recipes/hub/never_published.py",
        "        refuse_secret_name(file, folder)\n        if file.is_dir()",
        "        if file.is_dir()",
        "tests/test_publish.py::test_what_must_not_be_published_is_refused",
    ),
    Mutation(
        "recipes/hub/never_published.py",
        "            refuse_secret_text(file)\n            files[name]",
        "            files[name]",
        "tests/test_publish.py::test_what_must_not_be_published_is_refused",
    ),
    Mutation(
        "recipes/hub/never_published.py",
        "elif file.suffix.lower() not in SUFFIXES and file.name not in PLAIN_NAMES:",
        "elif False:",
        "tests/test_publish.py::test_a_pickle_and_a_checkpoint_are_left_out_and_named",
    ),
    Mutation(
        "recipes/hub/never_published.py",
        'any(part.startswith("checkpoint-") for part in parts)',
        "False",
        "tests/test_publish.py::test_a_pickle_and_a_checkpoint_are_left_out_and_named",
    ),
    Mutation(
        "recipes/hub/repository.py",
        "        if publication.private and not info.private:\n",
        "        if False:\n",
        "tests/test_publish.py::test_private_is_private_from_the_first_moment",
    ),
    Mutation(
        "recipes/hub/repository.py",
        "private = publication.private or None",
        "private = None",
        "tests/test_publish.py::test_private_is_private_from_the_first_moment",
    ),
    Mutation(
        "recipes/hub/contents.py",
        'SENT_AS_GIVEN = ("private", ',
        "SENT_AS_GIVEN = (",
        "tests/test_publish.py::test_private_is_private_from_the_first_moment",
    ),
    Mutation(
        "recipes/publish.py",
        '        print("\\n".join(shown(publication)))\n        return\n',
        '        print("\\n".join(shown(publication)))\n',
        "tests/test_publish.py::test_what_others_wrote_is_replaced_only_if_one_says_so",
    ),
    Mutation(
        "recipes/hub/repository.py",
        "    yield from _outlook(publication)\n",
        "    open_repository(publication)\n    yield from _outlook(publication)\n",
        "tests/test_publish.py::test_dry_run_shows_files_and_card_and_sends_nothing",
    ),
    # checkpoints
    Mutation(
        "recipes/training/callbacks.py",
        "        try:\n            self.write_export()\n",
        "        self.write_export()\n        try:\n",
        "tests/test_cards.py::test_no_failure_of_publishing_a_checkpoint_stops_the_training",
    ),
    Mutation(
        "recipes/training/callbacks.py",
        "(UsageError, OSError, SafetensorError)",
        "(UsageError, OSError)",
        "tests/test_cards.py::test_no_failure_of_publishing_a_checkpoint_stops_the_training",
    ),
    Mutation(
        "recipes/training/pretraining.py",
        "return set().union(*self.digests.values())",
        "return {digest for part in (self.data.train,) for digest in image_digests(part.dataset)}",
        "tests/test_publish.py::test_images_are_hashed_once_however_often_a_checkpoint_is_published",
    ),
]

MUTATIONS = [*PACKAGE, *FILES, *CORPORA, *IMAGES, *PRETRAINING, *FINETUNING, *JUDGING, *HUB]


def copy_tree(target: Path) -> None:
    """Copy what git tracks, and new files that it does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # a tracked file may have been deleted
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def run_unedited(tree: Path, tests: Sequence[str], jobs: int) -> subprocess.CompletedProcess:
    """Run the tests in `tree`, in `jobs` processes."""
    path = os.pathsep.join([str(tree), str(tree / "recipes")])
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-n",
            str(jobs),
            "-p",
            "no:cacheprovider",
            "-m",
            "not gpu",
            *tests,
        ],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def third_party_imports() -> None:
    """Import what the tests import from outside, once: a child that is forked afterwards needs no seconds for it."""
    # As tests/conftest.py has them; some are read at import.
    os.environ.update(HF_HUB_DISABLE_XET="1", TRITON_INTERPRET="1", OMP_NUM_THREADS="1", TQDM_DISABLE="1")
    for name in (
        *("accelerate", "aiohttp.web", "datasets", "huggingface_hub", "jinja2", "kornia.augmentation", "numba"),
        *("pandas", "pydicom", "pytest", "scipy.stats", "skimage.metrics", "sklearn.linear_model", "sklearn.metrics"),
        *("sklearn.neighbors", "tifffile", "torch", "transformers", "yaml"),
    ):
        importlib.import_module(name)
    import torch
    import transformers

    for name in (
        "AutoImageProcessor",
        "AutoModelForImageClassification",
        "Trainer",
        "ViTMAEForPreTraining",
        "pipeline",
    ):
        getattr(transformers, name)  # which are imported at their first use
    torch.set_num_threads(1)  # a process with threads cannot be forked


def start_tests(tree: Path, tests: Sequence[str]) -> int:
    """Run the tests in `tree`, on its code and not on the code that is installed; returns the child's process id."""
    child = os.fork()
    if child:
        return child
    os.setsid()  # so that what it launches can be ended with it
    output = os.open(tree / OUTPUT, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(tree)
    ours = [str(tree), str(tree / "recipes")]
    sys.path[:] = ours + [place for place in sys.path if Path(place or ".").resolve() not in OURS]
    os.environ["PYTHONPATH"] = os.pathsep.join(ours)
    import pytest

    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not gpu", *tests]))


class Attempt:
    """One edit, made in a copy of the tree in which its tests run."""

    def __init__(self, mutation: Mutation) -> None:
        self.mutation = mutation
        self._folder = tempfile.TemporaryDirectory()
        self._tree = Path(self._folder.name)
        copy_tree(self._tree)
        file = self._tree / mutation.file
        source = file.read_text(encoding="utf-8")
        if source.count(mutation.old) != 1:
            sys.exit(f"{mutation.file}: {mutation.old!r} stands there {source.count(mutation.old)} times")
        file.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
        self._child = start_tests(self._tree, mutation.tests.split())
        self._end = time.monotonic() + SECONDS

    def ended(self) -> bool:
        """Whether its tests have ended; they are stopped when their time is over."""
        child, status = os.waitpid(self._child, os.WNOHANG)
        if not child and time.monotonic() > self._end:
            os.killpg(self._child, signal.SIGKILL)
            child, status = os.waitpid(self._child, 0)
        if not child:
            return False
        self._status = os.waitstatus_to_exitcode(status)
        return True

    def problem(self) -> str | None:
        """`None` if a test noticed the edit, else what went wrong; removes the copy."""
        text = (self._tree / OUTPUT).read_text(encoding="utf-8", errors="replace")
        self._folder.cleanup()
        if self._status == 1:  # pytest's exit status for failed tests; others mean that none was run
            return None
        return "not noticed" if self._status == 0 else f"pytest ended with {self._status}:\n{text[-4000:]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="Only edits whose file or tests contain this.")
    parser.add_argument("--jobs", type=int, default=2, help="Edits to try at once.")
    args = parser.parse_args()
    chosen = [mutation for mutation in MUTATIONS if args.only in mutation.file or args.only in mutation.tests]
    if not chosen:
        sys.exit(f"error: no file and no test of an edit contains {args.only!r}")
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        done = run_unedited(
            Path(folder), sorted({test for mutation in chosen for test in mutation.tests.split()}), args.jobs
        )
    if done.returncode:
        sys.exit(f"{done.stdout[-4000:]}\nerror: these tests must pass before anything is edited")
    third_party_imports()
    missed, waiting, running = 0, list(reversed(chosen)), []
    with tqdm(total=len(chosen), desc="edits") as bar:
        while waiting or running:
            if waiting and len(running) < args.jobs:
                running.append(Attempt(waiting.pop()))
            for attempt in [attempt for attempt in running if attempt.ended()]:
                running.remove(attempt)
                bar.update()
                problem = attempt.problem()
                if problem is not None:
                    missed += 1
                    edit = attempt.mutation
                    bar.write(f"{edit.file}: {edit.old.strip()!r} -> {edit.new.strip()!r}\n  {edit.tests}: {problem}")
            time.sleep(0.05)
    sys.stdout.write(f"{len(chosen) - missed} of {len(chosen)} edits noticed\n")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
