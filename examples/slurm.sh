#!/bin/bash
# Explains many prompts on several nodes of a Slurm cluster, one process for each GPU:
#     sbatch --nodes 16 examples/slurm.sh MODEL prompts.jsonl /shared/explained
# The folder must be on a file system that all nodes see. A job that was stopped (out of time, a node that fell out) is put into
# the queue again, and goes on where it was; so does the same command, started by hand.
#SBATCH --job-name=gradellm
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail
model=$1 prompts=$2 output=$3
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / 8))
srun torchrun --nnodes "$SLURM_NNODES" --nproc_per_node 8 \
    --rdzv_id "$SLURM_JOB_ID" --rdzv_backend c10d --rdzv_endpoint "$first:29500" \
    -m gradellm_hf.dataset "$model" --prompts "$prompts" --output "$output" \
    --batch-size 64 --batch-tokens 32768 --scores float16 --max-new-tokens 512
