"""What the objective takes of memory at its peak."""

import subprocess
import sys

import pytest

PEAK = """
from pathlib import Path
import torch
from modeling_glcm_mae import GLCMMAEConfig, GLCMMAEForPreTraining

def kib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

model = GLCMMAEForPreTraining(GLCMMAEConfig.from_preset("{preset}", {fields}, image_size=224, patch_size=16))
pixel_values, logits = torch.randn(512, 3, 224, 224), torch.randn(512, 196, 768).requires_grad_()
mask = (torch.arange(196) < 147).expand(512, -1)
model.reconstruction_loss(pixel_values[:1], logits[:1], mask[:1])["loss"].backward()
logits.grad = None
Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = kib("VmRSS")
model.reconstruction_loss(pixel_values, logits, mask)["loss"].backward()
print((kib("VmHWM") - before) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of resident memory from /proc")
@pytest.mark.parametrize("preset", ["texture", "paper"])
def test_objective_of_512_images_takes_less_than_2_gib(tiny_fields, preset):
    fields = ", ".join(
        f"{name}={value}" for name, value in tiny_fields.items() if name not in ("image_size", "patch_size")
    )
    done = subprocess.run(
        [sys.executable, "-c", PEAK.format(fields=fields, preset=preset)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 0.3 < float(done.stdout) < 2  # the gradient of the logits alone takes 0.3
