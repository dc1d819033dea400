#!/bin/bash
# Several machines under Slurm, requeued and resumed after a preemption or the time limit:
#   sbatch training/accelerate/slurm.sh --recipe hgkd_resnet50 --dataset ... --output_dir runs/mine
# Slurm sends SIGTERM two minutes before the end; the run then finishes its step, saves and exits, and is queued again
# until summary.json, which is written last, is there.
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

run=$(printf '%s\n' "$@" | grep -A1 -x -- --output_dir | tail -n 1)
if [ -z "$run" ]; then
    echo "error: give --output_dir FOLDER, by which the job knows whether it is done." >&2
    exit 2
fi
[ -f "$run/identity.json" ] && set -- "$@" --resume
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun bash -c 'accelerate launch --config_file training/accelerate/multi_node.yaml --machine_rank "$SLURM_NODEID" \
    --num_machines "$SLURM_NNODES" --num_processes $((SLURM_NNODES * 8)) --main_process_ip "$0" \
    training/distill.py "$@"' "$first" "$@" &
wait $!

# An error of the run's own must not be tried for ever: Slurm counts the restarts.
if [ ! -f "$run/summary.json" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
