#!/bin/bash
#SBATCH --job-name=fukami
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1      # one torchrun per node, which starts one process per GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64       # also used to decode the images
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120        # two minutes before the time limit: write a checkpoint and exit
#SBATCH --requeue                # after a node failure or a preemption, restart from the last checkpoint
#SBATCH --open-mode=append
#
#   sbatch docs/examples/scale/slurm.sh
#
# RUN and FUKAMI_DATA are on storage that all nodes share.
set -euo pipefail

RUN=${RUN:-$HOME/runs/resnet50-$SLURM_JOB_ID}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100    # seconds to write the checkpoint; torchrun's default is 30
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # otherwise a restarted node cannot rejoin
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0    # for nodes with several networks: `ip -brief address`

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
