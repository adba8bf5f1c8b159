"""CIFAR-100 between heterogeneous architectures: the 12 pairs of the benchmark's table, by any method.

    --config=configs/cifar100.py:teacher=swin_tiny,student=resnet18,method=lfcc

`teacher` and `student` are any two networks of the zoo; the table's pairs are `CIFAR100_PAIRS` in
configs/benchmark.py. `method` is `scratch`, `kd`, `lfcc`, ... (`METHODS` there), or `teacher`, which trains
the teacher itself. The recipe is the one that One-for-All released: 300 epochs of global batches of 1024, images
enlarged to 224 x 224 pixels; CNN students by SGD with Nesterov momentum, Transformers and MLPs by AdamW with strong
augmentation. Known departures of what its authors ran: they report a lower weight for OFA (0.1) and a higher learning
rate (0.1) for Swin-T -> ResNet18; scratch baselines of ResNet18 came from an older recipe. LFCC's own settings are not
known to us.

Time: not measured by us. A step of 1024 images costs 3 times the student's and once the teacher's multiplications
(GMACs an image, in the README's table); an epoch is 48 steps.

1.  The teacher: an ImageNet checkpoint of timm, its classifier replaced, trained on CIFAR-100 with a tenth of the
    learning rates.

    python -m lfcc_jax.convert --model swin_tiny_patch4_window7_224 --checkpoint swin.safetensors \
        --out runs/swin_in1k --head new --num-classes 100
    python -m lfcc_jax.main --config=configs/cifar100.py:teacher=swin_tiny,method=teacher \
        --config.student.checkpoint=runs/swin_in1k --workdir=runs/swin_cifar100

2.  The student. TPU VM: the same command on every worker with --distributed (experiments/tpu/vm.sh). One GPU: as it
    stands; --config.dtype=bfloat16, --config.data.resident (all images in the GPU's memory), and
    --config.student.remat if that is short.

    python -m lfcc_jax.data.prepare cifar100
    python -m lfcc_jax.main --config=configs/cifar100.py:teacher=swin_tiny,student=resnet18,method=lfcc \
        --config.teacher.checkpoint=runs/swin_cifar100 --workdir=runs/swin_resnet18_lfcc

To see all of it work on a CPU in a minute or two, on random images and with small networks:

    python -m lfcc_jax.main --config=configs/cifar100.py:teacher=swin_tiny,method=teacher,runlocal --workdir=runs/t
    python -m lfcc_jax.main --config=configs/cifar100.py:teacher=swin_tiny,student=resnet18,method=lfcc,runlocal \
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
        recipe = benchmark.fine_tuning()
    else:
        networks = {"teacher": chosen.teacher, "student": chosen.student, "method": chosen.method}
        recipe = benchmark.cifar100(chosen.student)
    data = {"name": "cifar100", "train_split": "train", "test_split": "test", "workers": 0, "resident": False}
    config = benchmark.run(recipe, data=data, **networks)
    return ConfigDict(benchmark.runlocal(config, 100) if chosen.runlocal else config)
