"""Times KD steps of timm's networks in PyTorch on request. Started by `experiments.bench.steps`.

The only argument is the settings as JSON. Each line on stdin is a number of steps, answered by `{"seconds": ...}`: per
step, but for the first line the time of compilation and warm-up.
"""

import contextlib
import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

sys.path.append(str(Path(__file__).parents[2] / "tests" / "goldens"))
from timm_networks import build

CLASSES = 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_step(settings: dict[str, Any], device: str) -> Callable[[], torch.Tensor]:
    """Returns a function that takes one training step and returns the loss."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    count, size = settings["batch_size"], settings["image_size"]
    teacher, student = (
        build(settings[which], CLASSES, size).to(device, memory_format=torch.channels_last)
        for which in ("teacher", "student")
    )
    teacher.eval().requires_grad_(False)
    student.train()
    weights = list(student.parameters())
    block, fused = settings["optimizer"], device == "cuda"
    if block["name"] == "sgd":
        optimizer = torch.optim.SGD(
            weights,
            block["learning_rate"],
            momentum=block["momentum"],
            nesterov=block["nesterov"],
            weight_decay=block["weight_decay"],
            fused=fused,
        )
    else:
        optimizer = torch.optim.AdamW(weights, block["learning_rate"], weight_decay=block["weight_decay"], fused=fused)
    average = [copy.deepcopy(w.detach()) for w in weights] if settings["ema_decay"] else []
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (count,), device=device)
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    if settings["compiled"]:
        teacher, student = torch.compile(teacher), torch.compile(student)
    narrow = settings["dtype"] == "bfloat16"

    def step() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16) if narrow else contextlib.nullcontext():
            x = (images.float() / 255 - mean) / std
            x = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.5, x.flip(-1), x)
            with torch.no_grad():
                theirs = teacher(x)
            ours = student(x)
        loss = F.cross_entropy(ours.float(), labels, label_smoothing=0.1) + F.kl_div(
            F.log_softmax(ours.float(), -1), F.softmax(theirs.float(), -1), reduction="batchmean"
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip := block["clip_norm"]:
            torch.nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()
        if average:
            torch._foreach_lerp_(average, [w.detach() for w in weights], 1 - settings["ema_decay"])
        return loss

    return step


def main() -> None:
    """Answers requests until stdin ends."""
    settings = json.loads(sys.argv[1])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    finish = torch.cuda.synchronize if device == "cuda" else lambda: None
    step = None
    for line in sys.stdin:
        began = time.perf_counter()
        if step is None:
            step = make_step(settings, device)
            for _ in range(3):
                step()
            finish()
            answer = time.perf_counter() - began
        else:
            step()  # reallocates the memory released below
            finish()
            began = time.perf_counter()
            for _ in range(int(line)):
                step()
            finish()
            answer = (time.perf_counter() - began) / int(line)
        if device == "cuda":
            torch.cuda.empty_cache()  # for the other programs on this device
        print(json.dumps({"seconds": answer}), flush=True)


if __name__ == "__main__":
    main()
