#!/bin/bash
#SBATCH --job-name=fukami
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1      # one torchrun on each machine, which starts a process for each GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64       # they also decode the images
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120        # two minutes before the time is up: a checkpoint, then out
#SBATCH --requeue                # a job that lost a machine or was preempted begins again, from its last checkpoint
#SBATCH --open-mode=append
#
#   sbatch docs/examples/scale/slurm.sh
#
# RUN and FUKAMI_DATA are on storage that all machines share.
set -euo pipefail

RUN=${RUN:-$HOME/runs/resnet50-$SLURM_JOB_ID}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100    # seconds to write the checkpoint; torchrun gives 30 unless told
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # or a machine that comes back is never met
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0    # where the machines have several networks: `ip -brief address`

srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc-per-node "$SLURM_GPUS_ON_NODE" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$HEAD:29400" \
  --rdzv-id "$SLURM_JOB_ID" \
  --max-restarts 3 \
  -m fukami train resnet50 \
    --data imagenet --batch-size 8192 --epochs 90 --lr 0.0125 --lr-scaling linear --warmup 0.056 \
    --timeout 600 --out "$RUN" --resume
