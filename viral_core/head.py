"""The alignment head P_pi (Eq. 4 and 6): visual hidden states of the language model to the teacher's features."""

from torch import Tensor, nn


class AlignmentHead(nn.Sequential):
    """Linear - SiLU - Linear - SiLU - Linear from (..., dim_in) to (..., dim_out).

    Weights start at N(0, std), biases at 0; 0.02 is the released code's. A narrow head needs a larger std: its output
    would start tiny, and the gradient of a cosine grows as 1 / |output| (and takes all of a clipped gradient norm).
    """

    def __init__(self, dim_in: int, dim_out: int, hidden: int = 2048, std: float = 0.02):
        layers = [nn.Linear(dim_in, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, dim_out)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        super().__init__(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Project hidden states (T, dim_in), in any floating type, to (T, dim_out)."""
        return super().forward(hidden_states.to(self[0].weight.dtype))
