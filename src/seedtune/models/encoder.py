"""A classifier made of a plain encoder: masked mean of its last hidden states, then one linear head.

Why not `AutoModelForSequenceClassification`: it reads BERT-like encoders through a pooler over the first token, which
sentence encoders never trained and often do not even have, so a head would start on noise. Mean pooling is what such
encoders were trained for and is a fair default for others. A checkpoint that already is a sequence classifier is never
wrapped: `seedtune.models.load` loads it as it is.

Plain transformers cannot load this class; `seedtune.models.export` says what is written instead. Not here: the values
that a head starts from (`seedtune.models.heads`).
"""

import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from .source import Network

HEAD_FILE = "head.safetensors"
"""Where an export keeps the head, beside the encoder's folder: tensors `weight` [num_labels, width] and `bias`."""


class EncoderWithHead(torch.nn.Module):
    """`encoder` (any transformers AutoModel, or PEFT around one) and a float32 `head` [num_labels, width].

    A pooler of the encoder is dropped: no forward would use it, so it could neither be perturbed nor trained.
    The head is float32 whatever the encoder's dtype: it is small, and all of it is tuned.
    """

    def __init__(self, encoder: Network, num_labels: int):
        super().__init__()
        if getattr(encoder, "pooler", None) is not None:
            encoder.pooler = None
        self.encoder = encoder
        width = encoder.config.get_text_config().hidden_size
        self.head = torch.nn.utils.skip_init(torch.nn.Linear, width, num_labels)

    def get_input_embeddings(self) -> torch.nn.Module:
        """Return the table that tokens are looked up in, as models of transformers do."""
        return self.encoder.get_input_embeddings()

    def features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Mean of the last hidden states over the tokens that `attention_mask` keeps: float32 [S, width]."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.unsqueeze(-1).float()
        return (hidden.float() * kept).sum(1) / kept.sum(1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.head(self.features(input_ids, attention_mask)))
