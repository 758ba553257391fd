"""Which device the tensors live on."""

from __future__ import annotations

import torch

from quantspike.errors import QuantspikeError


def resolve_device(name: str) -> torch.device:
    """Turns `auto`, `cpu`, `cuda` or `cuda:N` into a device that is really there, and that computes in full fp32.

    Args:
        name: `device` in params.yaml; `auto` takes a GPU if there is one.

    Raises:
        QuantspikeError: a GPU is named that this machine does not have.
    """
    # By default torch lets GPUs round the inputs of convolutions to tf32.
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise QuantspikeError(
            f"device is {name!r}, but torch sees {torch.cuda.device_count()} GPUs here; set device to auto or cpu"
        )
    return device


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 itself; where it does not, torch emulates it, which is slower than fp32."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # it answers for the current GPU, whichever that is
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
