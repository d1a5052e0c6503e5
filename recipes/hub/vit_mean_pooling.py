"""A ViT classifier on the mean of the patch tokens. It travels with its checkpoint as custom code."""

import torch
from transformers import ViTForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput


class ViTMeanPoolingForImageClassification(ViTForImageClassification):
    """`ViTForImageClassification` with the mean of the patch tokens where the stock class takes the CLS token."""

    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs,
    ) -> ImageClassifierOutput:
        """As the stock class; `logits` `(batch_size, num_labels)`."""
        outputs = self.vit(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        logits = self.classifier(outputs.last_hidden_state[:, 1:].mean(dim=1))
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


ViTMeanPoolingForImageClassification.register_for_auto_class("AutoModelForImageClassification")
