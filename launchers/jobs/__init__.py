"""What starts a `longrope` command in several processes: torchrun on machines, or a Slurm job."""
