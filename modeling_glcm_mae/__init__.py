"""GLCM-MAE: masked autoencoders for medical images that learn texture, for Hugging Face Transformers."""

from .configuration_glcm_mae import GLCMMAEConfig, value_range_from_normalization
from .glcm import cooccurrence_matrix, glcm_loss, soft_assignment
from .glcm_module import GLCMLoss
from .glcm_support import offsets_from_angles
from .modeling_glcm_mae import (
    GLCMMAEForPreTraining,
    GLCMMAEForPreTrainingOutput,
    GLCMMAEModel,
    GLCMMAEReconstructionOutput,
)
from .ssim import ssim_loss
from .surprise import TextureSurprise, texture_surprise
from .texture import texture_features, texture_fidelity

# save_pretrained then writes the code beside the weights, for trust_remote_code. What other vit_mae checkpoints load
# as is left alone: nothing is registered under their model_type.
GLCMMAEConfig.register_for_auto_class()
GLCMMAEModel.register_for_auto_class("AutoModel")
GLCMMAEForPreTraining.register_for_auto_class("AutoModelForPreTraining")

__all__ = [
    "GLCMLoss",
    "GLCMMAEConfig",
    "GLCMMAEForPreTraining",
    "GLCMMAEForPreTrainingOutput",
    "GLCMMAEModel",
    "GLCMMAEReconstructionOutput",
    "TextureSurprise",
    "cooccurrence_matrix",
    "glcm_loss",
    "offsets_from_angles",
    "soft_assignment",
    "ssim_loss",
    "texture_features",
    "texture_fidelity",
    "texture_surprise",
    "value_range_from_normalization",
]
