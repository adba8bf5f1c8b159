"""ImageNet-1K with heterogeneous architectures: the 15 pairs of the benchmark's table, with any method.

    --config=configs/imagenet.py:teacher=swin_tiny,student=resnet18,method=lfcc

`teacher` and `student` are any two networks; the pairs of the table are `IMAGENET_PAIRS` in configs/benchmark.py.
`method` is one of `METHODS` (`scratch`, `kd`, `lfcc`, ...), or `teacher`, which trains the teacher itself. The recipe
is the one released with One-for-All. CNN students: 100 epochs with a global batch size of 512 (2,502 steps), SGD with
Nesterov momentum, the learning rate divided by 10 every 30 epochs. Transformers and MLPs: 300 epochs with 1024 (1,251
steps), AdamW, strong augmentation, a moving average of the weights. OFA's exponent is 1.5 for DeiT-T -> ResNet18.
We do not know the original settings of LFCC.

Time: not measured; the cost of a step on a TPU v5e chip is in experiments/results/tpu_compile.md.

1.  The data: TFDS builds it from the two archives of ILSVRC2012, or converts an existing copy in TFRecords.

    python -m lfcc_jax.data.prepare imagenet2012 --manual-dir=ARCHIVES
    python -m lfcc_jax.data.prepare ~/tensorflow_datasets/imagenet2012/5.1.0 --out=DIRECTORY

2.  The teacher: a timm checkpoint.

    python -m lfcc_jax.convert --model swin_tiny_patch4_window7_224 --checkpoint swin.safetensors --out runs/swin

3.  The student. TPU VM: the same command on every worker with --distributed (experiments/tpu/vm.sh). One GPU: the
    same command, with --config.student.remat if memory runs out.

    python -m lfcc_jax.main --config=configs/imagenet.py:teacher=swin_tiny,student=resnet18,method=lfcc \
        --config.teacher.checkpoint=runs/swin --workdir=runs/swin_resnet18_lfcc

Smoke runs on a CPU, with small networks on random images, in a minute or two:

    python -m lfcc_jax.main --config=configs/imagenet.py:teacher=swin_tiny,method=teacher,runlocal --workdir=runs/t
    python -m lfcc_jax.main --config=configs/imagenet.py:teacher=swin_tiny,student=resnet18,method=lfcc,runlocal \
        --config.teacher.checkpoint=runs/t --workdir=runs/s
"""

from ml_collections import ConfigDict

from configs import benchmark

METHODS = benchmark.METHODS


def get_config(argument: str = "") -> ConfigDict:
    """Returns the config of one run; `argument` is `teacher=...,student=...,method=...,runlocal`."""
    return benchmark.get_config(
        argument,
        recipe=benchmark.imagenet,
        teacher_recipe=benchmark.imagenet,
        data={"name": "imagenet2012", "train_split": "train", "test_split": "validation", "workers": 16},
        num_classes=1000,
        dtype="bfloat16",
        checkpoint_every_steps=1000,
    )
