"""CIFAR-100 between unlike architectures: the 12 pairs of the benchmark's table, by any method.

    --config=configs/cifar100.py:teacher=swin_tiny,student=resnet18,method=lfcc

`teacher` and `student` are any two networks of the zoo; the table's pairs are `CIFAR100_PAIRS` in
lfcc_jax/training/recipes.py. `method` is `scratch`, `kd`, `lfcc`, ... (`METHODS` there), or `teacher`, which trains
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

2.  The student. TPU VM: the same command on every worker with --distributed (experiments/tpu_vm.sh). One GPU: as it
    stands; --config.dtype=bfloat16, and --config.student.remat if memory is short.

    python -m lfcc_jax.data.prepare cifar100
    python -m lfcc_jax.main --config=configs/cifar100.py:teacher=swin_tiny,student=resnet18,method=lfcc \
        --config.teacher.checkpoint=runs/swin_cifar100 --workdir=runs/swin_resnet18_lfcc

To see all of it work on a CPU in a minute or two, on random images and with small networks:

    python -m lfcc_jax.main --config=configs/cifar100.py:teacher=swin_tiny,method=teacher,runlocal --workdir=runs/t
    python -m lfcc_jax.main --config=configs/cifar100.py:teacher=swin_tiny,student=resnet18,method=lfcc,runlocal \
        --config.teacher.checkpoint=runs/t --workdir=runs/s
"""

from ml_collections import ConfigDict

from lfcc_jax.training import recipes
from lfcc_jax.training.config import parse_argument

METHODS = recipes.METHODS


def get_config(argument: str = "") -> ConfigDict:
    """Returns the config of one run; `argument` is `teacher=...,student=...,method=...,runlocal`."""
    chosen = parse_argument(
        argument, teacher="swin_tiny", student="resnet18", method=("lfcc", "teacher", *METHODS), runlocal=False
    )
    is_teacher = chosen.method == "teacher"
    recipe = recipes.fine_tuning() if is_teacher else recipes.cifar100(chosen.student)
    if is_teacher:
        chosen.student, chosen.method = chosen.teacher, "scratch"

    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict({"name": "cifar100", "data_dir": "", "train_split": "train", "test_split": "test"})
    config.data.image_size = 224
    config.data.workers = 0
    config.data.augmentation = ConfigDict(recipe["augmentation"])
    config.student = ConfigDict({"name": chosen.student, "checkpoint": "", "remat": False, "drop_path": 0.0})
    if chosen.student.startswith(("resnet", "mobilenet")):  # they have no stochastic depth
        del config.student.drop_path
    config.teacher = ConfigDict({"name": "" if is_teacher else chosen.teacher, "checkpoint": ""})
    config.losses = ConfigDict(recipes.losses(chosen.method, chosen.student))
    config.optimizer = ConfigDict(recipe["optimizer"])
    config.epochs = recipe["epochs"]
    config.batch_size = recipe["batch_size"]
    config.ema_decay = recipe["ema_decay"]
    config.dtype = "float32"
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.log_every_steps = 48
    config.eval_every_epochs = 1.0
    config.checkpoint_every_steps = 0

    if chosen.runlocal:
        config.data.name = "noise_100x32"
        config.data.image_size = 64
        config.student.update(recipes.smaller(chosen.student))
        if config.teacher.name:
            config.teacher.update(recipes.smaller(chosen.teacher))
        config.batch_size = 16
        config.epochs = 0.25
        config.log_every_steps = 4
    return config
