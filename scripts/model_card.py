"""The card that goes with an exported model: what it is, how good, of what, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tuner.escape import visible

if TYPE_CHECKING:
    from models.export import Architecture

_CARD = """\
# An image classifier for {data}

Takes images of {height} × {breadth} pixels with {channels}, and says which of {count} classes each
shows: {classes}.

**Test accuracy {score:.4f} ± {error:.4f}** (binomial standard error), on {tested:,} images that
neither the search nor any training had seen, looked at once.

## Use it

With PyTorch alone:

```python
import torch

model = torch.export.load("model.pt2").module()
images = torch.zeros(1, {shape}, dtype=torch.uint8)  # pixels from 0 to 255
print(model(images).softmax(1).argmax(1))
```

With this project, which reads `model.safetensors` and `config.json` and runs nothing that a file
brings: `models.export.load(folder)`.

## What it is

A convolutional network of {layers} block(s), {parameters:,} parameters; {knobs}.
Images are normalised within it.

## How it was made

{trained}

- Search: `{searcher}`, seed {seed}, {trials} trials, {search:.2f} {unit}.
  Its best scored {validation:.4f} on validation images: the best of many scores flatters, which
  is why there is a test.
- Retraining: {retraining:.2f} {unit}. In all {total:.2f} of {budget:g}.
- Machine: {machine}; {date}.

## What is not known

It was tested on images of the same source as those it learned from. How it does on others, on rarer
classes, or where a wrong answer costs, nobody has looked at.
"""


def card(content: Mapping[str, Any], architecture: Architecture) -> str:
    """Markdown, from the content of model.json and the network's architecture."""
    channels, height, breadth = architecture.image
    minutes, machine = content["minutes"], content["machine"]
    knobs = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in content["config"].items()
        if value is not None
    ]
    how = " and ".join(content["augmented"])
    augmented = f", {how} at random," if how else ""
    trained = (
        f"On all {content['images']:,} images{augmented}, those to validate on included, for "
        f"{content['epochs']} epochs, with the best setting of a search."
        if content["is_retrained"]
        else f"On {content['images']:,} images{augmented} for {content['epochs']} epochs: the best "
        f"network of a search as it is. It was not trained again on all images: "
        f"{content['why_not']}."
    )
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
    return _CARD.format(
        data=visible(content["data"], 60),
        height=height,
        breadth=breadth,
        channels="one channel" if channels == 1 else f"{channels} channels",
        count=len(architecture.classes),
        classes=", ".join(visible(name, 40) for name in architecture.classes[:20])
        + (" and more" if len(architecture.classes) > 20 else ""),
        score=content["test_score"],
        error=content["standard_error"],
        tested=content["test_images"],
        shape=f"{channels}, {height}, {breadth}",
        layers=architecture.layers,
        parameters=content["parameters"],
        knobs=", ".join(knobs),
        trained=trained,
        searcher=content["searcher"],
        seed=content["seed"],
        trials=content["trials"],
        search=minutes["search"],
        retraining=minutes["retraining"],
        total=sum(minutes.values()),
        budget=content["budget_minutes"],
        unit=content["unit"],
        validation=content["validation_score"],
        machine=f"{machine['device']}; {versions}",
        date=content["date"],
    )
