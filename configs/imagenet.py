"""ImageNet-1K between heterogeneous architectures: the 15 pairs of the benchmark's table, by any method.

    --config=configs/imagenet.py:teacher=swin_tiny,student=resnet18,method=lfcc

`teacher` and `student` are any two networks of the zoo; the table's pairs are `IMAGENET_PAIRS` in
configs/benchmark.py. `method` is `scratch`, `kd`, `lfcc`, ... (`METHODS` there). The recipe is the one that
One-for-All released. CNN students: 100 epochs of global batches of 512 (2,502 steps), SGD with Nesterov momentum, a
tenth of the learning rate every 30 epochs. Transformers and MLPs: 300 epochs of 1024 (1,251 steps), AdamW, strong
augmentation, a moving average of the weights. It gives OFA the exponent 1.5 for DeiT-T -> ResNet18. LFCC's own settings
are not known to us.

Time: not measured by us; what a step costs a TPU v5e chip is in experiments/results/tpu_compile.md.

1.  The data: TFDS builds it from the two archives of ILSVRC2012, or an existing copy in TFRecords is converted.

    python -m lfcc_jax.data.prepare imagenet2012 --manual-dir=ARCHIVES
    python -m lfcc_jax.data.prepare ~/tensorflow_datasets/imagenet2012/5.1.0 --out=DIRECTORY

2.  The teacher: a checkpoint of timm as it stands.

    python -m lfcc_jax.convert --model swin_tiny_patch4_window7_224 --checkpoint swin.safetensors --out runs/swin

3.  The student. TPU VM: the same command on every worker with --distributed (experiments/tpu/vm.sh). One GPU: as it
    stands; --config.dtype=bfloat16, and --config.student.remat if memory is short.

    python -m lfcc_jax.main --config=configs/imagenet.py:teacher=swin_tiny,student=resnet18,method=lfcc \
        --config.teacher.checkpoint=runs/swin --workdir=runs/swin_resnet18_lfcc

To see all of it work on a CPU in a minute or two, on random images and with small networks:

    python -m lfcc_jax.main --config=configs/imagenet.py:teacher=swin_tiny,method=teacher,runlocal --workdir=runs/t
    python -m lfcc_jax.main --config=configs/imagenet.py:teacher=swin_tiny,student=resnet18,method=lfcc,runlocal \
        --config.teacher.checkpoint=runs/t --workdir=runs/s
"""

from ml_collections import ConfigDict

from configs import benchmark
from lfcc_jax.config_files import parse_argument

METHODS = benchmark.METHODS


def get_config(argument: str = "") -> ConfigDict:
    """Returns the config of one run; `argument` is `teacher=...,student=...,method=...,runlocal`."""
    chosen = parse_argument(
        argument, teacher="swin_tiny", student="resnet18", method=("lfcc", "teacher", *METHODS), runlocal=False
    )
    if chosen.method == "teacher":
        networks = {"teacher": "", "student": chosen.teacher, "method": "scratch"}
    else:
        networks = {"teacher": chosen.teacher, "student": chosen.student, "method": chosen.method}
    data = {"name": "imagenet2012", "train_split": "train", "test_split": "validation", "workers": 16}
    config = benchmark.run(benchmark.imagenet(networks["student"]), data=data, **networks)
    config |= {"dtype": "bfloat16", "checkpoint_every_steps": 1000}
    return ConfigDict(benchmark.runlocal(config, 1000) if chosen.runlocal else config)
