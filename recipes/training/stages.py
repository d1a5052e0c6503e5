"""Two stages of one training with other numbers of images per update, by a checkpoint that is counted anew."""

import shutil
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainerState

from output_folder import replaced_file


class StopAt(TrainerCallback):
    """Save a checkpoint at a step and stop there, in the middle of the schedule."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        """Stop at the step."""
        if state.global_step >= self.step:
            control.should_save = control.should_training_stop = True


def counted_anew(checkpoint: Path, new: Path, ratio: int, max_steps: int) -> None:
    """A copy of a checkpoint, to go on from with fewer images per update and in proportion a lower rate.

    Weights and optimiser state stay. The schedule is at the same share of the training, so that of the rate must be a
    function of that share.

    Args:
        checkpoint: of `Trainer`, with an optimiser and a `LambdaLR`.
        new: checkpoint-<step>, the step counted in the smaller updates.
        ratio: images per update before, over those after.
        max_steps: of the whole training, counted in the smaller updates.
    """
    step = int(new.name.removeprefix("checkpoint-"))
    new.mkdir(parents=True, exist_ok=True)
    (new / "trainer_state.json").unlink(missing_ok=True)  # of an earlier call: until the end, this one is not whole
    for file in checkpoint.iterdir():
        if file.name not in ("trainer_state.json", "optimizer.pt", "scheduler.pt"):
            shutil.copy2(file, new / file.name)
    optimizer, scheduler = (
        torch.load(checkpoint / f"{name}.pt", map_location="cpu", weights_only=True)
        for name in ("optimizer", "scheduler")
    )
    for group in optimizer["param_groups"]:
        group |= {name: group[name] / ratio for name in ("lr", "initial_lr")}
    scheduler |= {name: [rate / ratio for rate in scheduler[name]] for name in ("base_lrs", "_last_lr")}
    scheduler |= {"last_epoch": step, "_step_count": step + 1}
    torch.save(optimizer, new / "optimizer.pt")
    torch.save(scheduler, new / "scheduler.pt")
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    state.global_step, state.max_steps = step, max_steps
    with replaced_file(new / "trainer_state.json") as last:  # as Trainer does: with it, a checkpoint is whole
        state.save_to_json(str(last))
