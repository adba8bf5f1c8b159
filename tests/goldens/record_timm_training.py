"""Records timm's learning rate in each epoch and the weights it decays: `python record_timm_training.py`."""

import json
from pathlib import Path

import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from timm_networks import build

NETWORKS = (
    "resnet18",
    "mobilenetv2_100",
    "convnext_tiny",
    "deit_tiny_patch16_224",
    "swin_pico_patch4_window7_224",
    "mixer_b16_224",
    "resmlp_12_224",
)


def rates(scheduler, epochs, peak, **settings):
    """Returns the learning rate of each epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = scheduler(optimizer, warmup_prefix=False, **settings)
    learning_rates = [optimizer.param_groups[0]["lr"]]
    for epoch in range(1, epochs):
        schedule.step(epoch)
        learning_rates.append(optimizer.param_groups[0]["lr"])
    return learning_rates


def decayed(name):
    """Returns the names of the tensors that timm decays."""
    network = build(name, 10, 224)
    never = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()
    groups = param_groups_weight_decay(network, 0.05, no_weight_decay_list=never)
    chosen = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    return sorted(name for name, p in network.named_parameters() if id(p) in chosen)


def main():
    """Writes timm_training.json."""
    golden = {
        "cifar100_cnn": rates(
            CosineLRScheduler, 300, 0.05, t_initial=300, lr_min=1e-3, warmup_t=3, warmup_lr_init=1e-4
        ),
        "cifar100_token": rates(
            CosineLRScheduler, 300, 5e-4, t_initial=300, lr_min=1e-5, warmup_t=20, warmup_lr_init=5e-7
        ),
        "imagenet_cnn": rates(StepLRScheduler, 100, 0.1, decay_t=30, decay_rate=0.1, warmup_t=3, warmup_lr_init=1e-4),
        "imagenet_token": rates(
            CosineLRScheduler, 300, 5e-4, t_initial=300, lr_min=1e-6, warmup_t=20, warmup_lr_init=5e-7
        ),
        "decayed": {name: decayed(name) for name in NETWORKS},
    }
    Path(__file__).with_name("timm_training.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
