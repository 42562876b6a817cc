"""What ``ddpm-evaluate`` does, and ``trainer.evaluate_every``: numbers, and what they depend on."""
