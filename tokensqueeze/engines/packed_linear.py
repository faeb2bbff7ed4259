"""Linear layers for inference on a CPU, their weights laid out for oneDNN.

PyTorch multiplies float32 with MKL, which leaves half of the arithmetic of CPUs of other makes than Intel's unused.
"""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PACKED_WEIGHTS = 2**18
"""Linear layers with fewer weights are faster as they are when few rows are left."""


def pack_linear_layers(model: "PreTrainedModel", rows: int) -> None:
    """Replace the model's large linear layers, for batches of about `rows`, where that can be done: float32 on a CPU.

    Then the model serves for inference alone.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear and child.weight.numel() >= _PACKED_WEIGHTS:
                setattr(module, name, PackedLinear(child, rows))


class PackedLinear(torch.nn.Module):
    def __init__(self, linear: torch.nn.Linear, rows: int):
        super().__init__()
        self.out_features = linear.out_features
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(hidden.contiguous(), self._weight, self._bias, "none", [], "")
