"""Basic sweeper of Hydra, extended to sweeps over the choices of a config group.

Hydra loads sweepers only from the namespace package ``hydra_plugins``.
"""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class ChoiceSweeper(BasicSweeper):
    """Sweeper that passes each option only to the jobs whose choices have it."""

    def split_arguments(self, overrides: Any, max_batch_size: int | None) -> Any:  # type: ignore[override]
        """Return the overrides per job, in batches."""
        from ddpm.cli.sweep_options import fit_jobs

        assert self.config is not None and self.hydra_context is not None
        (combinations,) = BasicSweeper.split_arguments(overrides, None)
        loader, config = self.hydra_context.config_loader, self.config
        jobs = fit_jobs(combinations, lambda job: loader.load_sweep_config(config, job))
        return list(BasicSweeper.split_overrides_to_chunks(jobs, max_batch_size))
