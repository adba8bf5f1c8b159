"""CIFAR-100 with heterogeneous architectures: the 12 pairs of the benchmark's table, with any method.

    --config=configs/cifar100.py:teacher=swin_tiny,student=resnet18,method=lfcc

`teacher` and `student` are any two networks; the pairs of the table are `CIFAR100_PAIRS` in configs/benchmark.py.
`method` is one of `METHODS` (`scratch`, `kd`, `lfcc`, ...), or `teacher`, which trains the teacher itself. The recipe
is the one released with One-for-All: 300 epochs with a global batch size of 1024, images resized to 224 x 224 pixels;
SGD with Nesterov momentum for CNN students, AdamW with strong augmentation for Transformers and MLPs. Its authors
deviated from it: they report a lower weight of OFA (0.1) and a higher learning rate (0.1) for Swin-T -> ResNet18, and
the scratch baselines of ResNet18 come from an older recipe. We do not know the original settings of LFCC.

Time: not measured. A step of 1024 images costs 3 times the student's MACs plus the teacher's (docs/networks.md lists
GMACs per image); an epoch is 48 steps.

1.  The teacher: a timm ImageNet checkpoint with a new classifier, fine-tuned on CIFAR-100.

    python -m lfcc_jax.convert --model swin_tiny_patch4_window7_224 --checkpoint swin.safetensors \
        --out runs/swin_in1k --head new --num-classes 100
    python -m lfcc_jax.main --config=configs/cifar100.py:teacher=swin_tiny,method=teacher \
        --config.student.checkpoint=runs/swin_in1k --workdir=runs/swin_cifar100

2.  The student. TPU VM: the same command on every worker with --distributed (experiments/tpu/vm.sh). One GPU: the
    same command, with --config.dtype=bfloat16, --config.data.resident (all images in GPU memory), and
    --config.student.remat if memory runs out.

    python -m lfcc_jax.data.prepare cifar100
    python -m lfcc_jax.main --config=configs/cifar100.py:teacher=swin_tiny,student=resnet18,method=lfcc \
        --config.teacher.checkpoint=runs/swin_cifar100 --workdir=runs/swin_resnet18_lfcc

Smoke runs on a CPU, with small networks on random images, in a minute or two:

    python -m lfcc_jax.main --config=configs/cifar100.py:teacher=swin_tiny,method=teacher,runlocal --workdir=runs/t
    python -m lfcc_jax.main --config=configs/cifar100.py:teacher=swin_tiny,student=resnet18,method=lfcc,runlocal \
        --config.teacher.checkpoint=runs/t --workdir=runs/s
"""

from ml_collections import ConfigDict

from configs import benchmark

METHODS = benchmark.METHODS


def get_config(argument: str = "") -> ConfigDict:
    """Returns the config of one run; `argument` is `teacher=...,student=...,method=...,runlocal`."""
    return benchmark.get_config(
        argument,
        recipe=benchmark.cifar100,
        teacher_recipe=benchmark.fine_tuning,
        data={"name": "cifar100", "train_split": "train", "test_split": "test", "workers": 0, "resident": False},
        num_classes=100,
    )
