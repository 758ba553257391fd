"""What each training recipe means: the settings that params.yaml leaves out are filled in from here.

`paper` is the published protocol to the letter (Zou et al., 2023). `strong` collects modern choices, as yet unproven
for long trainings of such networks: a rate that rises and falls, decoupled weight decay (Loshchilov and Hutter, 2019),
label smoothing (Szegedy et al., 2016), cutout (DeVries and Taylor, 2017), and images reflected at their borders in
place of changes of light. What each of them brings is measured in docs/training.md.
"""

from __future__ import annotations

from typing import Any

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "train": {
            "flip": True,
            "padding": 0,
            "brightness": 63.0,
            "contrast": 0.8,
            "cutout": 0,
            "schedule": "constant",
            "warmup": 0.0,
            "weight_decay": 0.0,
            "label_smoothing": 0.0,
            "averaging": 0.0,
        },
        "finetune": {"schedule": "constant"},
    },
    "strong": {
        "train": {
            "flip": True,
            "padding": 4,
            "brightness": 0.0,
            "contrast": 0.0,
            "cutout": 8,
            "schedule": "cosine",
            "warmup": 0.2,
            "weight_decay": 0.05,
            "label_smoothing": 0.1,
            "averaging": 0.0,
        },
        "finetune": {"schedule": "cosine"},
    },
}
"""Settings of the sections `train` and `finetune` by recipe."""
