#!/usr/bin/env bash
# Runs a config on all workers of a Cloud TPU VM slice; after a preemption, resumes on a new slice.
#
#   experiments/tpu/vm.sh NAME ZONE TYPE BUCKET -- --config=configs/imagenet.py:method=lfcc --config.batch_size=1024
#
# NAME    name of the TPU; created as a spot VM if it does not exist, and left running at the end
# ZONE    for example us-west4-a
# TYPE    for example v5litepod-16, which is the v5e 4x4 slice of experiments/results/tpu_compile.md
# BUCKET  gs://BUCKET/DIRECTORY, the work directory, readable and writable by all workers and by the next slice
#
# Needs gcloud with an account and a project. Teachers can be in the bucket: --config.teacher.checkpoint=gs://...
# Data sets must be on the disk of every worker. The command in TPU_VM_SETUP runs on every worker before the run:
#   TPU_VM_SETUP='gcloud storage rsync --recursive gs://BUCKET/tensorflow_datasets ~/tensorflow_datasets'
set -euo pipefail

if [[ $# -lt 6 || "$5" != "--" ]]; then
    sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
if [[ $4 != gs://?* ]]; then
    echo "BUCKET must be gs://BUCKET/DIRECTORY, got '$4'" >&2
    exit 2
fi
if ! command -v gcloud > /dev/null; then
    echo "gcloud is not installed: https://cloud.google.com/sdk/docs/install" >&2
    exit 1
fi
cd "$(dirname "$0")/../.."
git rev-parse HEAD > /dev/null
if [[ -n $(git status --porcelain) ]]; then
    echo "uncommitted changes are not sent; the slice gets $(git log -1 --format='%h %s')" >&2
fi
name=$1 zone=$2 type=$3 bucket=$4
shift 5
case $type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    *) version=tpu-ubuntu2204-base ;;
esac
wait=${TPU_VM_WAIT:-30} # seconds between polls of the state

tpu() {
    gcloud compute tpus tpu-vm "$1" "$name" --zone="$zone" "${@:2}"
}
on_all() {
    tpu ssh --worker=all --command="$1"
}
state() {
    tpu describe --format='value(state)' 2>/dev/null || true
}

install() {
    local archive
    archive=$(mktemp --suffix=.tar.gz)
    git archive --format=tar.gz --output="$archive" HEAD &&
        gcloud compute tpus tpu-vm scp "$archive" "$name":lfcc_jax.tar.gz --zone="$zone" --worker=all &&
        rm "$archive" &&
        # The Python of the VM images is too old; uv installs one.
        on_all 'mkdir -p lfcc_jax && tar -xzf lfcc_jax.tar.gz -C lfcc_jax && cd lfcc_jax &&
            curl -LsSf https://astral.sh/uv/install.sh | sh && ~/.local/bin/uv venv --quiet --python 3.12 --allow-existing &&
            ~/.local/bin/uv pip install --quiet ".[train,gcs]" "jax[tpu]"' &&
        if [[ -n ${TPU_VM_SETUP:-} ]]; then on_all "$TPU_VM_SETUP"; fi
}

while true; do
    case $(state) in
        READY) ;;
        PREEMPTED | TERMINATED)
            tpu delete --quiet
            continue
            ;;
        "")
            if ! tpu create --accelerator-type="$type" --version="$version" --spot; then
                echo "$name could not be created; retrying in $wait s, Ctrl-C stops" >&2
                sleep "$wait"
            fi
            continue
            ;;
        CREATING | STARTING | RESTARTING | REPAIRING | DELETING | STOPPING)
            echo "$name is $(state)" >&2
            sleep "$wait"
            continue
            ;;
        *)
            echo "$name is $(state); start or delete it" >&2
            exit 1
            ;;
    esac
    if install && on_all "cd lfcc_jax && .venv/bin/python -m lfcc_jax.main --distributed $(printf '%q ' "--workdir=$bucket" "$@")"; then
        exit 0
    fi
    sleep "$wait"
    if [[ $(state) == READY ]]; then
        echo "the run failed without a preemption of $name; see its output above" >&2
        exit 1
    fi
    echo "$name was preempted; resuming from the last checkpoint on a new slice" >&2
done
